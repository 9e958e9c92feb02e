"""The nodes of a plan, one class an operation: each names what it reads; leaves name learnwares by id."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from sarto.errors import RequestError, suggest
from sarto.types.fields import (
    LARGEST,
    AboveZero,
    AtLeastZero,
    Flag,
    FrozenDict,
    Name,
    Names,
    Positive,
    Ratio,
    Several,
    Sha,
    Share,
    Whole,
    problem,
    twice,
)
from sarto.types.paper import PaperSettings, head_problems, slice_problems
from sarto.types.problems import show
from sarto.types.value import Value

#: Operations that the plan language knows and this version does not build.
NOT_BUILT = ("quantise",)
OPERATIONS = ("block", "branch", "chain", "head", "slice", "source", "subnet", "tune")
MAX_MEMBERS = 1_000

#: What is kept of one channel group: a ratio (float in (0, 1]), a count (int), or sorted indices.
Kept = float | int | tuple[int, ...]


class SourceNode(Value):
    """A learnware's whole model, with its own classifier."""

    op: Literal["source"] = "source"
    of: Sha


class BlockNode(Value):
    """A model up to the input of its classifier."""

    op: Literal["block"] = "block"
    of: Name
    to: Literal["features"] = "features"


class Repair(Value):
    """How the dropped units are given back to those that read them.

    Attributes:
        lam: ridge strength, in units of the mean diagonal of the Gram matrix.
        wpos: weight of the samples of the slice's own classes; the others share 1 - wpos.
        sequential: fit each map on what the already sliced layers give, not on the donor's activations.
        rivals: samples of other classes that a sequential fit runs through the sliced layers; None: all.
        towards: what a map is drawn to where samples say little: the kept units as they are, or zero.
        recalibrate: move the statistics of batch norms too.
        polish: distil towards the donor's features in small steps, where samples left out say that it helps.
    """

    fit: Literal["ridge"] = "ridge"
    lam: AtLeastZero = 1e-3
    wpos: Share = 0.5
    sequential: Flag = True
    rivals: Positive | None = 60
    towards: Literal["kept", "zero"] = "kept"
    recalibrate: Flag = False
    polish: Flag = False


def _check_keep(value: Any, *, none: bool = False) -> FrozenDict[str, Kept]:
    # `none`: a group may keep no unit.
    if not isinstance(value, Mapping):
        raise problem(f"must be a mapping of channel groups to what is kept of them, got {show(value)}")
    problems: list[str] = []
    kept: dict[str, Kept] = {}
    for group, amount in value.items():
        if not isinstance(group, str) or not 0 < len(group) <= 500 or not group.isprintable():
            problems.append(f"[{show(group)}]: must be the id of a channel group, or '*' for all others")
            continue
        if none and isinstance(amount, (list, tuple)) and not amount:
            kept[group] = ()
            continue
        fault, tidy = _kept(amount, star=group == "*")
        kept[group] = tidy
        if fault:
            problems.append(f".{group}: {fault}")
    if problems:
        raise RequestError(problems[0], problems=problems)
    return FrozenDict(kept)


def _kept(amount: Any, *, star: bool) -> tuple[str, Kept]:
    # What is wrong with it (nothing: ""), and the tidy amount.
    if type(amount) is int and star and amount == 1:
        return "", 1.0
    if type(amount) is float or (star and type(amount) is int):
        if math.isfinite(amount) and 0 < amount <= 1:
            return "", float(amount)
        return (
            f"a ratio lies in (0, 1] and a count is a whole number without a point, got {show(amount)}",
            1.0,
        )
    if type(amount) is int:
        fault = "" if 1 <= amount <= LARGEST else f"a count is at least 1, got {show(amount)}"
        return fault, amount
    if isinstance(amount, (list, tuple)) and not star:
        if not amount or any(type(unit) is not int or not 0 <= unit <= LARGEST for unit in amount):
            return "a list of units holds indices >= 0, at least one", 1.0
        if len(set(amount)) < len(amount):
            return "a unit is named twice; name each once", 1.0
        return "", tuple(sorted(amount))
    wanted = "a ratio in (0, 1]" if star else "a ratio in (0, 1], a count, or a list of unit indices"
    return f"must be {wanted}, got {show(amount)}", 1.0


def _plain_keep(keep: Mapping[str, Kept]) -> dict[str, Any]:
    return {group: list(kept) if isinstance(kept, tuple) else kept for group, kept in keep.items()}


Keep = Annotated[
    Mapping[str, Kept],
    PlainValidator(_check_keep),
    PlainSerializer(_plain_keep, return_type=dict[str, Any]),
    WithJsonSchema({"type": "object"}),
]


def _check_open(value: Any) -> FrozenDict[str, Kept]:
    return _check_keep(value, none=True)


#: As `Keep`, where a group may also keep no unit.
Open = Annotated[
    Mapping[str, Kept],
    PlainValidator(_check_open),
    PlainSerializer(_plain_keep, return_type=dict[str, Any]),
    WithJsonSchema({"type": "object"}),
]


