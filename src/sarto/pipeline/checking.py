"""Verifying a finished model again: its files, its ONNX twin, what its device runs, its budget."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from sarto.devices import count
from sarto.devices.runtimes.place import interpreter
from sarto.errors import GraphError, RequestError
from sarto.export import sidecar_of
from sarto.export.comparing import compare
from sarto.graph import evaluate, relative_difference
from sarto.graph.model import size_at
from sarto.graph.operators import ALLOWED, GETITEM
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.kept_samples import own_samples
from sarto.pipeline.on_device import device_checks, figures
from sarto.types import Check, DeviceFile, TextPreprocessing

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
    if report.device_file is not None:
        yield from _device_checks(artifact, report.device_file, inputs)
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


def _device_checks(artifact: Artifact, file: DeviceFile, noise: Tensor) -> Iterator[Check]:
    """That what the order's device runs computes what eager does, where its runtime is installed here.

    On the order's own samples where they are still in their place, else on noise.
    """
    device = artifact.request.device
    name = f"{device.runtime} in {file.precision} against eager"
    why_not = _why_not_run(artifact)
    if why_not is not None:
        yield Check(name=name, ok=True, detail=f"{file.name} was not run: {why_not}")
        return
    own, path = own_samples(artifact), artifact.folder / file.name
    batch = json.loads(sidecar_of(path).read_text(encoding="utf-8"))["batch"]
    try:
        found = compare(
            artifact.graph,
            path,
            device.runtime,
            file.precision,
            # What is compiled for each size of a batch is compiled for that of the order alone.
            batch=device.batch if device.runtime == "compile" else batch["fixed"],
            max_batch=batch["largest"],
            samples=(noise if own is None else own,),
        )
    except (GraphError, RequestError) as error:
        yield Check(name=name, ok=False, detail=f"{file.name} does not run here: {error.detail}")
        return
    if not (math.isfinite(found.max_relative_difference) and math.isfinite(found.error)):
        yield Check(
            name=name, ok=False, detail="its outputs have other shapes than eager's, or are no numbers"
        )
        return
    if file.precision == "int8" and own is None:
        agreed = "" if found.agreement is None else f"; on noise it decides alike on {found.agreement:.0%}"
        told = "runs here; int8 is made for real samples, and the order's are not in their place"
        yield Check(name=name, ok=True, detail=f"{told}{agreed}")
        return
    where = "random inputs" if own is None else "the order's samples"
    for check in device_checks(file.replace(**figures(found)), device):
        yield check.replace(detail=f"{check.detail}; run here on {where}")


def _why_not_run(artifact: Artifact) -> str | None:
    """Why the device's file is not run on this machine; None where it can be."""
    runtime = artifact.request.device.runtime
    if runtime == "aotinductor":
        return "it is native code, which a check of a model must not run"
    try:
        interpreter(runtime)
    except RequestError as error:
        return error.detail
    return None
