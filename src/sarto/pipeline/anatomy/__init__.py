"""What a model is made of, for people: channel groups, cut points, blocks with cost, and a picture of them."""

from __future__ import annotations

from sarto.pipeline.anatomy.describe import describe
from sarto.pipeline.anatomy.picture import draw
from sarto.pipeline.anatomy.values import Anatomy, Block, Cut, Group, Pin, Reading, Step
from sarto.pipeline.anatomy.words import explain, group_named

__all__ = [
    "Anatomy",
    "Block",
    "Cut",
    "Group",
    "Pin",
    "Reading",
    "Step",
    "describe",
    "draw",
    "explain",
    "group_named",
]
