"""Questions about digits: answers counted by hand, balanced, and drawn by the generator alone."""

from __future__ import annotations

import gzip
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sarto.engines.factory.checking import check_data
from sarto.engines.factory.data import score
from sarto.engines.factory.spaces.numvqa import NumVqa, draw_digits, holds, numvqa
from sarto.errors import RequestError
from sarto.pipeline.factory import read_space
from sarto.pipeline.task_data import open_data
from sarto.types import TaskSpace


def digits_data(side: int = 4) -> NumVqa:
    """Digit d is an image of value 10 d; the test split's are one brighter."""
    images = {
        split: np.repeat(10 * np.arange(10, dtype=np.uint8) + place, 3)[:, None, None]
        * np.ones((side, side), np.uint8)
        for place, split in enumerate(("train", "test"))
    }
    labels = {split: np.repeat(np.arange(10), 3) for split in images}
    return NumVqa(images, labels)  # type: ignore[arg-type]


def space(**change: object) -> TaskSpace:
    plain = {
        "name": "few",
        "groups": {"quantifier": ["has", "exactly_2", "exactly_4"], "predicate": ["digit_7", "odd"]},
        "function": "tests.unit.engines.factory.test_numvqa:digits_data",
        "answers": ["no", "yes"],
    }
    return TaskSpace.parse({**plain, **change})


@pytest.mark.parametrize(
    ("task", "digits", "answer"),
    [
        ({"has", "digit_7"}, [7, 7, 1, 2], True),
        ({"exactly_2", "digit_7"}, [7, 7, 7, 2], False),
        ({"exactly_2", "digit_7"}, [7, 1, 7, 2], True),
        ({"exactly_4", "odd"}, [1, 3, 5, 7], True),
        ({"exactly_4", "odd"}, [1, 3, 5, 8], False),
        ({"has", "odd"}, [0, 2, 4, 6], False),
        ({"exactly_2", "digit_7", "digit_1"}, [7, 1, 2, 3], True),
        ({"exactly_2", "digit_7", "digit_1"}, [7, 1, 7, 3], False),
        ({"exactly_1", "exactly_3", "odd"}, [7, 1, 7, 2], True),
        ({"exactly_1", "exactly_3", "odd"}, [7, 1, 2, 2], False),
    ],
)
def test_answers_by_hand(task: set[str], digits: list[int], answer: bool) -> None:
    assert bool(holds(frozenset(task), np.array(digits))) is answer


def test_every_drawn_answer_is_right_and_negatives_miss_narrowly() -> None:
    rng = np.random.default_rng(0)
    for task in (*space().seen, frozenset({"exactly_1", "exactly_3", "digit_2", "odd"})):
        for answer in (True, False):
            drawn = np.stack([draw_digits(task, answer, rng) for _ in range(100)])
            assert (holds(task, drawn) == answer).all()
    few = frozenset({"exactly_2", "digit_7"})
    counts = (np.stack([draw_digits(few, False, rng) for _ in range(400)]) == 7).sum(1)
    assert 0.15 < np.isin(counts, (1, 3)).mean() < 0.75  # by chance 3 would come once in 300


def test_further_combinations_are_no_question_that_is_kept_out() -> None:
    numvqa_space = read_space("numvqa")
    every = np.array(list(product(range(10), repeat=4)))
    unseen = np.stack([holds(task, every) for task in numvqa_space.kept_aside])
    assert len(numvqa_space.combined) == 5 * (45 + 10) + 6 * 12
    for task in numvqa_space.combined:
        same = (unseen == holds(task, every)).sum(1)
        assert same.max() < len(every) and same.min() > 0, sorted(
            task
        )  # neither the question nor its opposite


def test_pictures_show_the_digits_where_they_are() -> None:
    data = digits_data()
    seen = data.pictures(np.array([[1, 2, 3, 4]]), "train", np.random.default_rng(0))
    assert seen.shape == (1, 1, 8, 8)
    grey = (seen[0, 0] + 1) * 127.5
    by_place = [grey[:4, :4], grey[:4, 4:], grey[4:, :4], grey[4:, 4:]]
    assert [round(float(part.max())) for part in by_place] == [10, 20, 30, 40]


