"""The only tolerances that tests use, each with its reason. They are never widened in place."""

from __future__ import annotations

import torch

#: Largest relative difference that counts as equal: surgery reorders sums, nothing more.
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