class SubnetNode(Value):
    """The units of a stocked supernet that its assembler opens for tasks, as a static model with all outputs.

    Attributes:
        of: id of the supernet.
        tasks: what it is for, each the properties of one task; of several the union of their units.
        limit: share of units that the assembler may open for each task; None where `keep` names the units.
        keep: group -> the units that stay; groups that are not named stay whole, one without units goes with its block.
        samples: content hash of samples, labels unread, whose batch norm statistics take the place of those of
            training; None leaves these.
    """

    op: Literal["subnet"] = "subnet"
    of: Sha
    tasks: Annotated[Several[Names], Field(min_length=1, max_length=MAX_MEMBERS)]
    limit: Ratio | None = None
    keep: Open = Field(default_factory=dict, validate_default=True)
    samples: Sha | None = None

    @model_validator(mode="after")
    def _check_subnet(self) -> SubnetNode:
        problems = [
            f".tasks[{i}]: a task has properties; give some" for i, t in enumerate(self.tasks) if not t
        ]
        problems += [
            f".keep.{group}: a subnet names its units, got {show(kept)}; write their indices"
            for group, kept in self.keep.items()
            if not isinstance(kept, tuple)
        ]
        if (self.limit is None) == (not self.keep):
            problems.append(".limit: give the limit, or under .keep the units of each group; one of the two")
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self


class SliceNode(Value):
    """Some units of some channel groups; the rest is dropped.

    Attributes:
        keep: for each channel group what is kept: a ratio, a count or the units' indices; "*" is a ratio for
            all groups that are not named. For `threshold` a ratio is beta: units whose score is above
            1 - beta times the largest.
        select: how the units are chosen where `keep` does not name them.
        classes: whose fragment it is: the classes that the choice and the repair favour; none: all alike.
        repair: how the dropped units are given back; None: they are not.
        samples: content hash of the samples that the choice and the repair read.
        seed: of `random`; without meaning otherwise.
        paper: to train the fragment by the paper's method with these numbers instead; `keep` gives its rate or
            threshold.
    """

    op: Literal["slice"] = "slice"
    of: Name
    keep: Keep
    select: Literal["css", "energy", "fisher", "threshold", "random", "first"] = "css"
    classes: Names = ()
    repair: Repair | None = None
    samples: Sha | None = None
    seed: Whole = 0
    paper: PaperSettings | None = None

    @property
    def method(self) -> Literal["closed_form", "paper"]:
        """How the fragment is made."""
        return "closed_form" if self.paper is None else "paper"

    @property
    def explicit(self) -> bool:
        """Whether `keep` names each kept unit, so that nothing is left to choose."""
        return all(isinstance(kept, tuple) for kept in self.keep.values())

    @model_validator(mode="after")
    def _check_slice(self) -> SliceNode:
        problems = [f".classes: {name!r} is named twice; name it once" for name in twice(self.classes)]
        if self.samples is None and self.repair is not None:
            problems.append(".samples: a repair is fitted on samples; give their hash")
        elif self.samples is None and self.select not in ("first", "random") and not self.explicit:
            problems.append(f".samples: {self.select!r} chooses by samples; give their hash")
        if self.select == "threshold":
            counts = [group for group, kept in self.keep.items() if type(kept) is int]
            problems += [f".keep.{group}: a threshold is a ratio, got a count" for group in counts]
        if self.paper is not None:
            problems += slice_problems(self.paper, self.keep, self.select, repaired=self.repair is not None)
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self


class BranchNode(Value):
    """Several parts on one input, joined.

    Attributes:
        of: the parts; their order is the order of the joined features (or classes).
        join: "concat" lays them side by side, "mean" averages logits of the same classes.
    """

    op: Literal["branch"] = "branch"
    of: Annotated[Several[Name], Field(min_length=1, max_length=MAX_MEMBERS)]
    join: Literal["concat", "mean"] = "concat"


class Stitching(Value):
    """How the blocks of a chain are joined.

    Attributes:
        lam: ridge strength in units of the mean eigenvalue; None: chosen on images left out.
        rank: of the maps; None: full.
        bias: False: linear maps, which also fold into padded convolutions.
        kernel: side of the patch that each position is predicted from, odd.
        match: scale each channel to the spread that its receiver is used to.
        sequential: fit each stitch on what the chain so far gives, not on what its donor gives.
        random: seed of random stitches, the control; None: fitted ones.
        keep_cuts: stitch also where neighbouring blocks of one model continue each other, the control of cutting.
    """

    fit: Literal["ridge"] = "ridge"
    lam: AtLeastZero | None = None
    rank: Positive | None = None
    bias: Flag = True
    kernel: Positive = 3
    match: Flag = True
    sequential: Flag = True
    random: Whole | None = None
    keep_cuts: Flag = False

    @model_validator(mode="after")
    def _check_kernel(self) -> Stitching:
        if self.kernel % 2 == 0:
            raise RequestError(f".kernel: is an odd number of positions, got {self.kernel}")
        return self


