"""A detector's real weights as a donor: its front under the rear of a classifier, joined without training."""

from __future__ import annotations

import statistics
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.place import data_folder
from benchmarks.reassembly.zero_gradient import accuracy_of
from benchmarks.reassembly.zoo import SHIPPED, donor, names, probes, tests
from sarto import zoo
from sarto.engines.reassembly import Assembler, Donor, Making, Piece, anatomy
from sarto.graph import capture

FILE = "fastestdet_coco_ap05_0.2532.safetensors"


def detector(
    *, data: str, tail: str, n_cuts: int, entered: int, side: int, n_probes: int, n_tested: int, seed: int
) -> dict[str, Any]:
    """FastestDet (trained on COCO) up to its first cut points, then a classifier from a cut point on.

    Args:
        tail: the classifier, a member of the zoo.
        n_cuts: of the detector's cut points whose grid is that of the entered one, the first so many.
        entered: number of the classifier's cut point.
        side: to which images are enlarged for the detector.
    """
    inputs, _ = probes(data, n_probes, seed)
    images, labels = tests(data, n_tested)
    last = donor(data, names(data)[0] if data == SHIPPED else tail, inputs)
    model: nn.Module = zoo.fastestdet()
    if data != SHIPPED:
        model.load_state_dict(load_file(data_folder() / "weights" / FILE))
    graph = capture(model.eval(), torch.rand(2, 3, side, side), prove=False)
    first = Donor("fastestdet", graph, anatomy(graph), _enlarged(inputs, side))
    rows = last.anatomy.places[entered].grid[0]
    ends = [i for i, place in enumerate(first.anatomy.places) if place.grid[0] == rows][:n_cuts]
    makers = {name: Assembler([first, last], making) for name, making in _ways().items()}
    own = accuracy_of(last.graph, images, labels)
    found: list[dict[str, Any]] = []
    for end in ends:
        pieces = (Piece(0, None, end), Piece(1, entered, None))
        row: dict[str, Any] = {"cut": first.anatomy.places[end].value}
        for name, maker in makers.items():
            row[f"accuracy_{name}"] = accuracy_of(maker.graph(pieces), _enlarged(images, side), labels)
        row["params"] = makers["stitched"].cost(pieces).params
        found.append(row)
    stitched = [row["accuracy_stitched"] for row in found]
    # No cut is chosen: test images would have to choose it.
    return {
        "accuracy_tail": own,
        "accuracy_stitched_mean": statistics.mean(stitched),
        "accuracy_stitched_worst": min(stitched),
        "accuracy_random_mean": statistics.mean(row["accuracy_random"] for row in found),
        "kept_share_mean": statistics.mean(stitched) / max(own, 1e-9),
        "n_cuts": len(found),
        "rows": found,
    }


def _ways() -> dict[str, Making]:
    return {"stitched": Making(), "random": Making(random=1)}


def _enlarged(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
