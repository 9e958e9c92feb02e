"""Memory that is freed goes back to the system."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import pytest
import torch

from sarto.training import give_back_memory


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only the GNU C library keeps holes")
def test_holes_between_kept_tensors_are_given_back() -> None:
    give_back_memory()
    before = resident_mib()
    # Under the threshold from which the C library maps a block of its own.
    made = [torch.ones(25_000) for _ in range(2_000)]
    assert resident_mib() > before + 150
    kept = made[::50]
    del made
    give_back_memory()
    assert resident_mib() < before + 60, f"{len(kept)} tensors of 0.1 MiB are left"


def test_cycles_are_freed_first() -> None:
    held: list[object] = [torch.ones(1)]
    held.append(held)
    died: list[bool] = []
    weakref.finalize(held[0], died.append, True)
    del held
    give_back_memory()
    assert died == [True]
