"""Benchmarks of reassembly that compare chains with rivals: what is what, and what chooses."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.reassembly import budgets, transfer
from benchmarks.reassembly.mixed import kind_of
from benchmarks.reassembly.stages import exchanged
from benchmarks.reassembly.zoo import SHIPPED, donor, names, probes
from benchmarks.slicepack.heads import fitted
from sarto.devices import count
from sarto.engines.reassembly import Partition, Piece
from sarto.graph import block, features


def test_a_chain_is_mixed_where_its_donors_are_of_both_kinds() -> None:
    donors = ["resnet14", "vit", "convnext"]
    kinds = [kind_of([Piece(i, None, None) for i in chain], donors) for chain in ((0, 0), (0, 1), (2, 1))]
    assert kinds == ["cnn", "mixed", "transformer"]


def test_an_exchange_takes_one_stage_of_the_guest_and_the_rest_of_the_host() -> None:
    bounds = np.array([[[0, 1], [1, 3], [3, 4]], [[0, 2], [2, 5], [5, 6]]])
    parting = Partition(bounds, np.tile(np.arange(3), (2, 1)), 0.0, (0.0,))
    assert exchanged(parting, 0, 1, 1) == (Piece(0, None, 1), Piece(1, 2, 5), Piece(0, 3, None))
    assert exchanged(parting, 1, 0, 0) == (Piece(0, None, 1), Piece(1, 2, 5), Piece(1, 5, None))
    assert exchanged(parting, 1, 0, 2) == (Piece(1, None, 2), Piece(1, 2, 5), Piece(0, 3, None))


def test_a_new_head_says_what_the_fitted_one_says_on_the_donors_features() -> None:
    inputs, _ = probes(SHIPPED, 12)
    labels = torch.arange(12) % 2
    graph = donor(SHIPPED, names(SHIPPED)[0], inputs).graph
    made = transfer.headed(graph, inputs, labels)
    read = torch.as_tensor(block(graph, end=features(graph).value)(inputs))
    torch.testing.assert_close(
        torch.as_tensor(made.graph(inputs)), fitted([read], labels).head.scores(read).to(read.dtype)
    )


def _idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def test_digits_are_read_as_colour_images_of_the_donors_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SARTO_DATA", str(tmp_path))
    monkeypatch.setattr(transfer, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no mnist in .*Debian has dataset-mnist"):
        transfer.target_images("mnist", "test", 4, 0)
    (tmp_path / "mnist").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
    _idx(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", pixels)
    _idx(tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz", np.arange(6, dtype=np.uint8))
    images, labels = transfer.target_images("mnist", "test", 4, 0)
    assert images.shape == (4, 3, 32, 32) and len(set(labels.tolist())) == 4
    whole = torch.from_numpy(pixels[labels.numpy()]).float() / 255
    assert all(torch.equal(images[:, colour, 2:-2, 2:-2], whole) for colour in range(3))


def test_of_what_was_made_under_a_budget_held_images_choose_and_the_smaller_of_equals() -> None:
    def row(model: str, held: float, accuracy: float, params: int) -> dict[str, Any]:
        return {"model": model, "accuracy_held": held, "accuracy": accuracy, "params": params}

    donors = [row("donor", 0.5, 0.9, 10), row("donor", 0.6, 0.4, 20), row("donor", 0.6, 0.3, 15)]
    kept = budgets._ranked([*donors, row("chain", 0.6, 0.7, 30), row("paper", 0.1, 0.1, 5)], 40)
    # Neither the donor that is best on test images nor the chain, which is: they are no better on held images.
    assert [r["model"] for r in kept if r["preferred"]] == ["donor"]
    assert [r["params"] for r in kept if r["model"] == "donor"] == [15]
    told = budgets._summary(kept, [40])
    assert told["chain_ahead_points_40"] == pytest.approx(40) and told["accuracy_preferred_40"] == 0.3
    assert (told["n_budgets_chain_on_front"], told["n_budgets_best_preferred"]) == (1, 0)


def test_a_pruned_donor_keeps_the_budget_and_its_images_labels_are_not_read() -> None:
    inputs, labels = probes(SHIPPED, 16)
    donors = [donor(SHIPPED, name, inputs) for name in names(SHIPPED)[:2]]
    limit = count(donors[0].graph).params // 2

    def pruned(truth: Tensor) -> budgets.Contender | None:
        given = budgets.Images((inputs, truth), (inputs, labels), (inputs, labels), (inputs, labels))
        return budgets._pruned(donors, [0.2, 0.1], "params", limit, 1, given)

    made, other = pruned(labels), pruned(labels.flip(0))
    assert made is not None and other is not None and made.donors == donors[0].key
    assert count(made.graph).params <= limit
    assert torch.equal(torch.as_tensor(made.graph(inputs)), torch.as_tensor(other.graph(inputs)))