class ChainNode(Value):
    """Blocks of several models with stitches between: it reads what the first reads, its classes are those of the last.

    Attributes:
        of: the models that blocks are taken from, in order.
        joints: between neighbouring ones, the value where the first is left and the value where the second is entered.
        stitch: how they are joined.
        samples: content hash of the images that the stitches are fitted on, labels unread.
    """

    op: Literal["chain"] = "chain"
    of: Annotated[Several[Name], Field(min_length=2, max_length=MAX_MEMBERS)]
    joints: Several[tuple[Name, Name]]
    stitch: Stitching = Field(default_factory=Stitching, validate_default=True)
    samples: Sha

    @model_validator(mode="after")
    def _check_chain(self) -> ChainNode:
        if len(self.joints) != len(self.of) - 1:
            raise RequestError(
                f".joints: {len(self.of)} models have {len(self.of) - 1} joints, got {len(self.joints)}"
            )
        return self


class TuneNode(Value):
    """A chain of blocks, trained a little.

    Attributes:
        of: a chain, or a part of one, for `features`; a head on one for `labels`.
        towards: what the chain's last model would give its classifier, labels unread; or the labels of samples.
        samples: content hashes of the images that it is trained on.
        scope: what changes: the stitches; these, the first layer and the classifier; everything.
        start: "fresh" draws all weights but the classifier's anew: the control, a student of the same size.
        epochs: times that it sees the images.
        batch, rate, decay: images a step, step size and weight decay of AdamW.
        seed: of the batches and of what is drawn.
    """

    op: Literal["tune"] = "tune"
    of: Name
    towards: Literal["features", "labels"] = "features"
    samples: Annotated[Several[Sha], Field(min_length=1, max_length=MAX_MEMBERS)]
    scope: Literal["stitches", "frozen", "full"] = "stitches"
    start: Literal["given", "fresh"] = "given"
    epochs: Positive = 5
    batch: Positive = 64
    rate: AboveZero = 1e-3
    decay: AtLeastZero = 0.05
    seed: Whole = 0

    @model_validator(mode="after")
    def _check_tune(self) -> TuneNode:
        if self.start == "fresh" and (self.scope != "full" or self.towards != "features"):
            raise RequestError(
                ".start: new weights are all trained, towards features; give scope: full and towards: features"
            )
        return self


class HeadNode(Value):
    """What turns features into classes.

    Attributes:
        kind: "restrict" keeps these outputs of the model's own classifier and needs no samples; "ridge" and
            "logistic" are fitted on features; "paper" trains an encoder and a classifier on it.
        classes: the outputs, in order.
        lam: strength of the penalty; None: chosen on the samples for "ridge", the default for "logistic".
        samples: content hash of the samples that it is fitted on.
        paper: the numbers of kind "paper".
    """

    op: Literal["head"] = "head"
    of: Name
    kind: Literal["restrict", "ridge", "logistic", "paper"]
    classes: Annotated[Names, Field(min_length=1)]
    lam: AboveZero | None = None
    samples: Sha | None = None
    paper: PaperSettings | None = None

    @model_validator(mode="after")
    def _check_head(self) -> HeadNode:
        problems = [f".classes: {name!r} is named twice; name it once" for name in twice(self.classes)]
        if self.kind == "restrict":
            needless = [name for name in ("lam", "samples") if getattr(self, name) is not None]
            problems += [
                f".{name}: a head of kind 'restrict' fits nothing; leave it out" for name in needless
            ]
        elif self.samples is None:
            problems.append(f".samples: a head of kind {self.kind!r} is fitted on samples; give their hash")
        problems += head_problems(self.paper, self.kind, self.lam)
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self


def _check_operation(data: Any) -> Any:
    if not isinstance(data, Mapping):
        return data
    if "op" not in data:
        raise problem(f".op: is missing; give one of {', '.join(OPERATIONS)}")
    op = data["op"]
    if op in NOT_BUILT:
        built = ", ".join(OPERATIONS)
        raise problem(f"{op!r} is a plan node that this version does not build (it builds: {built})")
    if not isinstance(op, str) or op not in OPERATIONS:
        hint = suggest(op, OPERATIONS) if isinstance(op, str) else f" (known: {', '.join(OPERATIONS)})"
        raise problem(f".op: {show(op)} is no operation{hint}")
    return data


PlanNode = Annotated[
    SourceNode | BlockNode | SliceNode | BranchNode | ChainNode | HeadNode | SubnetNode | TuneNode,
    Field(discriminator="op"),
    BeforeValidator(_check_operation),
]


def reads(node: PlanNode) -> tuple[str, ...]:
    """Names of the nodes that this node reads, in order."""
    if isinstance(node, SourceNode | SubnetNode):
        return ()
    return node.of if isinstance(node, BranchNode | ChainNode) else (node.of,)
