"""How long it takes to stock every class of one donor, and what writing and finding the fragments adds."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarto import Market, Samples
from sarto.graph import ModelGraph
from sarto.market import Store
from sarto.zoo import resnet34

#: What an untrained donor of this many stages looks like when it is made small.
SMALL = 16


def stocking(
    *, n_classes: int, k: int, side: int, sizes: list[float], processes: int, small: bool, seed: int
) -> dict[str, Any]:
    """Seconds for all classes of a ResNet34 with random weights and random images; its size is that of a trained one.

    Args:
        k: samples a class.
        side: of the images.
        small: a few channels in place of ResNet34's.
    """
    torch.manual_seed(seed)
    classes = [f"class {place}" for place in range(n_classes)]
    model = resnet34(n_classes, stem="cifar", **({"width": SMALL} if small else {}))
    images = np.random.default_rng(seed).integers(0, 256, (n_classes * k, side, side, 3), dtype=np.uint8)
    samples = Samples(images, np.repeat(np.arange(n_classes), k), tuple(classes))
    pixels = {"size": [side, side], "channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3}
    with tempfile.TemporaryDirectory() as folder, Market.create(Path(folder) / "market") as market:
        begun = time.perf_counter()
        donor = market.add(
            model.eval(), name="resnet34", classes=classes, preprocessing=pixels, samples=samples
        )
        add_seconds = time.perf_counter() - begun
        done = market.stock_fragments(sizes=sizes, processes=processes)
        if done.failed:
            raise RuntimeError(f"{len(done.failed)} fragments failed: {done.failed[0].reason}")
        again = market.stock_fragments(sizes=sizes, processes=processes)
        graphs = [market.store.fragment(made.piece.key) for made in done.made]
        writing = [_write_seconds(Path(folder) / "copy", graph) for graph in graphs[:5] if graph is not None]
        size_bytes = sum(path.stat().st_size for path in (market.path / "blobs").rglob("*") if path.is_file())
    return {
        "stock_seconds": done.seconds,
        "stock_seconds_per_fragment": done.seconds / len(done.made),
        "slice_seconds_per_fragment": sum(made.seconds for made in done.made) / len(done.made),
        "write_seconds_per_fragment": sum(writing) / len(writing),
        "restock_seconds": again.seconds,
        "add_seconds": add_seconds,
        "n_fragments": len(done.made),
        "n_processes": processes,
        "donor_params": donor.cost.params,
        "fragment_params_mean": sum(made.params for made in done.made) / len(done.made),
        "market_size_bytes": size_bytes,
    }


def _write_seconds(folder: Path, graph: ModelGraph) -> float:
    """Seconds to put a fragment into a store of its own, from tensors that are in memory."""
    key = "sha256:" + "0" * 64
    held = replace(graph, tensors={name: tensor.clone() for name, tensor in graph.tensors.items()})
    with Store.open(folder) if folder.exists() else Store.create(folder) as store:
        store.remove_fragment(key)
        begun = time.perf_counter()
        store.put_fragment(key, held, {})
        return time.perf_counter() - begun
