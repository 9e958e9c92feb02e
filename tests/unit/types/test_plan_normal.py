"""The normal form rule by rule, and what the key tells apart."""

from __future__ import annotations

from typing import Any

import pytest

from sarto.types import BranchNode, Cost, HeadNode, Plan, Repair, SliceNode, SourceNode

DONOR, OTHER, SAMPLES, MORE = ("sha256:" + digit * 64 for digit in "ab56")

A = {"op": "source", "of": DONOR}
B = {"op": "source", "of": OTHER}
BLOCK = {"op": "block", "to": "features"}
CAT_DOG = {"op": "head", "kind": "restrict", "classes": ["cat", "dog"]}


def units(of: str, **keep: Any) -> dict[str, Any]:
    return {"op": "slice", "of": of, "keep": keep, "select": "first"}


def plan(out: str, **nodes: dict[str, Any]) -> Plan:
    return Plan.parse({"nodes": nodes, "out": out})


def same(one: Plan, other: Plan) -> bool:
    assert (one.key() == other.key()) == (one.normal().nodes == other.normal().nodes)
    return one.key() == other.key()


def means(*parts: str) -> dict[str, Any]:
    return {"op": "branch", "of": list(parts), "join": "mean"}


def joins(*parts: str) -> dict[str, Any]:
    return {"op": "branch", "of": list(parts), "join": "concat"}


def heads() -> dict[str, Any]:
    # Three models with different units, each with the same classes: a, b and c.
    slices = {f"s{name}": units("m", g=[at]) for at, name in enumerate("abc")}
    return {"m": A, **slices, **{name: CAT_DOG | {"of": f"s{name}"} for name in "abc"}}


def mean_of(out: dict[str, Any], **nodes: dict[str, Any]) -> Plan:
    everything = {**heads(), **nodes, "out": out}
    needed, stack = {"out"}, ["out"]
    while stack:
        node = everything[stack.pop()]
        below = {"source": [], "branch": node["of"]}.get(node["op"], [node["of"]])
        needed |= set(below)
        stack += below
    return Plan.parse({"nodes": {name: everything[name] for name in needed}, "out": "out"})


def test_r1_slices_that_name_their_units_become_one() -> None:
    made = plan("y", a=A, x=units("a", g=[1, 3, 5], h=[0]), y=units("x", g=[0, 2], i=[4])).normal()
    assert dict(made.nodes) == {
        "source1": SourceNode(of=DONOR),
        "slice1": SliceNode(of="source1", keep={"g": [1, 5], "h": [0], "i": [4]}, select="first"),
    }


def test_r1_needs_names_and_no_repair() -> None:
    chosen = {"op": "slice", "of": "x", "keep": {"g": 0.5}, "select": "css", "samples": SAMPLES}
    repaired = units("x", g=[0]) | {"repair": {"fit": "ridge"}, "samples": SAMPLES}
    for second in (chosen, repaired, units("x", g=1)):
        assert len(plan("y", a=A, x=units("a", g=[1, 3, 5]), y=second).normal().nodes) == 3
    for first in (chosen | {"of": "a"}, repaired | {"of": "a"}, units("a", g=3)):
        assert len(plan("y", a=A, x=first, y=units("x", g=[0])).normal().nodes) == 3


def test_r1_through_a_slice_that_keeps_everything() -> None:
    made = plan("z", a=A, x=units("a", g=[1, 3]), y=units("x", **{"*": 1.0}), z=units("y", g=[1]))
    assert same(made, plan("z", a=A, z=units("a", g=[3])))


def test_r3_the_slice_goes_below_the_block() -> None:
    above = plan("s", a=A, b=BLOCK | {"of": "a"}, s=units("b", g=[1]))
    below = plan("b", a=A, s=units("a", g=[1]), b=BLOCK | {"of": "s"})
    assert same(above, below)
    assert [node.op for node in above.normal().nodes.values()] == ["source", "slice", "block"]


def test_r3_leaves_a_star_where_it_is() -> None:
    above = plan("s", a=A, b=BLOCK | {"of": "a"}, s=units("b", **{"*": 0.5}))
    below = plan("b", a=A, s=units("a", **{"*": 0.5}), b=BLOCK | {"of": "s"})
    assert not same(above, below)
    assert [node.op for node in above.normal().nodes.values()] == ["source", "block", "slice"]


def test_a_ratio_equal_to_that_of_the_star_says_something_in_features_only() -> None:
    star, named = {"*": 0.5}, {"*": 0.5, "g": 0.5}
    assert same(plan("s", a=A, s=units("a", **star)), plan("s", a=A, s=units("a", **named)))
    block = BLOCK | {"of": "a"}
    assert not same(
        plan("s", a=A, b=block, s=units("b", **star)), plan("s", a=A, b=block, s=units("b", **named))
    )


