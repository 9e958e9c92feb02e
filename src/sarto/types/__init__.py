"""Values: what is ordered, stocked, planned, built and reported. Frozen, JSON and YAML, no torch."""

from __future__ import annotations

from sarto.types.cost import LIMITS, Budget, Cost, Objective, TrunkCost, WidthCost, pack_cost
from sarto.types.device import PRECISIONS, Device, Precision, RuntimeName
from sarto.types.factory import (
    AssemblerSettings,
    Backbone,
    Certificate,
    FactoryConfig,
    JointSettings,
    Judging,
    StockedSupernet,
    TaskQuality,
)
from sarto.types.kinds import Kind
from sarto.types.learnware import Learnware
from sarto.types.nodes import (
    BlockNode,
    BranchNode,
    ChainNode,
    HeadNode,
    PlanNode,
    Repair,
    SliceNode,
    SourceNode,
    Stitching,
    SubnetNode,
    TuneNode,
    reads,
)
from sarto.types.paper import PaperSettings
from sarto.types.plan import Plan
from sarto.types.preprocessing import (
    AnyPreprocessing,
    Preprocessing,
    TextPreprocessing,
    parse_preprocessing,
)
from sarto.types.report import (
    Check,
    ClassScore,
    Comparison,
    Confusion,
    CostLine,
    DeviceFile,
    Donor,
    Environment,
    Interval,
    Part,
    Rejection,
    Report,
    Row,
    licences_of,
)
from sarto.types.request import ClassOffer, DonorRules, RepairChanges, Request, Requirement, Task, Training
from sarto.types.space import TaskSpace
from sarto.types.value import Value

__all__ = [
    "LIMITS",
    "PRECISIONS",
    "AnyPreprocessing",
    "AssemblerSettings",
    "Backbone",
    "BlockNode",
    "BranchNode",
    "Budget",
    "Certificate",
    "ChainNode",
    "Check",
    "ClassOffer",
    "ClassScore",
    "Comparison",
    "Confusion",
    "Cost",
    "CostLine",
    "Device",
    "DeviceFile",
    "Donor",
    "DonorRules",
    "Environment",
    "FactoryConfig",
    "HeadNode",
    "Interval",
    "JointSettings",
    "Judging",
    "Kind",
    "Learnware",
    "Objective",
    "PaperSettings",
    "Part",
    "Plan",
    "PlanNode",
    "Precision",
    "Preprocessing",
    "Rejection",
    "Repair",
    "RepairChanges",
    "Report",
    "Request",
    "Requirement",
    "Row",
    "RuntimeName",
    "SliceNode",
    "SourceNode",
    "Stitching",
    "StockedSupernet",
    "SubnetNode",
    "Task",
    "TaskQuality",
    "TaskSpace",
    "TextPreprocessing",
    "Training",
    "TrunkCost",
    "TuneNode",
    "Value",
    "WidthCost",
    "licences_of",
    "pack_cost",
    "parse_preprocessing",
    "reads",
]
