"""What a market holds of a model: its manifest."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, model_validator

from sarto.errors import RequestError
from sarto.types.cost import Cost, WidthCost
from sarto.types.fields import Frozen, Name, Names, Positive, Several, Sha, Share, Text, Whole, twice
from sarto.types.preprocessing import AnyPreprocessing
from sarto.types.value import Value


class Learnware(Value):
    """A stocked model and its specification.

    Attributes:
        id: content hash of the graph, the weights and what is said about them.
        classes: the model's outputs, in order.
        preprocessing: from what is stored (images or texts) to what the model reads.
        samples_hash: content hash of the few samples stocked with it.
        origin: where it comes from: a path, an address, "made by ...".
        input_shape: without the batch axis.
        n_samples: stocked samples of each class.
        skill: recall of each class, measured as `skill_basis` says.
        created: when it was stocked, ISO 8601.
        widths: what its feature extractor costs when it is sliced.
    """

    id: Sha
    name: Name
    classes: Annotated[Names, Field(min_length=1)]
    preprocessing: AnyPreprocessing
    graph_hash: Sha
    weights_hash: Sha
    samples_hash: Sha | None = None
    licence: Text = ""
    notes: Text = ""
    origin: Text = ""
    input_shape: Annotated[Several[Positive], Field(min_length=1, max_length=8)]
    n_samples: Frozen[Name, Whole] = Field(default_factory=dict, validate_default=True)
    skill: Frozen[Name, Share] | None = None
    skill_basis: Text | None = None
    cost: Cost
    created: Text
    widths: Several[WidthCost] = ()

    @model_validator(mode="after")
    def _check_manifest(self) -> Learnware:
        problems = []
        if double := twice(self.classes):
            problems.append(f".classes: named twice: {', '.join(double)}")
        for field in ("n_samples", "skill"):
            unknown = sorted(set(getattr(self, field) or ()) - set(self.classes))
            if unknown:
                problems.append(f".{field}: names classes that the model does not have: {', '.join(unknown)}")
        if (self.skill is None) != (self.skill_basis is None):
            problems.append(".skill: goes with skill_basis; say how skill was measured")
        try:
            datetime.fromisoformat(self.created)
        except ValueError:
            problems.append(f".created: must be a time in ISO 8601, got {self.created[:40]!r}")
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self

    @property
    def own_bias(self) -> bool:
        """Whether the last layer adds a number for each class; so it does unless counts of parameters deny it."""
        whole = next((width for width in self.widths if width.ratio == 1.0), None)
        return whole is None or self.cost.params - whole.params != len(self.classes) * whole.width
