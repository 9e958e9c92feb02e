"""Whether an exported file computes what eager computes: differences, equal decisions, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sarto.devices.agent import RemoteWorker
from sarto.devices.runtimes import Loaded, Refusal, Worker
from sarto.errors import GraphError, VerifyError
from sarto.export.onnx import random_inputs
from sarto.export.refusing import operator_of, reason_of
from sarto.graph import ModelGraph, relative_difference
from sarto.types import Precision, RuntimeName

#: Batch sizes of random inputs at which a file of a free batch is compared.
BATCHES = (1, 2, 7)
#: Largest difference from eager, relative to the largest output, that counts as equal.
LIMITS: dict[Precision, float] = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}
#: An int8 file must decide like eager on this share of the samples; where there are no decisions, its error must stay
#: below this share of the outputs (root mean squares).
LEAST_AGREEMENT, MOST_ERROR = 0.8, 0.3
_CHUNK = 64


@dataclass(frozen=True)
class Compared:
    """A file beside eager.

    Attributes:
        max_relative_difference: the largest over all inputs, relative to the largest output.
        error: root mean square of the differences over that of the outputs, the worst output's.
        agreement: share of inputs on which the largest output is the same one; None where outputs are no decisions.
        accuracy: share of labelled samples that the file gets right; None without labels.
        accuracy_eager: the same of eager.
        n_samples: real samples that were compared.
    """

    max_relative_difference: float
    error: float
    agreement: float | None
    accuracy: float | None
    accuracy_eager: float | None
    n_samples: int


def compare(
    graph: ModelGraph,
    path: Path,
    runtime: RuntimeName,
    precision: Precision,
    *,
    batch: int | None,
    max_batch: int | None = None,
    samples: Sequence[Tensor] = (),
    labels: Tensor | None = None,
    opened: Callable[[], Worker | RemoteWorker] | None = None,
) -> Compared:
    """Run a file in its runtime and the graph in eager torch on the same inputs.

    Random inputs of several batch sizes come first, except for int8, which is made for real samples alone.

    Args:
        batch: the fixed batch of the file; None where it is free.
        max_batch: the largest, where it is free up to a bound.
        samples: real inputs, shape (n, ...) for each input of the graph.
        labels: shape (n,), the right output of each sample.
        opened: starts the worker that runs the file; None starts one of the runtime on this machine.

    Raises:
        GraphError: the runtime can't load or run the file; names the operator where it says so.
        RequestError: the worker died or took too long.
    """
    chunk = batch or min(max_batch or _CHUNK, _CHUNK)
    given: list[tuple[Tensor, ...]] = []
    if precision != "int8" or not samples:
        given += [random_inputs(graph, size) for size in ((batch,) if batch is not None else BATCHES)]
    n_random = sum(len(entry[0]) for entry in given)
    if samples:
        sizes = _sizes(len(samples[0]), chunk, free=batch is None)
        given += list(zip(*(tensor.split(sizes) for tensor in samples), strict=True))
    with opened() if opened is not None else Worker(runtime) as worker:
        try:
            model = worker.load(path, precision=precision)
            have = [_run(worker, model, inputs, batch) for inputs in given]
        except Refusal as error:
            operator = operator_of(error.reason, graph)
            named = f"operator {operator} fails ({reason_of(error.reason)})" if operator else error.detail
            raise GraphError(
                f"{runtime} {worker.version} can't run the exported graph: {named}", where=operator
            ) from error
    want = [_numbers(graph(*inputs)) for inputs in given]
    return _compared(have, want, n_random, labels)


def check(found: Compared, runtime: RuntimeName, precision: Precision) -> None:
    """Refuse a file that computes something else.

    Raises:
        VerifyError: says by how much, and what is allowed.
    """
    if precision != "int8":
        limit, gap = LIMITS[precision], found.max_relative_difference
        if not gap <= limit:
            raise VerifyError(
                f"{runtime} in {precision} differs from eager by {gap:.1e} (relative), more than {limit:.0e}; "
                "the file was not kept"
            )
        return
    if found.agreement is not None and not found.agreement >= LEAST_AGREEMENT:
        raise VerifyError(
            f"{runtime} in int8 decides like eager on {found.agreement:.1%} of {found.n_samples:,} samples, less than "
            f"{LEAST_AGREEMENT:.0%}: quantising broke this model; the file was not kept. Give more calibration samples "
            "of the kind that it will see, or take float16 or float32"
        )
    if found.agreement is None and not found.error <= MOST_ERROR:
        raise VerifyError(
            f"{runtime} in int8 errs by {found.error:.1%} of its outputs (root mean squares), more than "
            f"{MOST_ERROR:.0%}: quantising broke this model; the file was not kept. Give more calibration samples of "
            "the kind that it will see, or take float16 or float32"
        )


def _sizes(n: int, chunk: int, *, free: bool) -> list[int]:
    """Sizes of the batches of n samples: first the small ones, where the batch is free, then chunks."""
    found = [size for size in BATCHES if free and sum(BATCHES) <= n]
    left = n - sum(found)
    return found + [chunk] * (left // chunk) + ([left % chunk] if left % chunk else [])


def _run(
    worker: Worker | RemoteWorker, model: Loaded, inputs: Sequence[Tensor], batch: int | None
) -> tuple[Tensor, ...]:
    """Outputs for a batch; a file of a fixed batch gets a short one filled up."""
    n = len(inputs[0])
    arrays = [
        np.asarray(tensor.numpy(), dtype=dtype)
        for tensor, (_, _, dtype) in zip(inputs, model.inputs, strict=True)
    ]
    if batch is not None and n < batch:
        arrays = [np.concatenate([array, np.repeat(array[-1:], batch - n, 0)]) for array in arrays]
    return tuple(_wide(torch.from_numpy(output.copy()))[:n] for output in worker.run(model, arrays))


def _compared(
    have: list[tuple[Tensor, ...]], want: list[tuple[Tensor, ...]], n_random: int, labels: Tensor | None
) -> Compared:
    n_samples = sum(len(parts[0]) for parts in want) - n_random
    same = all(
        len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b, strict=True))
        for a, b in zip(have, want, strict=True)
    )
    decides = want[0][0].ndim == 2 and want[0][0].shape[1] > 1
    if not same:
        return Compared(math.inf, math.inf, 0.0 if decides else None, None, None, n_samples)
    found, wanted = (
        [torch.cat([part.flatten() for part in parts]) for parts in zip(*side, strict=True)]
        for side in (have, want)
    )
    gap = relative_difference(found, wanted)
    error = max(
        float((a - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))
        for a, b in zip(found, wanted, strict=True)
    )
    agreement = accuracy = eager = None
    if decides:
        mine, theirs = (torch.cat([parts[0].argmax(1) for parts in side]) for side in (have, want))
        agreement = float((mine == theirs).double().mean())
        if labels is not None:
            accuracy, eager = (float((side[n_random:] == labels).double().mean()) for side in (mine, theirs))
    return Compared(gap, error if error == error else math.inf, agreement, accuracy, eager, n_samples)


def _numbers(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(_wide(part) for part in parts)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)
