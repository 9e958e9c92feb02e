"""One call from features to a calibrated head with its score on left-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sarto.errors import RequestError, suggest
from sarto.training.calibration import expected_calibration_error, fit_temperature
from sarto.training.heads import LOGISTIC_LAM, RIDGE_LAM, Head, logistic_head, ridge_head
from sarto.training.loto import logistic_loto, ridge_loto
from sarto.training.score import LotoScore

#: Classes that a note names at most.
MOST_NAMED = 8


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A head on all samples, and what leaving samples out says about it.

    head: with its temperature; 1.0 when there were too few samples to fit one.
    loto: the score.
    calibration_error: of the left-out probabilities, 0..1; None when there are too few samples. The one
        temperature was fitted on the same scores.
    notes: sentences for the report about what could not be done.
    """

    head: Head
    loto: LotoScore
    calibration_error: float | None
    notes: tuple[str, ...]


def fit_head(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    kind: Literal["ridge", "logistic"] = "logistic",
    lam: float | Sequence[float] | None = None,
    blocks: tuple[int, ...] | None = None,
    pairings: int = 5,
    seed: int = 0,
    groups: Tensor | None = None,
    classes: Sequence[str] = (),
) -> FittedHead:
    """Head fitted on all samples, with LOTO score, temperature and calibration error.

    Args:
        features: raw features, shape (n, d).
        labels: 0..n_classes-1, shape (n,), each class at least once.
        n_classes: q.
        kind: 'logistic' or 'ridge'.
        lam: strength; None takes the default of the kind, several are chosen from by LOTO.
        blocks: widths of the fragments side by side; each gets one scale.
        pairings: random pairings of LOTO.
        seed: of the pairings.
        groups: samples (n,) of one group are left out together.
        classes: names that the notes say; none: classes are numbered.

    Raises:
        ShapeError: features, labels, blocks or groups don't fit together.
        RequestError: unknown kind, labels out of range, a class without samples, non-finite features,
            or lam <= 0.
    """
    if kind == "logistic":
        strength = LOGISTIC_LAM if lam is None else lam
        loto = logistic_loto(
            features,
            labels,
            n_classes,
            lam=strength,
            blocks=blocks,
            pairings=pairings,
            seed=seed,
            groups=groups,
        )
        head = logistic_head(features, labels, n_classes, lam=loto.lam or LOGISTIC_LAM, blocks=blocks)
    elif kind == "ridge":
        strength = RIDGE_LAM if lam is None else lam
        loto = ridge_loto(
            features,
            labels,
            n_classes,
            lam=strength,
            blocks=blocks,
            pairings=pairings,
            seed=seed,
            groups=groups,
        )
        head = ridge_head(features, labels, n_classes, lam=loto.lam or RIDGE_LAM, blocks=blocks)
    else:
        raise RequestError(f"no kind of head {kind!r}{suggest(kind, ['logistic', 'ridge'])}")
    return calibrated(head, loto, labels, classes)


def calibrated(head: Head, loto: LotoScore, labels: Tensor, classes: Sequence[str] = ()) -> FittedHead:
    """A head with the temperature that its LOTO scores ask for, and what could not be done in words."""
    notes = [text] if (text := not_counted(loto, classes)) else []
    temperature = fit_temperature(loto.scores, labels)
    error = None
    if temperature is None:
        notes.append("too few samples to calibrate probabilities")
    else:
        head = head.with_temperature(temperature)
        error = expected_calibration_error(torch.softmax(loto.scores / temperature, 1), labels)
    return FittedHead(head, loto, error, tuple(notes))


def not_counted(loto: LotoScore, classes: Sequence[str] = ()) -> str:
    """Which classes a LOTO accuracy leaves out for want of a second sample, in words; nothing where it counts all.

    Args:
        classes: their names; none: they are numbered.
    """
    names = [repr(classes[place]) if classes else f"class {place}" for place in loto.skipped_classes]
    if len(names) > MOST_NAMED:
        names = [*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1:,} more"]
    told = " and ".join([part for part in (", ".join(names[:-1]), *names[-1:]) if part])
    if len(names) < 2:
        return f"{told} has one sample and is not counted in the accuracy" if told else ""
    return f"{told} have one sample each and are not counted in the accuracy"
