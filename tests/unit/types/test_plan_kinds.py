"""The type check of plans: what is refused, and in which words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sarto.errors import RequestError
from sarto.types import Plan, SliceNode, SourceNode

DONOR, OTHER, SAMPLES = ("sha256:" + digit * 64 for digit in "ab5")

SOURCE = {"op": "source", "of": DONOR}
RESTRICT = {"op": "head", "kind": "restrict", "classes": ["cat", "dog"]}
RIDGE = {"op": "head", "kind": "ridge", "classes": ["cat", "dog"], "samples": SAMPLES}
HALF = {"op": "slice", "keep": {"*": 0.5}, "select": "css", "samples": SAMPLES}


def plan(out: str, **nodes: dict[str, Any]) -> Plan:
    return Plan.parse({"nodes": {"a": SOURCE, **nodes}, "out": out})


def refused(out: str, **nodes: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(RequestError) as caught:
        plan(out, **nodes)
    return caught.value.problems


def test_every_node_has_a_kind() -> None:
    made = plan(
        "mean",
        s=HALF | {"of": "a"},
        b={"op": "block", "of": "s"},
        c={"op": "block", "of": "a"},
        j={"op": "branch", "of": ["b", "c"], "join": "concat"},
        h=RIDGE | {"of": "j"},
        r=RESTRICT | {"of": "a"},
        mean={"op": "branch", "of": ["h", "r"], "join": "mean"},
    )
    assert {name: kind.form for name, kind in made.kinds.items()} == {
        **dict.fromkeys("as", "model"),
        **dict.fromkeys("bcj", "features"),
        **dict.fromkeys(["h", "r", "mean"], "logits"),
    }
    assert made.classes == ("cat", "dog")
    assert made.learnwares == (DONOR,)
    place = {name: at for at, name in enumerate(made.order)}
    assert place["a"] < place["s"] < place["b"] < place["j"] < place["h"] < place["mean"]


def test_a_plan_may_give_features() -> None:
    made = plan("b", b={"op": "block", "of": "a"})
    assert (made.kinds["b"].form, made.classes) == ("features", None)


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        (
            {"b": {"op": "block", "of": "a"}, "x": {"op": "block", "of": "b"}},
            "nodes.x: a block reads a model, 'b' gives features; read the model itself",
        ),
        (
            {"h": RESTRICT | {"of": "a"}, "x": HALF | {"of": "h"}},
            "nodes.x: a slice reads a model or features, 'h' gives logits; slice before the head",
        ),
        (
            {"x": RIDGE | {"of": "a"}},
            "nodes.x: a head of kind 'ridge' reads features, 'a' gives a model; "
            "put a block to features between",
        ),
        (
            {"h": RESTRICT | {"of": "a"}, "x": RIDGE | {"of": "h", "kind": "logistic"}},
            "nodes.x: a head of kind 'logistic' reads features, 'h' gives logits; "
            "fit it on the features below that head",
        ),
        (
            {"b": {"op": "block", "of": "a"}, "x": RESTRICT | {"of": "b"}},
            "nodes.x: a restrict head reads a model, 'b' gives features; drop the block",
        ),
        (
            {"h": RESTRICT | {"of": "a"}, "j": {"op": "branch", "of": ["h", "h"], "join": "mean"}}
            | {"x": RESTRICT | {"of": "j"}},
            "nodes.x: a restrict head reads a model, 'j' gives joined logits; restrict each part before",
        ),
        (
            {"h": RESTRICT | {"of": "a"}, "x": RESTRICT | {"of": "h", "classes": ["cow"]}},
            "nodes.x: none of the classes cow is left at 'h', which gives cat, dog",
        ),
        (
            {"b": {"op": "block", "of": "a"}, "x": {"op": "branch", "of": ["a", "b"]}},
            "nodes.x: a branch joins features or logits, 'a' gives a model; put a block or a head after it",
        ),
        (
            {"b": {"op": "block", "of": "a"}, "h": RESTRICT | {"of": "a"}}
            | {"x": {"op": "branch", "of": ["b", "h"]}},
            "nodes.x: a branch joins parts of one kind, these give features and logits; "
            "give each a head, or none",
        ),
        (
            {"b": {"op": "block", "of": "a"}, "x": {"op": "branch", "of": ["b", "b"], "join": "mean"}},
            "nodes.x: features of different parts have no mean; use join 'concat', or give each part a head",
        ),
        (
            {"h": RESTRICT | {"of": "a"}, "g": RESTRICT | {"of": "a", "classes": ["dog", "cat"]}}
            | {"x": {"op": "branch", "of": ["h", "g"], "join": "mean"}},
            "nodes.x: a mean needs the same classes in the same order from each part; change the heads",
        ),
        (
            {"h": RESTRICT | {"of": "a"}, "x": {"op": "branch", "of": ["h", "h"], "join": "concat"}},
            "nodes.x: concatenated logits need different classes from each part; "
            "use join 'mean' for equal ones",
        ),
        (
            {"s": HALF | {"of": "a", "keep": {"g": [1, 4]}}, "x": HALF | {"of": "s", "keep": {"g": [0, 2]}}},
            "nodes.x: keep.g asks for unit 2, the slice before it leaves units 0..1",
        ),
        (
            {"s": HALF | {"of": "a", "keep": {"g": 3}}, "b": {"op": "block", "of": "s"}}
            | {"t": HALF | {"of": "b", "keep": {"*": 1.0}}, "x": HALF | {"of": "t", "keep": {"g": 4}}},
            "nodes.x: keep.g asks for unit 3, the slice before it leaves units 0..2",
        ),
    ],
)
def test_ill_typed_plans_say_asked_found_do(nodes: dict[str, Any], problem: str) -> None:
    assert refused("x", **nodes) == (problem,)


def test_concatenated_logits_know_their_classes() -> None:
    made = plan(
        "x",
        h=RESTRICT | {"of": "a"},
        g=RESTRICT | {"of": "a", "classes": ["cow"]},
        x={"op": "branch", "of": ["g", "h"], "join": "concat"},
    )
    assert made.classes == ("cow", "cat", "dog")


def test_what_is_wrong_with_the_names_is_told_at_once() -> None:
    cycle = {"c": {"op": "block", "of": "d"}, "d": HALF | {"of": "c"}}
    assert refused("oto", oot=RESTRICT | {"of": "aa"}, **cycle) == (
        "out: no node 'oto' (did you mean 'oot'?)",
        "nodes.oot.of: no node 'aa' (did you mean 'a'?)",
        "nodes: a cycle, c reads d reads c; a plan has none",
    )


def test_a_node_may_not_read_itself() -> None:
    assert refused("x", x=HALF | {"of": "x"})[0] == "nodes: a cycle, x reads x; a plan has none"


def test_what_nobody_reads_is_refused() -> None:
    assert refused("a", b={"op": "block", "of": "a"}, c={"op": "source", "of": OTHER}) == (
        "nodes: nothing that 'a' gives reads b, c; remove what is not read",
    )


def test_operations_of_later_versions_are_refused_by_name() -> None:
    assert refused("x", x={"op": "quantise", "of": "a", "scheme": "int8"}) == (
        "nodes.x: 'quantise' is a plan node that this version does not build "
        "(it builds: block, branch, chain, head, slice, source, subnet, tune)",
    )


@pytest.mark.parametrize(
    ("node", "problems"),
    [
        ({"op": "slic", "of": "a"}, ["nodes.x.op: 'slic' is no operation (did you mean 'slice'?)"]),
        ({"op": ["slice"]}, [r"nodes.x.op: a list of 1 is no operation \(known: block, .*"]),
        ({"of": "a"}, ["nodes.x.op: is missing; give one of block, branch, .*source.*"]),
        (5, ["nodes.x: must be a mapping, got 5"]),
        ({"op": "source", "of": "resnet"}, ["nodes.x.of: must be 'sha256:' and 64 hex digits, got 'resnet'"]),
        ({"op": "source", "of": DONOR + "\n"}, ["nodes.x.of: must be 'sha256:' and 64 hex digits, got .*"]),
        ({"op": "block", "of": "a", "to": "logits"}, ["nodes.x.to: must be 'features', got 'logits'"]),
        ({"op": "block", "of": "a", "form": "in"}, [r"nodes.x.form: unknown key \(known: of, op, to\)"]),
        ({"op": "branch", "of": []}, ["nodes.x.of: must have at least 1 entries, got 0"]),
        ({"op": "branch", "of": "a"}, [r"nodes.x.of: must be a list, got 'a'; write \[a\]"]),
        (
            RESTRICT | {"of": "a", "lam": 0.1, "samples": SAMPLES},
            [
                "nodes.x.lam: a head of kind 'restrict' fits nothing; leave it out",
                "nodes.x.samples: a head of kind 'restrict' fits nothing; leave it out",
            ],
        ),
        (
            {"op": "head", "of": "a", "kind": "ridge", "classes": ["cat", "cat"]},
            [
                "nodes.x.classes: 'cat' is named twice; name it once",
                "nodes.x.samples: a head of kind 'ridge' is fitted on samples; give their hash",
            ],
        ),
        (RIDGE | {"of": "a", "lam": 0}, ["nodes.x.lam: must be > 0, got 0"]),
        (HALF | {"of": "a", "samples": None}, ["nodes.x.samples: 'css' chooses by samples; give their hash"]),
        (
            {"op": "slice", "of": "a", "keep": {"g": [0]}, "repair": {"lam": 0.1}},
            ["nodes.x.samples: a repair is fitted on samples; give their hash"],
        ),
        (
            HALF | {"of": "a", "repair": {"fit": "lasso", "lam": -1, "wpos": 2, "sequential": 1}},
            [
                "nodes.x.repair.fit: must be 'ridge', got 'lasso'",
                "nodes.x.repair.lam: must be >= 0, got -1",
                "nodes.x.repair.wpos: must be <= 1, got 2",
                "nodes.x.repair.sequential: must be true or false, got 1",
            ],
        ),
        (
            HALF | {"of": "a", "select": "threshold", "keep": {"*": 0.5, "g": 3}},
            ["nodes.x.keep.g: a threshold is a ratio, got a count"],
        ),
        (
            HALF
            | {
                "of": "a",
                "keep": {"*": 3, "a": [], "b": 1.5, "c": 0, "d": True, "e": [1, 1], "f": [-1], "g": [0.5]}
                | {"h": "half", "i": float("nan"), "j": [True], "k": 2.0, "": 1},
            },
            [
                r"nodes.x.keep.\*: a ratio lies in .*got 3",
                "nodes.x.keep.a: a list of units holds indices >= 0, at least one",
                "nodes.x.keep.b: a ratio lies in .*got 1.5",
                "nodes.x.keep.c: a count is at least 1, got 0",
                "nodes.x.keep.d: must be a ratio in .*, a count, or a list of unit indices, got true",
                "nodes.x.keep.e: a unit is named twice; name each once",
                "nodes.x.keep.f: a list of units holds indices .*",
                "nodes.x.keep.g: a list of units holds indices .*",
                "nodes.x.keep.h: must be a ratio .* got 'half'",
                "nodes.x.keep.i: a ratio lies in .* got nan",
                "nodes.x.keep.j: a list of units holds indices .*",
                "nodes.x.keep.k: .*a count is a whole number without a point.* got 2.0",
                r"nodes.x.keep\[''\]: must be the id of a channel group, .*",
            ],
        ),
        (HALF | {"of": "a", "keep": [0.5]}, ["nodes.x.keep: must be a mapping of channel groups .*"]),
    ],
)
def test_bad_nodes_are_refused_with_all_their_problems(node: Any, problems: list[str]) -> None:
    found = refused("x", x=node)
    assert len(found) == len(problems)
    for line, pattern in zip(found, problems, strict=True):
        assert line == pattern or re.fullmatch(pattern, line), (line, pattern)


def test_a_ratio_of_one_is_not_a_count_of_one() -> None:
    node = SliceNode.parse({"of": "a", "keep": {"g": 1.0, "h": 1, "*": 1}, "select": "first"})
    assert [type(node.keep[group]) for group in "gh*"] == [float, int, float]
    assert SliceNode.parse(node.to_json()) == node
    assert [type(kept) for kept in SliceNode.parse(node.to_yaml()).keep.values()] == [float, int, float]


def test_units_are_sorted() -> None:
    assert SliceNode(of="a", keep={"g": [3, 1]}).keep == {"g": (1, 3)}


def test_plans_are_made_from_nodes_too() -> None:
    made = Plan(nodes={"a": SourceNode(of=DONOR), "s": SliceNode(of="a", keep={"g": (0, 1)})}, out="s")
    assert made == plan("s", s={"op": "slice", "of": "a", "keep": {"g": [0, 1]}})
