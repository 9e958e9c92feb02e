"""Memory of a process that runs a model: counted bytes times what a runtime makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.types.profile import MemoryModel, MemoryRow

#: Bytes that a fresh process grows by when it loads and runs a graph.
Weigher = Callable[[ModelGraph], int]
#: A measured growth below this is taken for it: pages are granted in steps.
LEAST_BYTES = 65_536


def fit_memory(rows: Sequence[MemoryRow]) -> MemoryModel:
    """Bytes for each counted byte, none negative, from measured models; relative errors are least.

    Raises:
        RequestError: fewer than three models.
    """
    from scipy.optimize import nnls

    if len(rows) < 3:
        raise RequestError(f"memory is fitted on at least 3 measured models, got {len(rows)}")
    counted = np.array([[1e6, row.size_bytes, row.activation_bytes] for row in rows], float)
    grown = np.array([max(row.measured_bytes, LEAST_BYTES) for row in rows], float)
    found, _ = nnls(counted / grown[:, None], np.ones(len(rows)))
    factors = grown / (counted @ found)
    return MemoryModel(
        fixed_bytes=float(found[0] * 1e6),
        per_size_byte=float(found[1]),
        per_activation_byte=float(found[2]),
        least_factor=float(min(1.0, factors.min())),
        most_factor=float(max(1.0, factors.max())),
    )
