"""Half precision is used where the processor has it, and refused where a configuration asks for it in vain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sarto.training import has_bfloat16

FLAGS = Path("/proc/cpuinfo")


@pytest.mark.skipif(not FLAGS.is_file(), reason="the system does not list what its processor can do")
def test_it_says_what_the_system_says() -> None:
    words = set(FLAGS.read_text(encoding="utf-8").split())
    assert has_bfloat16() == bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def test_devices_that_are_not_there_have_none() -> None:
    assert not has_bfloat16("meta")
    assert torch.cuda.is_available() or not has_bfloat16("cuda:0")
