"""A finished model for another runtime: with its classes and preprocessing, compared with eager on real samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.export import TARGETS, Exported, TargetName, export
from sarto.market import Intake, read_samples
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.kept_samples import own_samples
from sarto.types import Precision

#: Ending of the file of a network that was compiled to code.
COMPILED = ".aoti.pt2"
#: Of the order's own samples so many are compared on, where none are named.
OWN = 256


def export_artifact(
    artifact: Artifact,
    path: Path,
    *,
    to: TargetName,
    precision: Precision = "float32",
    samples: Path | None = None,
    calibration: Path | None = None,
    batch: int = 1,
) -> Exported:
    """Write a finished model for a runtime, and prove it there; see `sarto.export.export`.

    Args:
        samples: labelled samples to compare on: a folder, a table or an .npz file; of the model's classes the accuracy
            is told too. None takes `OWN` of the order's where they still are in their place, else random inputs.
        calibration: samples that int8 is calibrated on; None takes the samples.

    Raises:
        RequestError: the samples can't be read or are not what the model reads, the format or precision is unknown, or
            the runtime is not installed; all problems at once.
        GraphError: an operator can't be exported or run; it is named.
        VerifyError: the file computes something else.
    """
    inputs, labels = read_for(artifact, samples) if samples is not None else (None, None)
    if samples is None and (precision != "int8" or calibration is not None):
        own = own_samples(artifact)
        inputs = None if own is None else own[:OWN]
    fitted, _ = read_for(artifact, calibration) if calibration is not None else (None, None)
    return export(
        artifact.graph,
        path,
        to=to,
        precision=precision,
        samples=inputs,
        labels=labels,
        calibration=fitted,
        metadata=metadata_of(artifact),
        batch=batch,
    )


def metadata_of(artifact: Artifact) -> dict[str, str]:
    """What travels in an exported file: class names, preprocessing and vocabulary as JSON, and the plan's key."""
    return texts_inside(artifact.classes, artifact.intake, artifact.manifest.plan_key)


def texts_inside(classes: Sequence[str], intake: Intake, plan_key: str) -> dict[str, str]:
    """What travels in every file of a model; where it reads texts, its vocabulary too.

    Args:
        intake: what the model reads; its preprocessing travels.
    """
    told = {
        "classes": json.dumps(list(classes)),
        "preprocessing": intake.preprocessing.to_json(),
        "plan": plan_key,
    }
    return told if intake.vocabulary is None else {**told, "vocabulary": intake.vocabulary.encoded().decode()}


def read_for(artifact: Artifact, path: Path) -> tuple[Tensor, Tensor | None]:
    """What a finished model reads for samples, in random order, and which of its outputs is right for each.

    Samples of other classes are left out; where none is of the model's classes, all are taken, without labels.

    Raises:
        RequestError: they can't be read, or are not what the model reads.
    """
    found = read_samples(path)
    known = [name for name in artifact.classes if name in found.classes]
    own = found.only(known) if known else found
    try:
        inputs = artifact.intake.tensor(own)
    except RequestError as error:
        raise RequestError(f"{path}: {error}", where=str(path)) from error
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(own)))
    if not known:
        return inputs[order], None
    places = torch.tensor([artifact.classes.index(name) for name in own.classes])
    return inputs[order], places[torch.tensor(own.labels)][order]


def place_for(folder: Path, to: TargetName, precision: Precision = "float32") -> Path:
    """The file beside a finished model's folder to which it is exported where no other one is named."""
    told = "" if precision == "float32" else f".{precision}"
    # Both end in .pt2; one is a graph, the other is code.
    ending = COMPILED if to == "aotinductor" else TARGETS[to].suffix
    return folder.with_name(f"{folder.resolve().name}{told}{ending}")
