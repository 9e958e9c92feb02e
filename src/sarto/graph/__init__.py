"""The core: a model is a graph and its weights, and all surgery is a function from graph to graph."""

from __future__ import annotations

from sarto.graph.analysis import INSIDE_HEADS, KINDS, Analysis, ChannelGroup, Consumption, analyse
from sarto.graph.approximate import NormFit, Trimmed, trim
from sarto.graph.capture import capture
from sarto.graph.compose import (
    Features,
    branch,
    features,
    normalise,
    restrict,
    with_head,
    with_layer,
)
from sarto.graph.cuts import CutPoint, block, chain, cut_points, dissect, main_cuts
from sarto.graph.file import GraphFile, graph_hash, read_graph, write_graph
from sarto.graph.gate import gate, gate_layout, gateable, through_norms
from sarto.graph.hollow import hollow
from sarto.graph.model import (
    BatchDim,
    Constant,
    Input,
    ModelGraph,
    Node,
    Ref,
    TensorRef,
)
from sarto.graph.proof import Proof, prove, proven, relative_difference, zeroed
from sarto.graph.pt2 import read_pt2, write_pt2
from sarto.graph.repair import expand_map, fold, repair, repairable
from sarto.graph.run import evaluate
from sarto.graph.selection import Selection, leading, uniform_counts
from sarto.graph.slice import slice
from sarto.graph.training_mode import with_state

__all__ = [
    "INSIDE_HEADS",
    "KINDS",
    "Analysis",
    "BatchDim",
    "ChannelGroup",
    "Constant",
    "Consumption",
    "CutPoint",
    "Features",
    "GraphFile",
    "Input",
    "ModelGraph",
    "Node",
    "NormFit",
    "Proof",
    "Ref",
    "Selection",
    "TensorRef",
    "Trimmed",
    "analyse",
    "block",
    "branch",
    "capture",
    "chain",
    "cut_points",
    "dissect",
    "evaluate",
    "expand_map",
    "features",
    "fold",
    "gate",
    "gate_layout",
    "gateable",
    "graph_hash",
    "hollow",
    "leading",
    "main_cuts",
    "normalise",
    "prove",
    "proven",
    "read_graph",
    "read_pt2",
    "relative_difference",
    "repair",
    "repairable",
    "restrict",
    "slice",
    "through_norms",
    "trim",
    "uniform_counts",
    "with_head",
    "with_layer",
    "with_state",
    "write_graph",
    "write_pt2",
    "zeroed",
]
