"""A pico task space and descriptions of trainings that end in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SPACE = """
space: 1
name: few
groups:
  quantifier: [has, exactly_2]
  predicate: [digit_7, digit_1, odd]
unseen: [[exactly_2, odd]]
function: sarto.engines.factory.spaces.numvqa:numvqa
answers: ["no", "yes"]
"""


def write_digits(folder: Path) -> Path:
    """Ten shapes of 6 x 6 as `digits.npz`; the folder."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 255, (10, 6, 6), dtype=np.uint8)
    held = {
        f"{split}_{what}": value
        for split in ("train", "test")
        for what, value in (("images", np.repeat(shapes, 4, 0)), ("labels", np.repeat(np.arange(10), 4)))
    }
    np.savez(folder / "digits.npz", **held)
    return folder


def described(folder: Path, **changes: Any) -> dict[str, Any]:
    """A description of a small training; writes its space and its digits into the folder."""
    (folder / "few.yaml").write_text(SPACE, encoding="utf-8")
    write_digits(folder)
    return {
        "name": "few",
        "space": str(folder / "few.yaml"),
        "data": {"folder": str(folder)},
        "backbone": {
            "zoo": "resnet",
            "arguments": {"in_channels": 1, "depths": [1, 1], "width": 8, "stem": "cifar"},
        },
        "preprocessing": {"size": [12, 12], "channels": 1, "mean": [0.5], "std": [0.5]},
        "assembler": {"hidden": 8, "gaters": 2, "limit_dims": 8, "most": 1.0},
        "joint": {"steps": 8, "batch": 12, "save_every": 4, "lr": 0.01},
        "judging": {"limits": [0.2, 0.5, 1.0], "samples": 20},
        "licence": "CC0-1.0",
        **changes,
    }
