"""A plan: what to build, written as an expression over stocked objects; and what it is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sarto.errors import RequestError
from sarto.types.cost import Cost
from sarto.types.fields import FrozenDict, Name, Text, Version, problem
from sarto.types.kinds import Check, Kind, check
from sarto.types.nodes import PlanNode, SliceNode, SourceNode, SubnetNode
from sarto.types.normal import Normal, normalise, rename
from sarto.types.value import Value

MAX_NODES = 10_000
#: Units and channel groups that all slices of a plan may name.
MAX_KEPT = 1_000_000


def _bounded(data: Any) -> Any:
    if isinstance(data, Mapping) and len(data) > MAX_NODES:
        raise problem(f"a plan has at most {MAX_NODES:,} nodes, got {len(data):,}")
    return data


def _unedited(data: Any) -> Any:
    before = data.get("edited_from") if isinstance(data, Mapping) else getattr(data, "edited_from", None)
    if before is not None:
        raise problem("is the plan that all edits began from; it is edited from none")
    return data


class Plan(Value):
    """A typed expression: named nodes, each of which reads others; `out` is what gets built.

    Attributes:
        plan: version of the language.
        nodes: name -> node; names carry no meaning.
        out: the node that gets built.
        predicted: what it should cost.
        engine: who proposed it.
        note: for people.
        edited_from: of a pack that gained or lost classes: the one that this began from. It says how its donors are
            cut, so that classes which come back are cut as they were.
    """

    plan: Version = 1
    nodes: Annotated[
        Mapping[Name, PlanNode], BeforeValidator(_bounded), Field(min_length=1), AfterValidator(FrozenDict)
    ]
    out: Name
    predicted: Cost | None = None
    engine: Text = ""
    note: Text = ""
    edited_from: Annotated[Plan | None, BeforeValidator(_unedited)] = None

    @model_validator(mode="after")
    def _check_types(self) -> Self:
        if self.edited_from is not None and self.edited_from.edited_from is not None:
            raise RequestError(
                ".edited_from: the first plan of all edits is named, which is edited from none"
            )
        kept = sum(_entries(n) for n in self.nodes.values() if isinstance(n, SliceNode | SubnetNode))
        if kept > MAX_KEPT:
            raise RequestError(f".nodes: all slices name {kept:,} units, the limit is {MAX_KEPT:,}")
        problems = ["." + text for text in self._checked.problems]
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the nodes, each after those that it reads."""
        return self._checked.order

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What each node gives: a model, features or logits (and of which classes)."""
        return self._checked.kinds

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Classes of the outputs, in order; None where it gives features or a learnware's own classes."""
        return self.kinds[self.out].classes

    @property
    def learnwares(self) -> tuple[str, ...]:
        """Ids of the learnwares that parts come from, sorted."""
        return tuple(sorted({node.of for node in self.nodes.values() if isinstance(node, SourceNode)}))

    @property
    def supernets(self) -> tuple[str, ...]:
        """Ids of the supernets that subnets are cut from, sorted."""
        return tuple(sorted({node.of for node in self.nodes.values() if isinstance(node, SubnetNode)}))

    def normal(self) -> Plan:
        """The plan of the same meaning that all its spellings share.

        Raises:
            RequestError: it would be far larger than this plan.
        """
        nodes, out = rename(self._normal, self.out)
        return self.replace(nodes=nodes, out=out)

    def key(self) -> str:
        """The plan's identity, "sha256:<64 hex>": the same for all plans of the same normal form.

        Names of nodes, `predicted`, `engine`, `note` and `edited_from` do not count.
        """
        return self._normal.keys[self.out]

    def subkeys(self) -> dict[str, str]:
        """The key of what each node gives."""
        return dict(self._normal.keys)

    @cached_property
    def _checked(self) -> Check:
        return check(self.nodes, self.out)

    @cached_property
    def _normal(self) -> Normal:
        return normalise(self.nodes, self._checked)


def _entries(node: SliceNode | SubnetNode) -> int:
    return sum(len(kept) if isinstance(kept, tuple) else 1 for kept in node.keep.values())
