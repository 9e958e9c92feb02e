"""Bytes of weights and of activations at unit counts, for many subnets at once, without building one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sarto.devices.memory import storages
from sarto.devices.profiling.sizes import Counts, Floats, Size, SizeTable, monomials
from sarto.graph import ModelGraph
from sarto.graph.model import shapes_of


class ByteCounter:
    """Counts the bytes of one graph's subnets; make it once and ask it often.

    Which values share memory, and how long each is alive, is that of the whole graph: the same for its subnets.
    """

    def __init__(self, graph: ModelGraph, *, batch: int = 1) -> None:
        """Read the graph; no weights are read.

        Args:
            batch: samples in one call.
        """
        analysis = graph.analysis
        self._table = SizeTable({group.id: group.size for group in analysis.sliceable}, batch)
        stored = [
            self._table.elements(analysis.tensor_axes[name]).scaled(dtype.itemsize)
            for name, (_, dtype) in shapes_of(graph.tensors).items()
        ]
        kinds: dict[str, tuple[str, ...]] = {entry.name: (entry.dtype,) for entry in graph.inputs}
        kinds |= {node.name: node.dtypes for node in graph.nodes}
        held = storages(graph, batch=batch)
        live: list[Size] = []
        self._alive = np.zeros((len(graph.nodes) + 1, len(held)))
        for place, storage in enumerate(held):
            name, output = storage.value
            size = self._table.elements(analysis.value_axes[name][output])
            live.append(size.scaled(getattr(torch, kinds[name][output]).itemsize))
            self._alive[storage.first : storage.last + 1, place] = 1.0
        self._stored, self._live = monomials(stored), monomials(live)

    def bytes_at(self, counts: Sequence[Counts] | np.ndarray) -> Floats:
        """Bytes of all tensors, and the most bytes of activations alive at once; shape (2, subnets).

        Args:
            counts: units kept of each group, or a matrix of shape (subnets, groups).

        Raises:
            RequestError: a group is unknown, or a count is out of range; all problems at once.
        """
        rows = counts.astype(float) if isinstance(counts, np.ndarray) else self._table.rows(counts)
        found = self._table.evaluate(rows, 1)
        stored, live = (
            factors[:, None] * found[places].prod(axis=1) for factors, places in (self._stored, self._live)
        )
        return np.stack([stored.sum(axis=0), (self._alive @ live).max(axis=0)])
