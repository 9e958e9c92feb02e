"""ONNX: exported from the graph with a dynamic batch, run in ONNX Runtime and compared with eager."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from sarto.devices import OnnxModel, load_onnx
from sarto.errors import GraphError, RequestError, SartoError, VerifyError
from sarto.export.norms import fold_norms
from sarto.export.resizing import Known, resized_onnx
from sarto.graph import ModelGraph, relative_difference
from sarto.graph.model import shapes_of, size_at
from sarto.graph.run import check_inputs

#: Batch sizes at which the exported file is compared with eager.
BATCHES = (1, 2, 7)
#: Largest relative difference that counts as equal, by the graph's precision.
LIMITS = {"float32": 1e-5, "float64": 1e-12, "float16": 1e-2}
#: Bytes of tensors that one ONNX file can hold.
MAX_BYTES = 2_000_000_000
#: Samples that are compared at once.
_CHUNK = 64


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was checked.

    Attributes:
        max_relative_difference: largest difference from eager over all batch sizes and given samples.
        agreement: share of samples on which the largest output is the same one.
        batches: batch sizes at which it was compared with eager on random inputs.
        seconds: what exporting and checking took.
        resized: whether it was made from another graph's file, and not by the exporter.
    """

    path: Path
    size_bytes: int
    max_relative_difference: float
    agreement: float
    batches: tuple[int, ...]
    opset: int
    seconds: float
    resized: bool = False


def export_onnx(
    graph: ModelGraph,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    samples: Tensor | Sequence[Tensor] | None = None,
    opset: int | None = None,
    like: Known | None = None,
) -> OnnxExport:
    """Write a graph as one ONNX file and prove that ONNX Runtime computes what eager computes.

    The file appears whole or not at all; inputs carry the names of the graph's inputs, the output is called "output"
    (several: "output_0" and so on), the batch is free.

    Args:
        path: its folder is made where it is missing.
        metadata: texts that travel in the file, e.g. class names and preprocessing.
        samples: real inputs to compare on (one tensor for each input of the graph), besides random ones at several
            batch sizes.
        opset: version of ONNX's operators; None takes the exporter's choice.
        like: another graph with its file; where only weights and their sizes differ, the exporter is not asked again.

    Raises:
        GraphError: the exporter can't write an operator or the opset, ONNX Runtime does not have an operator in this
            precision, or the weights don't fit into one file.
        VerifyError: outputs differ by more than 1e-5 (single), 1e-12 (double) or 1e-2 (half precision), relative; no
            file is left.
        ShapeError: the samples are not what the graph takes.
    """
    begun, target = time.perf_counter(), Path(path)
    real = () if samples is None else (samples,) if isinstance(samples, Tensor) else tuple(samples)
    if samples is not None:
        check_inputs(graph, real)
    known = resized_onnx(like, graph) if like is not None and opset is None else None
    if known is not None:
        # What follows sizes in another way than weights do shows in the comparison.
        with contextlib.suppress(SartoError):
            return replace(_proven(graph, known, target, metadata or {}, real, begun), resized=True)
    return _proven(graph, to_onnx(graph, opset=opset), target, metadata or {}, real, begun)


def _proven(
    graph: ModelGraph,
    proto: onnx.ModelProto,
    target: Path,
    metadata: Mapping[str, str],
    real: tuple[Tensor, ...],
    begun: float,
) -> OnnxExport:
    """Write a model that computes what eager computes."""
    onnx.helper.set_model_props(proto, dict(metadata))
    data = bytes(proto.SerializeToString())
    difference, agreement = _compare(graph, _loaded(graph, data), real)
    limit = LIMITS.get(graph.inputs[0].dtype, LIMITS["float32"])
    if not difference <= limit:
        raise VerifyError(
            f"ONNX Runtime differs from eager by {difference:.1e} (relative), more than {limit:.0e}; "
            "the file was not kept"
        )
    _write(target, data)
    seconds = time.perf_counter() - begun
    return OnnxExport(target, len(data), difference, agreement, BATCHES, _opset(proto), seconds)


def to_onnx(graph: ModelGraph, *, opset: int | None = None) -> onnx.ModelProto:
    """The graph as an ONNX model with a free batch, not yet run anywhere.

    Args:
        opset: version of ONNX's operators; None takes the exporter's choice.

    Raises:
        GraphError: the exporter can't write an operator (it is named) or the opset, or the weights don't fit into one
            file.
    """
    _check_size(graph)
    inputs, module = random_inputs(graph, 2), fold_norms(graph).module()
    several = len(graph.outputs) > 1
    names = [f"output_{place}" for place in range(len(graph.outputs))] if several else ["output"]
    with _quietly():
        try:
            program = torch.export.export(
                module, inputs, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[entry.name for entry in graph.inputs],
                output_names=names,
                opset_version=opset,
                external_data=False,
                optimize=True,
            )
        except Exception as error:
            raise GraphError(f"the graph can't be written as ONNX: {_reason(error)}") from error
    if exported is None:
        raise GraphError("the graph can't be written as ONNX: the exporter gave nothing")
    proto: onnx.ModelProto = exported.model_proto
    if opset is not None and _opset(proto) != opset:
        raise GraphError(
            f"the graph can't be written as ONNX of opset {opset}: the exporter wrote opset {_opset(proto)}; "
            "ask for that one, or for none"
        )
    _tidy(proto)
    return proto


