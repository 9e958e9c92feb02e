"""The page on exports: its blocks run, and its table says what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sarto.export import LEAST_AGREEMENT, LIMITS, MOST_ERROR, TARGETS
from sarto.export.targets import MAX_BATCH

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def test_the_blocks_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    torch.set_num_threads(1)
    names: dict[str, Any] = {}
    for place, block in enumerate(blocks):
        exec(compile(block, f"block {place + 1} of {PAGE.name}", "exec"), names)


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*? \| (.*?) \| (.*?) \|", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(TARGETS)
    for name, files, precisions, batch in rows:
        target = TARGETS[name]  # type: ignore[index]
        assert f"`{target.suffix}`" in files and precisions == ", ".join(target.precisions)
        assert batch.startswith("any") == target.batches[0] and ("fixed" in batch) == (not target.batches[-1])
    assert f"any up to {MAX_BATCH}" in text
    assert (LIMITS["float32"], LIMITS["float16"], LIMITS["bfloat16"]) == (1e-4, 2e-2, 8e-2)
    assert all(words in text for words in ("1e-4", "2e-2", "8e-2"))
    assert f"less than {LEAST_AGREEMENT * 100:.0f} %" in " ".join(text.split())
    assert f"below {MOST_ERROR * 100:.0f} %" in " ".join(text.split())
