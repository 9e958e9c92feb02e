"""NetGraft: narrow student blocks, grafted one by one onto their teacher and then together, without labels."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.engines.baselines.descent import Views, descend, quick
from sarto.engines.baselines.given import (
    UNLIMITED,
    Budget,
    Given,
    Meter,
    Original,
    Progress,
    Trained,
    shared_out,
    silent,
)
from sarto.engines.baselines.grafting import Adaption, Parted, assemble, merged, part, to_student, to_teacher
from sarto.engines.baselines.probing import packed
from sarto.engines.baselines.settings import NETGRAFT, NetGraftSettings
from sarto.graph import ModelGraph, block, chain, features, with_state
from sarto.training import draw_weights


@dataclass(frozen=True, eq=False)
class Grafted:
    """A student that replaces its donor: same classes, fewer parameters.

    Attributes:
        graph: inputs to the donor's logits.
        seconds: that it took, by the clock.
        steps: updates of weights.
    """

    graph: ModelGraph
    seconds: float
    steps: int
    stopped: str | None = None

    @property
    def extractor(self) -> ModelGraph:
        """The student up to the input of its classifier."""
        return block(self.graph, end=features(self.graph).value)


def netgraft(given: Given, settings: NetGraftSettings = NETGRAFT) -> Trained:
    """A grafted student of every donor, side by side under one classifier, as Slice-and-Pack uses NetGraft.

    Accuracy on left-out samples leaves them out of the classifier alone: grafting read no labels.
    """
    begun = time.perf_counter()
    shares: Sequence[int | None] = [None] * len(given.donors)
    if given.budget.steps is not None:
        shares = shared_out([1] * len(given.donors), given.budget.steps)
    students = []
    for place, (donor, share) in enumerate(zip(given.donors, shares, strict=True)):
        seconds = given.budget.seconds
        if seconds is not None:
            # What is left is for the donors that are left.
            left = max(seconds - (time.perf_counter() - begun), 1e-3)
            seconds = left / (len(given.donors) - place)
        inputs = donor.inputs if donor.inputs is not None else given.inputs
        students.append(
            graft(
                donor,
                inputs,
                settings,
                seed=given.seed,
                budget=Budget(share, seconds),
                progress=given.progress,
            )
        )
    steps = sum(student.steps for student in students)
    note = f"NetGraft: students of {len(students)} donors under a ridge head, {steps} steps"
    stopped = sorted({student.stopped for student in students if student.stopped})
    note += f"; {', '.join(stopped)}" if stopped else ""
    return packed([student.extractor for student in students], given, note, begun, steps)


def graft(
    donor: Original,
    inputs: Tensor,
    settings: NetGraftSettings = NETGRAFT,
    *,
    seed: int = 0,
    budget: Budget = UNLIMITED,
    progress: Progress = silent,
) -> Grafted:
    """A narrower student of one donor, taught by its logits on a few samples without labels.

    Args:
        inputs: samples of the donor's classes, shape (n, ...).

    Reference:
        Shen et al.: Progressive Network Grafting for Few-Shot Knowledge Distillation, AAAI 2021: blocks one by one,
        then the growing student. Their code's losses (squared distance of logits of length 1), rates and epochs.
    Differs:
        The blocks are those of any network of maps. The student starts from units of the teacher drawn at random, its
        batch norm stays as it is. The last weights are kept: the authors' code keeps those that are best on the test
        set. Samples are mirrored, not cropped, so the teacher runs twice in all. Neighbouring adaptions become one.
    """
    parted = part(donor.graph, settings.ratio, seed)
    grafts = _Grafts(parted, Views.of(inputs), donor, settings, torch.Generator().manual_seed(seed))
    k = len(inputs) / len(donor.classes)
    batch = max(1, round(settings.batch * k / 10))
    per_epoch = math.ceil(len(inputs) / batch) if len(inputs) <= batch else len(inputs) // batch
    n_blocks = len(parted.student)
    epochs = [settings.first_epochs, *[settings.block_epochs] * (n_blocks - 1)]
    epochs += [settings.chain_epochs] * (n_blocks - 1)
    steps = shared_out([per_epoch * e for e in epochs], budget.steps)
    meter = Meter(budget, sum(steps), progress)
    stopped = None
    spans = [(place, place) for place in range(n_blocks)] + [(0, last) for last in range(1, n_blocks)]
    for (first, last), updates in zip(spans, steps, strict=True):
        if not updates:
            continue
        single = first == last
        rates = (
            (settings.rate * k / 10, settings.adaption_rate * k / 10)
            if single
            else (settings.chain_rate,) * 2
        )
        ended = grafts.train(first, last, updates, rates, batch, meter)
        stopped = stopped or ended
    return Grafted(grafts.finished(), meter.seconds, meter.steps, stopped)


def logit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of logits (n, q) that are scaled to length 1, summed over samples.

    Reference: NetGraft, equation (4); length 1 is the authors' code's setting for CIFAR.
    """
    return (F.normalize(student, dim=1) - F.normalize(teacher, dim=1)).square().sum()


