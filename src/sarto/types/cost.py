"""Budget (upper limits) and cost (the same numbers, predicted or measured)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sarto.errors import RequestError
from sarto.types.fields import AboveZero, AtLeastZero, Frozen, Name, Positive, Ratio, Several, Whole
from sarto.types.value import Value

#: What widths are solved for; bytes follow parameters.
Objective = Literal["params", "flops", "latency_ms"]
Limit = Literal["params", "flops", "memory_bytes", "size_bytes", "latency_ms", "process_bytes"]

#: The names of the limits, in the order in which tables show them.
LIMITS: tuple[Limit, ...] = ("params", "flops", "memory_bytes", "size_bytes", "latency_ms", "process_bytes")


class Budget(Value):
    """Upper limits; a limit that is not set does not count.

    Attributes:
        params: trainable parameters.
        flops: for one sample, 2 per multiply-add.
        memory_bytes: peak of the activations for one sample.
        size_bytes: all stored tensors; where the device computes in another precision than single, also the file that
            it runs.
        latency_ms: median time of one batch on the order's device.
        process_bytes: what a fresh process grows by when it loads and runs the model on the order's device.
    """

    params: Positive | None = None
    flops: Positive | None = None
    memory_bytes: Positive | None = None
    size_bytes: Positive | None = None
    latency_ms: AboveZero | None = None
    process_bytes: Positive | None = None

    def limits(self) -> dict[str, int | float]:
        """The limits that are set."""
        found = {name: getattr(self, name) for name in LIMITS}
        return {name: limit for name, limit in found.items() if limit is not None}


class Cost(Value):
    """What a model costs; `flops` and `memory_bytes` are for one sample.

    Attributes:
        params: trainable parameters.
        flops: for one sample, 2 per multiply-add.
        memory_bytes: peak of the activations for one sample.
        size_bytes: all stored tensors; measured, the device's file where that is in another precision.
        latency_ms: median time of one batch on the order's device; None when unknown.
        latency_low_ms: low end of the latency's interval.
        latency_high_ms: high end of the latency's interval.
        process_bytes: what a process grows by when it loads and runs the model; None when unknown.
        process_low_bytes: low end of that interval.
        process_high_bytes: high end of that interval.
        basis: whether the numbers come from rules or from the built model.
    """

    params: Whole
    flops: Whole
    memory_bytes: Whole
    size_bytes: Whole
    latency_ms: AtLeastZero | None = None
    latency_low_ms: AtLeastZero | None = None
    latency_high_ms: AtLeastZero | None = None
    process_bytes: Whole | None = None
    process_low_bytes: Whole | None = None
    process_high_bytes: Whole | None = None
    basis: Literal["predicted", "measured"]

    @model_validator(mode="after")
    def _check_interval(self) -> Cost:
        known = [v for v in (self.latency_low_ms, self.latency_ms, self.latency_high_ms) if v is not None]
        if known != sorted(known):
            raise RequestError(f"latency_low_ms <= latency_ms <= latency_high_ms was expected, got {known}")
        return self

    def over(self, budget: Budget) -> tuple[str, ...]:
        """Names of the limits that this cost breaks; latency and a process's memory count only where they are known."""
        return tuple(
            name
            for name, limit in budget.limits().items()
            if (found := getattr(self, name)) is not None and found > limit
        )


class TrunkCost(Value):
    """Cost of the front of an extractor, which several fragments of one donor can share.

    Attributes:
        groups: the channel groups whose units they share; all others they choose for themselves.
        held_bytes: values of one sample that the front hands on.
    """

    groups: Annotated[Several[Name], Field(min_length=1)]
    params: Whole
    flops: Whole
    size_bytes: Whole
    held_bytes: Whole


class WidthCost(Value):
    """Cost of a donor's feature extractor at one size.

    Attributes:
        ratio: share of the extractor's cost that this size aims at.
        objective: the cost that it is a share of, and that the widths save most of for what they lose.
        keep: units kept of each sliceable channel group.
        output_bytes: size of the features of one sample.
        width: number of features.
        trunks: fronts of the extractor at this size, from short to long.
    """

    ratio: Ratio
    objective: Objective = "params"
    keep: Frozen[Name, Positive] = Field(default_factory=dict, validate_default=True)
    params: Whole
    flops: Whole
    memory_bytes: Whole
    output_bytes: Whole
    size_bytes: Whole
    width: Positive
    trunks: Several[TrunkCost] = ()


def pack_cost(
    widths: Sequence[WidthCost],
    n_classes: int,
    trunks: Sequence[tuple[TrunkCost, int]] = (),
    *,
    bias: bool = True,
) -> Cost:
    """Predicted cost of extractors side by side under one linear head.

    Parameters and FLOPs are exact where the extractors share their trunks and nothing else. Peak memory: branches
    run one after the other, each beside the features already made and what the trunks hand on; the input that they
    share is counted in each.

    Args:
        trunks: fronts that fragments share, and how many fragments share each.
        bias: whether the head adds a number for each class.
    """
    handed = sum(trunk.held_bytes for trunk, _ in trunks)
    width, held, peak = sum(w.width for w in widths), 0, 0
    for part in widths:
        peak = max(peak, handed + held + part.memory_bytes)
        held += part.output_bytes
    head = n_classes * (width + bias)
    return Cost(
        params=sum(w.params for w in widths) + head - sum(t.params * (n - 1) for t, n in trunks),
        flops=sum(w.flops for w in widths)
        + 2 * n_classes * width
        - sum(t.flops * (n - 1) for t, n in trunks),
        memory_bytes=max(peak, 2 * held),
        size_bytes=sum(w.size_bytes for w in widths)
        + 4 * head
        - sum(t.size_bytes * (n - 1) for t, n in trunks),
        basis="predicted",
    )
