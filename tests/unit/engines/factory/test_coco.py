"""AttrOD on COCO files: colours counted under masks, boxes brought to the size, images that answer a task."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sarto import Market
from sarto.engines.factory.spaces.attrod import COLOURS, asks_for
from sarto.engines.factory.spaces.coco import attrod, coco, dominant_colour
from sarto.errors import RequestError
from sarto.pipeline.factory import read_space, train_factory
from sarto.types import FactoryConfig


def write_coco(folder: Path) -> None:
    """Two images a split: a crimson car at the left, and a white person beside a charcoal dog."""
    (folder / "images").mkdir()
    for split in ("train", "val"):
        images, annotations = [], []
        for number, objects in enumerate(
            (
                [("car", "crimson", (10, 20, 60, 50))],
                [("person", "white", (100, 10, 40, 80)), ("dog", "charcoal", (5, 5, 30, 30))],
            )
        ):
            pixels = np.full((100, 200, 3), 128, np.uint8)
            for category, colour, (left, top, wide, high) in objects:
                pixels[top : top + high, left : left + wide] = COLOURS[colour]
                corners = [left, top, left + wide, top, left + wide, top + high, left, top + high]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": number,
                        "category_id": {"person": 1, "car": 3, "dog": 18}[category],
                        "bbox": [left, top, wide, high],
                        "segmentation": [corners],
                        "iscrowd": 0,
                    }
                )
            name = f"{number}.png"
            Image.fromarray(pixels).save(folder / "images" / f"{split}_{name}")
            images.append({"id": number, "file_name": name, "width": 200, "height": 100})
        categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (folder / f"instances_{split}.json").write_text(text)


def test_boxes_and_colours_of_a_small_coco(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = coco(str(tmp_path), 64)
    first, second = data.pictures["train"]
    assert [found[:2] for found in first.objects] == [("car", "crimson")]
    assert [found[:2] for found in second.objects] == [("person", "white")]  # dogs are no category of AttrOD
    tasks = [frozenset(["car", "crimson"])] * 60
    images, boxes = data.draw(tasks, "test", torch.Generator().manual_seed(0))
    assert images.shape == (60, 3, 64, 64) and boxes.shape[2] == 5
    there = boxes[:, 0, 0] == 1
    # Tests are not mirrored; some images are drawn whatever they show.
    assert 40 < int(there.sum()) < 60 and int(boxes[..., 0].sum()) == int(there.sum())
    assert torch.allclose(boxes[there][0, 0, 1:], torch.tensor([3.2, 12.8, 22.4, 44.8]))
    flips = data.draw(tasks, "train", torch.Generator().manual_seed(0))[1][:, 0]
    assert {round(float(box[1]), 1) for box in flips if box[0]} == {3.2, 41.6}


def test_without_outlines_the_middle_of_the_box_counts(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "instances_val.json"
    data = json.loads(path.read_text())
    for found in data["annotations"]:
        del found["segmentation"]
    path.write_text(json.dumps(data))
    first, second = coco(str(tmp_path), 64).pictures["test"]
    assert (first.objects[0][:2], second.objects[0][:2]) == (("car", "crimson"), ("person", "white"))


def test_tasks_without_images_and_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"neither annotations/instances_train2017.json nor instances_train"
    ):
        attrod(64, str(tmp_path))
    write_coco(tmp_path)
    data = coco(str(tmp_path), 64)
    with pytest.raises(RequestError, match="no image of the train split"):
        data.draw([frozenset(["bicycle", "white"])], "train", torch.Generator().manual_seed(0))
    (tmp_path / "images" / "train_0.png").unlink()
    with pytest.raises(RequestError, match=r"train_0.png is missing"):
        coco(str(tmp_path), 64)
    (tmp_path / "instances_train.json").write_text('{"images": []}')
    with pytest.raises(RequestError, match="no COCO annotation file"):
        coco(str(tmp_path), 64)


@pytest.mark.parametrize("name", list(COLOURS))
def test_the_dominant_colour_is_that_of_most_pixels(name: str) -> None:
    rng = np.random.default_rng(0)
    pixels = np.empty((20, 20, 3))
    pixels[:] = COLOURS[name]
    pixels[:, :7] = COLOURS["bronze" if name != "bronze" else "white"]
    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    mask = np.ones((20, 20), bool)
    assert dominant_colour(noisy, mask) == name


@pytest.mark.data
def test_real_images_of_coco_give_samples_of_tasks() -> None:
    data = attrod(160, f"{os.environ['SARTO_DATA']}/coco256")
    tasks = [frozenset(["person"])] * 8 + [frozenset(["car", "white", "charcoal"])] * 8
    images, boxes = data.draw(tasks, "train", torch.Generator().manual_seed(0))
    assert images.shape == (16, 3, 160, 160) and float(boxes[..., 0].sum()) >= 12
    there = boxes[boxes[..., 0] == 1][:, 1:]
    assert bool((there[:, 2:] > there[:, :2]).all()) and bool((there >= -1).all() and (there <= 161).all())


@pytest.mark.data
def test_a_small_folder_of_coco_trains_the_tasks_that_it_has_images_for(
    data_folder: Path, tmp_path: Path
) -> None:
    plain: dict[str, Any] = {
        "name": "objects",
        "space": "attrod",
        "data": {"folder": str(data_folder / "coco256"), "side": 32},
        "backbone": {"zoo": "centre_detector", "arguments": {"depths": [1, 1], "width": 4}},
        "preprocessing": {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
        "assembler": {"hidden": 8, "gaters": 2},
        "joint": {"steps": 2, "batch": 8},
        "judging": {"limits": [0.5], "samples": 4, "most_tasks": 4},
    }
    notes: list[str] = []
    with Market.create(tmp_path / "market") as market:
        with pytest.raises(RequestError, match=r"bicycle\+chartreuse.*`empty_tasks: leave_out`") as caught:
            train_factory(FactoryConfig.parse(plain), market.store, tmp_path / "steps")
        assert len(caught.value.problems) == 1, "tasks without images are told together"
        config = FactoryConfig.parse({**plain, "empty_tasks": "leave_out"})
        found = train_factory(config, market.store, tmp_path / "steps", noted=notes.append).manifest
    # By another road: which pairs of a category and a colour the images show.
    data = coco(str(data_folder / "coco256"), 32)
    shown = {thing[:2] for picture in data.pictures["train"] for thing in picture.objects}
    seen = read_space("attrod").seen
    there = {task for task in seen if any(asks_for(task, *pair) for pair in shown)}
    assert set(found.space.seen) == there and 0 < len(there) < len(seen)
    assert any(note.startswith(f"left out of training: {len(seen) - len(there)} tasks (") for note in notes)
    assert found.steps == 2 and found.qualities
