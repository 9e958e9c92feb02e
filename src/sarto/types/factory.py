"""Every number and choice of NN-Factory, each with its source or our reading."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sarto.types.fields import AboveZero, AtLeastZero, Flag, Positive, Ratio, Share, Whole
from sarto.types.value import Value


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
        clamp: weights are held within this, so that no gate's gradient vanishes (it does beyond ln 11 = 2.4).
        start: bias that opens all gates at the start, so that training begins with the whole network (our reading).
        temperature: how steep the soft gate around a nested order's threshold is.
        least: units that each gated group keeps at any limit.

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
        open_until: share of the steps in which all gates are open, so that tasks begin to be learnt; with the loss
            on limits from the first step a network without pretrained weights collapses.
        ramp_until: share of the steps at which the limits have come down to their full range, and that loss to its
            full weight.
        lowest: smallest limit that is drawn.
        low_share: share of the samples whose limit is drawn evenly on a logarithmic scale; the others' evenly.
        clip_share: in the paper's order, share of the samples whose gates are cut to the limit in training, so that
            cutting them afterwards does no harm at low limits.
        sandwich: samples of every step at limit 1 and at the lowest, as a share each.
        clip: largest norm of a step's gradient.
        precision: of the forward pass; weights stay float32.
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
    open_until: Share = 0.1
    ramp_until: Share = 0.4
    lowest: Ratio = 0.02
    low_share: Share = 0.5
    clip_share: Share = 0.5
    sandwich: Annotated[Share, Field(le=0.5)] = 0.125
    clip: AboveZero = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Flag = False
    seed: Whole = 0
    save_every: Positive = 500
