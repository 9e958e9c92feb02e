"""Slice-and-Pack as the paper trains it: pooling, adaption and combining of layers, then Enc, Dec and H."""

from __future__ import annotations

from sarto.engines.slicepack.paper.fragment import PaperFragment, fuse, paper_fragment
from sarto.engines.slicepack.paper.layers import read_layers
from sarto.engines.slicepack.paper.packing import PaperPack, paper_pack
from sarto.engines.slicepack.paper.proposal import as_paper
from sarto.types import PaperSettings

__all__ = [
    "PaperFragment",
    "PaperPack",
    "PaperSettings",
    "as_paper",
    "fuse",
    "paper_fragment",
    "paper_pack",
    "read_layers",
]
