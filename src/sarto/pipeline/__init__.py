"""From an order to a verified model. The only room that knows all engines; it interprets plans."""

from __future__ import annotations

from sarto.pipeline.artifact import Artifact
from sarto.pipeline.builder import Assembly, Builder
from sarto.pipeline.checking import verify_artifact
from sarto.pipeline.choose import Plans
from sarto.pipeline.loaded import Model, Prediction, load
from sarto.pipeline.market import Market
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.sources import InputSpec, Source, load_source, read_input
from sarto.pipeline.stocking import Pruned, Stocking

__all__ = [
    "Artifact",
    "Assembly",
    "Builder",
    "InputSpec",
    "Market",
    "Model",
    "Plans",
    "Prediction",
    "Progress",
    "Pruned",
    "Source",
    "Stocking",
    "load",
    "load_source",
    "read_input",
    "silent",
    "verify_artifact",
]
