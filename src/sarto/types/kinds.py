"""The type check of plans: what each node gives, and every reason why a plan can't be built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sarto.errors import SPELT_OUT, suggest
from sarto.types.fields import FrozenDict
from sarto.types.nodes import (
    MAX_MEMBERS,
    BlockNode,
    BranchNode,
    ChainNode,
    HeadNode,
    PlanNode,
    SliceNode,
    SourceNode,
    SubnetNode,
    TuneNode,
    reads,
)

#: Slices of slices; a longer chain is a mistake of whoever wrote the plan.
MAX_SLICES = 16
MAX_CLASSES = 10_000


@dataclass(frozen=True)
class Kind:
    """What a node gives.

    Attributes:
        form: "model" (a learnware's logits with its features within reach), "features" or "logits".
        classes: of logits, in order; None for the others.
        joined: logits of a branch or of a training: they have no classifier of a learnware.
        members: parts of a branch once branches of branches are laid flat; 1 for anything else.
        slices: names of the slices that it has been through since the last branch, the latest first.
    """

    form: Literal["model", "features", "logits"]
    classes: tuple[str, ...] | None = None
    joined: bool = False
    members: int = 1
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """What the type check found.

    Attributes:
        order: names so that each node comes after what it reads; incomplete where there are problems.
        kinds: what each well-typed node gives.
        problems: everything that is wrong.
    """

    order: tuple[str, ...]
    kinds: Mapping[str, Kind]
    problems: tuple[str, ...]


def check(nodes: Mapping[str, PlanNode], out: str) -> Check:
    """Order, kinds and problems of a plan; takes time linear in its size, whatever its depth."""
    problems = list(_dangling(nodes, out))
    order = _order(nodes)
    if len(order) < len(nodes):
        problems.append(_cycle(nodes, set(nodes) - set(order)))
    if not problems:
        problems += _unreachable(nodes, out)
    kinds: dict[str, Kind] = {}
    for name in order:
        node = nodes[name]
        if all(of in kinds for of in reads(node)):
            found = _kind(name, node, nodes, kinds)
            if isinstance(found, Kind):
                kinds[name] = found
            else:
                problems.append(f"nodes.{name}: {found}")
    return Check(tuple(order), FrozenDict(kinds), tuple(problems))


def _dangling(nodes: Mapping[str, PlanNode], out: str) -> Iterator[str]:
    told = 0
    if out not in nodes:
        yield f"out: no node {out!r}{suggest(out, nodes)}"
    for name, node in nodes.items():
        for of in reads(node):
            if of not in nodes:
                # Looking for near names takes time: only where the message will be read.
                told += 1
                yield f"nodes.{name}.of: no node {of!r}{suggest(of, nodes) if told <= SPELT_OUT else ''}"


def _order(nodes: Mapping[str, PlanNode]) -> list[str]:
    # Kahn's algorithm; nodes on a cycle, and what reads them, are left out.
    waiting = {name: len({of for of in reads(node) if of in nodes}) for name, node in nodes.items()}
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for of in dict.fromkeys(reads(node)):
            if of in nodes:
                readers[of].append(name)
    order = [name for name, count in waiting.items() if count == 0]
    for name in order:
        for reader in readers[name]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                order.append(reader)
    return order


def _cycle(nodes: Mapping[str, PlanNode], stuck: set[str]) -> str:
    # Every stuck node reads a stuck node, so this walk must come back to where it was.
    walk: dict[str, None] = {}
    name = min(stuck)
    while name not in walk:
        walk[name] = None
        name = min(of for of in reads(nodes[name]) if of in stuck)
    path = list(walk)
    loop = [*path[path.index(name) :], name]
    shown = loop if len(loop) <= 8 else [*loop[:4], "...", *loop[-3:]]
    return f"nodes: a cycle, {' reads '.join(shown)}; a plan has none"


def _unreachable(nodes: Mapping[str, PlanNode], out: str) -> Iterator[str]:
    seen, stack = {out}, [out]
    while stack:
        for of in reads(nodes[stack.pop()]):
            if of not in seen:
                seen.add(of)
                stack.append(of)
    left = sorted(set(nodes) - seen)
    if left:
        shown = ", ".join(left[:8]) + (f" and {len(left) - 8:,} more" if len(left) > 8 else "")
        yield f"nodes: nothing that {out!r} gives reads {shown}; remove what is not read"


def _kind(name: str, node: PlanNode, nodes: Mapping[str, PlanNode], kinds: Mapping[str, Kind]) -> Kind | str:
    if isinstance(node, SourceNode | SubnetNode):
        return Kind("model")
    if isinstance(node, BranchNode):
        return _branch(node, kinds)
    if isinstance(node, ChainNode):
        return _chain(node, kinds)
    given = kinds[node.of]
    if isinstance(node, BlockNode):
        if given.form == "model":
            return Kind("features", slices=given.slices)
        return f"a block reads a model, {node.of!r} gives {given.form}; read the model itself"
    if isinstance(node, SliceNode):
        return _slice(name, node, given, nodes)
    if isinstance(node, TuneNode):
        return _tune(node, given, nodes)
    return _head(node, given)


def _slice(name: str, node: SliceNode, given: Kind, nodes: Mapping[str, PlanNode]) -> Kind | str:
    if given.form == "logits":
        return f"a slice reads a model or features, {node.of!r} gives logits; slice before the head"
    if len(given.slices) >= MAX_SLICES:
        return f"more than {MAX_SLICES} slices of slices; merge them"
    earlier = [below for of in given.slices if isinstance(below := nodes[of], SliceNode)]
    for group, kept in node.keep.items():
        left = _left(group, earlier)
        wanted = kept[-1] + 1 if isinstance(kept, tuple) else kept if type(kept) is int else 0
        if left is not None and wanted > left:
            return f"keep.{group} asks for unit {wanted - 1}, the slice before it leaves units 0..{left - 1}"
    return Kind(given.form, slices=(name, *given.slices))


def _left(group: str, slices: Iterable[SliceNode]) -> int | None:
    # Units that earlier slices leave of a group, where they say it; the latest slice that names it counts.
    for node in slices:
        kept = node.keep.get(group, node.keep.get("*"))
        keeps_all = type(kept) is float and kept == 1.0 and node.select != "threshold"
        if kept is not None and not keeps_all:
            return len(kept) if isinstance(kept, tuple) else kept if type(kept) is int else None
    return None


def _chain(node: ChainNode, kinds: Mapping[str, Kind]) -> Kind | str:
    for of in node.of:
        if kinds[of].form != "model":
            return f"a chain reads models, {of!r} gives {kinds[of].form}; read the model itself"
    return Kind("model")


def _tune(node: TuneNode, given: Kind, nodes: Mapping[str, PlanNode]) -> Kind | str:
    if not _of_chain(node.of, nodes):
        return f"a training reads a chain of blocks, {node.of!r} is of none; leave it out"
    if node.towards == "features":
        if given.form == "model":
            return given
        cure = (
            "train the chain below, or towards labels" if given.form == "logits" else "train the chain below"
        )
        return f"a training towards features reads a model, {node.of!r} gives {given.form}; {cure}"
    if given.form == "logits":
        return replace(given, joined=True)
    return f"a training towards labels reads logits, {node.of!r} gives {_a(given)}; put a head between"


def _of_chain(name: str, nodes: Mapping[str, PlanNode]) -> bool:
    node = nodes[name]
    while isinstance(node, BlockNode | SliceNode | HeadNode | TuneNode):
        node = nodes[node.of]
    return isinstance(node, ChainNode)


def _a(given: Kind) -> str:
    return "a model" if given.form == "model" else given.form


def _branch(node: BranchNode, kinds: Mapping[str, Kind]) -> Kind | str:
    given = [kinds[of] for of in node.of]
    forms = sorted({kind.form for kind in given})
    if len(given) == 1:
        return given[0]
    members = sum(kind.members for kind in given)
    if members > MAX_MEMBERS:
        return f"laid flat this branch has {members:,} parts, the limit is {MAX_MEMBERS:,}"
    if "model" in forms:
        models = ", ".join(repr(of) for of in node.of if kinds[of].form == "model")
        return f"a branch joins features or logits, {models} gives a model; put a block or a head after it"
    if len(forms) > 1:
        return "a branch joins parts of one kind, these give features and logits; give each a head, or none"
    if forms == ["features"]:
        if node.join == "concat":
            return Kind("features", members=members)
        return "features of different parts have no mean; use join 'concat', or give each part a head"
    classes = [kind.classes or () for kind in given]
    if node.join == "mean":
        if len(set(classes)) == 1:
            return Kind("logits", classes[0], joined=True, members=members)
        return "a mean needs the same classes in the same order from each part; change the heads"
    joined = tuple(cls for part in classes for cls in part)
    if len(set(joined)) < len(joined):
        return "concatenated logits need different classes from each part; use join 'mean' for equal ones"
    if len(joined) > MAX_CLASSES:
        return f"more than {MAX_CLASSES:,} classes"
    return Kind("logits", joined, joined=True, members=members)


def _head(node: HeadNode, given: Kind) -> Kind | str:
    if node.kind != "restrict":
        if given.form == "features":
            return Kind("logits", node.classes)
        cure = (
            "put a block to features between"
            if given.form == "model"
            else "fit it on the features below that head"
        )
        found = "a model" if given.form == "model" else "logits"
        return f"a head of kind {node.kind!r} reads features, {node.of!r} gives {found}; {cure}"
    if given.form == "features":
        return f"a restrict head reads a model, {node.of!r} gives features; drop the block"
    if given.joined:
        return f"a restrict head reads a model, {node.of!r} gives joined logits; restrict each part before"
    if given.classes is None:
        return Kind("logits", node.classes)
    there = set(given.classes)
    left = tuple(cls for cls in node.classes if cls in there)
    if not left:
        asked, found = _some(node.classes), _some(given.classes)
        return f"none of the classes {asked} is left at {node.of!r}, which gives {found}"
    return Kind("logits", left)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
