"""What a user would otherwise do: a donor as it is, a probe on one donor, all donors together, fine-tuning one."""

from __future__ import annotations

from sarto.engines.baselines.finetuned import FineTunedScore, finetune_donor
from sarto.engines.baselines.propose import propose

__all__ = ["FineTunedScore", "finetune_donor", "propose"]