def test_drawn_by_the_generator_alone_and_splits_are_apart() -> None:
    data, tasks = digits_data(), list(space().seen)
    one = data.draw(tasks, "train", torch.Generator().manual_seed(1))
    two = data.draw(tasks, "train", torch.Generator().manual_seed(1))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    values = {round(float(v)) % 10 for v in ((one[0] + 1) * 127.5).unique()}
    assert values == {0}
    tested = data.draw(tasks * 4, "test", torch.Generator().manual_seed(1))[0]
    assert 1 in {round(float(v)) % 10 for v in ((tested + 1) * 127.5).unique()}


def test_half_of_the_answers_are_yes() -> None:
    _, answers = digits_data().draw(list(space().seen) * 200, "train", torch.Generator().manual_seed(0))
    assert abs(float(answers.double().mean()) - 0.5) < 0.05


def test_score_is_the_mean_recall() -> None:
    outputs = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    answers = torch.tensor([0, 0, 1, 1])
    assert score(space(), digits_data(), outputs, answers, space().seen[0]) == 0.75


def test_mnist_files_are_read(tmp_path: Path) -> None:
    images = np.arange(10 * 9, dtype=np.uint8).reshape(10, 3, 3)
    for name in ("train", "t10k"):
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
        with gzip.open(tmp_path / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + images.tobytes())
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + (10).to_bytes(4, "big") + bytes(range(10))
        )
    found = numvqa(str(tmp_path))
    assert np.array_equal(found.images["train"], images)
    assert [list(places) for places in found.by_digit["test"]] == [[i] for i in range(10)]
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (10).to_bytes(4, "big") + b"12")
    with pytest.raises(RequestError, match="cut off"):
        numvqa(str(tmp_path))
    with pytest.raises(RequestError, match="holds neither train-images-idx3-ubyte"):
        numvqa(str(tmp_path / "nowhere"))


class Stubborn:
    """Data whose answer never changes, or is none of the task's."""

    def __init__(self, answer: int) -> None:
        self.answer = answer

    def draw(self, tasks: list, split: str, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(tasks), 1, 4, 4), torch.full((len(tasks),), self.answer)


def test_data_that_teach_nothing_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        check_data(space(), Stubborn(0))
    assert len(caught.value.problems) == 6 and "all of 64 samples answer 'no'" in caught.value.problems[0]
    with pytest.raises(RequestError, match="answers 5, which it does not have"):
        check_data(space(), Stubborn(5))
    assert check_data(space(), digits_data()).inputs.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (KeyError("boom"), r"'has\+digit_7': Mistaken\.draw of the space's data failed: KeyError: 'boom'"),
        (
            (torch.zeros(8, 1, 8, 8), torch.zeros(8)),
            r"answers of type float32 and shape \(8,\); give the number",
        ),
        (([1, 2], torch.zeros(8)), "inputs of type list; give a tensor"),
        ((torch.zeros(8, 1, 8, 8), torch.zeros(8, 2, dtype=torch.int64)), r"shape \(8, 2\); give the number"),
    ],
)
def test_mistakes_of_ones_own_function_are_told_with_the_task(gives: Any, said: str) -> None:
    class Mistaken:
        def draw(self, tasks: Any, split: str, generator: Any) -> Any:
            if isinstance(gives, Exception):
                raise gives
            return gives

    with pytest.raises(RequestError) as caught:
        check_data(space(), Mistaken())
    assert len(caught.value.problems) == len(space().seen)
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nowhere:thing", r"'few': can't import 'nowhere'.*where Python finds it \(PYTHONPATH\)"),
        ("sarto.engines.factory.spaces.numvqa:nothing", "has no function 'nothing'"),
        ("numvqa.py:nothing", "named by its module, not by its file: write numvqa:NAME"),
        ("numvqa", "package.module:name"),
        ("builtins:dict", "a method draw"),
        ("sarto.engines.factory.spaces.numvqa:holds", "needs the argument 'task': give data: {task: ...}"),
    ],
)
def test_functions_that_are_none(function: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        open_data(space(function=function))
