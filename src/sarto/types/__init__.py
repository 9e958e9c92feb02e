"""Values: what is ordered, stocked, planned, built and reported. Frozen, JSON and YAML, no torch."""

from __future__ import annotations

from sarto.types.cost import LIMITS, Budget, Cost, WidthCost
from sarto.types.kinds import Kind
from sarto.types.learnware import Learnware, Preprocessing
from sarto.types.nodes import BlockNode, BranchNode, HeadNode, PlanNode, Repair, SliceNode, SourceNode
from sarto.types.plan import Plan
from sarto.types.request import ClassOffer, Device, Request, Requirement, Task
from sarto.types.value import Value

__all__ = [
    "LIMITS",
    "BlockNode",
    "BranchNode",
    "Budget",
    "ClassOffer",
    "Cost",
    "Device",
    "HeadNode",
    "Kind",
    "Learnware",
    "Plan",
    "PlanNode",
    "Preprocessing",
    "Repair",
    "Request",
    "Requirement",
    "SliceNode",
    "SourceNode",
    "Task",
    "Value",
    "WidthCost",
]
