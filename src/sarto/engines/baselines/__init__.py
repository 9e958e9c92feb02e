"""What a user would otherwise do: donors as they are, new heads, fine-tuning, and other methods of the literature."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sarto.engines.baselines.camkd import ca_mkd
from sarto.engines.baselines.finetuned import FineTunedScore, fine_tune, finetune_donor, left_out_folds
from sarto.engines.baselines.given import Baseline, Budget, Given, Original, Trained
from sarto.engines.baselines.grail import grail_plan, largest_units
from sarto.engines.baselines.netgraft import Grafted, graft, netgraft
from sarto.engines.baselines.probing import ensemble, packed, probe
from sarto.engines.baselines.propose import propose
from sarto.engines.baselines.settings import (
    NAMES,
    CaMkdSettings,
    FineTuneSettings,
    GrailSettings,
    NetGraftSettings,
)

#: Baselines of one interface, by name; GRAIL is a plan, and prune-and-tune needs a package of the benchmarks.
BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {"ensemble": ensemble, "probe": probe, "finetune": fine_tune, "camkd": ca_mkd, "netgraft": netgraft}
)

__all__ = [
    "BASELINES",
    "NAMES",
    "Baseline",
    "Budget",
    "CaMkdSettings",
    "FineTuneSettings",
    "FineTunedScore",
    "Given",
    "Grafted",
    "GrailSettings",
    "NetGraftSettings",
    "Original",
    "Trained",
    "ca_mkd",
    "ensemble",
    "fine_tune",
    "finetune_donor",
    "graft",
    "grail_plan",
    "largest_units",
    "left_out_folds",
    "netgraft",
    "packed",
    "probe",
    "propose",
]
