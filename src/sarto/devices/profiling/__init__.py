"""Profiles of devices: what to measure, how to fit it, and what a model will take."""

from __future__ import annotations

from sarto.devices.profiling.counting import ByteCounter
from sarto.devices.profiling.design import design, random_counts
from sarto.devices.profiling.features import Term, Terms, skeleton, terms_of
from sarto.devices.profiling.making import Backbone, make_profile
from sarto.devices.profiling.plot import draw_shares
from sarto.devices.profiling.predictor import Compiled, Estimate, Predictor, Share
from sarto.devices.profiling.run import Progress, Wanted, measure_all
from sarto.devices.profiling.running import Opener, Running, open_here, open_in

__all__ = [
    "Backbone",
    "ByteCounter",
    "Compiled",
    "Estimate",
    "Opener",
    "Predictor",
    "Progress",
    "Running",
    "Share",
    "Term",
    "Terms",
    "Wanted",
    "design",
    "draw_shares",
    "make_profile",
    "measure_all",
    "open_here",
    "open_in",
    "random_counts",
    "skeleton",
    "terms_of",
]
