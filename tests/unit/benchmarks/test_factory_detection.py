"""Images of the benchmark on detection: as many for each task as it is given, the same for every way."""

from __future__ import annotations

import torch

from benchmarks.factory.detectors import PAIRS, Scarce
from sarto.engines.factory.spaces.attrod import asks_for, drawn
from sarto.pipeline.factory import read_space
from sarto.training import draws

SPACE = read_space("attrod", {"side": 32})
FEW, MANY = SPACE.task("car+crimson"), SPACE.task("person+white+bronze")


def data(n_few: int = 3) -> Scarce:
    return Scarce(drawn(32), SPACE, {FEW: n_few}, 500, 0)


def test_a_scarce_task_has_so_many_images_and_tests_draw_new_ones() -> None:
    images, boxes = data().draw([FEW] * 40, "train", draws(0, 0))
    known = {image.numpy().tobytes() for image in images}
    assert len(known) == 3 and boxes.shape == (40, 4, 5)
    others, _ = data().draw([MANY] * 40, "train", draws(0, 0))
    assert len({image.numpy().tobytes() for image in others}) > 30
    tested, _ = data().draw([FEW] * 10, "test", draws(0, 0))
    assert len({image.numpy().tobytes() for image in tested}) == 10
    assert not known & {image.numpy().tobytes() for image in tested}


def test_the_shared_detector_sees_the_same_images_with_the_boxes_of_all_kinds() -> None:
    for task in (FEW, MANY):
        images, wanted = data().draw([task] * 12, "train", draws(0, 1))
        same, every = data().everything([task] * 12, draws(0, 1))
        assert torch.equal(images, same) and every.shape == (12, len(PAIRS), 4, 5)
        kinds = [place for place, pair in enumerate(PAIRS) if asks_for(task, *pair)]
        for mine, boxes in zip(wanted, every[:, kinds].flatten(1, 2), strict=True):
            one, two = (sorted(row.tolist() for row in found if row[0] > 0) for found in (mine, boxes))
            assert one == two
        assert every[..., 0].sum() > wanted[..., 0].sum(), "objects that nobody asked for are there too"
