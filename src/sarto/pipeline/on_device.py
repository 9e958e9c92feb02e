"""A model on the device of an order: its latency there, and the file that the device runs where that is another one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sarto.devices import Latency, count, measure, measure_memory, measure_models, open_runtime
from sarto.devices.timing import SECONDS
from sarto.export import FORMATS, LEAST_AGREEMENT, LIMITS, MOST_ERROR, Exported, TargetName, export
from sarto.export.comparing import Compared, check, compare
from sarto.graph import ModelGraph
from sarto.pipeline.exporting import place_for
from sarto.pipeline.reference import LOADS, Reference, measured_beside
from sarto.types import Budget, Check, Cost, Device, DeviceFile
from sarto.types.profile import DeviceProfile


@dataclass(frozen=True)
class OnDevice:
    """A model as the order's device ran it.

    Attributes:
        latency: at the speed that the machine had for the profile, where it was measured beside its reference.
        raw_ms: milliseconds as they were, where `latency` is not that.
        file: what it ran, where that is not the delivered ONNX file or graph; it lies in the folder that was given.
    """

    latency: Latency
    file: DeviceFile | None = None
    raw_ms: float | None = None

    def cost(self, graph: ModelGraph) -> Cost:
        """What is counted of the graph, with the measured latency.

        Its size is that of the device's file, where that is neither the graph nor the ONNX file.
        """
        counted = count(graph)
        if self.file is not None:
            counted = counted.replace(size_bytes=self.file.size_bytes)
        low, middle, high = self.latency.low_ms, self.latency.median_ms, self.latency.high_ms
        timed = {"latency_low_ms": low, "latency_ms": middle, "latency_high_ms": high}
        return counted.replace(**timed, basis="measured")


def format_of(device: Device) -> TargetName | None:
    """The format of the file that an order for a device is delivered in, besides graph and ONNX; None: no other one.

    What torch.compile runs is a `.pt2` file, as it is for eager torch in half precision.
    """
    if device.precision == "float32" and device.runtime in ("torch", "onnxruntime"):
        return None
    return "pt2" if device.runtime in ("torch", "compile") else FORMATS[device.runtime]


def measured_on(
    graph: ModelGraph,
    device: Device,
    onnx: Path,
    samples: Tensor,
    folder: Path,
    *,
    labels: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
    reference: Reference | None = None,
) -> OnDevice:
    """Latency in the runtime and the precision of an order, on a file that was compared with eager there.

    Args:
        onnx: the graph in single precision, which ONNX Runtime runs as it is.
        samples: real inputs to compare on, which int8 is calibrated on too.
        folder: the device's file, its sidecar and what belongs to it are left there.
        labels: the right output of each sample.
        reference: what the device's profile was measured beside, see `measured_beside`; None takes the time as it is.

    Raises:
        RequestError: the runtime is not installed, or there are fewer samples than int8 needs.
        GraphError: an operator can't be exported or run; it is named.
        VerifyError: the file computes something else.
    """
    to = format_of(device)
    if to is None:
        if device.agent is None and device.profile is None:
            return OnDevice(measure(graph, device, onnx=onnx))
        model = onnx if device.runtime == "onnxruntime" else graph
        return _measured(model, device, reference)
    folder.mkdir(parents=True, exist_ok=True)
    path = place_for(folder / "model", to, device.precision)
    found = export(
        graph,
        path,
        to=to,
        precision=device.precision,
        samples=samples,
        labels=labels,
        metadata=metadata,
        batch=device.batch,
    )
    file = described(found)
    if device.runtime == "compile":
        file = file.replace(**_compiled(graph, path, device, samples, labels))
    return replace(_measured(path, device, reference), file=file)


def _measured(model: ModelGraph | Path, device: Device, reference: Reference | None) -> OnDevice:
    """Latency in a worker, or beside a reference.

    What torch.compile compiles is loaded once: that takes most of a minute.
    """
    if reference is not None:
        latency, raw = measured_beside(model, device, reference)
        return OnDevice(latency, raw_ms=raw)
    loads = 1 if device.profile is None or device.runtime == "compile" else LOADS
    (found,) = measure_models([model], device, seconds=loads * SECONDS, rounds=loads)
    return OnDevice(found)


def _compiled(
    graph: ModelGraph, path: Path, device: Device, samples: Tensor, labels: Tensor | None
) -> dict[str, Any]:
    """What torch.compile makes of a file beside eager, where the device is, in batches of its size.

    Raises:
        GraphError: an operator can't be compiled or run; it is named.
        VerifyError: what was compiled computes something else.
    """
    found = compare(
        graph,
        path,
        device.runtime,
        device.precision,
        batch=device.batch,
        samples=(samples,),
        labels=labels,
        opened=lambda: open_runtime(device),
    )
    check(found, device.runtime, device.precision)
    return figures(found)


def latency_on(
    graph: ModelGraph, device: Device, onnx: Path, samples: Tensor, reference: Reference | None = None
) -> Latency:
    """Latency in the runtime and the precision of an order; see `measured_on`. No file is kept."""
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        return measured_on(graph, device, onnx, samples, Path(folder), reference=reference).latency


def weighed(
    cost: Cost,
    graph: ModelGraph,
    device: Device,
    onnx: Path,
    file: Path | None,
    *,
    budget: Budget,
    profile: DeviceProfile | None,
) -> Cost:
    """The cost with what a fresh process grew by when it loaded and ran the model on the device.

    Measured where the order limits memory or its profile foretells it, which takes a few seconds; else as it is, and
    where that was measured already.

    Args:
        file: what the device runs, where that is neither the ONNX file nor the graph.

    Raises:
        RequestError: as `measure_memory` does.
    """
    limited = budget.memory_bytes is not None or budget.process_bytes is not None
    if cost.process_bytes is not None or not (
        limited or (profile is not None and profile.memory is not None)
    ):
        return cost
    model = file or (onnx if device.runtime == "onnxruntime" else graph)
    return cost.replace(process_bytes=measure_memory(model, device).model_bytes)


def described(found: Exported) -> DeviceFile:
    """What a report says of an exported file."""
    return DeviceFile(
        name=found.path.name,
        format=found.to,
        precision=found.precision,
        size_bytes=found.size_bytes,
        difference=found.max_relative_difference,
        error=found.error,
        agreement=found.agreement,
        accuracy=found.accuracy,
        accuracy_eager=found.accuracy_eager,
        n_samples=found.n_samples,
    )


def figures(found: Compared) -> dict[str, Any]:
    """A comparison under the names that a `DeviceFile` has for it."""
    told = asdict(found)
    told["difference"] = told.pop("max_relative_difference")
    return told


def device_checks(file: DeviceFile | None, device: Device) -> Iterator[Check]:
    """That the device's file computes what eager does, within what its precision allows."""
    if file is None:
        return
    name = f"{device.runtime} in {file.precision} against eager"
    if file.precision != "int8":
        limit = LIMITS[file.precision]
        detail = "largest relative difference"
        if file.agreement is not None:
            detail += f"; decisions agree on {file.agreement:.1%}"
        yield Check(name=name, value=file.difference, limit=limit, ok=file.difference <= limit, detail=detail)
    elif file.agreement is not None:
        apart = 1 - file.agreement
        yield Check(
            name=name,
            value=apart,
            limit=1 - LEAST_AGREEMENT,
            ok=file.agreement >= LEAST_AGREEMENT,
            detail=f"share of {file.n_samples:,} samples on which it decides otherwise",
        )
    else:
        yield Check(
            name=name,
            value=file.error,
            limit=MOST_ERROR,
            ok=file.error <= MOST_ERROR,
            detail=f"root mean square of its error over that of the outputs, on {file.n_samples:,} samples",
        )


def device_sentences(file: DeviceFile | None, device: Device, noun: str = "sample") -> Iterator[str]:
    """What is delivered for the device, and what its precision costs."""
    if file is None:
        return
    yield (
        f"For {device.runtime} in {file.precision}: {file.name}, {file.size_bytes:,} bytes, which is what was timed. "
        "Accuracies in the tables are those of the model in single precision. A limit of size holds for this file."
    )
    if file.accuracy is not None and file.accuracy_eager is not None:
        yield (
            f"Of your {file.n_samples:,} {noun}s {file.name} names {file.accuracy:.1%} right, the model in single "
            f"precision {file.accuracy_eager:.1%}; they are not unseen, so only the difference says something."
        )


def leave_files(source: Path, target: Path) -> None:
    """Copy the files of a device into the folder of an artifact; nothing where there are none."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            shutil.copyfile(path, target / path.name)
