"""Verifying a finished model again: its files, its ONNX twin, its budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from sarto.devices import count
from sarto.graph import evaluate, relative_difference
from sarto.graph.model import size_at
from sarto.graph.operators import ALLOWED, GETITEM
from sarto.pipeline.artifact import Artifact
from sarto.types import Check, TextPreprocessing

BATCH, LIMIT = 16, 1e-5


def verify_artifact(folder: Path) -> tuple[Check, ...]:
    """Checks of a finished model on this machine.

    Raises:
        StoreError: no artifact there, or an unfinished one.
    """
    artifact = Artifact.read(folder)
    damage = artifact.damage()
    whole = Check(name="files equal the manifest", ok=not damage, detail="; ".join(damage))
    return (whole, *_checks(artifact)) if not damage else (whole,)


def _checks(artifact: Artifact) -> Iterator[Check]:
    graph, report = artifact.graph, artifact.report
    entry = graph.inputs[0]
    # Noise around flat images from black to white: noise alone may happen to score close to zero everywhere.
    noise = torch.rand(size_at(entry.shape, BATCH), generator=torch.Generator().manual_seed(0))
    flat = torch.linspace(0, 1, BATCH).reshape(-1, *(1,) * (noise.ndim - 1))
    inputs = (noise + flat) / 2
    if isinstance(artifact.preprocessing, TextPreprocessing):
        inputs = (noise * artifact.preprocessing.n_tokens).long()
    eager, _ = evaluate(graph, inputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        str(artifact.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    outputs = [torch.from_numpy(np.asarray(o)) for o in session.run(None, {name: inputs.numpy()})]
    gap = relative_difference(outputs, eager)
    yield Check(
        name="ONNX Runtime equals eager",
        value=gap,
        limit=LIMIT,
        ok=gap <= LIMIT,
        detail=f"{gap:.1e} relative",
    )
    cost = count(graph)
    same = (cost.params, cost.flops) == (report.measured.params, report.measured.flops)
    yield Check(
        name="counted costs equal the report",
        ok=same,
        detail=f"{cost.params:,} parameters, {cost.flops:,} FLOPs",
    )
    broken = report.measured.over(report.request.budget)
    yield Check(name="budget", ok=not broken, detail=", ".join(broken) or "kept when it was made")
    known = all(node.op in ALLOWED or node.op == GETITEM for node in graph.nodes)
    yield Check(
        name="operators", ok=known, detail=f"{len(graph.nodes)} nodes, all on the list of allowed operators"
    )
