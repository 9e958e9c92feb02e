"""Every block of the surgery page runs, in order, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "surgery.md"


def test_the_blocks_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 8
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for place, block in enumerate(blocks):
        exec(compile(block, f"block {place + 1} of {PAGE.name}", "exec"), names)
