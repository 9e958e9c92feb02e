"""The assembler: the network that turns a task and a limit into gates of a supernet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.engines.factory.codes import check_limits, limit_code
from sarto.engines.factory.gates import (
    Layout,
    bounded,
    check_room,
    cut_gate,
    cut_to_limit,
    hard_gate,
    kept_least,
    limit_loss,
    lowest_limit,
    mixed_gates,
    nested_gates,
)
from sarto.errors import ShapeError
from sarto.types import AssemblerSettings


class LayerGater(nn.Module):
    """Weights of one group's units from the selection encoding: a softmax mixes several linear gaters.

    Reference:
        NN-Factory, arXiv 2308.15003, section 4: a batch norm of its own for each layer, several layer gaters, and a
        gating network that weighs them.
        Differs: batch norm and ReLU stand before the linear layer; after it, weights would be at least 0 and no gate
        could close.
    """

    def __init__(self, given: int, units: int, settings: AssemblerSettings) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(given)
        self.mix = nn.Linear(given, settings.gaters)
        inner = settings.rank or given
        self.narrow = nn.Linear(given, settings.gaters * inner, bias=False) if settings.rank else None
        self.gaters = nn.Parameter(torch.empty(settings.gaters, units, inner))
        self.bias = nn.Parameter(torch.full((units,), settings.start if settings.order == "paper" else 0.0))
        nn.init.normal_(self.gaters, std=inner**-0.5)

    def forward(self, encoding: Tensor) -> Tensor:
        """(n, given) -> (n, units)."""
        read = F.relu(self.norm(encoding))
        shares = torch.softmax(self.mix(encoding), 1)
        n, gaters = shares.shape
        if self.narrow is None:
            made = torch.einsum("ni,gui->ngu", read, self.gaters)
        else:
            made = torch.einsum("ngi,gui->ngu", self.narrow(read).view(n, gaters, -1), self.gaters)
        return torch.einsum("ngu,ng->nu", made, shares) + self.bias


class Assembler(nn.Module):
    """Gates for tasks and limits.

    Args:
        properties: bits of a task code.
        layout: group -> its columns among the gates.
        skips: groups that may close to the last unit, so that a block is skipped.

    Attributes:
        least: group -> units that it keeps at any limit.

    Reference:
        NN-Factory, arXiv 2308.15003, sections 3.2 and 4, equations (1)-(2).
        Differs: in the nested order the limit is no input; it says how many units open.
    """

    def __init__(
        self,
        properties: int,
        layout: Layout,
        settings: AssemblerSettings,
        skips: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.layout = dict(layout)
        self.settings = settings
        self.skips = skips
        self.least = {
            group: 0 if group in skips else n_least
            for group, n_least in kept_least(layout, settings.least).items()
        }
        self.properties = properties
        given = properties + (settings.limit_dims if settings.order == "paper" else 0)
        self.encode = nn.Linear(given, settings.hidden)
        self.norm = nn.BatchNorm1d(settings.hidden)
        self.layers = nn.ModuleList(
            LayerGater(settings.hidden, stop - start, settings) for start, stop in self.layout.values()
        )

    @property
    def units(self) -> int:
        """Gated units."""
        return sum(stop - start for start, stop in self.layout.values())

    def weights(self, codes: Tensor, limits: Tensor) -> Tensor:
        """What decides about each unit (n, units): open where above 0 (paper); the larger the earlier (both orders).

        Args:
            codes: multi-hot task codes (n, properties).
            limits: (n,), each in (0, 1].

        Raises:
            ShapeError: codes have another number of bits, or limits are not one for each.
        """
        if codes.ndim != 2 or codes.shape[1] != self.properties or limits.shape != codes.shape[:1]:
            raise ShapeError(
                f"task codes (n, {self.properties}) and limits (n,) were expected, got {tuple(codes.shape)} and "
                f"{tuple(limits.shape)}"
            )
        check_limits(limits)
        given = codes
        if self.settings.order == "paper":
            given = torch.cat([codes, limit_code(limits, self.settings.limit_dims)], 1)
        encoding = F.relu(self.norm(self.encode(given)))
        made = torch.cat([layer(encoding) for layer in self.layers], 1)
        if self.settings.order == "nested":
            # Only the order counts; at one scale the soft threshold is as steep for every task.
            return (made - made.mean(1, keepdim=True)) / (made.std(1, keepdim=True) + 1e-6)
        return made

    @torch.no_grad()
    def gates(self, codes: Tensor, limits: Tensor) -> Tensor:
        """Zeros and ones (n, units); the share of ones is never above the limit.

        Raises:
            RequestError: a limit is outside (0, 1], or leaves no room for the units that each group keeps.
        """
        check_limits(limits)
        check_room(limits, self.layout, self.least)
        weights = self.weights(codes, limits)
        least = self.least
        if self.settings.order == "paper":
            return cut_to_limit(weights, limits, self.layout, least=least)
        return nested_gates(
            weights, self.held(limits), self.layout, least=least, temperature=self.settings.temperature
        ).round()

    def held(self, limits: Tensor) -> Tensor:
        """Limits as they count: in the nested order never above `most`, but enough for the units that groups keep."""
        if self.settings.order == "paper":
            return limits
        most = max(self.settings.most, min(1.0, lowest_limit(self.layout, self.least) * (1 + 1e-6)))
        return limits.clamp(max=most)

    def training_gates(
        self, codes: Tensor, limits: Tensor, *, hard: Tensor, clipped: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gates (n, units) that pass gradients, and the loss on limits (n,).

        Args:
            hard: samples (n,) that take hard gates in the paper's order; the others take soft ones.
            clipped: samples (n,) whose gates in the paper's order are those of `gates`: cut to the limit.
            noise: added to the weights, (n, units).
        """
        weights = self.weights(codes, limits)
        shift = 0.0 if noise is None else noise
        if self.settings.order == "nested":
            gates = nested_gates(
                weights + shift,
                self.held(limits),
                self.layout,
                least=self.least,
                temperature=self.settings.temperature,
            )
            return gates, torch.zeros_like(limits)
        # The importance of units is not bounded: of many that are wide open, the most important ones stay.
        cut = cut_to_limit(weights.detach() + shift, limits, self.layout, least=self.least)
        read = bounded(weights, self.settings.clamp) + shift
        gates = torch.where(clipped[:, None], cut_gate(read, cut), mixed_gates(read, hard))
        return gates, limit_loss(hard_gate(read), limits)
