"""What is told of data before training: draws that differ, splits without samples, answers in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sarto.engines.factory.checking import check_data
from sarto.engines.factory.data import InOrder, in_order
from sarto.engines.factory.spaces.attrod import drawn
from sarto.engines.factory.spaces.classes import ClassTasks
from sarto.engines.factory.spaces.numvqa import numvqa
from sarto.errors import RequestError, ShapeError
from sarto.market import Samples
from sarto.types import TaskSpace

Changed = Callable[[Sequence[frozenset[str]], str, Tensor, Tensor], tuple[Tensor, Tensor]]


def space(**change: object) -> TaskSpace:
    plain = {
        "name": "few",
        "groups": {"what": ["a", "b", "c"]},
        "unseen": [["c"]],
        "function": "none:none",
        "answers": ["no", "yes"],
    }
    return TaskSpace.parse({**plain, **change})


class Data:
    """Noise, with yes and no in turn, changed as a test asks."""

    def __init__(self, changed: Changed | None = None) -> None:
        self.changed = changed

    def draw(
        self, tasks: Sequence[frozenset[str]], split: str, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        images = torch.rand(len(tasks), 1, 4, 4, generator=generator)
        answers = torch.arange(len(tasks)) % 2
        return (images, answers) if self.changed is None else self.changed(tasks, split, images, answers)


def without(split: str, *names: str) -> Changed:
    def changed(
        tasks: Sequence[frozenset[str]], asked: str, images: Tensor, answers: Tensor
    ) -> tuple[Tensor, Tensor]:
        if asked == split and any(task & set(names) for task in tasks):
            raise RequestError(f"there are no images in the {split} split")
        return images, answers

    return changed


def told(changed: Changed, **change: object) -> list[str]:
    with pytest.raises(RequestError) as caught:
        check_data(space(**change), Data(changed))
    return list(caught.value.problems)


def test_good_data_give_an_example_and_leave_nothing_out() -> None:
    looked = check_data(space(), Data())
    assert looked.inputs.shape == (2, 1, 4, 4) and looked.answers.tolist() == [0, 1]
    assert looked.left_out == {} and looked.unjudged == {}


def test_a_draw_by_anything_but_the_generator_is_refused() -> None:
    (problem,) = told(lambda tasks, split, images, answers: (torch.rand(images.shape), answers))
    assert "two draws with the same generator differ" in problem and "`generator` alone" in problem
    (problem,) = told(lambda tasks, split, images, answers: (images, torch.randint(2, answers.shape)))
    assert "two draws with the same generator differ" in problem


def test_a_draw_for_its_first_task_alone_is_refused() -> None:
    def first(
        tasks: Sequence[frozenset[str]], split: str, images: Tensor, answers: Tensor
    ) -> tuple[Tensor, Tensor]:
        n = sum(task == tasks[0] for task in tasks)
        return images[:n], answers[:n]

    (problem,) = told(first)
    assert "samples of several tasks in one draw" in problem and "64 samples were asked for, 32" in problem


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            lambda tasks, split, images, answers: (images.byte(), answers),
            "inputs of type uint8; give float32",
        ),
        (lambda tasks, split, images, answers: (images.double(), answers), "inputs of type float64"),
        (lambda tasks, split, images, answers: (images, answers.int()), "answers of type int32 and shape"),
    ],
)
def test_types_that_training_does_not_read_are_named(changed: Changed, says: str) -> None:
    problems = told(changed)
    assert len(problems) == 2 and all(says in problem for problem in problems)


def test_tasks_without_test_samples_are_told_and_do_not_stop_training() -> None:
    looked = check_data(space(), Data(without("test", "a", "c")))
    assert looked.unjudged == dict.fromkeys(
        (frozenset("a"), frozenset("c")), "there are no images in the test split"
    )


def test_a_test_split_that_fails_is_refused_before_training() -> None:
    def fails(
        tasks: Sequence[frozenset[str]], split: str, images: Tensor, answers: Tensor
    ) -> tuple[Tensor, Tensor]:
        if split == "test" and "b" in tasks[0]:
            raise IndexError("list index out of range")
        return images, answers

    (problem,) = told(fails)
    assert problem.startswith("task 'b', test split: Data.draw of the space's data failed: IndexError")


def test_tasks_without_samples_to_train_are_left_out_where_one_says_so() -> None:
    data = Data(without("train", "b"))
    (problem,) = told(without("train", "b"))
    assert problem.startswith("task 'b': there are no images") and "`empty_tasks: leave_out`" in problem
    assert list(check_data(space(), data, leave_out=True).left_out) == [frozenset("b")]
    with pytest.raises(RequestError, match="2 tasks can't be trained"):
        check_data(space(), Data(without("train", "a", "b")), leave_out=True)


def test_many_tasks_without_samples_are_told_in_one_line() -> None:
    names = [f"p{place}" for place in range(30)]
    problems = told(without("train", *names[:25]), groups={"what": names}, unseen=[])
    assert len(problems) == 1 and problems[0].startswith("25 tasks (p0, p1,") and "p24)" in problems[0]


def test_detection_without_a_box_or_with_nan_is_refused() -> None:
    objects = space(
        kind="detection",
        groups={"category": ["car", "person"], "colour": ["white", "bronze"]},
        unseen=[],
        answers=["object"],
    )

    class Bare(type(drawn(16))):  # type: ignore[misc]
        filled = 0.0

        def draw(
            self, tasks: Sequence[frozenset[str]], split: str, generator: torch.Generator
        ) -> tuple[Tensor, Tensor]:
            images, boxes = super().draw(tasks, split, generator)
            return images, boxes * self.filled

    assert check_data(objects, drawn(16)).answers.shape == (2, 4, 5)
    data = Bare(16)
    with pytest.raises(RequestError) as caught:
        check_data(objects, data)
    assert len(caught.value.problems) == 4
    assert "task 'car+white': none of 64 samples has a box" in caught.value.problems[0]
    data.filled = float("nan")
    with pytest.raises(RequestError, match="answers hold NaN or infinity"):
        check_data(objects, data)


def test_outputs_that_are_no_maps_are_told_by_the_loss() -> None:
    data = drawn(16)
    _, boxes = data.draw([frozenset({"car"})], "train", torch.Generator().manual_seed(0))
    with pytest.raises(
        ShapeError, match=r"maps \(n, 5, cells, cells\) were expected, found \(1, 7\).*centre_det"
    ):
        data.loss(torch.zeros(1, 7), boxes)


def labelled() -> ClassTasks:
    """Images of one brightness a class: oak 0, ray 60, shark 120."""
    labels = np.repeat(np.arange(3), 3)
    images = np.broadcast_to((60 * labels)[:, None, None, None], (9, 12, 12, 3)).astype(np.uint8)
    found = Samples(images, labels, ("oak", "ray", "shark"))
    return ClassTasks(found, found)


def test_labels_are_brought_into_the_order_of_the_answers() -> None:
    described = space(
        groups={"class": ["oak", "ray", "shark"]},
        choose={"class": 3},
        unseen=[],
        tasks=[["oak", "ray", "shark"]],
        answers=["shark", "oak", "ray"],
    )
    data = in_order(described, labelled())
    assert isinstance(data, InOrder) and (data.mean, data.std) == (0.5, 0.5)
    images, answers = data.draw(described.seen * 60, "test", torch.Generator().manual_seed(0))
    brightness = ((images.mean((1, 2, 3)) + 1) * 127.5).round().long()
    # By another road: the name of an answer says how bright its image is.
    of_name = {"oak": 0, "ray": 60, "shark": 120}
    assert [of_name[described.answers[answer]] for answer in answers] == brightness.tolist()
    assert check_data(described, data).left_out == {}
    same = labelled()
    assert in_order(described.replace(answers=("oak", "ray", "shark")), same) is same


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answers": ["oak", "ray", "eel"]}, ["'eel' is no class of the data", "'shark', which tasks name"]),
        ({"answers": ["oak", "ray"]}, ["'shark', which tasks name, is a class of the data and no answer"]),
    ],
)
def test_classes_that_are_no_answers_are_refused(change: dict[str, object], says: list[str]) -> None:
    described = space(groups={"class": ["oak", "ray", "shark"]}, choose={"class": 3}, unseen=[], **change)
    with pytest.raises(RequestError) as caught:
        in_order(described, labelled())
    assert len(caught.value.problems) == len(says)
    assert all(text in problem for text, problem in zip(says, caught.value.problems, strict=True))


def test_a_class_without_images_is_not_dropped() -> None:
    data = labelled()
    data.held["test"]["ray"] = data.held["test"]["ray"][:0]
    task = [frozenset({"oak", "ray", "shark"})]
    with pytest.raises(RequestError, match="no images of ray in the test split"):
        data.draw(task, "test", torch.Generator())
    assert len(data.draw(task, "train", torch.Generator())[1]) == 1


def test_digits_without_an_array_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "digits.npz", train_images=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(RequestError) as caught:
        numvqa(str(tmp_path))
    assert [problem.rpartition(" ")[2] for problem in caught.value.problems] == [
        "'train_labels'",
        "'test_images'",
        "'test_labels'",
    ]
