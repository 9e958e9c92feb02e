"""What an index of a zoo writes down about its probe images and about each model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sarto.errors import RequestError
from sarto.types.fields import Flag, Name, Positive, Several, Sha, Share, Text, Version, Whole
from sarto.types.value import Value


class PlaceRecord(Value):
    """A cut point of an indexed model; see `sarto.engines.reassembly.Place`."""

    value: Name
    layout: Literal["map", "tokens", "vector"]
    channels: Positive
    rows: Positive
    columns: Positive
    prefix: Whole = 0
    channels_last: Flag = False
    dtype: Name = "float32"


class IndexedModel(Value):
    """A model of an index.

    Attributes:
        learnware: its id in the market.
        graph_hash, weights_hash: of the donor's files; a copy of a donor has the same.
        first_row: row of its first place in the signatures.
        first_number: where its pooled features begin, in numbers.
        digest: of its signatures' bytes.
        params, flops, sizes: of everything before each place, and of the whole model last.
        peaks: peak activation bytes of each step between places.
        skill: accuracy on the samples that came with it; None where it came without.
        indexed: when, in UTC.
    """

    learnware: Sha
    name: Name
    graph_hash: Sha
    weights_hash: Sha
    places: Annotated[Several[PlaceRecord], Field(min_length=1)]
    params: Several[Whole]
    flops: Several[Whole]
    sizes: Several[Whole]
    peaks: Several[Whole]
    first_row: Whole
    first_number: Whole
    digest: Sha
    skill: Share | None = None
    licence: Text = ""
    indexed: Text = ""

    @model_validator(mode="after")
    def _check_lengths(self) -> IndexedModel:
        wanted = len(self.places) + 1
        wrong = [name for name in ("params", "flops", "sizes", "peaks") if len(getattr(self, name)) != wanted]
        if wrong:
            raise RequestError(f".{wrong[0]}: {len(self.places)} places have {wanted} entries each")
        return self


class ProbeIndexAbout(Value):
    """What all signatures of an index have in common.

    Attributes:
        probe_hash: content hash of the probe images.
        n_probes: number of them.
        batch: images in one Gram matrix.
        cells: parts of the grid along each axis that signatures tell apart.
        length: numbers of a signature.
        sketch: numbers of a sketch.
    """

    index: Version = 1
    name: Name
    probe_hash: Sha
    n_probes: Positive
    batch: Positive
    cells: Positive = 1
    length: Positive
    sketch: Positive
    created: Text = ""
