"""ONNX: exported from the graph with a dynamic batch, run in ONNX Runtime and compared with eager."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from sarto.errors import GraphError, VerifyError
from sarto.graph import ModelGraph, relative_difference
from sarto.graph.model import size_at

#: Batch sizes at which the exported file is compared with eager.
BATCHES = (1, 2, 7)
#: Largest relative difference that counts as equal, by the graph's precision.
LIMITS = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was checked.

    Attributes:
        max_relative_difference: largest difference from eager over all batch sizes and given samples.
        agreement: share of samples on which the largest output is the same one.
    """

    path: Path
    size_bytes: int
    max_relative_difference: float
    agreement: float
    opset: int
    seconds: float


def export_onnx(
    graph: ModelGraph, path: Path, *, metadata: Mapping[str, str] | None = None, samples: Tensor | None = None
) -> OnnxExport:
    """Write a graph as one ONNX file and prove that ONNX Runtime computes what eager computes.

    Args:
        metadata: texts that travel in the file, e.g. class names and preprocessing.
        samples: real inputs to compare on, besides random ones at several batch sizes.

    Raises:
        GraphError: the exporter can't write an operator.
        VerifyError: outputs differ by more than 1e-5 (single) or 1e-12 (double precision), relative; no file is left.
    """
    begun = time.perf_counter()
    proto = to_onnx(graph)
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        onnx.save_model(proto, temporary)
        difference, agreement = _compare(graph, temporary, samples)
        limit = LIMITS.get(graph.inputs[0].dtype, 1e-2)
        if not difference <= limit:
            raise VerifyError(
                f"ONNX Runtime differs from eager by {difference:.1e} (relative), more than {limit:.0e}; "
                "the file was not kept"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    opset = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return OnnxExport(path, path.stat().st_size, difference, agreement, opset, time.perf_counter() - begun)


def to_onnx(graph: ModelGraph) -> onnx.ModelProto:
    """The graph as an ONNX model with a dynamic batch, not yet run anywhere.

    Raises:
        GraphError: the exporter can't write an operator.
    """
    inputs = tuple(_random(graph, 2, 0))
    module = graph.module().eval()
    with _quietly():
        try:
            program = torch.export.export(
                module, inputs, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
            )
            exported = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise GraphError(f"the graph can't be written as ONNX: {reason[:300]}") from error
    if exported is None:
        raise GraphError("the graph can't be written as ONNX: the exporter gave nothing")
    proto: onnx.ModelProto = exported.model_proto
    return proto


def _compare(graph: ModelGraph, path: Path, samples: Tensor | None) -> tuple[float, float]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GraphError(f"ONNX Runtime can't run this graph in {graph.inputs[0].dtype}: {reason}") from error
    names = [entry.name for entry in session.get_inputs()]
    batches = [tuple(_random(graph, batch, batch)) for batch in BATCHES]
    if samples is not None:
        batches += [(part,) for part in samples.split(64)]
    # Relative to the largest output of all batches: a single random image may happen to score close to zero.
    found, wanted, same, total = list[list[Tensor]](), list[list[Tensor]](), 0, 0
    for given in batches:
        want = graph(*given)
        expected = want if isinstance(want, tuple) else (want,)
        fed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        have = [torch.from_numpy(np.asarray(output)) for output in session.run(None, fed)]
        found.append(have)
        wanted.append(list(expected))
        if have[0].ndim == 2 and have[0].shape == expected[0].shape:
            same += int((have[0].argmax(1) == expected[0].argmax(1)).sum())
            total += len(have[0])
    whole = [
        [torch.cat([batch[place].reshape(-1) for batch in side]) for place in range(len(side[0]))]
        for side in (found, wanted)
    ]
    return relative_difference(*whole), same / total if total else 1.0


def _random(graph: ModelGraph, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for entry in graph.inputs:
        dtype = getattr(torch, entry.dtype)
        shape = size_at(entry.shape, batch)
        if dtype.is_floating_point:
            yield torch.rand(shape, generator=generator).to(dtype)
        else:
            yield torch.randint(0, 2, shape, generator=generator).to(dtype)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's chatter; its errors still come through."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
