"""Tasks over labelled images: balanced answers, classes of the task alone; the CIFAR-100 space counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sarto.engines.factory.checking import check_data
from sarto.engines.factory.spaces.classes import ClassTasks, labelled
from sarto.errors import RequestError
from sarto.market import Samples
from sarto.pipeline.factory import read_space
from sarto.types import TaskSpace

CLASSES = ("oak", "ray", "shark", "trout")


def held(classes: tuple[str, ...] = CLASSES) -> Samples:
    """Images of one brightness a class: 0, 60, 120, 180."""
    labels = np.repeat(np.arange(len(classes)), 3)
    images = np.broadcast_to((60 * labels)[:, None, None, None], (len(labels), 12, 12, 3))
    return Samples(images.astype(np.uint8), labels, classes)


def test_answers_are_those_of_the_task_each_as_often() -> None:
    data = ClassTasks(held(), held())
    task = frozenset(["fish", "shark", "ray"])
    for split in ("train", "test"):
        generator = torch.Generator().manual_seed(3)
        inputs, answers = data.draw([task] * 400, split, generator)  # type: ignore[arg-type]
        assert inputs.shape == (400, 3, 12, 12)
        found = Counter(answers.tolist())
        assert set(found) == {1, 2} and min(found.values()) > 160
        brightness = ((inputs.mean((1, 2, 3)) + 1) * 127.5).round().long()
        assert torch.equal(brightness, 60 * answers)
        again = data.draw([task] * 400, split, torch.Generator().manual_seed(3))  # type: ignore[arg-type]
        assert torch.equal(inputs, again[0]) and torch.equal(answers, again[1])


def test_answers_follow_the_names_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    turned = held()
    order = ("trout", "shark", "ray", "oak")
    labels = np.array([order.index(CLASSES[label]) for label in turned.labels])
    np.savez(tmp_path / "train.npz", images=turned.images, labels=labels, classes=np.array(order))
    np.savez(tmp_path / "test.npz", images=turned.images, labels=turned.labels, classes=np.array(CLASSES))
    data = labelled(str(tmp_path / "train.npz"), str(tmp_path / "test.npz"), moved=False)
    inputs, answers = data.draw([frozenset(CLASSES)] * 50, "train", torch.Generator().manual_seed(0))
    assert torch.equal(((inputs.mean((1, 2, 3)) + 1) * 127.5).round().long(), 60 * answers)


def test_splits_that_differ_and_empty_tasks_are_refused() -> None:
    with pytest.raises(RequestError, match="same classes"):
        ClassTasks(held(), held(("a", "b", "c", "d")))
    described = {
        "name": "s",
        "groups": {"class": [*CLASSES, "eel"]},
        "choose": {"class": 2},
        "tasks": [["ray", "shark"], ["eel"], ["oak"]],
        "function": "m:f",
        "answers": list(CLASSES),
    }
    with pytest.raises(RequestError, match="'oak' has one answer, 'oak': nothing is told apart"):
        TaskSpace.parse({**described, "outputs_of": {name: [name] for name in CLASSES}})
    with pytest.raises(RequestError) as caught:
        check_data(TaskSpace.parse(described), ClassTasks(held(), held()))
    told = "\n".join(caught.value.problems)
    assert "task 'eel': none of its classes has images" in told
    assert "task 'oak': all of 64 samples answer 'oak'" in told and len(caught.value.problems) == 2


def test_the_cifar100_space_has_every_subset_of_every_superclass() -> None:
    space = read_space("cifar100")
    assert len(space.tasks) == 20 * (10 + 10 + 5 + 1) and len(set(map(frozenset, space.tasks))) == 520
    assert len(space.seen) == 460 and len(space.kept_aside) == 60
    assert len(space.answers) == 100 and list(space.answers) == sorted(space.answers)
    task = space.task("fish+shark+ray")
    assert {space.answers[i] for i in space.outputs(task)} == {"shark", "ray"}
    for asked, strange in (("fish+apple+bus", "apple and bus do"), ("trees+oak_tree+ray", "ray does")):
        with pytest.raises(RequestError, match=f"{strange} not go with '{asked.split('+')[0]}'"):
            space.task(asked)
    # Every class is trained in other tasks than those kept aside.
    trained = {name for task in space.seen for name in task}
    assert trained == set(space.properties)
