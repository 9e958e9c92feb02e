"""The formats that models are exported to: what each can hold, and how its file is written."""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
import torch

from sarto.devices.runtimes import Refusal, Worker
from sarto.errors import GraphError
from sarto.export.norms import fold_norms
from sarto.export.onnx import random_inputs, to_onnx
from sarto.export.precision import halved
from sarto.export.refusing import operator_of, reason_of
from sarto.graph import ModelGraph, write_pt2
from sarto.types import Precision, RuntimeName

TargetName = Literal["onnx", "pt2", "openvino", "executorch", "litert", "aotinductor"]

#: The largest batch of an ExecuTorch file whose batch is free: what ExecuTorch 1.5 makes room for, whatever larger
#: bound the program says.
MAX_BATCH = 15
#: The bound that the program says.
_BOUND = 64
#: Name of the file with a model's texts inside a `.tflite` file, a JSON object.
TEXTS_NAME = "sarto_metadata.json"
_CONVERTERS = Path(__file__).with_name("converters")


@dataclass(frozen=True, eq=False)
class Wish:
    """How a file is wanted.

    Attributes:
        batch: samples of one call, where the batch can't be left free.
        free_batch: whether it is left free.
        calibration: samples for int8, one array of shape (n, ...) for each input.
        metadata: texts that travel in the file.
    """

    precision: Precision = "float32"
    batch: int = 1
    free_batch: bool = True
    calibration: tuple[np.ndarray, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A format.

    Attributes:
        runtime: which runs its files, and proves them.
        suffix: with which the name of a file must end.
        precisions: that it can hold.
        batches: whether the batch is left free, in the order in which it is tried.
        max_batch: the largest batch of a file whose batch is free; None sets no limit.
        write: writes the file of a graph.
    """

    runtime: RuntimeName
    suffix: str
    precisions: tuple[Precision, ...]
    batches: tuple[bool, ...]
    max_batch: int | None
    write: Callable[[ModelGraph, Path, Wish], None]


def write_onnx_file(graph: ModelGraph, path: Path, wish: Wish) -> None:
    """An ONNX file; int8 through ONNX Runtime's static quantiser, per channel."""
    whole = halved(fold_norms(graph), "float16") if wish.precision == "float16" else graph
    proto = to_onnx(whole)
    onnx.helper.set_model_props(proto, dict(wish.metadata))
    if wish.precision != "int8":
        path.write_bytes(proto.SerializeToString())
        return
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        source = Path(folder, "model.onnx")
        source.write_bytes(proto.SerializeToString())
        arguments = {"source": str(source), "target": str(path)}
        _convert("onnxruntime", graph, arguments, wish.calibration)


def write_pt2_file(graph: ModelGraph, path: Path, wish: Wish) -> None:
    """A `.pt2` file that computes the same, bit for bit; half precision inside where that is wanted."""
    whole = graph if wish.precision == "float32" else halved(graph, wish.precision)
    write_pt2(whole, path, extra=wish.metadata)


def write_openvino(graph: ModelGraph, path: Path, wish: Wish) -> None:
    """OpenVINO's .xml and .bin, by way of ONNX; int8 through NNCF."""
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        source = Path(folder, "model.onnx")
        source.write_bytes(to_onnx(graph).SerializeToString())
        arguments = {
            "source": str(source),
            "target": str(path),
            "precision": wish.precision,
            "metadata": dict(wish.metadata),
            "attention": any("attention" in node.op or "softmax" in node.op for node in graph.nodes),
        }
        _convert("openvino", graph, arguments, wish.calibration)


def write_executorch(graph: ModelGraph, path: Path, wish: Wish) -> None:
    """A `.pte` file for XNNPACK; its batch is free up to `MAX_BATCH`, or fixed. A method gives its texts."""
    if wish.free_batch and wish.batch > MAX_BATCH:
        raise GraphError(
            f"ExecuTorch leaves the batch free up to {MAX_BATCH}, not {wish.batch}; it is fixed then"
        )
    most = MAX_BATCH if wish.free_batch else None
    more = {"max_batch": most, "metadata": dict(wish.metadata)}
    _by_program("executorch", graph, path, wish, more, _BOUND if most else None)


def write_litert(graph: ModelGraph, path: Path, wish: Wish) -> None:
    """A `.tflite` file of a fixed batch; its texts lie behind it as a zip archive, as the format's own metadata do."""
    _by_program("litert", graph, path, wish, {}, None)
    if wish.metadata:
        with zipfile.ZipFile(path, "a") as archive:
            # A fixed date: the same model gives the same bytes.
            archive.writestr(zipfile.ZipInfo(TEXTS_NAME), json.dumps(dict(wish.metadata)))


def write_aotinductor(graph: ModelGraph, path: Path, wish: Wish) -> None:
    """A package that holds a library for this processor."""
    inputs = [
        [entry.name, [_size(size, wish) for size in entry.shape], entry.dtype] for entry in graph.inputs
    ]
    _by_program("aotinductor", graph, path, wish, {"metadata": dict(wish.metadata), "inputs": inputs}, None)


TARGETS: Mapping[TargetName, Target] = MappingProxyType(
    {
        "onnx": Target(
            "onnxruntime", ".onnx", ("float32", "float16", "int8"), (True,), None, write_onnx_file
        ),
        "pt2": Target("torch", ".pt2", ("float32", "float16", "bfloat16"), (True,), None, write_pt2_file),
        "openvino": Target(
            "openvino", ".xml", ("float32", "float16", "bfloat16", "int8"), (True,), None, write_openvino
        ),
        "executorch": Target(
            "executorch",
            ".pte",
            ("float32", "float16", "int8"),
            (True, False),
            MAX_BATCH,
            write_executorch,
        ),
        "litert": Target("litert", ".tflite", ("float32", "float16", "int8"), (False,), None, write_litert),
        "aotinductor": Target(
            "aotinductor", ".pt2", ("float32", "float16", "bfloat16"), (True, False), None, write_aotinductor
        ),
    }
)

#: Runtime -> the format of its files.
FORMATS: Mapping[RuntimeName, TargetName] = MappingProxyType(
    {target.runtime: name for name, target in TARGETS.items()}
)


def _by_program(
    runtime: Literal["executorch", "litert", "aotinductor"],
    graph: ModelGraph,
    path: Path,
    wish: Wish,
    more: Mapping[str, Any],
    most: int | None,
) -> None:
    """Export with torch here, and let the runtime's own environment make its file of that."""
    whole = fold_norms(graph)
    # LiteRT's quantiser makes half precision of the finished file.
    inside = wish.precision in ("float16", "bfloat16") and runtime != "litert"
    whole = halved(whole, wish.precision) if inside else whole
    free = wish.free_batch and runtime != "litert"
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        source = Path(folder, "program.pt2")
        _write_program(whole, source, wish.batch, free, most)
        arguments = {"source": str(source), "target": str(path), "precision": wish.precision, **more}
        _convert(runtime, graph, arguments, wish.calibration)


def _write_program(graph: ModelGraph, path: Path, batch: int, free: bool, most: int | None) -> None:
    # An axis of size 1 would be taken for a constant.
    inputs = random_inputs(graph, max(2, batch) if free else batch)
    if not free:
        shapes: Any = None
    else:
        axis = torch.export.Dim.DYNAMIC if most is None else torch.export.Dim("batch", min=1, max=most)
        shapes = tuple({0: axis} for _ in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(graph.module(), inputs, dynamic_shapes=shapes), path)
    except Exception as error:
        text = str(error)
        raise GraphError(_told("torch.export", text, graph), where=operator_of(text, graph)) from error


def _convert(
    runtime: RuntimeName, graph: ModelGraph, arguments: Mapping[str, Any], arrays: tuple[np.ndarray, ...]
) -> None:
    """Run a converter in a worker of the runtime.

    Raises:
        GraphError: it fails; names the operator where the converter does.
        RequestError: the runtime is not installed, or the worker dies or takes too long.
    """
    with Worker(runtime, converting=True) as worker:
        try:
            worker.convert(_CONVERTERS / f"{runtime}.py", arguments, arrays)
        except Refusal as error:
            words = _told(f"{runtime} {worker.version}", error.reason, graph)
            raise GraphError(words, where=operator_of(error.reason, graph)) from error


def _told(who: str, text: str, graph: ModelGraph) -> str:
    operator = operator_of(text, graph)
    named = f"operator {operator} fails ({reason_of(text)})" if operator else reason_of(text)
    return f"the graph can't be exported by {who}: {named}"


def _size(size: object, wish: Wish) -> int | None:
    return size if isinstance(size, int) else None if wish.free_batch else wish.batch
