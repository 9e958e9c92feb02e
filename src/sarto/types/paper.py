"""Every number and every choice of the paper's method, each with its equation or with our reading of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sarto.types.fields import AboveZero, AtLeastZero, Flag, Positive, Ratio, Whole
from sarto.types.value import Value


class PaperSettings(Value):
    """The hyper-parameters of Slice-and-Pack as the paper trains it.

    The paper's appendix C, which lists its values, is not public: no default here is the paper's own value. The
    optimiser, its step size and the batch are those of NetGraft, which trains in the same two stages.

    Attributes:
        select: `rate` keeps the beta share of the units with the largest scores, equation (5); `threshold` those
            whose score is above 1 - beta, equation (4). Scores are divided by the largest of the layer (our reading:
            1 - beta lies in [0, 1], so the scores must).
        beta: of equations (4) and (5). One half is what figure 5 implies for VGG16 by rate (0.3 for ResNet34).
        alpha: weight of the l2,1 norm in the pooling loss (3).
        l21: `printed` sums the norms of the units, equation (2); `normalised` divides by the number of units and the
            root of the number of positions, so that one alpha fits layers of all sizes (our reading).
        gamma: weight of the distillation loss in (7) and (10). That loss is a sum over features, as printed.
        dis_repair: what stands for the dropped units in the distillation loss (9): the donor's own dropped units
            (`dropped`, what the text says), the linear layer l_i (`linear`, what (9) prints), or the mean of both
            losses (`both`, our default: only l_i exists once the fragment is cut out, so it is taught too).
        pool_steps: updates of each layer by (3). The paper says no number; 20 of each stage take minutes a class on a
            CPU and did better than 5.
        adapt_steps: updates of each layer by (7). The paper says no number.
        combine_steps: updates by (10) after each layer is added. The paper says no number.
        batch: samples a step; all of them when there are no more than that (NetGraft: 64).
        lr: step size for the donor's layers (NetGraft: 1e-4).
        lr_new: step size for l_i and H, which are new; Adam moves a weight by about this much a step, and a map that
            starts from nothing has further to go (our reading).
        optimiser: Adam (NetGraft) or plain gradient steps.
        map_start: l_i starts from zero (plain pruning), from random numbers, or from the ridge solution. The last is
            ours and makes the paper's method stronger where steps and samples are few.
        map_lam: of that ridge, in units of the mean diagonal.
        head_start: H starts from the donor's classifier (the class's row against the mean of the others) or from zero.
        class_weights: `balanced` gives the class and "all other classes as a single negative class" equal weight in
            the cross entropy; `equal` counts samples (the expectation over D as printed).
        streams: also slice units that several layers write to by addition (residual streams). The paper's parameter
            counts are those of inner channels alone.
        delta: weight of the decoders in the packing loss (12).
        enc_width: features after the encoder (11); None: as many as the widest fragment gives. The paper says none.
        enc_activation: after the encoder; "each being a linear layer followed by an activation layer".
        dec_activation: after the decoders; `range` takes ReLU where a fragment's features are never negative and none
            otherwise, since a ReLU could not give negative features back (our reading).
        pack_steps: updates by (12).
        pack_lr: step size of packing; all that it trains is new.
        seed: of batches and of what starts at random.

    Reference:
        Slice-and-Pack, AAAI 2025, equations (1)-(12).
        Differs: no augmentation (the frozen part in front of a layer runs once, and text has none); batch norm keeps
        its statistics, of which a few samples say nothing.
    """

    select: Literal["rate", "threshold"] = "rate"
    beta: Ratio = 0.5
    alpha: AtLeastZero = 1e-3
    l21: Literal["printed", "normalised"] = "printed"
    gamma: AtLeastZero = 1.0
    dis_repair: Literal["dropped", "linear", "both"] = "both"
    pool_steps: Whole = 20
    adapt_steps: Whole = 20
    combine_steps: Whole = 20
    batch: Positive = 64
    lr: AboveZero = 1e-4
    lr_new: AboveZero = 1e-3
    optimiser: Literal["adam", "sgd"] = "adam"
    map_start: Literal["zero", "random", "ridge"] = "ridge"
    map_lam: AtLeastZero = 1e-2
    head_start: Literal["donor", "zero"] = "donor"
    class_weights: Literal["balanced", "equal"] = "balanced"
    streams: Flag = False
    delta: AtLeastZero = 1.0
    enc_width: Annotated[Positive, Field(le=65_536)] | None = None
    enc_activation: Literal["relu", "identity"] = "relu"
    dec_activation: Literal["range", "relu", "identity"] = "range"
    pack_steps: Whole = 500
    pack_lr: AboveZero = 1e-3
    seed: Whole = 0


def slice_problems(
    paper: PaperSettings, keep: Mapping[str, object], select: str, *, repaired: bool
) -> list[str]:
    """What a slice asks for beside the paper's method that goes against it; empty when all is well."""
    problems = []
    wanted = "threshold" if paper.select == "threshold" else "energy"
    if select != wanted:
        problems.append(f".select: the paper's method by {paper.select} is {wanted!r} here, got {select!r}")
    if repaired:
        problems.append(".repair: the paper's method trains its own repair; leave it out")
    if keep.get("*", paper.beta) != paper.beta:
        problems.append(f".paper.beta: must be the ratio of '*', which is {keep['*']}; got {paper.beta}")
    listed = [group for group, kept in keep.items() if isinstance(kept, tuple)]
    problems += [f".keep.{group}: the paper's method chooses units itself; give a count" for group in listed]
    return problems


def head_problems(paper: PaperSettings | None, kind: str, lam: float | None) -> list[str]:
    """What a head asks for that goes against its kind; empty when all is well."""
    if kind != "paper":
        return [] if paper is None else [f".paper: a head of kind {kind!r} has no such numbers; leave it out"]
    problems = [] if paper is not None else [".paper: a head of kind 'paper' needs its numbers"]
    if lam is not None:
        problems.append(".lam: a head of kind 'paper' has no penalty; leave it out")
    return problems
