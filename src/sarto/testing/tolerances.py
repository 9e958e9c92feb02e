"""The only tolerances that tests use, each with its reason. They are never widened in place."""

from __future__ import annotations

import torch

#: Largest relative difference that counts as equal: surgery reorders sums, nothing more.
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
#: Loss, gradients and statistics of one training step in float64: backward passes may add in another order.
GRADIENTS = 1e-10
#: Losses along many float32 steps: rounding is amplified from step to step.
TRAJECTORY = 1e-4
#: bfloat16 has 8 bits of precision; a few layers of it lose that much against float32.
AUTOCAST = 5e-2
