"""A pico task space and descriptions of trainings that end in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarto.errors import RequestError

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


class Odd:
    """Data of the pico space that are wrong in one way."""

    def __init__(self, wrong: str) -> None:
        self.wrong, self.calls = wrong, 0

    def draw(
        self, tasks: Sequence[frozenset[str]], split: str, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, 1, 12, 12) of noise, and answers that are yes and no in turn."""
        self.calls += 1
        first = frozenset({"has", "digit_7"})
        if self.wrong == "no samples" and first in tasks:
            raise RequestError("it has no samples in the train split")
        if self.wrong == "no test samples" and first in tasks and split == "test":
            raise RequestError("it has no samples in the test split")
        if self.wrong == "test fails" and split == "test":
            raise IndexError("list index out of range")
        n = 0 if self.wrong == "none at all" else len(tasks)
        answers = torch.arange(n) % 2
        if self.wrong == "never yes" and first in tasks:
            answers = torch.zeros_like(answers)
        images = torch.randn(n, 1, 12, 12, generator=generator)
        # Five tasks and six are looked at before the training, and two mixed draws; it sees what comes after.
        if self.wrong == "infinite later" and self.calls > 5 + 6 + 2 + 3:
            images = images * torch.inf
        return images, answers


def odd(wrong: str) -> Odd:
    """Data that are wrong in one way.

    Raises:
        ValueError: what is asked for is that it fails.
    """
    if wrong == "fails":
        raise ValueError("no such folder of images")
    return Odd(wrong)


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
