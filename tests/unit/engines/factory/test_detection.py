"""Detection: losses and average precision by hand, and scenes that show what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sarto.engines.factory.spaces.attrod import COLOURS, asks_for, drawn
from sarto.engines.factory.spaces.detection import (
    average_precision,
    boxes_of,
    detection_loss,
    generalised_overlap,
    plain_overlap,
)


def maps_of(boxes: list[list[float]], cells: int, side: int) -> torch.Tensor:
    """A perfect map of boxes."""
    maps = torch.full((1, 5, cells, cells), -12.0)
    scale = cells / side
    for left, top, right, bottom in boxes:
        column, row = int((left + right) / 2 * scale), int((top + bottom) / 2 * scale)
        maps[0, 0, row, column] = 12.0
        at = (column + 0.5, row + 0.5)
        reach = [at[0] - left * scale, at[1] - top * scale, right * scale - at[0], bottom * scale - at[1]]
        maps[0, 1:, row, column] = torch.tensor([math.log(math.expm1(max(v, 1e-4))) for v in reach])
    return maps


BOXES = [[10.0, 12.0, 30.0, 40.0], [50.0, 50.0, 70.0, 62.0]]


def wanted(boxes: list[list[float]], most: int = 4) -> torch.Tensor:
    rows = torch.zeros(1, most, 5)
    for place, box in enumerate(boxes):
        rows[0, place] = torch.tensor([1.0, *box])
    return rows


def test_a_perfect_map_gives_its_boxes_back() -> None:
    maps = maps_of(BOXES, 12, 96)
    found = boxes_of(maps, 96)
    strong = found[0][found[0][:, 0] > 0.5][:, 1:]
    assert torch.allclose(strong.sort(0).values, torch.tensor(BOXES).sort(0).values, atol=1e-2)
    assert average_precision(found, wanted(BOXES)) == pytest.approx(1.0)
    assert float(detection_loss(maps, wanted(BOXES), 96)) < 0.01


def test_losses_grow_with_every_fault() -> None:
    perfect = float(detection_loss(maps_of(BOXES, 12, 96), wanted(BOXES), 96))
    missed = float(detection_loss(maps_of(BOXES[:1], 12, 96), wanted(BOXES), 96))
    extra = float(detection_loss(maps_of([*BOXES, [80.0, 5.0, 90.0, 15.0]], 12, 96), wanted(BOXES), 96))
    shifted = [[left + 5, top, right + 5, bottom] for left, top, right, bottom in BOXES]
    off = float(detection_loss(maps_of(shifted, 12, 96), wanted(BOXES), 96))
    assert missed > perfect + 1 and extra > perfect + 1 and off > perfect + 0.05


def test_centre_loss_by_hand_without_objects() -> None:
    maps = torch.zeros(1, 5, 2, 2)
    maps[0, 0] = torch.tensor([[0.0, 1.0], [-1.0, 2.0]])
    by_hand = sum(
        F.softplus(torch.tensor(v)).item() * torch.sigmoid(torch.tensor(v)).item() ** 2
        for v in (0.0, 1.0, -1.0, 2.0)
    )
    assert float(detection_loss(maps, wanted([]), 16)) == pytest.approx(by_hand, rel=1e-5)


def test_overlaps_by_hand() -> None:
    one, other = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert float(plain_overlap(one, other[None])) == pytest.approx(1 / 7)
    assert float(generalised_overlap(one, other)) == pytest.approx(1 / 7 - 2 / 9)


def test_average_precision_by_hand() -> None:
    # Ranked: right, wrong, right; two wanted. Precision 1 at recall 1/2, 2/3 at recall 1.
    found = [
        torch.tensor([[0.9, *BOXES[0]], [0.8, 80.0, 80.0, 90.0, 90.0], [0.7, *BOXES[1]]]),
        torch.zeros(0, 5),
    ]
    truth = torch.cat([wanted(BOXES), wanted([])])
    assert average_precision(found, truth) == pytest.approx((1 + 2 / 3) / 2)
    twice = [torch.tensor([[0.9, *BOXES[0]], [0.8, *BOXES[0]]]), torch.zeros(0, 5)]
    assert average_precision(twice, truth) == pytest.approx(0.5)


def test_scenes_hold_what_a_task_asks_for() -> None:
    data, task = drawn(96), frozenset({"car", "crimson", "white"})
    images, boxes = data.draw([task] * 40, "train", torch.Generator().manual_seed(3))
    assert images.shape == (40, 3, 96, 96) and float(images.abs().max()) <= 1
    there = boxes[..., 0].sum(1)
    assert 0.6 < float((there > 0).double().mean()) < 1.0
    rng = np.random.default_rng(5)
    for _ in range(20):
        pixels, found = data.scene(task, "train", rng)
        for _category, colour, (left, top, right, bottom) in found[-1:]:  # the last one hides nobody's pixels
            part = pixels[int(top) : int(bottom) + 1, int(left) : int(right) + 1].reshape(-1, 3).astype(float)
            near = np.abs(part - np.array(COLOURS[colour])).max(1) < 45
            assert near.mean() > 0.15


def test_what_tasks_ask_for() -> None:
    assert asks_for(frozenset({"car", "white"}), "car", "white")
    assert not asks_for(frozenset({"car", "white"}), "car", "bronze")
    assert asks_for(frozenset({"car", "person"}), "person", "bronze")
    assert not asks_for(frozenset({"car"}), "person", "bronze")


def test_splits_draw_other_outlines() -> None:
    data = drawn(96)
    for category, held in data.shapes["train"].items():
        ids = {shape["id"] for shape in held}
        assert ids and not ids & {shape["id"] for shape in data.shapes["test"][category]}
