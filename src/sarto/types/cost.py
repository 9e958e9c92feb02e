"""Budget (upper limits) and cost (the same numbers, predicted or measured)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from sarto.errors import RequestError
from sarto.types.fields import AboveZero, AtLeastZero, Positive, Ratio, Whole
from sarto.types.value import Value

#: The names of the limits, in the order in which tables show them.
LIMITS = ("params", "flops", "memory_bytes", "size_bytes", "latency_ms")


class Budget(Value):
    """Upper limits; a limit that is not set does not count.

    Attributes:
        params: trainable parameters.
        flops: for one sample, 2 per multiply-add.
        memory_bytes: peak of the activations for one sample.
        size_bytes: all stored tensors.
        latency_ms: median time of one batch on the order's device.
    """

    params: Positive | None = None
    flops: Positive | None = None
    memory_bytes: Positive | None = None
    size_bytes: Positive | None = None
    latency_ms: AboveZero | None = None

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
        size_bytes: all stored tensors.
        latency_ms: median time of one batch on the order's device; None when unknown.
        latency_low_ms: low end of the latency's interval.
        latency_high_ms: high end of the latency's interval.
        basis: whether the numbers come from rules or from the built model.
    """

    params: Whole
    flops: Whole
    memory_bytes: Whole
    size_bytes: Whole
    latency_ms: AtLeastZero | None = None
    latency_low_ms: AtLeastZero | None = None
    latency_high_ms: AtLeastZero | None = None
    basis: Literal["predicted", "measured"]

    @model_validator(mode="after")
    def _check_interval(self) -> Cost:
        known = [v for v in (self.latency_low_ms, self.latency_ms, self.latency_high_ms) if v is not None]
        if known != sorted(known):
            raise RequestError(f"latency_low_ms <= latency_ms <= latency_high_ms was expected, got {known}")
        return self

    def over(self, budget: Budget) -> tuple[str, ...]:
        """Names of the limits that this cost breaks; latency counts only where it is known."""
        return tuple(
            name
            for name, limit in budget.limits().items()
            if (found := getattr(self, name)) is not None and found > limit
        )


class WidthCost(Value):
    """Cost of a donor's feature extractor with every sliceable group cut to one ratio.

    Attributes:
        ratio: kept share of each group.
        output_bytes: size of the features of one sample.
        width: number of features.
    """

    ratio: Ratio
    params: Whole
    flops: Whole
    memory_bytes: Whole
    output_bytes: Whole
    size_bytes: Whole
    width: Positive
