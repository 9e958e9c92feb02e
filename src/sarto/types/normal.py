"""The normal form of plans and their canonical hash: plans that mean the same get the same key.

Each node is hashed over its own fields and the keys of what it reads (a Merkle tree), after these rewrites.
Each of them takes a node away or moves a slice down, so that they end:

* a slice that keeps everything and repairs nothing vanishes; so does a branch of one part;
* R1: slices of slices that name their units, without repair, become one;
* R3: slice(block(e)) becomes block(slice(e)), unless "*" is used: in a block "*" leaves out the last group;
* R2: in a chain, neighbouring blocks of one model that continue each other are one block (unless it keeps its
  cuts); one that is left alone is its model;
* R4: a concat within a concat is laid flat; a mean within a mean too, its weights kept by repeating parts; a
  mean does not depend on the order of its parts;
* R6: restrict of restrict keeps the intersection in the outer order; one that keeps everything vanishes.

* R9 in part: the tasks of a subnet, and the properties of each, have no order.

What has no meaning in a place is set to its default: the seed of a choice that is not random, the classes and
samples of a slice that neither chooses nor fits by them.

Differs:
    From "a branch flattens" and "a mean drops double parts": mean(mean(a, b), c) is not mean(a, b, c), and
    mean(a, a, b) is not mean(a, b). Here parts repeat, so that the weights stay right.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sarto.errors import RequestError
from sarto.types.fields import FrozenDict
from sarto.types.kinds import Check
from sarto.types.nodes import (
    MAX_MEMBERS,
    BlockNode,
    BranchNode,
    ChainNode,
    HeadNode,
    Kept,
    PlanNode,
    SliceNode,
    SourceNode,
    SubnetNode,
    TuneNode,
    reads,
)
from sarto.types.text import to_json_text
from sarto.types.value import Value

N = TypeVar("N", bound=Value)

#: Raised when a node changes its meaning, so that old keys no longer match.
SEMANTICS = 1
#: Bound on the entries (units, groups, parts) that normal forms may write in all.
MAX_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Normal:
    """The normal form of each node of a plan.

    Attributes:
        keys: name of a node -> key of its normal form.
        table: key -> node in normal form, which reads keys instead of names.
    """

    keys: Mapping[str, str]
    table: Mapping[str, PlanNode]


def normalise(nodes: Mapping[str, PlanNode], checked: Check) -> Normal:
    """Normal form and key of every node of a well-typed plan.

    Raises:
        RequestError: the normal form would be far larger than the plan.
    """
    forms = _Forms()
    keys: dict[str, str] = {}
    for name in checked.order:
        node = nodes[name]
        below = [keys[of] for of in reads(node)]
        if isinstance(node, SourceNode):
            keys[name] = forms.add(node)
        elif isinstance(node, SubnetNode):
            keys[name] = forms.add(_tidy_subnet(node))
        elif isinstance(node, BranchNode):
            keys[name] = forms.branch(name, node, below)
        elif isinstance(node, ChainNode):
            keys[name] = forms.chain(node, below)
        elif isinstance(node, SliceNode):
            keys[name] = forms.slice(node, below[0], on_model=checked.kinds[name].form == "model")
        elif isinstance(node, BlockNode):
            keys[name] = forms.add(BlockNode(of=below[0], to=node.to))
        elif isinstance(node, TuneNode):
            keys[name] = forms.add(_with(node, of=below[0]))
        else:
            keys[name] = forms.head(node, below[0], checked.kinds[name].classes or ())
    return Normal(keys, forms.table)


def rename(normal: Normal, out: str) -> tuple[dict[str, PlanNode], str]:
    """The nodes that `out` needs, named by operation and place in the walk; and the name of `out`."""
    names: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    stack = [normal.keys[out]]
    while stack:
        key = stack[-1]
        left = [of for of in reads(normal.table[key]) if of not in names]
        if key in names or not left:
            stack.pop()
            if key not in names:
                op = normal.table[key].op
                numbers[op] += 1
                names[key] = f"{op}{numbers[op]}"
        else:
            stack.extend(reversed(left))
    nodes = {name: _reading(normal.table[key], names) for key, name in names.items()}
    return nodes, names[normal.keys[out]]


class _Forms:
    """Nodes in normal form by key; each method takes a node whose reads are in normal form already."""

    def __init__(self) -> None:
        self.table: dict[str, PlanNode] = {}
        self._entries = 0

    def add(self, node: PlanNode) -> str:
        key = "sha256:" + hashlib.sha256(_canonical(node)).hexdigest()
        self.table.setdefault(key, node)
        return key

    def slice(self, node: SliceNode, below: str, *, on_model: bool) -> str:
        tidy = _tidy(node, below, on_model)
        if not tidy.keep and tidy.repair is None:
            return below
        lower = self.table[below]
        if isinstance(lower, BlockNode) and "*" not in tidy.keep:
            return self.add(BlockNode(of=self.slice(tidy, lower.of, on_model=True), to=lower.to))
        if isinstance(lower, SliceNode) and _only_names(lower) and _only_names(tidy):
            merged = _merge(lower.keep, tidy.keep)
            self._spend(sum(len(kept) for kept in merged.values() if isinstance(kept, tuple)) + len(merged))
            return self.add(_with(tidy, of=lower.of, keep=FrozenDict(merged)))
        return self.add(tidy)

    def branch(self, name: str, node: BranchNode, below: Sequence[str]) -> str:
        weights: list[tuple[list[str], int]] = []
        for key in below:
            inner = self.table[key]
            parts = list(inner.of) if isinstance(inner, BranchNode) and inner.join == node.join else [key]
            weights.append((parts, len(parts)))
        self._spend(sum(count for _, count in weights))
        flat = [key for parts, _ in weights for key in parts]
        members = flat if node.join == "concat" else _mean(name, weights)
        return members[0] if len(members) == 1 else self.add(BranchNode(of=tuple(members), join=node.join))

    def chain(self, node: ChainNode, below: Sequence[str]) -> str:
        of, joints = [below[0]], list[tuple[str, str]]()
        for key, (end, start) in zip(below[1:], node.joints, strict=True):
            if key == of[-1] and end == start and not node.stitch.keep_cuts:
                continue
            of.append(key)
            joints.append((end, start))
        return of[0] if len(of) == 1 else self.add(_with(node, of=tuple(of), joints=tuple(joints)))

    def head(self, node: HeadNode, below: str, classes: tuple[str, ...]) -> str:
        lower = self.table[below]
        if node.kind == "restrict" and isinstance(lower, HeadNode):
            if lower.classes == classes:
                return below
            if lower.kind == "restrict":
                below = lower.of
        return self.add(_with(node, of=below, classes=classes))

    def _spend(self, entries: int) -> None:
        self._entries += entries
        if self._entries > MAX_ENTRIES:
            raise RequestError(
                f"the plan's normal form names more than {MAX_ENTRIES:,} units and parts; make it smaller"
            )


def _tidy(node: SliceNode, below: str, on_model: bool) -> SliceNode:
    # What has no meaning becomes the default. In features "*" leaves out the last group, so naming a group
    # with the ratio of "*" says something there. A threshold with beta = 1 still drops units of score 0.
    keeps_all = None if node.select == "threshold" else 1.0
    star = node.keep.get("*", keeps_all)
    same = star if on_model or star == keeps_all else None
    keep: dict[str, Kept] = {
        group: kept
        for group, kept in node.keep.items()
        if group == "*" or type(kept) is not float or kept != same
    }
    if star == keeps_all:
        keep.pop("*", None)
    explicit = all(isinstance(kept, tuple) for kept in keep.values())
    select = "first" if explicit else node.select
    reads_samples = node.repair is not None or select not in ("first", "random")
    return _with(
        node,
        of=below,
        keep=FrozenDict(keep),
        select=select,
        seed=node.seed if select == "random" else 0,
        classes=tuple(sorted(node.classes)) if reads_samples else (),
        samples=node.samples if reads_samples else None,
    )


def _tidy_subnet(node: SubnetNode) -> SubnetNode:
    # A task is a set of properties, and several tasks are a set of tasks.
    return _with(node, tasks=tuple(sorted({tuple(sorted(set(task))) for task in node.tasks})))


def _only_names(node: SliceNode) -> bool:
    return node.explicit and node.repair is None


def _merge(inner: Mapping[str, Kept], outer: Mapping[str, Kept]) -> dict[str, Kept]:
    merged = dict(inner)
    for group, units in outer.items():
        first = inner.get(group)
        if isinstance(first, tuple) and isinstance(units, tuple):
            merged[group] = tuple(first[unit] for unit in units)
        else:
            merged[group] = units
    return merged


def _mean(name: str, weights: Sequence[tuple[list[str], int]]) -> list[str]:
    # Each part weighs 1 / (its count) of one share: over the common denominator these are whole numbers.
    common = math.lcm(*(count for _, count in weights))
    total: Counter[str] = Counter()
    for parts, count in weights:
        for key in parts:
            total[key] += common // count
    shared = math.gcd(*total.values())
    if sum(total.values()) // shared > MAX_MEMBERS:
        raise RequestError(
            f"nodes.{name}: laid flat this mean has more than {MAX_MEMBERS:,} parts; use fewer"
        )
    return [key for key in sorted(total) for _ in range(total[key] // shared)]


def _with(node: N, **changes: Any) -> N:
    # Without a second check: what goes in was checked, or made here.
    fields = {name: getattr(node, name) for name in type(node).model_fields}
    return type(node).model_construct(**fields | changes)


def _reading(node: PlanNode, names: Mapping[str, str]) -> PlanNode:
    if isinstance(node, SourceNode | SubnetNode):
        return node
    if isinstance(node, BranchNode):
        return BranchNode(of=tuple(names[of] for of in node.of), join=node.join)
    if isinstance(node, ChainNode):
        return _with(node, of=tuple(names[of] for of in node.of))
    return _with(node, of=names[node.of])


def _canonical(node: PlanNode) -> bytes:
    # RFC 8785 in spirit: sorted keys, no spaces, one spelling for each number.
    fields = {name: _plain(getattr(node, name)) for name in type(node).model_fields}
    if isinstance(node, SubnetNode):
        fields["keep"] = {group: _tagged(kept) for group, kept in node.keep.items()}
    if isinstance(node, SliceNode):
        fields["keep"] = {group: _tagged(kept) for group, kept in node.keep.items()}
        fields["repair"] = None if node.repair is None else _plain(node.repair.model_dump())
    if isinstance(node, ChainNode):
        fields["stitch"] = _plain(node.stitch.model_dump())
    paper = fields.pop("paper", None)
    if paper is not None:
        fields["paper"] = _plain(paper.model_dump())
    fields["semantics"] = SEMANTICS
    return to_json_text(fields).encode()


def _tagged(kept: Kept) -> dict[str, Any]:
    # A ratio of 1.0 and a count of 1 are different things with one spelling.
    if isinstance(kept, tuple):
        return {"units": list(kept)}
    return {"count": kept} if type(kept) is int else {"ratio": _plain(kept)}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
