"""Plans written to hurt: too many, too deep, too wide; each answered in words and in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sarto.errors import RequestError
from sarto.types import Plan

DONOR = "sha256:" + "a" * 64
SOURCE = {"op": "source", "of": DONOR}


@contextmanager
def refused(words: str, *, seconds: float = 20.0) -> Iterator[None]:
    # A bound on work, in processor time: quadratic algorithms would need minutes here, whatever else runs.
    start = time.process_time()
    with pytest.raises(RequestError, match=words):
        yield
    assert time.process_time() - start < seconds


def chain(length: int, **node: Any) -> dict[str, Any]:
    links = {f"n{at}": {**node, "of": f"n{at - 1}"} for at in range(1, length)}
    return {"nodes": {"n0": SOURCE, **links}, "out": f"n{length - 1}"}


def test_too_many_nodes() -> None:
    with refused("nodes: a plan has at most 10,000 nodes, got 100,000"):
        Plan.parse({"nodes": {f"n{at}": SOURCE for at in range(100_000)}, "out": "n0"})


def test_a_long_chain_is_walked_without_recursion() -> None:
    made = Plan.parse(chain(10_000, op="head", kind="restrict", classes=["cat"]))
    assert len(made.normal().nodes) == 2
    assert len(made.subkeys()) == 10_000
    assert Plan.parse(made.to_json()) == made


def test_a_long_chain_of_slices() -> None:
    with refused("more than 16 slices of slices; merge them"):
        Plan.parse(chain(10_000, op="slice", keep={"g": [0]}))


def test_a_long_cycle() -> None:
    data = chain(10_000, op="block")
    data["nodes"]["n0"] = {"op": "block", "of": "n9999"}
    with refused("nodes: a cycle, n0 reads n9999 reads .* a plan has none"):
        Plan.parse(data)


def test_many_dangling_names() -> None:
    nodes = {f"node{at}": {"op": "block", "of": f"nodes{at}"} for at in range(9_000)}
    with refused(r"9,000 problems: nodes\.node0\.of: no node 'nodes0' \(did you mean"):
        Plan.parse({"nodes": nodes, "out": "node0"})


def test_branches_that_double() -> None:
    nodes: dict[str, Any] = {"a": SOURCE, "n0": {"op": "block", "of": "a"}}
    nodes |= {f"n{at}": {"op": "branch", "of": [f"n{at - 1}"] * 2} for at in range(1, 60)}
    with refused("laid flat this branch has 1,024 parts, the limit is 1,000"):
        Plan.parse({"nodes": nodes, "out": "n59"})


def test_means_whose_weights_have_no_small_denominator() -> None:
    heads = {
        f"h{at}": {"op": "head", "of": "a", "kind": "restrict", "classes": ["cat"]}
        | ({"of": f"s{at}"} if at else {})
        for at in range(60)
    }
    slices = {f"s{at}": {"op": "slice", "of": "a", "keep": {"g": [at]}} for at in range(1, 60)}
    sizes = [2, 3, 5, 7, 11, 13, 17]
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    means = {
        f"m{size}": {"op": "branch", "of": [f"h{start + at}" for at in range(size)], "join": "mean"}
        for size, start in zip(sizes, starts, strict=True)
    }
    out = {"op": "branch", "of": [*means, "h58", "h59"], "join": "mean"}
    made = Plan.parse({"nodes": {"a": SOURCE, **slices, **heads, **means, "out": out}, "out": "out"})
    with refused("nodes.out: laid flat this mean has more than 1,000 parts; use fewer"):
        made.key()


def test_wide_nodes() -> None:
    with refused("nodes.x.of: must have at most 1,000 entries"):
        Plan.parse({"nodes": {"a": SOURCE, "x": {"op": "branch", "of": ["a"] * 100_000}}, "out": "x"})
    units = list(range(1_000_001))
    with refused("nodes: all slices name 1,000,001 units, the limit is 1,000,000"):
        Plan.parse(
            {"nodes": {"a": SOURCE, "x": {"op": "slice", "of": "a", "keep": {"g": units}}}, "out": "x"}
        )


def test_slices_that_copy_a_long_list() -> None:
    base = {"op": "slice", "of": "a", "keep": {f"g{at}": [0] for at in range(4_000)}}
    more = {f"s{at}": {"op": "slice", "of": "s", "keep": {"h": [at]}} for at in range(600)}
    blocks = {f"b{at}": {"op": "block", "of": f"s{at}"} for at in range(600)}
    nodes = {"a": SOURCE, "s": base, **more, **blocks, "x": {"op": "branch", "of": list(blocks)}}
    made = Plan.parse({"nodes": nodes, "out": "x"})
    with refused("the plan's normal form names more than 1,000,000 units and parts"):
        made.key()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"nodes": {"x" * 10**6: SOURCE}, "out": "x"}, "must have at most 200 characters"),
        (
            {"nodes": {"x": {"op": "source", "of": "y" * 10**6}}, "out": "x"},
            r"got 'y+'\.\.\. \(1,000,000 char",
        ),
        (
            {"nodes": {"x": {"op": "z" * 10**6}}, "out": "x"},
            r"'z+'\.\.\. \(1,000,000 characters\) is no oper",
        ),
        ({"nodes": {"x": SOURCE}, "out": "x", "note": "n" * 10**6}, "note: must have at most 20,000 char"),
        ({"nodes": {}, "out": "x"}, "nodes: must have at least 1 entries, got 0"),
        ({"nodes": [SOURCE], "out": "x"}, "nodes: must be a mapping, got a list of 1"),
        ({"nodes": {5: SOURCE}, "out": "x"}, r"nodes\[5\]: must be text, got 5"),
        ({"nodes": {"x": SOURCE}, "out": 5}, "out: must be text, got 5"),
        ({"nodes": {"x": SOURCE}, "out": "x", "plan": 2}, "plan: must be 1, got 2"),
        ({"nodes": {"x": SOURCE}, "out": "x", "plan": True}, "plan: must be a whole number"),
        ({"nodes": {"x": SOURCE}, "out": "x", "nods": 1}, "nods: unknown key, did you mean 'nodes'"),
    ],
)
def test_wrong_types_and_huge_words(data: dict[str, Any], words: str) -> None:
    with refused(words, seconds=1.0):
        Plan.parse(data)


def test_deep_values_do_not_overflow() -> None:
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    with refused("nodes.x.keep.g: a list of units holds indices"):
        Plan.parse({"nodes": {"x": {"op": "slice", "of": "x", "keep": {"g": deep}}}, "out": "x"})
    with refused("note: must be text, got a list of 1"):
        Plan.parse({"nodes": {"x": SOURCE}, "out": "x", "note": deep})
    while deep:
        deep = deep.pop()


def test_plans_that_were_edited_from_edited_plans() -> None:
    said: dict[str, Any] = {"nodes": {"n0": SOURCE}, "out": "n0"}
    assert Plan.parse({**said, "edited_from": said}).key() == Plan.parse(said).key()
    deep = said
    for _ in range(50_000):
        deep = {**said, "edited_from": deep}
    with refused("edited_from: is the plan that all edits began from; it is edited from none"):
        Plan.parse(deep)
    while (below := deep.get("edited_from")) is not None:
        deep = below  # let go of one after the other