def test_r4_concats_are_laid_flat_and_keep_their_order() -> None:
    parts = {"a": A, "b": B, "x": BLOCK | {"of": "a"}, "y": BLOCK | {"of": "b"}}
    flat = plan("j", **parts, j=joins("x", "y", "x"))
    assert same(flat, plan("j", **parts, i=joins("x", "y"), j=joins("i", "x")))
    assert same(flat, plan("j", **parts, i=joins("y", "x"), j=joins("x", "i")))
    assert not same(flat, plan("j", **parts, j=joins("y", "x", "x")))
    assert not same(flat, plan("j", **parts, j=joins("x", "y")))


def test_r4_a_mean_does_not_depend_on_order() -> None:
    assert same(mean_of(means("a", "b", "c")), mean_of(means("c", "a", "b")))


def test_r4_means_of_means_keep_their_weights() -> None:
    nested = mean_of(means("i", "c"), i=means("a", "b"))
    assert same(nested, mean_of(means("a", "b", "c", "c")))
    assert not same(nested, mean_of(means("a", "b", "c")))
    assert same(
        mean_of(means("i", "j"), i=means("a", "b"), j=means("c", "a")), mean_of(means("a", "a", "b", "c"))
    )


def test_r4_a_mean_drops_double_parts_only_where_all_are_doubled() -> None:
    assert same(mean_of(means("a", "a", "b", "b")), mean_of(means("a", "b")))
    assert not same(mean_of(means("a", "a", "b")), mean_of(means("a", "b")))
    assert same(mean_of(means("a", "a", "a")), mean_of(joins("a")))


def test_r4_a_concat_in_a_mean_stays() -> None:
    cat, dog = CAT_DOG | {"of": "a", "classes": ["cat"]}, CAT_DOG | {"of": "b", "classes": ["dog"]}
    parts = {"a": A, "b": B, "x": cat, "y": dog, "i": joins("x", "y"), "z": CAT_DOG | {"of": "a"}}
    made = plan("j", **parts, j=means("i", "z")).normal()
    assert sorted(node.join for node in made.nodes.values() if isinstance(node, BranchNode)) == [
        "concat",
        "mean",
    ]


def test_r5_equal_parts_are_one_node() -> None:
    twins = {"a": A, "b": A, "x": BLOCK | {"of": "a"}, "y": BLOCK | {"of": "b"}}
    assert sorted(plan("j", **twins, j=joins("x", "y")).normal().nodes) == ["block1", "branch1", "source1"]


def test_r6_restrict_of_restrict_keeps_the_intersection_in_the_outer_order() -> None:
    inner = CAT_DOG | {"of": "a", "classes": ["ant", "bee", "cat", "dog"]}
    made = plan("y", a=A, x=inner, y=CAT_DOG | {"of": "x", "classes": ["dog", "elk", "bee"]})
    assert made.classes == ("dog", "bee")
    assert made.normal().nodes["head1"] == HeadNode(of="source1", kind="restrict", classes=("dog", "bee"))
    assert same(made, plan("y", a=A, y=CAT_DOG | {"of": "a", "classes": ["dog", "bee"]}))


def test_r6_a_restriction_of_a_fitted_head_stays_unless_it_keeps_everything() -> None:
    fitted = {"op": "head", "of": "b", "kind": "ridge", "classes": ["cat", "dog"], "samples": SAMPLES}
    parts = {"a": A, "b": BLOCK | {"of": "a"}, "h": fitted}
    plain = plan("h", **parts)
    assert same(plain, plan("r", **parts, r=CAT_DOG | {"of": "h"}))
    assert same(plain, plan("r", **parts, r=CAT_DOG | {"of": "h", "classes": ["cat", "elk", "dog"]}))
    assert not same(plain, plan("r", **parts, r=CAT_DOG | {"of": "h", "classes": ["dog", "cat"]}))
    assert not same(plain, plan("h", **parts | {"h": fitted | {"classes": ["dog", "cat"]}}))


@pytest.mark.parametrize("keep", [{}, {"*": 1.0}, {"g": 1.0}, {"*": 1.0, "g": 1.0}])
def test_a_slice_that_keeps_everything_vanishes(keep: dict[str, float]) -> None:
    assert same(plan("s", a=A, s=units("a", **keep)), plan("a", a=A))


def test_a_threshold_of_one_or_a_repair_is_not_nothing() -> None:
    threshold = units("a", **{"*": 1.0}) | {"select": "threshold", "samples": SAMPLES}
    repaired = units("a", **{"*": 1.0}) | {"repair": {"fit": "ridge"}, "samples": SAMPLES}
    for node in (threshold, repaired):
        assert not same(plan("s", a=A, s=node), plan("a", a=A))


