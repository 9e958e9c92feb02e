"""What every kind of source gives."""

from __future__ import annotations

from dataclasses import dataclass

from sarto.graph import ModelGraph
from sarto.types import Preprocessing


@dataclass(frozen=True, eq=False)
class Source:
    """A captured model and where it came from, in words.

    Attributes:
        origin: what was read, for people.
        preprocessing: what the source says about its images; None where it says nothing, or nothing that
            `Preprocessing` can express.
        classes: names of the outputs in their order; empty where the source has none.
        notes: what the user should know before trusting the model.
    """

    graph: ModelGraph
    origin: str
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
