"""Every block of the page on texts runs, in order, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sarto.market.vocabulary import WORD

PAGE = Path(__file__).parents[2] / "docs" / "text.md"


def test_the_blocks_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    torch.set_num_threads(1)
    names: dict[str, Any] = {}
    for place, block in enumerate(blocks):
        exec(compile(block, f"block {place + 1} of {PAGE.name}", "exec"), names)
    assert [said.label for said in names["model"](["my bread and soup", "the debt of a bank"])] == [
        "food",
        "money",
    ]


def test_the_page_shows_the_rule_that_parts_texts() -> None:
    assert f"`{WORD.pattern}`" in PAGE.read_text(encoding="utf-8")
