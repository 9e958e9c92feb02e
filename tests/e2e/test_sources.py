"""From a model folder that somebody else's library wrote to a delivered model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sarto
from sarto.pipeline import Market
from tests.unit.cli.markets import run, write_samples

transformers = pytest.importorskip("transformers", minversion="5.0")

LABELS = {0: "cat", 1: "dog", 2: "[red]ship"}


@pytest.mark.slow
def test_a_transformers_folder_becomes_a_small_model(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=LABELS
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "net")
    described = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps({**described, "resample": 2}))
    samples, market, out = write_samples(tmp_path / "samples.npz"), tmp_path / "market", tmp_path / "out"
    order = ("--classes", "cat,dog", "--engines", "slicepack", "--max-params", 5_000)
    for command in (
        ("market", "init", market),
        ("add", tmp_path / "net", "--name", "net", "--samples", samples, "--market", market),
        ("make", *order, "--market", market, "-o", out),
        ("verify", out),
    ):
        found = run(*command)
        assert found.exit_code == 0, found.output
    with Market.open(market) as opened:
        (learnware,) = opened.learnwares()
        graph = opened.store.graph(learnware.id)
    assert learnware.classes == tuple(LABELS.values()) and learnware.origin.endswith(
        "ResNetForImageClassification"
    )
    # The stocked model is the one of the folder, and its skill is measured on its own preprocessing.
    images = np.load(samples)["images"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        want = model(pixel_values=(pixels - 0.5) / 0.25).logits
    torch.testing.assert_close(graph((pixels - 0.5) / 0.25), want, rtol=1e-5, atol=1e-5)
    labels = torch.arange(3).repeat_interleave(6)
    recall = {name: float((want.argmax(1)[labels == i] == i).float().mean()) for i, name in LABELS.items()}
    assert learnware.skill == pytest.approx(recall)
    delivered = sarto.load(out)
    assert delivered.classes == ("cat", "dog")
    kept = delivered.graph
    assert sum(kept.tensors[name].numel() for name in kept.parameters) <= 5_000
    assert {prediction.label for prediction in delivered(images[:12])} <= {"cat", "dog"}
