"""Every number of the trained baselines, with its source or our reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Names of the baselines of a report that are trained or built on demand, in the order in which they run.
NAMES = ("finetune", "camkd", "netgraft", "grail")


@dataclass(frozen=True)
class FineTuneSettings:
    """Few and small steps on everything, from the probe.

    Attributes:
        steps: ours; 40 were enough on left-out samples of three orders of the demo's donors.
        batch: samples a step; ours.
        rate: of Adam. Of 1e-3, 3e-4, 1e-4 and 3e-5 this one did best on left-out samples of these orders, where 1e-3
            fell below the probe it starts from.
        folds: parts of a class that are left out in turn to estimate accuracy; ours.
    """

    steps: int = 40
    batch: int = 16
    rate: float = 1e-4
    folds: int = 3


@dataclass(frozen=True)
class CaMkdSettings:
    """Many teachers, one student.

    Attributes:
        alpha: weight of what the teachers say (CA-MKD, section 4: 1).
        beta: weight of the hints from the teachers' last maps (section 4: 50, on means over teachers and positions,
            as the authors' code computes them).
        temperature: of both sides of the distillation (section 4: 4).
        steps: the paper's 240 epochs of batches of 64; a handful of samples is one batch an epoch.
        batch: samples a step (section 4: 64).
        start: `donor` starts from the weights of the student's donor, batch norm kept as it is: by far the better
            start with few samples (ours). `fresh` draws new weights, as the paper does.
        rate: of Adam from a donor; that of fine-tuning (ours).
        fresh_rate: of SGD with Nesterov momentum from new weights (section 4: 0.05).
        momentum: of SGD (section 4: 0.9).
        decay: weight decay of SGD (section 4: 5e-4).
        drops: shares of the steps after which `fresh_rate` is divided by ten (section 4: epochs 150, 180, 210 of 240).
    """

    alpha: float = 1.0
    beta: float = 50.0
    temperature: float = 4.0
    steps: int = 240
    batch: int = 64
    start: Literal["donor", "fresh"] = "donor"
    rate: float = 1e-4
    fresh_rate: float = 0.05
    momentum: float = 0.9
    decay: float = 5e-4
    drops: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240)


@dataclass(frozen=True)
class NetGraftSettings:
    """Student blocks grafted one by one onto their teacher, then together.

    Attributes:
        ratio: units of each layer that the student keeps. Slice-and-Pack, Table 2: NetGraft has 26.1 % of the
            parameters, which is half of each layer and the adaptions.
        start: `sliced` takes the student's weights from units of the teacher drawn at random, its adaptions from
            their places (ours, the better start). `fresh` draws them, as the authors' code does.
        first_epochs: of grafting the first block (the authors' code for CIFAR-10: 100).
        block_epochs: of grafting each later block (the same: 60).
        chain_epochs: of each length of the growing student (the same: 100).
        batch: samples a step at 10 samples a class, in proportion otherwise (the same: 64).
        rate: of Adam for a block at 10 samples a class, in proportion otherwise (the same: 2.5e-4).
        adaption_rate: of Adam for its adaptions, likewise (the same: 2.5e-3).
        chain_rate: of Adam for the growing student (the paper and the code: 1e-4).
    """

    ratio: float = 0.5
    start: Literal["sliced", "fresh"] = "sliced"
    first_epochs: int = 100
    block_epochs: int = 60
    chain_epochs: int = 100
    batch: int = 64
    rate: float = 2.5e-4
    adaption_rate: float = 2.5e-3
    chain_rate: float = 1e-4


@dataclass(frozen=True)
class GrailSettings:
    """Units by the size of their weights, and one Gram repair that knows no classes.

    Attributes:
        ratio: units of each layer that are kept; that of Slice-and-Pack, so that sizes are alike.
        selector: `l1` ranks a unit by the weights that make it, `wanda` by the weights that read it times the norm of
            its activation. Both are the paper's.
        lam: ridge strength, as a share of the mean diagonal of the Gram matrix (the paper: 1e-3).
    """

    ratio: float = 0.5
    selector: Literal["l1", "wanda"] = "l1"
    lam: float = 1e-3


#: The settings of a report.
FINE_TUNE, CA_MKD, NETGRAFT, GRAIL = FineTuneSettings(), CaMkdSettings(), NetGraftSettings(), GrailSettings()
#: Strength of the ridge that begins CA-MKD's convolutions, as a share of the mean diagonal; ours.
HINT_RIDGE = 1e-3
