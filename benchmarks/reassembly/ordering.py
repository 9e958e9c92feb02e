"""An order on real donors whose best chain is trained a little: whether that is kept; a distilled student beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reassembly.zoo import SHIPPED, graph_of, n_classes, probes, tests, usable
from benchmarks.slicepack.images import read
from sarto import Market, Request, Samples
from sarto.pipeline.indexing import index_zoo
from sarto.types import Report, Row


def trained_order(
    *,
    data: str,
    members: list[str],
    n_ordered: int,
    n_samples: int,
    n_probes: int,
    batch: int,
    train: dict[str, Any],
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """What an order for the first classes of a data set delivers, with the training that it asks for.

    Every donor comes with `n_samples` images of each class of the pool; they choose and train. The published ResNets
    were trained on these too, which flatters donors and chains alike on left-out samples. Test images are the held-out
    ones, which the report alone reads.

    Args:
        n_ordered: classes ordered; at least two donors are asked for, so that a chain is delivered.
        train: as an order names it.
    """
    names = usable(data, members)
    classes = [str(i) for i in range(n_classes(data))] if data == SHIPPED else [*read(data, "test").classes]
    pool, labels = probes(data, n_samples * len(classes) * 3, seed)
    samples = _samples(pool, labels, classes, n_samples)
    held = _samples(*tests(data, n_tested), classes, n_tested)
    side = samples.images.shape[1]
    plain = {"size": [side, side], "channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3}
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        heldout = Path(folder, "heldout.npz")
        np.savez(heldout, images=held.images, labels=held.labels, classes=np.array(held.classes))
        with Market.create(Path(folder, "market")) as market:
            for name in names:
                market.add(
                    graph_of(data, name), name=name, classes=classes, preprocessing=plain, samples=samples
                )
            index_zoo(market.store, "zoo", n_probes=n_probes, batch=batch)
            request = Request.parse(
                {
                    "task": {"classes": [f"{names[0]}:{cls}" for cls in classes[:n_ordered]]},
                    "engines": ["reassembly"],
                    "donors": {"least": 2},
                    "baselines": ["student"],
                    "train": train,
                    "heldout": str(heldout),
                    "seed": seed,
                }
            )
            report = market.make(request, Path(folder, "out")).report
    return _numbers(report)


def _samples(images: Tensor, labels: Tensor, classes: list[str], most: int) -> Samples:
    """The first images of each class, at most so many."""
    chosen = torch.cat([torch.nonzero(labels == label).flatten()[:most] for label in range(len(classes))])
    pixels = (images[chosen] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Samples(pixels.contiguous().numpy(), labels[chosen].numpy(), tuple(classes))


def _numbers(report: Report) -> dict[str, Any]:
    """The trained chain beside the same chain untrained, the student, and every other row."""
    rows = {row.name: row for row in report.rows}
    after = next(row for row in report.rows if row.name.endswith(", trained"))
    chain = after.name.removesuffix(", trained")
    before = rows.get(chain) or rows[f"{chain}, before training"]
    student = next(row for row in report.rows if row.name.startswith("distilled student"))
    return {
        "n_trained_kept": int(after.note.endswith(": kept")),
        "n_trained_picked": int(after.role == "pick"),
        **_accuracies("untrained", before),
        **_accuracies("trained", after),
        **_accuracies("student", student),
        **_accuracies("pick", report.pick),
        "rows": [
            {
                "name": row.name,
                "role": row.role,
                "params": None if row.cost is None else row.cost.params,
                "accuracy_loto": row.accuracy_loto,
                "accuracy_heldout": row.accuracy_heldout,
                "note": row.note,
            }
            for row in report.rows
        ],
    }


def _accuracies(name: str, row: Row) -> dict[str, float]:
    told = {"loto": row.accuracy_loto, "heldout": row.accuracy_heldout}
    numbers = {f"accuracy_{how}_{name}": value for how, value in told.items() if value is not None}
    return numbers if row.cost is None else numbers | {f"n_params_{name}": row.cost.params}