def test_a_branch_of_one_part_vanishes() -> None:
    for join in ("concat", "mean"):
        assert same(plan("j", a=A, j={"op": "branch", "of": ["a"], "join": join}), plan("a", a=A))


def test_the_normal_form_keeps_what_is_said_about_the_plan() -> None:
    cost = Cost(params=1, flops=2, memory_bytes=3, size_bytes=4, basis="predicted")
    made = plan("a", a=A).replace(predicted=cost, engine="slicepack", note="for the demo")
    assert made.normal() == made.replace(nodes={"source1": SourceNode(of=DONOR)}, out="source1")
    assert made.key() == plan("a", a=A).key()


def test_one_number_has_one_key() -> None:
    def lam(text: str) -> str:
        head = f'{{"op":"head","of":"b","kind":"ridge","classes":["x"],"samples":"{SAMPLES}","lam":{text}}}'
        nodes = f'{{"a":{{"op":"source","of":"{DONOR}"}},"b":{{"op":"block","of":"a"}},"h":{head}}}'
        return Plan.parse(f'{{"nodes":{nodes},"out":"h"}}').key()

    assert lam("0.5") == lam("0.50") == lam("5e-1")
    assert lam("1") == lam("1.0") == lam("1e0")
    assert len({lam("1"), lam("0.5"), lam("null"), lam("1.0000000000000002")}) == 4


FULL = {
    "op": "slice",
    "of": "a",
    "keep": {"*": 0.5, "g": [0, 2]},
    "select": "random",
    "classes": ["cat"],
    "repair": {"fit": "ridge", "lam": 0.5, "wpos": 0.5, "sequential": True},
    "samples": SAMPLES,
    "seed": 3,
}
REPAIR = Repair(lam=0.5).model_dump()
RIDGE = {"op": "head", "of": "j", "kind": "ridge", "classes": ["a", "b"], "lam": 0.1, "samples": SAMPLES}
NODES = {
    "a": A,
    "s": FULL,
    "x": BLOCK | {"of": "s"},
    "y": BLOCK | {"of": "a"},
    "j": joins("x", "y"),
    "h": RIDGE,
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a", {"of": OTHER}),
        *(("s", {"keep": {"*": 0.5, "g": kept}}) for kept in ([0, 3], [0, 1, 2], 1, 2, 1.0, 0.75)),
        *(("s", {"keep": keep}) for keep in ({"*": 0.25, "g": [0, 2]}, {"*": 0.5}, {"*": 0.5, "h": [0, 2]})),
        *(("s", {"select": select}) for select in ("css", "energy", "first")),
        *(("s", {"classes": classes}) for classes in ([], ["dog"], ["cat", "dog"])),
        *(
            ("s", {"repair": REPAIR | change})
            for change in ({"lam": 0.6}, {"wpos": 0.6}, {"sequential": False})
        ),
        ("s", {"repair": None}),
        ("s", {"samples": MORE}),
        ("s", {"seed": 4}),
        ("j", {"of": ["y", "x"]}),
        ("j", {"of": ["x", "y", "y"]}),
        ("h", {"kind": "logistic"}),
        ("h", {"classes": ["b", "a"]}),
        ("h", {"classes": ["a", "b", "c"]}),
        ("h", {"lam": 0.2}),
        ("h", {"lam": None}),
        ("h", {"samples": MORE}),
    ],
)
def test_every_field_with_a_meaning_changes_the_key(name: str, change: dict[str, Any]) -> None:
    assert not same(plan("h", **NODES), plan("h", **NODES | {name: NODES[name] | change}))


@pytest.mark.parametrize(
    ("select", "change"),
    [
        ("css", {"seed": 4}),
        ("css", {"classes": ["dog", "cat"]}),
        ("random", {"repair": None, "classes": ["dog"], "samples": MORE}),
        ("first", {"repair": None, "classes": [], "samples": None, "seed": 9}),
    ],
)
def test_fields_without_a_meaning_do_not_change_the_key(select: str, change: dict[str, Any]) -> None:
    node = FULL | {"select": select, "classes": ["cat", "dog"], "repair": change.get("repair", REPAIR)}
    assert same(plan("s", a=A, s=node), plan("s", a=A, s=node | change))


def test_subkeys_name_fragments() -> None:
    keys = plan("h", **NODES).subkeys()
    assert set(keys) == set(NODES)
    assert keys["s"] == plan("s", a=A, s=FULL).key()
    assert keys["h"] == plan("h", **NODES).key()
