"""Values: what is ordered, stocked, planned, built and reported. Frozen, JSON and YAML, no torch."""

from __future__ import annotations

from sarto.types.cost import LIMITS, Budget, Cost, WidthCost
from sarto.types.learnware import Learnware, Preprocessing
from sarto.types.request import ClassOffer, Device, Request, Requirement, Task
from sarto.types.value import Value

__all__ = [
    "LIMITS",
    "Budget",
    "ClassOffer",
    "Cost",
    "Device",
    "Learnware",
    "Preprocessing",
    "Request",
    "Requirement",
    "Task",
    "Value",
    "WidthCost",
]
