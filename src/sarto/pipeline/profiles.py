"""Profiles of devices: measured on this machine, with the models that matter exported as they will be used."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sarto.devices import measure_memory, open_runtime
from sarto.devices.agent import RemoteWorker
from sarto.devices.measuring import Writing
from sarto.devices.profiling import Backbone, Progress, make_profile, open_in
from sarto.devices.profiling.blocks import Block, blocks
from sarto.devices.profiling.making import SUBNETS, is_measured
from sarto.devices.profiling.run import CHUNK, SECONDS
from sarto.devices.profiling.sizes import Counts
from sarto.errors import GraphError
from sarto.export import FORMATS, write_for
from sarto.export.patching import OnnxTemplate, onnx_template
from sarto.graph import ModelGraph
from sarto.types import Device
from sarto.types.profile import DeviceProfile

#: Runtimes that read ONNX files.
READ_ONNX = frozenset(["onnxruntime", "openvino"])


def writing_of(device: Device) -> Writing | None:
    """What writes the file of a graph for a device; None for eager and compiled torch, which run graphs as they are."""
    return write_for if device.runtime in FORMATS and device.runtime != "torch" else None


def measure_profile(
    name: str,
    device: Device,
    *,
    backbones: Mapping[str, ModelGraph] | None = None,
    n_subnets: int = SUBNETS,
    few_blocks: bool = False,
    built_in: Sequence[Block] | None = None,
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
        n_subnets: of each backbone; for every eight of them three packs of subnets are measured too.
        few_blocks: one built-in block of each kind of operator, where there are several sizes.
        built_in: these blocks in place of the built-in ones.
        onto: a profile of the same device that is added to; where it holds everything, it is given back as it is.
        memory: measure memory too, in processes of their own.
        write: writes the file of a graph for the device; None writes it as `sarto export` does, and subnets for ONNX
            Runtime and OpenVINO from one export of the whole.
        journal: a file of finished measurements; a later call with the same file goes on from there.
        seconds: how long each model is measured.

    Raises:
        RequestError: the runtime is not installed, a file can't be loaded there, the worker dies, the profile to add to
            is of another device, or the journal of other measurements.
        GraphError: a model can't be exported.
    """
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder, open_runtime(device) as worker:
        reads_onnx = device.runtime in READ_ONNX and device.precision == "float32"
        writing = write or writing_of(device)
        given = []
        for place, (title, graph) in enumerate((backbones or {}).items()):
            if onto is not None and is_measured(onto, Backbone(title, graph), n_subnets):
                continue
            if progress is not None:
                progress(f"exporting {title}", place, len(backbones or {}))
            files = subnet_files(graph, Path(folder, str(place))) if write is None and reads_onnx else None
            given.append(Backbone(title, graph, files, None if files is None else files.pack))
        return make_profile(
            name,
            device,
            worker.version,
            open_in(worker, device, write=writing, folder=Path(folder, "files")),
            machine=worker.machine if isinstance(worker, RemoteWorker) else None,
            backbones=given,
            n_subnets=n_subnets,
            built_in=built_in
            if built_in is not None or not few_blocks
            else list({block.family: block for block in reversed(blocks())}.values()),
            onto=onto,
            weigh=(lambda graph: measure_memory(graph, device, write=writing).model_bytes)
            if memory
            else None,
            journal=journal,
            seconds=seconds,
            seed=seed,
            progress=progress,
        )


@dataclass(frozen=True)
class SubnetFiles:
    """Writes ONNX files of a model's subnets and packs, in milliseconds each; files of chunks that are done are written
    over.
    """

    template: OnnxTemplate
    folder: Path
    names: Iterator[int]

    def __call__(self, counts: Counts) -> Path:
        """The file of a subnet."""
        return self._written(self.template.subnet(counts))

    def pack(self, parts: Sequence[Counts]) -> Path:
        """The file of subnets side by side.

        Raises:
            GraphError: the model does not end in a linear layer.
        """
        return self._written(self.template.pack(parts))

    def _written(self, model: bytes) -> Path:
        path = self.folder / f"{next(self.names)}.onnx"
        path.write_bytes(model)
        return path


def subnet_files(graph: ModelGraph, folder: Path) -> SubnetFiles | None:
    """Writes ONNX files of a model's subnets in milliseconds each; None where each has to be exported by itself."""
    try:
        template = onnx_template(graph)
    except GraphError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return SubnetFiles(template, folder, itertools.cycle(range(2 * CHUNK)))
