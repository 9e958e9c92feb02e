"""Plans: the normal form keeps the meaning, and all spellings of one meaning get one key.

The other road is `meaning`: a small interpreter that runs an expression on a made-up donor whose units are
numbers, with choices and repairs drawn from hashes of all that they may read. It knows no rewrites.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.types import Plan, Repair

SIZES = {"g": 7, "h": 5, "last": 4}
CLASSES = ("ant", "bee", "cat", "dog")
SAMPLES = ["sha256:" + digit * 64 for digit in "12"]
CHOICES = ("css", "energy", "threshold", "random", "first")

quick = settings(max_examples=50, deadline=None)


@dataclass(frozen=True)
class Expr:
    """A plan as a tree: `op`, what it reads, and the other fields."""

    op: str
    of: tuple[Expr, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Expr:
        return replace(self, fields=self.fields | changes)


def to_plan(
    tree: Expr, names: Callable[[int], str] = str, *, share: bool = True, backwards: bool = False
) -> Plan:
    nodes: dict[str, Any] = {}
    known: dict[str, str] = {}

    def add(expr: Expr) -> str:
        below = [add(part) for part in expr.of]
        if share and repr(expr) in known:
            return known[repr(expr)]
        of = {"source": expr.fields.get("of"), "branch": below}.get(expr.op, below[0] if below else None)
        name = known[repr(expr)] = names(len(nodes))
        nodes[name] = {**expr.fields, "op": expr.op, "of": of}
        return name

    out = add(tree)
    order = sorted(nodes, reverse=True) if backwards else list(nodes)
    return Plan.parse({"nodes": {name: nodes[name] for name in order}, "out": out})


def size(tree: Expr) -> int:
    return 1 + sum(size(part) for part in tree.of)


def from_plan(plan: Plan) -> Expr:
    made: dict[str, Expr] = {}
    for name in plan.order:
        fields = plan.nodes[name].model_dump()
        op, of = fields.pop("op"), fields.pop("of")
        if op == "source":
            made[name] = Expr(op, (), {"of": of})
        else:
            made[name] = Expr(op, tuple(made[key] for key in (of if op == "branch" else [of])), fields)
    return made[plan.out]


# --- expressions at random --------------------------------------------------------------


def units_left(expr: Expr, group: str) -> int | None:
    """Units of a group that a slice on top of this would see; None where a choice decides."""
    if expr.op == "slice":
        kept = expr.fields["keep"].get(group, expr.fields["keep"].get("*"))
        if isinstance(kept, float) and (kept < 1 or expr.fields["select"] == "threshold"):
            return None
        if kept is not None and not isinstance(kept, float):
            return kept if isinstance(kept, int) else len(kept)
    alone = expr.op in ("block", "slice") or (expr.op == "branch" and len(expr.of) == 1)
    return units_left(expr.of[0], group) if alone else SIZES[group]


@st.composite
def slices(draw: st.DrawFn, below: Expr) -> Expr:
    select, names_units = draw(st.sampled_from(CHOICES)), draw(st.booleans())
    keep: dict[str, Any] = {}
    for group in draw(st.sets(st.sampled_from(sorted(SIZES)), max_size=2)):
        left = units_left(below, group)
        ratio = st.sampled_from([0.25, 0.5, 1.0])
        units = st.sets(st.integers(0, (left or 1) - 1), min_size=1).map(sorted)
        count = ratio if select == "threshold" else st.integers(1, left or 1)
        keep[group] = draw(units if names_units else st.one_of(units, ratio, count))
    if not names_units and draw(st.booleans()):
        keep["*"] = draw(st.sampled_from([0.25, 0.5, 1.0]))
    repair = st.fixed_dictionaries({"fit": st.just("ridge"), "lam": st.sampled_from([0.001, 1.0])})
    return Expr(
        "slice",
        (below,),
        {
            "keep": keep,
            "select": select,
            "classes": draw(st.lists(st.sampled_from(CLASSES), unique=True, max_size=2)),
            "repair": draw(st.none() | st.none() | repair),
            "samples": draw(st.sampled_from(SAMPLES)),
            "seed": draw(st.integers(0, 1)),
        },
    )


@st.composite
def models(draw: st.DrawFn) -> Expr:
    made = Expr("source", (), {"of": "sha256:" + draw(st.sampled_from("ab")) * 64})
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
        made = draw(slices(made))
    return made


@st.composite
def features(draw: st.DrawFn, depth: int = 2) -> Expr:
    if depth and draw(st.booleans()):
        parts = draw(st.lists(features(depth - 1), min_size=1, max_size=3))
        made = Expr("branch", tuple(parts), {"join": "concat"})
    else:
        made = Expr("block", (draw(models()),), {"to": "features"})
    for _ in range(draw(st.integers(0, 2))):
        made = draw(slices(made))
    return made


@st.composite
def logits(draw: st.DrawFn, classes: tuple[str, ...], depth: int = 2) -> Expr:
    """Logits of exactly these classes, in this order."""
    shape = draw(st.sampled_from(["own", "mean", "fitted", "mean", "restrict", "concat"]))
    if depth and shape == "mean":
        parts = draw(st.lists(logits(classes, depth - 1), min_size=1, max_size=3))
        return Expr("branch", tuple(parts), {"join": "mean"})
    if depth and shape == "concat" and len(classes) > 1:
        cut = draw(st.integers(1, len(classes) - 1))
        parts = [draw(logits(part, depth - 1)) for part in (classes[:cut], classes[cut:])]
        return Expr("branch", tuple(parts), {"join": "concat"})
    if depth and shape == "restrict":
        more = draw(st.permutations([*classes, *draw(st.sets(st.sampled_from([*CLASSES, "emu"])))]))
        base = draw(logits(tuple(dict.fromkeys(more)), 0))
        return Expr("head", (base,), {"kind": "restrict", "classes": list(classes)})
    if shape == "fitted":
        kind, lam = draw(st.sampled_from(["ridge", "logistic"])), draw(st.sampled_from([None, 0.1, 1.0]))
        fitted = {
            "kind": kind,
            "classes": list(classes),
            "lam": lam,
            "samples": draw(st.sampled_from(SAMPLES)),
        }
        return Expr("head", (draw(features(1)),), fitted)
    return Expr("head", (draw(models()),), {"kind": "restrict", "classes": list(classes)})


some_classes = st.permutations(CLASSES).flatmap(
    lambda names: st.integers(1, len(names)).map(lambda count: tuple(names[:count]))
)
outputs = some_classes.flatmap(logits)
expressions = st.one_of(models(), features(), outputs, outputs)


# --- what an expression means -----------------------------------------------------------


@dataclass(frozen=True)
class Logits:
    """What makes the outputs, and the classes that are left of them."""

    base: tuple[object, ...]
    classes: tuple[str, ...]


def number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


@dataclass(frozen=True)
class State:
    """A donor, or joined features, with the units that are left and the repairs that were fitted."""

    base: object
    left: tuple[tuple[str, tuple[int, ...]], ...]
    log: tuple[int, ...] = ()
    is_block: bool = False


def fresh(base: object, *, is_block: bool) -> State:
    return State(base, tuple((group, tuple(range(size))) for group, size in SIZES.items()), (), is_block)


def chosen(
    fields: dict[str, Any], kept: Any, units: tuple[int, ...], group: str, seen: object
) -> tuple[int, ...]:
    if isinstance(kept, (list, tuple)):
        return tuple(units[place] for place in kept)
    select, by_samples = fields["select"], (sorted(fields["classes"]), fields["samples"])
    count = max(1, round(kept * len(units))) if isinstance(kept, float) else kept
    if select == "first":
        return units[:count]
    reads = fields["seed"] if select == "random" else (by_samples, seen)
    score = {unit: number(select, reads, group, unit) for unit in units}
    ranked = sorted(units, key=lambda unit: -score[unit])
    if select == "threshold":
        count = max(1, sum(value > (1 - kept) * 2**47 + 2**44 for value in score.values()))
    return tuple(sorted(ranked[:count]))


def sliced(state: State, fields: dict[str, Any]) -> State:
    keep, left = fields["keep"], []
    seen = (state.base, state.left, state.log)
    for group, units in state.left:
        star = None if state.is_block and group == "last" else keep.get("*")
        kept = keep.get(group, star)
        left.append((group, units if kept is None else chosen(fields, kept, units, group, seen)))
    log = state.log
    if fields["repair"] is not None:
        repair = sorted({**Repair().model_dump(), **fields["repair"]}.items())
        log = (*log, number(seen, left, repair, sorted(fields["classes"]), fields["samples"]))
    return replace(state, left=tuple(left), log=log)


def meaning(expr: Expr) -> Any:
    below = [meaning(part) for part in expr.of]
    fields = expr.fields
    if expr.op == "source":
        return fresh(fields["of"], is_block=False)
    if expr.op == "block":
        return replace(below[0], is_block=True)
    if expr.op == "slice":
        return sliced(below[0], fields)
    if expr.op == "branch":
        return joined(fields["join"], below)
    classes = tuple(fields["classes"])
    if fields["kind"] != "restrict":
        return Logits((fields["kind"], below[0], fields["lam"], fields["samples"], classes), classes)
    if isinstance(below[0], State):
        return Logits(("own", below[0]), classes)
    return replace(below[0], classes=tuple(name for name in classes if name in below[0].classes))


def joined(join: str, below: list[Any]) -> Any:
    if len(below) == 1:
        return below[0]
    if join == "mean":
        weights: dict[Any, Fraction] = {}
        for part in below:
            for leaf, weight in part.base[1] if part.base[0] == "mean" else [(part, Fraction(1))]:
                weights[leaf] = weights.get(leaf, Fraction(0)) + weight / len(below)
        return (
            next(iter(weights))
            if len(weights) == 1
            else Logits(("mean", frozenset(weights.items())), part.classes)
        )
    parts: list[Any] = []
    for part in below:
        whole = isinstance(part, Logits) or part == fresh(part.base, is_block=True)
        parts += part.base[1] if whole and part.base[0] == "concat" else [part]
    if isinstance(parts[0], State):
        return fresh(("concat", tuple(parts)), is_block=True)
    return Logits(("concat", tuple(parts)), tuple(name for part in parts for name in part.classes))


# --- rewrites that keep the meaning -----------------------------------------------------


def split_slice(expr: Expr, draw: Callable[[Any], Any]) -> Expr:
    """slice(e, K) -> slice(slice(e, S), T) with K = S[T]."""
    if expr.op != "slice" or expr.fields["repair"] or not expr.fields["keep"]:
        return expr
    keep = expr.fields["keep"]
    if not all(isinstance(kept, (list, tuple)) for kept in keep.values()):
        return expr
    first, then = {}, {}
    for group, units in keep.items():
        left = units_left(expr.of[0], group)
        more = draw(st.sets(st.integers(0, left - 1))) if left else set()
        first[group] = sorted({*units, *more})
        then[group] = [first[group].index(unit) for unit in units]
    return Expr("slice", (expr.but(keep=first),), expr.fields | {"keep": then})


def swap_block(expr: Expr, draw: Callable[[Any], Any]) -> Expr:
    """block(slice(e)) <-> slice(block(e)), where no "*" is used."""
    if not expr.of or {expr.op, expr.of[0].op} != {"block", "slice"} or len(expr.of) > 1:
        return expr
    inner = expr.of[0]
    if "*" in {**expr.fields, **inner.fields}["keep"]:
        return expr
    return replace(inner, of=(replace(expr, of=inner.of),))


def nest(expr: Expr, draw: Callable[[Any], Any]) -> Expr:
    """Some neighbours of a concat become a concat; a mean repeats, nests and turns its parts."""
    if expr.op != "branch" or len(expr.of) < 2:
        return expr
    if expr.fields["join"] == "mean":
        parts = draw(st.permutations(expr.of * draw(st.integers(1, 2))))
        return replace(expr, of=(replace(expr, of=tuple(parts)), replace(expr, of=expr.of)))
    start = draw(st.integers(0, len(expr.of) - 1))
    stop = draw(st.integers(start + 1, len(expr.of)))
    return replace(expr, of=(*expr.of[:start], replace(expr, of=expr.of[start:stop]), *expr.of[stop:]))


def wrap(expr: Expr, draw: Callable[[Any], Any]) -> Expr:
    """A branch of one part, a slice that keeps everything, or a restrict head that keeps everything."""
    choice = draw(st.integers(0, 2))
    if choice == 0:
        return Expr("branch", (expr,), {"join": draw(st.sampled_from(["concat", "mean"]))})
    if choice == 1 and expr.op in ("source", "slice", "block"):
        keep = draw(st.sampled_from([{}, {"*": 1.0}, {"g": 1.0}]))
        return Expr(
            "slice",
            (expr,),
            {"keep": keep, "select": "first", "repair": None, "classes": [], "samples": None},
        )
    if choice == 2 and expr.op == "head":
        classes = [*meaning(expr).classes, *draw(st.sampled_from([[], ["elk"]]))]
        return Expr("head", (expr,), {"kind": "restrict", "classes": classes})
    return expr


def split_head(expr: Expr, draw: Callable[[Any], Any]) -> Expr:
    """restrict(e, C) -> restrict(restrict(e, C and more), C)."""
    if expr.op != "head" or expr.fields["kind"] != "restrict":
        return expr
    more = draw(st.permutations([*expr.fields["classes"], "fox"]))
    return replace(expr, of=(expr.but(classes=list(more)),))


def respell(expr: Expr, draw: Callable[[Any], Any]) -> Expr:
    """Fields without a meaning change."""
    if expr.op != "slice":
        return expr
    keep = dict(reversed(expr.fields["keep"].items()))
    if isinstance(keep.get("*"), float) and "last" not in keep and not meaning(expr).is_block:
        keep["last"] = keep["*"]
    changed = expr.but(keep=keep, classes=list(expr.fields["classes"])[::-1])
    return changed if expr.fields["select"] == "random" else changed.but(seed=draw(st.integers(0, 9)))


REWRITES = [split_slice, swap_block, nest, wrap, split_head, respell]


def rewritten(expr: Expr, draw: Callable[[Any], Any]) -> Expr:
    made = replace(expr, of=tuple(rewritten(part, draw) for part in expr.of))
    for _ in range(draw(st.integers(0, 2))):
        made = draw(st.sampled_from(REWRITES))(made, draw)
    return made


# --- what must hold ---------------------------------------------------------------------


@quick
@given(expressions)
def test_normal_form_keeps_the_meaning(tree: Expr) -> None:
    assert meaning(from_plan(to_plan(tree).normal())) == meaning(tree)


@quick
@given(expressions)
def test_normal_form_is_its_own_normal_form(tree: Expr) -> None:
    plan = to_plan(tree)
    normal = plan.normal()
    assert normal.normal() == normal
    assert normal.key() == plan.key()
    if "mean" not in repr(tree):
        assert size(from_plan(normal)) <= size(tree)


@quick
@given(expressions, st.data())
def test_rewrites_in_any_order_end_in_one_key(tree: Expr, data: st.DataObject) -> None:
    other = rewritten(tree, data.draw)
    assert meaning(other) == meaning(tree)
    assert to_plan(other).key() == to_plan(tree).key()
    assert to_plan(other).normal().nodes == to_plan(tree).normal().nodes


@quick
@given(expressions, st.integers(1, 100), st.booleans(), st.booleans())
def test_names_order_and_sharing_do_not_matter(tree: Expr, factor: int, share: bool, backwards: bool) -> None:
    plan = to_plan(tree)
    other = to_plan(tree, lambda at: f"n{at * factor % 101}.{at}", share=share, backwards=backwards)
    assert other.key() == plan.key()
    assert other.normal().nodes == plan.normal().nodes
    assert other.subkeys()[other.out] == plan.key()


@quick
@given(expressions)
def test_text_gives_the_same_plan_back(tree: Expr) -> None:
    plan = to_plan(tree)
    for text in (plan.to_json(), plan.to_yaml(), plan.to_json(pretty=True), plan.to_json().encode()):
        assert Plan.parse(text) == plan
        assert Plan.parse(text).key() == plan.key()
    assert Plan.parse(plan.to_json()).to_json() == plan.to_json()


@quick
@given(expressions, expressions)
def test_one_key_means_one_meaning(one: Expr, other: Expr) -> None:
    if to_plan(one).key() == to_plan(other).key():
        assert meaning(one) == meaning(other)
    else:
        assert to_plan(one).normal().nodes != to_plan(other).normal().nodes


@quick
@given(expressions)
def test_subkeys_are_keys_of_the_parts(tree: Expr) -> None:
    plan = to_plan(tree)
    for name, key in plan.subkeys().items():
        needed, stack = {name}, [name]
        while stack:
            node = plan.nodes[stack.pop()].model_dump()
            of = [] if node["op"] == "source" else node["of"] if node["op"] == "branch" else [node["of"]]
            stack += [below for below in of if below not in needed]
            needed |= set(of)
        assert Plan(nodes={part: plan.nodes[part] for part in needed}, out=name).key() == key
