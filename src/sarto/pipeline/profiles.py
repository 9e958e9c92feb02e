"""Profiles of devices: measured on this machine, with the models that matter exported as they will be used."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sarto.devices import measure_memory, open_runtime
from sarto.devices.measuring import Writing
from sarto.devices.profiling import Backbone, Progress, make_profile, open_in
from sarto.devices.profiling.blocks import blocks
from sarto.devices.profiling.making import SUBNETS
from sarto.devices.profiling.run import CHUNK, SECONDS
from sarto.devices.profiling.sizes import Counts
from sarto.errors import GraphError
from sarto.export.onnx import to_onnx
from sarto.export.patching import OnnxTemplate, onnx_template
from sarto.graph import ModelGraph
from sarto.types import Device
from sarto.types.profile import DeviceProfile

#: Runtimes that read ONNX files.
READ_ONNX = frozenset(["onnxruntime", "openvino"])


def measure_profile(
    name: str,
    device: Device,
    *,
    backbones: Mapping[str, ModelGraph] | None = None,
    n_subnets: int = SUBNETS,
    few_blocks: bool = False,
    onto: DeviceProfile | None = None,
    memory: bool = True,
    write: Writing | None = None,
    journal: Path | None = None,
    seconds: float = SECONDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> DeviceProfile:
    """A profile of this machine in a runtime: built-in blocks, and subnets of the backbones.

    Args:
        backbones: models by name, whose subnets are measured; best those that orders are made from.
        n_subnets: of each backbone.
        few_blocks: one built-in block of each kind of operator, where there are several sizes.
        onto: a profile of the same device that is added to.
        memory: measure memory too, in processes of their own.
        write: writes the file of a graph for the device; torch and the runtimes that read ONNX need none.
        journal: a file of finished measurements; a later call with the same file goes on from there.
        seconds: how long each model is measured.

    Raises:
        RequestError: the runtime is not installed, a file can't be loaded there, the worker dies, the profile to add to
            is of another device, or the journal of other measurements.
        GraphError: a model can't be exported.
    """
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder, open_runtime(device) as worker:
        reads_onnx = device.runtime in READ_ONNX and device.precision == "float32"
        writing = write or (write_onnx if reads_onnx else None)
        given = []
        for place, (title, graph) in enumerate((backbones or {}).items()):
            if progress is not None:
                progress(f"exporting {title}", place, len(backbones or {}))
            template = _template(graph) if write is None and reads_onnx else None
            given.append(Backbone(title, graph, _written(template, Path(folder, str(place)))))
        return make_profile(
            name,
            device,
            worker.version,
            open_in(worker, device, write=writing),
            backbones=given,
            n_subnets=n_subnets,
            built_in=list({block.family: block for block in reversed(blocks())}.values())
            if few_blocks
            else None,
            onto=onto,
            weigh=(lambda graph: measure_memory(graph, device, write=writing).model_bytes)
            if memory
            else None,
            journal=journal,
            seconds=seconds,
            seed=seed,
            progress=progress,
        )


def write_onnx(graph: ModelGraph, device: Device, folder: Path) -> Path:
    """The ONNX file of a graph in a folder, not yet run anywhere.

    Raises:
        GraphError: the graph can't be written.
    """
    path = folder / "model.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    return path


def _template(graph: ModelGraph) -> OnnxTemplate | None:
    """What writes subnets in milliseconds; None where each has to be exported by itself."""
    try:
        return onnx_template(graph)
    except GraphError:
        return None


def _written(template: OnnxTemplate | None, folder: Path) -> Callable[[Counts], Path] | None:
    """Writes subnets; the files of chunks that are done are written over."""
    if template is None:
        return None
    made, names = template, itertools.cycle(range(2 * CHUNK))
    folder.mkdir()

    def write(counts: Counts) -> Path:
        path = folder / f"{next(names)}.onnx"
        path.write_bytes(made.subnet(counts))
        return path

    return write
