"""Deep model reassembly: dissect a zoo into interchangeable blocks, choose and stitch the best chain of them.

Reference:
    Yang, Zhou, Liu, Ye, Wang, Deep Model Reassembly, NeurIPS 2022 (arXiv 2210.17409).
"""

from sarto.engines.reassembly.assembly import Assembler, Donor, Making, Piece, tidy
from sarto.engines.reassembly.astar import Sweep, best_chains, pareto
from sarto.engines.reassembly.conflicts import conflict
from sarto.engines.reassembly.drawing import random_chains
from sarto.engines.reassembly.heuristic import dissect_by_moves
from sarto.engines.reassembly.milp import best_by_milp, certified
from sarto.engines.reassembly.partition import Cuts, Limits, Partition, dissect_zoo
from sarto.engines.reassembly.places import Anatomy, Place, anatomy
from sarto.engines.reassembly.planning import Entry, Layout, Wish, Zoo, dissect, layout, with_r2
from sarto.engines.reassembly.probing import Probed, probe
from sarto.engines.reassembly.problem import Choice, Found, Joint, Problem, Sides, Stage
from sarto.engines.reassembly.proxies import PROXIES
from sarto.engines.reassembly.ranking import Likeness, Ranked, cascade, final_features, kendall, likeness
from sarto.engines.reassembly.signatures import (
    Similarity,
    Sketcher,
    cka,
    cka_errors,
    signature,
    similarity,
)
from sarto.engines.reassembly.stability import Steadiness, adjusted_rand, choose_k, similarity_error
from sarto.engines.reassembly.stitch import Stitch
from sarto.engines.reassembly.stitches import Fit, fit_stitch, random_stitch
from sarto.engines.reassembly.tuning import Tuning, tune_chain

__all__ = [
    "PROXIES",
    "Anatomy",
    "Assembler",
    "Choice",
    "Cuts",
    "Donor",
    "Entry",
    "Fit",
    "Found",
    "Joint",
    "Layout",
    "Likeness",
    "Limits",
    "Making",
    "Partition",
    "Piece",
    "Place",
    "Probed",
    "Problem",
    "Ranked",
    "Sides",
    "Similarity",
    "Sketcher",
    "Stage",
    "Steadiness",
    "Stitch",
    "Sweep",
    "Tuning",
    "Wish",
    "Zoo",
    "adjusted_rand",
    "anatomy",
    "best_by_milp",
    "best_chains",
    "cascade",
    "certified",
    "choose_k",
    "cka",
    "cka_errors",
    "conflict",
    "dissect",
    "dissect_by_moves",
    "dissect_zoo",
    "final_features",
    "fit_stitch",
    "kendall",
    "layout",
    "likeness",
    "pareto",
    "probe",
    "random_chains",
    "random_stitch",
    "signature",
    "similarity",
    "similarity_error",
    "tidy",
    "tune_chain",
    "with_r2",
]