class _Grafts:
    """The modules that train: student blocks, and the ways in and out at each cut."""

    def __init__(
        self,
        parted: Parted,
        views: Views,
        donor: Original,
        settings: NetGraftSettings,
        generator: torch.Generator,
    ) -> None:
        self.parted, self.views, self.generator, self.name = parted, views, generator, donor.name
        fresh = settings.start == "fresh"
        self.blocks = [one.module(train=True) for one in parted.student]
        self.enter, self.leave = list[Adaption](), list[Adaption]()
        for kept, size in parted.kept:
            self.enter.append(self._adaption(to_student(kept, size), fresh))
            self.leave.append(self._adaption(to_teacher(kept, size), fresh))
        for module in self.blocks:
            if fresh:
                draw_weights(module, generator)
            else:
                module.eval()
        # Values of the frozen teacher at every cut, then its logits: each block's input and everybody's aim.
        self.values = [views.inputs]
        for one in parted.teacher:
            module = one.module()
            self.values.append(
                torch.stack([Views(view.unsqueeze(0)).said(module)[0] for view in self.values[-1]])
            )

    def train(
        self, first: int, last: int, steps: int, rates: tuple[float, float], batch: int, meter: Meter
    ) -> str | None:
        """Train student blocks first..last between the teacher's others."""
        scion = self._scion(first, last)
        rest = (
            chain(self.parted.teacher[last + 1 :]).module() if last + 1 < len(self.blocks) else nn.Identity()
        )
        inner = [p for module in scion if not isinstance(module, Adaption) for p in module.parameters()]
        outer = [p for module in scion if isinstance(module, Adaption) for p in module.parameters()]
        groups = [
            {"params": params, "lr": rate}
            for params, rate in ((inner, rates[0]), (outer, rates[1]))
            if params
        ]
        whole = nn.Sequential(*scion, rest)
        given, wanted = Views(self.values[first]), self.values[-1]

        def loss(at: tuple[Tensor, Tensor]) -> Tensor:
            (logits,) = quick(whole, given.inputs[at])
            return logit_distance(logits, wanted[at])

        return descend(
            given,
            loss,
            torch.optim.Adam(groups),
            steps=steps,
            batch=batch,
            generator=self.generator,
            meter=meter,
            what=f"NetGraft: grafting {self.name}",
        )

    def finished(self) -> ModelGraph:
        """The student with its trained weights and merged adaptions."""
        blocks = [
            with_state(graph, module) for graph, module in zip(self.parted.student, self.blocks, strict=True)
        ]
        pairs = zip(self.leave, self.enter, strict=True)
        return assemble(blocks, [merged(leave, enter) for leave, enter in pairs])

    def _scion(self, first: int, last: int) -> list[nn.Module]:
        found: list[nn.Module] = [] if first == 0 else [self.enter[first - 1]]
        for place in range(first, last + 1):
            found.append(self.blocks[place])
            if place < len(self.leave):
                found.append(self.leave[place])
            if place < last:
                found.append(self.enter[place])
        return found

    def _adaption(self, weight: Tensor, fresh: bool) -> Adaption:
        made = Adaption(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            made.weight.copy_(weight)
        if fresh:
            draw_weights(made, self.generator)
        return made.to(self.views.inputs.device)
