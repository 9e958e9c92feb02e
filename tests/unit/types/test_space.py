"""Task spaces: enumerations counted by hand, and every way to ask for no task."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import combinations

import pytest

from sarto.errors import RequestError
from sarto.types import TaskSpace
from sarto.types.space import distance, nearest

SMALL = {
    "name": "small",
    "groups": {"count": ["one", "two"], "kind": ["cat", "dog", "cow"]},
    "function": "somewhere:thing",
    "answers": ["no", "yes"],
}


def shipped(name: str) -> TaskSpace:
    text = files("sarto.engines.factory.spaces").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return TaskSpace.parse(text)


def test_all_combinations() -> None:
    space = TaskSpace.parse(SMALL)
    by_hand = {frozenset((a, b)) for a in ("one", "two") for b in ("cat", "dog", "cow")}
    assert set(space.seen) == by_hand and len(space.seen) == 6
    assert space.code(space.task("dog+two")) == (0, 1, 0, 1, 0)
    assert space.named({"dog", "two"}) == "two+dog"
    assert TaskSpace.parse(space.to_json()) == space


def test_several_of_a_group_and_optional_groups() -> None:
    space = TaskSpace.parse({**SMALL, "choose": {"kind": 2}, "optional": ["count"]})
    kinds = [set(part) for n in (1, 2) for part in combinations(["cat", "dog", "cow"], n)]
    by_hand = {frozenset(kind | extra) for kind in kinds for extra in (set(), {"one"}, {"two"})}
    assert set(space.seen) == by_hand


def test_unseen_tasks_are_kept_aside() -> None:
    space = TaskSpace.parse({**SMALL, "unseen": [["two", "cow"]]})
    assert frozenset(("two", "cow")) not in space.seen and len(space.seen) == 5
    assert space.kept_aside == (frozenset(("two", "cow")),)


def test_further_combinations_are_no_tasks() -> None:
    space = TaskSpace.parse({**SMALL, "extra": [["one", "cat", "dog"], ["dog", "cat", "one"]]})
    assert space.combined == (frozenset(("one", "cat", "dog")),)
    assert space.seen == TaskSpace.parse(SMALL).seen
    with pytest.raises(RequestError, match="contradict each other"):
        space.task("one+cat+dog")


def test_outputs_outside_a_task_are_cut_off() -> None:
    space = TaskSpace.parse({**SMALL, "answers": ["a", "b", "c"], "outputs_of": {"cat": ["a", "c"]}})
    assert space.outputs({"one", "cat"}) == (0, 2)
    assert space.outputs({"one", "dog"}) == (0, 1, 2)


def test_properties_that_do_not_go_together_are_no_task() -> None:
    described = {**SMALL, "within": {"one": ["cat", "dog"]}, "choose": {"kind": 2}}
    space = TaskSpace.parse(described)
    kinds = ({"cat"}, {"dog"}, {"cow"}, {"cat", "dog"}, {"cat", "cow"}, {"dog", "cow"})
    by_hand = {frozenset({"two"} | kind) for kind in kinds}
    by_hand |= {frozenset({"one"} | kind) for kind in kinds if "cow" not in kind}
    assert set(space.seen) == by_hand
    with pytest.raises(RequestError, match="cow does not go with 'one'; what does: cat, dog"):
        space.task("one+cat+cow")
    with pytest.raises(RequestError, match=r"unseen\[0\]: cow does not go with 'one'"):
        TaskSpace.parse({**described, "unseen": [["one", "cow"]]})


def test_a_task_of_one_answer_tells_nothing_apart() -> None:
    known = {"cat": ["a"], "dog": ["b"], "cow": ["a", "b"]}
    space = TaskSpace.parse(
        {**SMALL, "answers": ["a", "b"], "outputs_of": known, "tasks": [["one", "cow"]], "unseen": []}
    )
    assert space.task("two+cow")
    with pytest.raises(RequestError, match=r"'one\+cat' has one answer, 'a': nothing is told apart"):
        space.task("one+cat")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("", "give one of each group"),
        ("one", "nothing of group 'kind'"),
        ("one+dgo", "did you mean 'dog'"),
        ("one+two+cat", "contradict each other"),
        ("one+one+cat", "named twice"),
    ],
)
def test_what_is_no_task(task: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        TaskSpace.parse(SMALL).task(task)
    assert said in " ".join(caught.value.problems)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": {"count": ["one"], "kind": ["one"]}}, "named twice"),
        ({"groups": {"count": []}}, "holds no property"),
        ({"choose": {"knd": 2}}, "did you mean 'kind'"),
        ({"choose": {"kind": 9}}, "can't be chosen"),
        ({"optional": ["counts"]}, "did you mean 'count'"),
        ({"unseen": [["one", "two", "cat"]]}, "contradict"),
        ({"tasks": [["one", "cat"]], "unseen": [["one", "cat"]]}, "keeps every task out"),
        ({"outputs_of": {"cow": ["maybe"]}}, "is no answer"),
        ({"groups": {"count": ["a+b"], "kind": ["c"]}}, "no '+'"),
        ({"answers": ["no", "no"]}, "named twice"),
        ({"extra": [["one", "cta"]]}, "did you mean 'cat'"),
        ({"within": {"oen": ["cat"]}}, "did you mean 'one'"),
        ({"within": {"one": ["cta"]}}, "did you mean 'cat'"),
        ({"within": {"one": ["two"]}}, "of the same group, 'count'"),
        ({"within": {"one": []}}, "names no property"),
        ({"extra": [["cat", "cat"]]}, "named twice"),
        ({"extra": [[]]}, "names no property"),
        ({"unseen": [["two", "cow"]], "extra": [["cow", "two"]]}, "kept out of training"),
        ({"groups": {f"g{i}": [f"{i}a", f"{i}b", f"{i}c"] for i in range(10)}}, "more than 20000"),
    ],
)
def test_spaces_that_are_refused(change: dict, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        TaskSpace.parse({**SMALL, **change})
    assert said in " ".join(caught.value.problems)


def test_the_shipped_spaces() -> None:
    numvqa = shipped("numvqa")
    assert (len(numvqa.seen), len(numvqa.kept_aside), len(numvqa.properties)) == (48, 12, 17)
    for name in numvqa.properties:
        assert sum(name in task for task in numvqa.seen) >= 3
    attrod = shipped("attrod")
    assert len({*attrod.seen, *attrod.kept_aside}) == 4 * (2**5 - 1) + (2**4 - 1) == 139


def test_distances_by_hand() -> None:
    assert distance({"a", "b"}, {"a", "b"}) == 0
    assert distance({"a", "b"}, {"a", "c"}) == pytest.approx(2 / 3)
    found = nearest({"a", "b"}, [frozenset("ac"), frozenset("xy"), frozenset("ab")], 2)
    assert list(found) == [frozenset("ab"), frozenset("ac")]


def test_bits_keep_their_order_through_storage() -> None:
    space = TaskSpace.parse(
        {
            "name": "s",
            "groups": {"z": ["z1", "z2"], "a": ["a1"]},
            "function": "m:f",
            "answers": ["no", "yes"],
        }
    )
    stored = TaskSpace.parse(space.to_json())
    assert stored == space and stored.properties == ("z1", "z2", "a1") == space.properties
    assert stored.code({"z2", "a1"}) == (0, 1, 1) and stored.named({"a1", "z2"}) == "z2+a1"
    assert stored.seen == space.seen
    with pytest.raises(RequestError, match="names each group once"):
        TaskSpace.parse({**json.loads(space.to_json()), "order": ["z"]})
