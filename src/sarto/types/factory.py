"""Every number and choice of NN-Factory, each with its source or our reading."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sarto.errors import RequestError
from sarto.types.cost import Cost
from sarto.types.fields import (
    AboveZero,
    AtLeastZero,
    FilePath,
    Flag,
    Frozen,
    Name,
    Names,
    Number,
    Positive,
    Ratio,
    Several,
    Sha,
    Share,
    Text,
    Version,
    Whole,
)
from sarto.types.preprocessing import Preprocessing
from sarto.types.space import TaskSpace
from sarto.types.text import to_json_text
from sarto.types.value import Value

#: Kinds of channel groups with gates: the paper's (filters inside residual blocks, hidden units), or also what blocks
#: share and whole attention heads.
Placement = Literal["paper", "wide"]


#: What the id of a supernet is computed from; everything else follows from it, is measured, or only describes.
SUPERNET_IDENTITY = (
    "space",
    "groups",
    "placement",
    "preprocessing",
    "assembler",
    "graph_hash",
    "weights_hash",
    "assembler_hash",
    "licence",
)
#: What came later: left out of the id where it is what every supernet had before.
LATER: Mapping[str, Mapping[str, Any]] = {
    "assembler": {"skips": False},
    "space": {"extra": [], "within": {}},
}


class AssemblerSettings(Value):
    """The network that turns a task and a limit into gates.

    Attributes:
        order: `paper` gives gates for each limit anew, and a loss teaches it to stay under the limit; `nested` gives
            each unit a score for the task and a limit opens the units of the largest scores, so that the gates of a
            lower limit are among those of a higher one and the ratio is the limit.
        hidden: width of the selection encoding (our reading; the paper says none).
        limit_dims: size of the limit's sinusoidal code, positions counted in percent (our reading).
        gaters: layer gaters that are mixed in each layer (our reading: 4, all of them weighed by a softmax).
        rank: None gives each gater one full matrix; else the product of two, through so many dimensions.
        noise: deviation of the noise on a gate's weight in training; the paper's formulas have none, its source
            (Kaiser and Bengio 2018) has 1.
        clamp: in the paper's order, soft gates read weights within this, so that no gate's gradient vanishes (it does
            beyond ln 11 = 2.4); which units are the most important is told by the weights themselves.
        start: bias that opens all gates at the start, so that training begins with the whole network (our reading).
        temperature: how steep the soft gate around a nested order's threshold is.
        least: units that each gated group keeps at any limit.
        skips: whether a group inside a branch that ends in a sum may close to the last unit: its block is then skipped,
            and a subnet does not have it. Whole blocks so need no gates of their own.
        most: in the nested order, share of the units that open at most, whatever the limit: which units are open is all
            that a network knows of the task, and with all of them open it would know nothing.

    Reference:
        NN-Factory, arXiv 2308.15003, section 3.2 and 4.
        Differs: `order` nested.
    """

    order: Literal["paper", "nested"] = "nested"
    hidden: Positive = 256
    limit_dims: Positive = 32
    gaters: Positive = 4
    rank: Positive | None = None
    noise: AtLeastZero = 0.0
    clamp: AboveZero = 2.3
    start: AtLeastZero = 1.0
    temperature: AboveZero = 0.5
    least: Positive = 1
    skips: Flag = False
    most: Ratio = 0.5


class JointSettings(Value):
    """How supernet and assembler are trained together.

    Attributes:
        steps: updates.
        batch: samples of a step, each with a task and a limit of its own.
        lr: largest step size of the supernet (AdamW, warm-up and cosine).
        lr_assembler: of the assembler, which starts from nothing also where the supernet does not.
        decay: weight decay of the supernet; the assembler has none.
        warmup: share of the steps in which the step size grows.
        strength: weight of the loss on limits in the paper's order (the paper: 100).
        open_accuracy: how well samples must be answered before limits come down from 1 (in the nested order `most` of
            the units are open there, in the paper's those that the assembler opens): 0 is guessing, 1 all of them; for
            detection, the share of the loss that must be gone. With the loss on limits from the first step a network
            without pretrained weights collapses. None: limits come down from `open_until` on, whatever is learnt.
        open_from: share of the steps before which limits don't come down.
        open_until: share of the steps from which they come down at the latest.
        ramp_until: share of the steps at which the limits have come down to their full range, and that loss to its
            full weight, at the latest: this takes as many steps as there are between `open_until` and here.
        lowest: smallest limit that is drawn.
        low_share: share of the samples whose limit is drawn evenly on a logarithmic scale; the others' evenly.
        clip_share: in the paper's order, share of the samples whose gates are cut to the limit in training, so that
            cutting them afterwards does no harm at low limits.
        sandwich: samples of every step at limit 1 and at the lowest, as a share each.
        clip: largest norm of a step's gradient.
        precision: of the forward pass; weights stay float32. A device that does not compute in bfloat16 is refused.
        extra_share: share of the samples whose task is one of the space's further combinations, where it has any.
        seed: of weights, batches, tasks and limits.
        save_every: steps between checkpoints.
    """

    steps: Positive = 20_000
    batch: Positive = 128
    lr: AboveZero = 2e-3
    lr_assembler: AboveZero = 2e-3
    decay: AtLeastZero = 1e-4
    warmup: Share = 0.02
    strength: AtLeastZero = 100.0
    open_accuracy: Share | None = 0.5
    open_from: Share = 0.02
    open_until: Share = 0.3
    ramp_until: Share = 0.6
    lowest: Ratio = 0.02
    low_share: Share = 0.5
    clip_share: Share = 0.5
    sandwich: Annotated[Share, Field(le=0.5)] = 0.125
    clip: AboveZero = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Flag = False
    extra_share: Share = 0.5
    seed: Whole = 0
    save_every: Positive = 500

    @model_validator(mode="after")
    def _check_ramp(self) -> JointSettings:
        problems = []
        if self.open_from > self.open_until:
            problems.append(
                f".open_from: {self.open_from:g} lies after open_until, {self.open_until:g}, at which limits come down "
                "at the latest; name an earlier one"
            )
        if self.open_until >= self.ramp_until > 0:
            problems.append(
                f".ramp_until: {self.ramp_until:g} leaves no steps after open_until, {self.open_until:g}, for limits "
                "to come down; name a later one (0 with open_until 0: full limits from the first step)"
            )
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self


class Backbone(Value):
    """What a supernet is made of: a learnware of the market, or a network of the zoo with fresh weights.

    Attributes:
        learnware: its name or id; its classifier gives way to one for the space's answers.
        zoo: name of a function of `sarto.zoo` that gives a network with as many outputs as the space has answers.
        arguments: of that function.
        weights: a safetensors file for the network of the zoo; what it does not hold, or in another shape, is fresh.
    """

    learnware: Name | None = None
    zoo: Name | None = None
    arguments: Frozen[Name, Any] = Field(default_factory=dict, validate_default=True)
    weights: FilePath | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Backbone:
        if (self.learnware is None) == (self.zoo is None):
            raise RequestError("a backbone is a learnware or a network of the zoo; name one of them")
        if self.learnware is not None and (self.arguments or self.weights):
            raise RequestError("arguments and weights are those of a network of the zoo; leave them out")
        return self


class Judging(Value):
    """How a trained supernet is judged before it is stocked.

    Attributes:
        limits: shares of the units at which every task is tried.
        samples: test samples of each task.
        most_tasks: tasks that are tried at most, seen and unseen each, spread evenly.
    """

    limits: Annotated[Several[Ratio], Field(min_length=1)] = (0.05, 0.1, 0.3, 1.0)
    samples: Positive = 200
    most_tasks: Positive = 60


class FactoryConfig(Value):
    """All that `sarto factory train` needs to know.

    Attributes:
        space: name of a task space that ships, or its YAML file.
        data: arguments of the space's function, over those that the space gives; `$NAME` in a text is the
            environment's.
        placement: which channel groups get gates (see `Placement`).
        preprocessing: from stored pixels to what the backbone reads.
        empty_tasks: what happens where tasks of the space have no samples to train: training is refused, or they are
            left out.
    """

    train: Version = 1
    name: Name
    space: Name
    data: Frozen[Name, Any] = Field(default_factory=dict, validate_default=True)
    backbone: Backbone
    placement: Placement = "paper"
    preprocessing: Preprocessing
    assembler: AssemblerSettings = AssemblerSettings()
    joint: JointSettings = JointSettings()
    judging: Judging = Judging()
    empty_tasks: Literal["refuse", "leave_out"] = "refuse"
    licence: Text = ""
    notes: Text = ""


class TaskQuality(Value):
    """How well one task was done at one limit, on test samples that trained nothing.

    Attributes:
        task: its name in the space.
        quality: mean recall of the answers, or the data's own score (mAP at 0.5 for detection).
        ratio: share of open units.
        seen: whether the task was trained.
    """

    task: Name
    limit: Ratio
    ratio: Ratio
    quality: Share
    n_samples: Positive
    seen: Flag


class StockedSupernet(Value):
    """A trained supernet as a market holds it: its manifest.

    Attributes:
        id: content hash of the graph, the weights, the assembler and what is said about them.
        groups: channel groups with gates, in the order of the assembler's outputs.
        graph_hash: blob of the backbone's structure.
        weights_hash: blob of its tensors.
        assembler_hash: blob of the assembler's tensors.
        backbone: where the backbone came from, in words.
        input_shape: without the batch axis.
        cost: of the whole backbone.
        floor: of the smallest subnet.
        qualities: what it was judged by.
        unjudged: tasks that were to be judged and have no test samples.
        begun: content hash of the backbone before training; None where it is not known.
        steps: updates that the weights have seen; None where it is not known.
        stopped: why training ended before all its steps; empty where it did not.
    """

    supernet: Version = 1
    id: Sha
    name: Name
    space: TaskSpace
    groups: Annotated[Names, Field(min_length=1)]
    placement: Placement
    preprocessing: Preprocessing
    assembler: AssemblerSettings
    joint: JointSettings | None = None
    graph_hash: Sha
    weights_hash: Sha
    assembler_hash: Sha
    backbone: Text = ""
    input_shape: Annotated[Several[Positive], Field(min_length=1, max_length=8)]
    units: Positive
    cost: Cost
    floor: Cost
    qualities: Several[TaskQuality] = ()
    unjudged: Names = ()
    begun: Sha | None = None
    steps: Whole | None = None
    stopped: Text = ""
    licence: Text = ""
    notes: Text = ""
    created: Text

    @property
    def classes(self) -> tuple[str, ...]:
        """What the outputs stand for, in order."""
        return self.space.answers

    def hashes(self) -> dict[str, str]:
        """Part -> blob key of everything that the supernet keeps."""
        return {
            "graph": self.graph_hash,
            "weights": self.weights_hash,
            "assembler": self.assembler_hash,
        }

    def content_id(self) -> str:
        """The id that belongs to the content; equal to `id` unless somebody changed the manifest."""
        plain = self.model_dump(mode="json", include=set(SUPERNET_IDENTITY))
        for part, before in LATER.items():
            plain[part] = {
                name: value
                for name, value in plain[part].items()
                if name not in before or value != before[name]
            }
        text = to_json_text({**plain, "format": "sarto.supernet/1"})
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class Certificate(Value):
    """What is promised of a delivered subnet, and what was checked.

    Attributes:
        supernet: id of the supernet.
        tasks: names of the tasks that it does.
        seen: whether all of them were trained.
        ratio: share of the gated units that are in it.
        limit: of the assembler, where the search began; None where units were given.
        filled: units that were added one by one to use up the budget.
        expected: quality on test samples of the task at the nearest judged limits; for unseen tasks that of the nearest
            trained ones, weighed by distance. None where nothing was judged.
        expected_basis: how `expected` was found, in words.
        nearest: trained tasks that are nearest to an unseen one -> share of properties that differ.
        predicted: cost before building, latency with its interval where the device has a profile.
        measured: cost of the delivered model.
        floor: cost of the smallest subnet of this supernet for the task: limit -> number.
        slack: limit -> share of the budget that is left, as measured (or counted).
        difference: largest relative difference from the gated supernet on random inputs.
        difference_limit: at most this was allowed.
        recalibrated: samples that batch norm statistics were taken from anew; 0: those of training.
        hashes: what it was made from: supernet graph, weights, assembler, gates.
    """

    supernet: Sha
    supernet_name: Name
    tasks: Names
    seen: Flag
    ratio: Ratio
    limit: Ratio | None = None
    filled: Whole = 0
    expected: Share | None = None
    expected_basis: Text = ""
    nearest: Frozen[Name, Share] = Field(default_factory=dict, validate_default=True)
    predicted: Cost | None = None
    measured: Cost | None = None
    floor: Frozen[Name, AtLeastZero] = Field(default_factory=dict, validate_default=True)
    slack: Frozen[Name, Number] = Field(default_factory=dict, validate_default=True)
    difference: AtLeastZero
    difference_limit: AtLeastZero
    recalibrated: Whole = 0
    hashes: Frozen[Name, Sha] = Field(default_factory=dict, validate_default=True)