def _opset(proto: onnx.ModelProto) -> int:
    return int(max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")))


def _reason(error: BaseException) -> str:
    """The operator that stopped the exporter, where the error or one of its causes names it, and the first cause."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = " ".join(str(cause) for cause in causes)
    called = re.search(r"torch\.ops\.(aten\.\w+\.\w+)", text)
    overload = re.search(r"OpOverload\(op='aten\.(\w+)', overload='(\w+)'\)", text)
    op = called.group(1) if called else f"aten.{overload.group(1)}.{overload.group(2)}" if overload else None
    first = str(causes[-1]).strip() or type(causes[-1]).__name__
    reason = " ".join(re.sub(r"\x1b\[\d*m", "", first).split())[:300]
    return f"operator {op} fails ({reason})" if op else reason


def _tidy(proto: onnx.ModelProto) -> None:
    """Without the exporter's notes on how it went, and with the batch called "batch"."""
    graph = proto.graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param if graph.input else ""
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    _forget(graph.node)
    for function in proto.functions:
        function.ClearField("metadata_props")
        _forget(function.node)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if batch and dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(batch)}\b", "batch", dim.dim_param)


def _forget(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _forget(inner.node)


def _loaded(graph: ModelGraph, data: bytes) -> OnnxModel:
    try:
        return load_onnx(data)
    except RequestError as error:
        kind = graph.inputs[0].dtype
        cure = "" if kind == "float32" else "; graph.to(torch.float32) may run"
        raise GraphError(f"ONNX Runtime can't run this graph in {kind}: {error.detail}{cure}") from error


def _compare(graph: ModelGraph, model: OnnxModel, real: tuple[Tensor, ...]) -> tuple[float, float]:
    """Largest difference from eager, and the share of equal decisions.

    The difference is relative to the largest output of all batches: a single random image may happen to score close to
    zero.
    """
    batches = [random_inputs(graph, batch) for batch in BATCHES]
    if real:
        batches += list(zip(*(tensor.split(_CHUNK) for tensor in real), strict=True))
    have = [_numbers(model(*(tensor.numpy() for tensor in given))) for given in batches]
    want = [_numbers(graph(*given)) for given in batches]
    if any(
        a.shape != b.shape
        for found, wanted in zip(have, want, strict=True)
        for a, b in zip(found, wanted, strict=True)
    ):
        return math.inf, 0.0
    whole = [
        [torch.cat([part.flatten() for part in parts]) for parts in zip(*side, strict=True)]
        for side in (have, want)
    ]
    if have[0][0].ndim != 2:
        return relative_difference(*whole), 1.0
    same = torch.cat([a[0].argmax(1) == b[0].argmax(1) for a, b in zip(have, want, strict=True)])
    return relative_difference(*whole), float(same.double().mean())


def _numbers(outputs: object) -> tuple[Tensor, ...]:
    """Outputs as floating-point tensors."""
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    tensors = [part if isinstance(part, Tensor) else torch.from_numpy(np.asarray(part)) for part in parts]
    return tuple(tensor if tensor.is_floating_point() else tensor.to(torch.float64) for tensor in tensors)


def random_inputs(graph: ModelGraph, batch: int) -> tuple[Tensor, ...]:
    """Random inputs, the same ones each time: noise around a level of its own in each sample; whole numbers 0 or 1."""
    generator, inputs = torch.Generator().manual_seed(batch), []
    for entry in graph.inputs:
        dtype, shape = getattr(torch, entry.dtype), size_at(entry.shape, batch)
        noise = torch.rand(shape, generator=generator)
        level = torch.rand((shape[0], *(1,) * (len(shape) - 1)), generator=generator)
        inputs.append(
            (noise + level).div(2).to(dtype) if dtype.is_floating_point else noise.round().to(dtype)
        )
    return tuple(inputs)


def _check_size(graph: ModelGraph) -> None:
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes_of(graph.tensors).values())
    if size > MAX_BYTES:
        raise GraphError(
            f"the graph's tensors take {size:,} bytes; one ONNX file holds {MAX_BYTES:,}. Slice it further"
        )


def _write(path: Path, data: bytes) -> None:
    """The file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's chatter, its errors still come through; and without garbage collection, a tenth faster."""
    level, collecting = logging.root.manager.disable, gc.isenabled()
    logging.disable(logging.WARNING)
    gc.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if collecting:
            gc.enable()
