"""What examples/ ships: weights load strictly and reach their stated accuracy; sheets hold what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sarto import zoo

EXAMPLES = Path(__file__).parents[3] / "examples"
DONORS = ("mobilenetv2", "resnet20", "vgg")
COUNTER = "num_batches_tracked"


def describe(name: str) -> dict[str, Any]:
    return json.loads((EXAMPLES / "donors" / f"{name}.json").read_text())


def build(card: Mapping[str, Any]) -> nn.Module:
    room, factory = card["factory"].split(":")
    assert room == "sarto.zoo"
    return getattr(zoo, factory)(**card["arguments"])


def stored(name: str) -> dict[str, Tensor]:
    return load_file(EXAMPLES / "donors" / f"{name}.safetensors")


def tiles(folder: str, label: str) -> np.ndarray:
    """Images (n, 32, 32, 3) of one class's sheet, row by row."""
    with Image.open(EXAMPLES / "images" / folder / f"{label}.webp") as image:
        sheet = np.asarray(image.convert("RGB"))
    rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
    return sheet.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


def test_descriptions_and_weights_come_in_pairs() -> None:
    folder = EXAMPLES / "donors"
    assert sorted(path.stem for path in folder.glob("*.json")) == list(DONORS)
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == list(DONORS)


@pytest.mark.parametrize("name", DONORS)
def test_weights_fit_the_factory_without_a_name_left_over(name: str) -> None:
    weights = stored(name)
    model = build(describe(name))
    counters = {key: value for key, value in model.state_dict().items() if key.endswith(COUNTER)}
    model.load_state_dict({**{key: value.float() for key, value in weights.items()}, **counters}, strict=True)
    assert not any(key.endswith(COUNTER) for key in weights)
    for value in weights.values():
        assert value.dtype == (torch.float16 if value.ndim > 1 else torch.float32)
        assert torch.isfinite(value).all()


def test_weights_are_small_and_donors_know_different_classes() -> None:
    sizes = [(EXAMPLES / "donors" / f"{name}.safetensors").stat().st_size for name in DONORS]
    assert sum(sizes) <= 8_000_000
    known = [set(describe(name)["classes"]) for name in DONORS]
    assert all(not one & other for one, other in combinations(known, 2))
    assert len(set.union(*known)) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", DONORS)
def test_shipped_weights_reach_their_stated_accuracy_on_shipped_images(name: str) -> None:
    card = describe(name)
    model = build(card).eval()
    model.load_state_dict({key: value.float() for key, value in stored(name).items()}, strict=False)
    mean, std = (torch.tensor(card["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))
    right = total = 0
    with torch.no_grad():
        for label, known in enumerate(card["classes"]):
            images = torch.from_numpy(tiles("heldout", known)).permute(0, 3, 1, 2).float() / 255
            right += int(model((images - mean) / std).argmax(1).eq(label).sum())
            total += len(images)
    assert total == 200 * len(card["classes"])
    assert right / total == pytest.approx(card["test_accuracy"], abs=0.03)


@pytest.mark.parametrize(("folder", "count", "columns"), [("samples", 20, 10), ("heldout", 200, 20)])
def test_sheets_hold_the_images_that_they_say(folder: str, count: int, columns: int) -> None:
    root = EXAMPLES / "images" / folder
    sheet = json.loads((root / "sheet.json").read_text())
    assert sheet["tile"] == [32, 32]
    assert sorted(path.stem for path in root.glob("*.webp")) == sorted(sheet["classes"])
    for name in sheet["classes"]:
        with Image.open(root / f"{name}.webp") as image:
            assert image.size == (32 * columns, 32 * count // columns)


def test_samples_and_heldout_share_no_image() -> None:
    classes = json.loads((EXAMPLES / "images" / "samples" / "sheet.json").read_text())["classes"]
    samples, heldout = (
        [tile.tobytes() for name in classes for tile in tiles(folder, name)]
        for folder in ("samples", "heldout")
    )
    assert len(set(samples)) == len(samples) == 200
    assert not set(samples) & set(heldout)
