"""What is expected of a subnet is what was judged, and nothing where nothing like it was."""

from __future__ import annotations

import pytest

from sarto.engines.factory.subnets import expected, expected_together
from sarto.types import TaskQuality, TaskSpace

SPACE = TaskSpace.parse(
    {
        "name": "few",
        "groups": {"quantifier": ["has", "exactly_2"], "predicate": ["seven", "one", "odd"]},
        "unseen": [["exactly_2", "odd"]],
        "function": "none:none",
        "answers": ["no", "yes"],
    }
)


def judged(task: str, *points: tuple[float, float]) -> list[TaskQuality]:
    return [
        TaskQuality(task=task, limit=ratio, ratio=ratio, quality=quality, n_samples=40, seen=True)
        for ratio, quality in points
    ]


ROWS = judged("has+seven", (0.1, 0.8), (0.5, 0.9)) + judged("has+odd", (0.3, 0.7), (0.5, 0.9))


def test_between_judged_ratios_it_is_a_line_and_above_them_the_highest() -> None:
    found = expected(SPACE, ROWS, SPACE.task("has+seven"), 0.2)
    assert found.quality == pytest.approx(0.825) and found.basis == "judged on 40 test samples of this task"
    most = expected(SPACE, ROWS, SPACE.task("has+seven"), 0.9)
    assert most.quality == 0.9 and most.basis.endswith("with 50.0% of the units at most")


def test_with_fewer_units_than_were_judged_nothing_is_known() -> None:
    found = expected(SPACE, ROWS, SPACE.task("has+seven"), 0.05)
    assert found.quality is None
    assert found.basis == "this task was not judged with so few units; with 10.0% of the units it was 80.0%"
    unseen = SPACE.task("exactly_2+odd")
    alone = expected(SPACE, ROWS, unseen, 0.05)
    assert alone.quality is None and "was judged with so few units" in alone.basis
    # Only has+odd shares anything, and it was not judged at a fifth.
    assert expected(SPACE, ROWS, unseen, 0.2).quality is None
    assert expected(SPACE, ROWS, unseen, 0.4).quality == pytest.approx(0.8)


def test_of_several_tasks_in_one_model_nothing_is_known() -> None:
    tasks = [SPACE.task("has+seven"), SPACE.task("has+odd")]
    found = expected_together(SPACE, ROWS, tasks, 0.5)
    assert found.quality is None and found.basis == "several tasks in one model were not judged together"
    assert expected_together(SPACE, ROWS, tasks[:1] * 2, 0.5).quality == 0.9


def test_new_batch_norm_statistics_are_none_that_were_judged() -> None:
    found = expected_together(SPACE, ROWS, [SPACE.task("has+seven")], 0.5, recalibrated=True)
    assert found.quality == 0.9
    assert found.basis.endswith("; judged before batch norm statistics were taken anew")
