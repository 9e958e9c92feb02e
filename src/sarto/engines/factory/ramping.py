"""When limits begin to come down in training: once tasks begin to be learnt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sarto.types import JointSettings

#: Share of the mean of what was seen that a further step leaves.
_KEPT = 0.98


def ramp(settings: JointSettings, progress: float, begun: float | None = None) -> float:
    """How far limits have come down and their loss has come up, in [0, 1], at a share of the steps.

    Args:
        begun: share of the steps at which tasks began to be learnt; None: not before `open_until`.
    """
    start = settings.open_until if begun is None else min(begun, settings.open_until)
    if progress < start:
        return 0.0
    return min(1.0, (progress - start) / max(1e-9, settings.ramp_until - settings.open_until))


@torch.no_grad()
def answered(outputs: Tensor, answers: Tensor, allowed: Tensor) -> Tensor:
    """How many samples were answered right beyond guessing, and how many could be (2,); their ratio is in (-inf, 1].

    Args:
        outputs: (n, outputs).
        answers: (n,).
        allowed: (n, outputs), true where a sample's task has the output.
    """
    right = (outputs.masked_fill(~allowed, -torch.inf).argmax(1) == answers).float()
    guessed = 1 / allowed.sum(1).float()
    return torch.stack([(right - guessed).sum(), (1 - guessed).sum()])


class Ramp(nn.Module):
    """Watches a training until its limits come down; what it has seen travels in the checkpoints.

    Until then every sample has limit 1.

    Args:
        by_loss: what is seen are losses, of which no chance is known; else shares of right answers beyond guessing.

    Attributes:
        begun: share of the steps at which tasks began to be learnt; -1 where they did not yet.
    """

    mean: Tensor
    weight: Tensor
    start: Tensor
    begun: Tensor

    def __init__(self, settings: JointSettings, *, by_loss: bool) -> None:
        super().__init__()
        self.settings, self.by_loss = settings, by_loss
        for name, value in (("mean", 0.0), ("weight", 0.0), ("start", 0.0), ("begun", -1.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def at(self, step: int) -> float:
        """How far limits have come down at a step, in [0, 1]."""
        begun = float(self.begun)
        return ramp(self.settings, step / self.settings.steps, begun if begun >= 0 else None)

    def watches(self, step: int) -> bool:
        """Whether anything depends on what is seen at a step."""
        settings = self.settings
        waits = settings.open_accuracy is not None and float(self.begun) < 0
        return waits and step / settings.steps < settings.open_until

    def see(self, step: int, value: float) -> None:
        """Take in a step's loss, or how well its samples were answered: 0 is guessing, 1 all of them.

        A loss is compared with what it was at `open_from`, when it has left the value that fresh weights give.
        """
        wanted = self.settings.open_accuracy
        if not self.watches(step) or wanted is None:
            return
        self.mean.mul_(_KEPT).add_((1 - _KEPT) * value)
        self.weight.mul_(_KEPT).add_(1 - _KEPT)
        recent = float(self.mean / self.weight)
        progress = (step + 1) / self.settings.steps
        early = progress < self.settings.open_from
        if early or not float(self.start):
            self.start.fill_(recent)
        learnt = 1 - recent / max(float(self.start), 1e-12) if self.by_loss else recent
        if not early and learnt >= wanted:
            self.begun.fill_(progress)
