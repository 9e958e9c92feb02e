"""A device as it was measured: what it is, the table of measurements, and what was fitted to them. No code."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sarto.errors import RequestError
from sarto.types.fields import (
    AboveZero,
    AtLeastZero,
    Frozen,
    Name,
    Number,
    Positive,
    Several,
    Sha,
    Text,
    Version,
    Whole,
)
from sarto.types.value import Value


class ProfiledDevice(Value):
    """What was measured on.

    Attributes:
        cores: processors that the measuring process could use.
        memory_bytes: of the machine; None where it does not say.
        system: operating system and its version.
        version: of the runtime.
        threads: threads that the runtime could use.
        batch: samples in one call.
        sarto: version that measured.
        started: ISO 8601, UTC.
    """

    processor: Name
    cores: Positive
    memory_bytes: Positive | None = None
    system: Name
    runtime: Name
    version: Name
    threads: Positive
    batch: Positive
    precision: Name = "float32"
    sarto: Name
    started: Name


class MeasuredRow(Value):
    """The latency of one model.

    Attributes:
        what: a subnet of a backbone, several side by side under one head, or a block of operators of one kind.
        model: name of the backbone or the block.
        counts: units kept of the groups of which not all are kept.
        parts: of each subnet of a pack, the units kept.
        latency_ms: median, corrected for the drift of the machine.
        raw_ms: median as it was.
        reference_ms: median of the reference in the same chunk.
        repeat: how often it had been measured before.
    """

    what: Literal["subnet", "block", "pack"]
    model: Name
    counts: Frozen[Name, Whole] = Field(default_factory=dict)
    parts: Several[Frozen[Name, Whole]] = ()
    latency_ms: AboveZero
    raw_ms: AboveZero
    reference_ms: AboveZero
    chunk: Whole
    repeat: Whole = 0


class MemoryRow(Value):
    """The memory of one model: what was counted, and what a process grew by when it loaded and ran it."""

    model: Name
    counts: Frozen[Name, Whole] = Field(default_factory=dict)
    size_bytes: Whole
    activation_bytes: Whole
    measured_bytes: Whole


class Noise(Value):
    """How steady the machine was.

    Attributes:
        repeat_share: mean difference of a model that was measured again, as a share of its latency.
        drift_share: how far apart the slowest and quickest chunks were by the reference, as a share of its median.
        trend_share: how much slower the reference got from the first third of the chunks to the last.
        n_repeats: models that were measured again.
    """

    repeat_share: AtLeastZero
    drift_share: AtLeastZero
    trend_share: Number
    n_repeats: Whole


class Residuals(Value):
    """How far measurements lie from what is predicted without them.

    Attributes:
        folds: weights without each part of the rows.
        part: of each row, the part that leaves it out.
        shares: of each row, measured over predicted without it, minus 1.
    """

    folds: Several[Several[AtLeastZero]]
    part: Several[Whole]
    shares: Several[Number]

    @model_validator(mode="after")
    def _check_rows(self) -> Residuals:
        if len(self.part) != len(self.shares) or any(part >= len(self.folds) for part in self.part):
            raise RequestError(
                f"{len(self.part)} parts for {len(self.shares)} rows and {len(self.folds)} folds don't fit together"
            )
        return self

    @property
    def error_share(self) -> float:
        """Mean error on rows left out, as a share of what was measured."""
        errors = [abs(1 - 1 / (1 + share)) for share in self.shares]
        return sum(errors) / max(1, len(errors))


class KindModel(Value):
    """Milliseconds for one of each feature of each kind of operator: the latency of any graph.

    Attributes:
        names: `kind.feature` of each weight, `*.feature` for kinds that were not measured, and `fixed`.
        vector_width: channels are counted in whole vectors of so many numbers.
    """

    names: Several[Name]
    weights: Several[AtLeastZero]
    vector_width: Positive
    residuals: Residuals

    @model_validator(mode="after")
    def _check_widths(self) -> KindModel:
        _same_width(len(self.names), self.weights, self.residuals)
        return self


class PackModel(Value):
    """How much longer subnets take side by side than one by one.

    Attributes:
        share_per_part: what each part after the first adds, as a share of what all parts take one by one.
        shares: of each measured pack, measured over predicted without it, minus 1.
    """

    share_per_part: AtLeastZero
    shares: Several[Number]

    @property
    def error_share(self) -> float:
        """Mean error on packs left out, as a share of what was measured."""
        errors = [abs(1 - 1 / (1 + share)) for share in self.shares]
        return sum(errors) / max(1, len(errors))


class BackboneModel(Value):
    """Milliseconds for each thing that the subnets of a backbone can tell apart.

    Attributes:
        backbone: its name when it was measured.
        skeleton: hash of its operators; equal for the backbone and all its slices.
        graph_hash: of its structure with all sizes, without weights; None where an older version measured it.
        base_ms: for one of each term of the graph, before the fit.
        column: of each term, the weight that it is multiplied with.
        pull: how strongly the weights were drawn together.
        packs: what its subnets take side by side; None where no packs were measured.
    """

    backbone: Name
    skeleton: Sha
    graph_hash: Sha | None = None
    base_ms: Several[AtLeastZero]
    column: Several[Whole]
    weights: Several[AtLeastZero]
    vector_width: Positive
    pull: AtLeastZero
    residuals: Residuals
    packs: PackModel | None = None

    @model_validator(mode="after")
    def _check_widths(self) -> BackboneModel:
        _same_width(len(self.weights), self.weights, self.residuals)
        if len(self.column) != len(self.base_ms) or any(place >= len(self.weights) for place in self.column):
            raise RequestError(
                f".column: {len(self.column)} places among {len(self.weights)} weights, for {len(self.base_ms)} terms"
            )
        return self


class MemoryModel(Value):
    """Bytes that a process grows by when it loads and runs a model.

    Attributes:
        fixed_bytes: whatever the model is.
        per_size_byte: for each byte of its tensors.
        per_activation_byte: for each byte of activations that is alive at once.
        least_factor: smallest of measured over fitted.
        most_factor: largest of measured over fitted.
    """

    fixed_bytes: AtLeastZero
    per_size_byte: AtLeastZero
    per_activation_byte: AtLeastZero
    least_factor: AboveZero = 1.0
    most_factor: AboveZero = 1.0


class DeviceProfile(Value):
    """A measured device. It predicts the latency and memory of any graph, best of the backbones that it knows.

    Attributes:
        rows: everything that was measured.
        notes: what the user should know, noise above all.
        unit_step: the runtime is quick where channels are multiples of it; other counts take as long as the next
            multiple, or longer.
        off_step_ratio: how many times as long as the next multiple they take at most.
    """

    profile: Version = 1
    name: Name
    device: ProfiledDevice
    rows: Several[MeasuredRow] = ()
    memory_rows: Several[MemoryRow] = ()
    noise: Noise | None = None
    kinds: KindModel
    backbones: Several[BackboneModel] = ()
    memory: MemoryModel | None = None
    notes: Annotated[Several[Text], Field(max_length=100)] = ()
    unit_step: Positive = 1
    off_step_ratio: AboveZero = 1.0

    def backbone(self, skeleton: str) -> BackboneModel | None:
        """What was fitted for graphs of that skeleton."""
        return next((found for found in self.backbones if found.skeleton == skeleton), None)


def _same_width(wanted: int, weights: tuple[float, ...], residuals: Residuals) -> None:
    widths = {len(weights), *(len(fold) for fold in residuals.folds)}
    if widths != {wanted}:
        raise RequestError(f".weights: {wanted} are expected, here and in each fold; got {sorted(widths)}")
