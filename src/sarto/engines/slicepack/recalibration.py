"""Batch norms of a fragment moved towards the donor's: a switch for ablations, off by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.settings import CHUNK, N0
from sarto.engines.slicepack.units import class_shares
from sarto.errors import GraphError
from sarto.graph import ModelGraph, Selection
from sarto.graph.expressions import kept_positions
from sarto.graph.model import Node, Ref, TensorRef
from sarto.graph.run import run_node

#: Mean and standard deviation of each channel.
Moments = tuple[Tensor, Tensor]


def recalibrated(
    readings: Readings,
    classes: Sequence[int],
    selection: Selection,
    fragment: ModelGraph,
    *,
    wpos: float,
    n0: float = N0,
) -> ModelGraph:
    """The fragment with the statistics of its batch norms matched to its own activations, front to back.

    With T the donor and S the fragment, on the samples: sigma' = sigma sigma_S / sigma_T and
    mu' = E z_S - (E z_T - mu) sigma_S / sigma_T, so that a normalised channel has the donor's mean and spread; both
    drawn to the donor's by n / (n + n0), n the number of the fragment's own samples.

    Args:
        wpos: weight of the fragment's classes.
        n0: as many samples as the donor's statistics weigh.

    Reference:
        Our reading of "BN recalibration" for few samples; nothing is estimated from scratch.
    """
    shares = class_shares(readings.n_classes, classes, wpos)
    counts = torch.bincount(readings.labels, minlength=readings.n_classes)
    weights = (shares / counts)[readings.labels]
    own = int(
        torch.isin(readings.labels, torch.tensor(list(classes) or list(range(readings.n_classes)))).sum()
    )
    trust = own / (own + n0)
    donor = _donor_moments(readings, weights)
    tensors = dict(fragment.tensors.items())
    last = {name: users[-1] for name, users in fragment.readers.items()}
    env: dict[str, Any] = {fragment.inputs[0].name: readings.inputs}
    with torch.no_grad():
        for node in fragment.nodes:
            if node.name in donor:
                names = _statistics(node)
                rows = kept_positions(readings.graph.analysis.tensor_axes[names[0]][0], selection.kept)
                kept = torch.from_numpy(rows)
                mean_t, spread_t = (part[kept] for part in donor[node.name])
                mean_s, spread_s = _moments(_given(node, env), weights)
                mean, variance = (tensors[name] for name in names)
                # A channel that never moves says nothing of its spread.
                ratio = torch.where(
                    (spread_t > 0) & (spread_s > 0), spread_s / spread_t.clamp_min(1e-12), 1.0
                )
                moved = mean_s - (mean_t - mean) * ratio
                tensors[names[0]] = (mean + trust * (moved - mean)).to(mean.dtype)
                tensors[names[1]] = (variance * (1 + trust * (ratio - 1)).square()).to(variance.dtype)
            env[node.name] = run_node(
                fragment, node, env, len(readings.inputs), lambda at, arg, x: _newest(at, arg, x, tensors)
            )
            for name in [name for name in env if last.get(name) == node.name]:
                del env[name]
    return replace(fragment, tensors=tensors)


def _newest(node: Node, arg: str, value: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    found = node.args.get(arg)
    return tensors[found.name] if isinstance(found, TensorRef) else value


def _donor_moments(readings: Readings, weights: Tensor) -> dict[str, Moments]:
    """What each batch norm of the donor is given, as mean and spread over the samples and positions."""
    graph = readings.graph
    norms = [node for node in graph.nodes if len(_statistics(node)) == 2]
    sums: dict[str, list[Tensor]] = {}
    last = {name: users[-1] for name, users in graph.readers.items()}
    with torch.no_grad():
        for start in range(0, len(readings.inputs), CHUNK):
            part = slice(start, start + CHUNK)
            env: dict[str, Any] = {graph.inputs[0].name: readings.inputs[part]}
            for node in graph.nodes:
                if node in norms:
                    found = _powers(_given(node, env), weights[part])
                    sums[node.name] = (
                        [a + b for a, b in zip(sums[node.name], found, strict=True)]
                        if (node.name in sums)
                        else found
                    )
                env[node.name] = run_node(graph, node, env, len(readings.inputs[part]))
                for name in [name for name in env if last.get(name) == node.name]:
                    del env[name]
    return {name: _spread(*found) for name, found in sums.items()}


def _moments(x: Tensor, weights: Tensor) -> Moments:
    return _spread(*_powers(x, weights))


def _powers(x: Tensor, weights: Tensor) -> list[Tensor]:
    """Weighted mean of the values and of their squares, by channel (axis 1)."""
    rows = x.flatten(2).to(torch.float64) if x.ndim > 2 else x.unsqueeze(2).to(torch.float64)
    return [torch.einsum("n,ncp->c", weights, power) / rows.shape[2] for power in (rows, rows.square())]


def _spread(mean: Tensor, square: Tensor) -> Moments:
    return mean, (square - mean.square()).clamp_min(0).sqrt()


def _given(node: Node, env: Mapping[str, Any]) -> Tensor:
    source = node.args["input"]
    if not isinstance(source, Ref):
        raise GraphError(f"the batch norm {node.name!r} reads no computed value", where=node.name)
    found: Tensor = env[source.name]
    return found


def _statistics(node: Node) -> tuple[str, ...]:
    """Names of a batch norm's running mean and variance; empty for other nodes."""
    if node.op != "aten.batch_norm.default":
        return ()
    found = (node.args["running_mean"], node.args["running_var"])
    return tuple(arg.name for arg in found if isinstance(arg, TensorRef))
