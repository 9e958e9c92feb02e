"""What measured blocks say of a linear head on joined features, which no backbone has."""

from __future__ import annotations

import numpy as np

from sarto.devices.profiling.generic import FIXED
from sarto.devices.profiling.sizes import Floats
from sarto.types.profile import KindModel

_MB = 4e-6


class HeadRates:
    """Milliseconds of heads, by the fit to blocks and without each part of them.

    Attributes:
        fixed: of any model, shape (1 + parts,).
    """

    def __init__(self, model: KindModel, batch: int) -> None:
        self._every = np.array([model.weights, *model.residuals.folds], float)
        self._place = {name: index for index, name in enumerate(model.names)}
        self._batch, self._vector = batch, model.vector_width
        self.fixed: Floats = self._every[:, self._place[FIXED]]

    def head(self, width: int, n_classes: int, n_parts: int) -> Floats:
        """Milliseconds of joining parts and of a linear layer, shape (1 + parts,)."""
        inner, outer = (-(-size // self._vector) * self._vector for size in (width, n_classes))
        taken = {
            "linear.mflop": 2e-6 * inner * outer * self._batch,
            "linear.read_mb": _MB * width * self._batch,
            "linear.write_mb": _MB * n_classes * self._batch,
            "linear.weight_mb": _MB * n_classes * (width + 1),
            "linear.calls": 1.0,
        }
        if n_parts > 1:
            taken |= {"move.moved_mb": 2 * _MB * width * self._batch, "move.calls": 1.0}
        found = np.zeros(len(self._every))
        for name, value in taken.items():
            found += value * self._every[:, self._place.get(name, self._place[f"*.{name.split('.')[1]}"])]
        return found
