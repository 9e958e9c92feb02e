"""Sarto: from the models that you have, the one that you need.

>>> import sarto
>>> market = sarto.Market.open("market")                                        # doctest: +SKIP
>>> order = sarto.Request.parse({"task": {"classes": ["cat", "dog", "bird"]}, "budget": {"params": 700_000}})
>>> artifact = market.make(order, "out")                                        # doctest: +SKIP
>>> sarto.load("out")("photo.png")[0].label                                     # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sarto.errors import (
    GraphError,
    InfeasibleError,
    RequestError,
    SartoError,
    ShapeError,
    StoreError,
    VerifyError,
)
from sarto.types import Budget, Cost, Device, Plan, Preprocessing, Report, Request, Task, TextPreprocessing

if TYPE_CHECKING:
    from sarto.graph import ModelGraph, Selection, capture
    from sarto.market import Samples, TextSamples, Vocabulary, read_samples
    from sarto.pipeline import Artifact, Market, Model, load

__version__ = "0.1.0"

#: Names whose rooms need torch: imported when they are first asked for, so that `import sarto` stays quick.
_LAZY = {
    "Artifact": "sarto.pipeline",
    "Market": "sarto.pipeline",
    "Model": "sarto.pipeline",
    "ModelGraph": "sarto.graph",
    "Samples": "sarto.market",
    "Selection": "sarto.graph",
    "TextSamples": "sarto.market",
    "Vocabulary": "sarto.market",
    "capture": "sarto.graph",
    "load": "sarto.pipeline",
    "read_samples": "sarto.market",
}

__all__ = [
    "Artifact",
    "Budget",
    "Cost",
    "Device",
    "GraphError",
    "InfeasibleError",
    "Market",
    "Model",
    "ModelGraph",
    "Plan",
    "Preprocessing",
    "Report",
    "Request",
    "RequestError",
    "Samples",
    "SartoError",
    "Selection",
    "ShapeError",
    "StoreError",
    "Task",
    "TextPreprocessing",
    "TextSamples",
    "VerifyError",
    "Vocabulary",
    "capture",
    "load",
    "read_samples",
]


def __getattr__(name: str) -> Any:
    room = _LAZY.get(name)
    if room is None:
        raise AttributeError(f"module 'sarto' has no attribute {name!r}")
    return getattr(importlib.import_module(room), name)
