"""Export: a graph as a file for a runtime, run there and compared with eager before it counts."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sarto.devices.runtimes.place import interpreter
from sarto.errors import GraphError, RequestError, VerifyError, suggest
from sarto.export.comparing import Compared, check, compare
from sarto.export.onnx import random_inputs
from sarto.export.sidecar import sidecar_of, write_sidecar
from sarto.export.targets import FORMATS, TARGETS, Target, TargetName, Wish
from sarto.graph import ModelGraph
from sarto.graph.model import is_floating
from sarto.graph.run import check_inputs
from sarto.types import Device, Precision

#: Samples that int8 is calibrated on at most.
CALIBRATION = 256


@dataclass(frozen=True)
class Exported:
    """A file that was run in its runtime and compared with eager.

    Attributes:
        path: the file; `sidecar` lies beside it.
        size_bytes: of the file and what belongs to it.
        max_relative_difference: largest difference from eager, relative to the largest output.
        error: root mean square of the differences over that of the outputs.
        agreement: share of inputs on which both decide alike; None where outputs are no decisions.
        accuracy: share of labelled samples that the file gets right, and `accuracy_eager` that eager does.
        n_samples: real samples that were compared; 0 where there were random inputs alone.
        n_calibrated: so many of them were what int8 was calibrated on; 0 where that were others.
        seconds: what exporting and checking took.
        dynamic_batch: whether the batch is free; `max_batch` bounds it where that is not None.
        batch: the batch of the file where it is fixed.
    """

    path: Path
    sidecar: Path
    to: TargetName
    precision: Precision
    size_bytes: int
    max_relative_difference: float
    error: float
    agreement: float | None
    accuracy: float | None
    accuracy_eager: float | None
    n_samples: int
    seconds: float
    dynamic_batch: bool
    max_batch: int | None
    batch: int | None
    n_calibrated: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "path": str(self.path), "sidecar": str(self.sidecar)}


def export(
    graph: ModelGraph,
    path: str | os.PathLike[str],
    *,
    to: TargetName,
    precision: Precision = "float32",
    samples: Tensor | Sequence[Tensor] | None = None,
    labels: Tensor | None = None,
    calibration: Tensor | Sequence[Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
    batch: int = 1,
) -> Exported:
    """Write a graph for a runtime and prove it there; the file and its sidecar appear whole, or nothing does.

    Until then they lie in the system's folder for temporary files: an export that is killed leaves nothing beside them.

    Single precision may differ from eager by 1e-4 (relative to the largest output), float16 by 2e-2, bfloat16 by 8e-2.
    An int8 file must decide like eager on 80 % of the samples; where outputs are no decisions, the root mean square of
    its error must stay below 30 % of that of the outputs.

    Args:
        to: onnx, pt2, openvino, executorch, litert or aotinductor.
        samples: real inputs to compare on, shape (n, ...) for each input of the graph.
        labels: the right output of each sample, shape (n,); they give the accuracies.
        calibration: real inputs that int8 is calibrated on (256 at most); None takes the samples.
        metadata: texts that travel in the file and in the sidecar, e.g. class names and preprocessing.
        batch: samples of one call, for files whose batch is fixed.

    Raises:
        RequestError: the format, its precision, the name of the file or the samples don't fit; all problems at once.
            Or the runtime is not installed, or its worker dies or takes too long.
        GraphError: an operator can't be exported or run; it is named.
        VerifyError: the file computes something else.
    """
    begun, target = time.perf_counter(), Path(path)
    real, calibrating = _tensors(samples), _tensors(calibration) or _tensors(samples)
    _check_request(graph, target, to, precision, real, labels, calibrating, batch)
    kind = TARGETS[to]
    arrays = tuple(tensor[:CALIBRATION].numpy() for tensor in calibrating) if precision == "int8" else ()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        draft = Path(folder)
        made = draft / target.name
        free, found = _written(graph, made, kind, precision, batch, arrays, metadata or {}, (real, labels))
        files = sorted(path for path in draft.iterdir() if path.is_file())
        limit = kind.max_batch if free else None
        exported = Exported(
            path=target,
            sidecar=sidecar_of(target),
            to=to,
            precision=precision,
            size_bytes=sum(path.stat().st_size for path in files),
            seconds=time.perf_counter() - begun,
            dynamic_batch=free,
            max_batch=limit,
            batch=None if free else batch,
            n_calibrated=len(arrays[0]) if arrays and not (real and _tensors(calibration)) else 0,
            **found.__dict__,
        )
        write_sidecar(draft, made, exported.to_plain(), graph, kind, metadata or {}, files)
        # What belongs to the file first: a reader never sees the file alone.
        for path in sorted(draft.iterdir(), key=lambda path: path.name == target.name):
            _put(path, target.parent / path.name)
    return exported


def check_target(to: str, precision: str, name: str, *, calibrated: bool) -> None:
    """Refuse what no model can be exported to, before one is read.

    Args:
        name: of the file.
        calibrated: whether there are samples that int8 can be calibrated on.

    Raises:
        RequestError: an unknown format, a precision or a name of a file that it has not, a runtime that is not
            installed; all problems at once.
    """
    problems = _target_problems(to, precision, name, calibrated)
    if problems:
        raise RequestError(problems[0], problems=problems)


def _target_problems(to: str, precision: str, name: str, calibrated: bool) -> list[str]:
    kind = next((target for known, target in TARGETS.items() if known == to), None)
    if kind is None:
        return [f"no format {to!r}{suggest(to, TARGETS)}"]
    problems = []
    if precision not in kind.precisions:
        problems.append(f"{to} has no {precision}; it has {', '.join(kind.precisions)}")
    if not name.endswith(kind.suffix):
        problems.append(f"{name}: the name of a file for {to} ends in {kind.suffix}")
    if precision == "int8" and not calibrated:
        problems.append("int8 needs samples to calibrate on: give calibration, or samples")
    try:
        interpreter(kind.runtime, converting=True)
    except RequestError as error:
        problems.append(str(error))
    return problems


def _put(made: Path, place: Path) -> None:
    """Move a file to its place, which may be on another disk; the place never holds half of it."""
    near = place.with_name(f".{place.name}.part")
    try:
        shutil.move(made, near)
        os.replace(near, place)
    finally:
        near.unlink(missing_ok=True)


def write_for(graph: ModelGraph, device: Device, folder: Path) -> Path:
    """The file of a graph for a device, made to be measured and not compared with eager; int8 sees random samples.

    Raises:
        GraphError: an operator can't be exported.
        RequestError: the runtime is not installed, or its worker dies or takes too long.
    """
    if device.runtime not in FORMATS:
        raise RequestError(
            f"{device.runtime} reads graphs; nothing is exported for it", where="device.runtime"
        )
    kind = TARGETS[FORMATS[device.runtime]]
    path = folder / f"model{kind.suffix}"
    n = max(16, device.batch)
    arrays = tuple(x.numpy() for x in random_inputs(graph, n)) if device.precision == "int8" else ()
    for place, free in enumerate(kind.batches):
        wish = Wish(device.precision, device.batch, free, arrays)
        try:
            kind.write(graph, path, wish)
            break
        except GraphError:
            if place == len(kind.batches) - 1:
                raise
    return path


def _written(
    graph: ModelGraph,
    path: Path,
    kind: Target,
    precision: Precision,
    batch: int,
    arrays: tuple[np.ndarray, ...],
    metadata: Mapping[str, str],
    real: tuple[tuple[Tensor, ...], Tensor | None],
) -> tuple[bool, Compared]:
    """Whether the batch is free, and the comparison; a batch that can't be left free is fixed."""
    for place, free in enumerate(kind.batches):
        try:
            kind.write(graph, path, Wish(precision, batch, free, arrays, metadata))
            limit = kind.max_batch if free else None
            samples, labels = real
            given = samples or (tuple(torch.from_numpy(array) for array in arrays))
            found = compare(
                graph,
                path,
                kind.runtime,
                precision,
                batch=None if free else batch,
                max_batch=limit,
                samples=given,
                labels=labels,
            )
            check(found, kind.runtime, precision)
            return free, found
        except (GraphError, VerifyError):
            if place == len(kind.batches) - 1:
                raise
    raise GraphError("the format knows no way to hold a batch")


def _check_request(
    graph: ModelGraph,
    path: Path,
    to: TargetName,
    precision: str,
    real: tuple[Tensor, ...],
    labels: Tensor | None,
    calibrating: tuple[Tensor, ...],
    batch: int,
) -> None:
    problems = _target_problems(to, precision, path.name, bool(calibrating))
    strange = sorted({e.dtype for e in graph.inputs if is_floating(e.dtype) and e.dtype != "float32"})
    if strange or graph.floating_dtype != "float32":
        problems.append(f"the graph is in {graph.floating_dtype}; export graph.to(torch.float32)")
    if batch < 1:
        problems.append(f"batch must be at least 1, got {batch}")
    if precision == "int8" and calibrating and len(calibrating[0]) < batch:
        problems.append(f"int8 needs at least {batch} samples to calibrate on, got {len(calibrating[0])}")
    if labels is not None and (not real or len(labels) != len(real[0])):
        problems.append(f"{len(labels)} labels were given for {len(real[0]) if real else 0} samples")
    if problems:
        raise RequestError(problems[0], problems=problems)
    for given in (real, calibrating):
        if given:
            check_inputs(graph, given)


def _tensors(given: Tensor | Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    return () if given is None else (given,) if isinstance(given, Tensor) else tuple(given)
