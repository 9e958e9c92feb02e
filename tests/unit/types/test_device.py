"""Devices: what was written before there were more runtimes still reads, and precisions that don't exist don't."""

from __future__ import annotations

import pytest

from sarto.errors import RequestError
from sarto.types import PRECISIONS, Device, Request


def test_a_device_of_three_keys_is_a_device_on_this_machine_in_single_precision() -> None:
    device = Device.parse('{"runtime": "torch", "threads": 2, "batch": 4}')
    assert (device.precision, device.profile, device.agent) == ("float32", None, None)
    assert Device.parse(device.to_json()) == device


def test_a_precision_that_the_runtime_has_not_is_refused_with_those_that_it_has() -> None:
    for runtime, known in PRECISIONS.items():
        for precision in known:
            assert Device(runtime=runtime, precision=precision).precision == precision
    with pytest.raises(RequestError, match=r"onnxruntime has no bfloat16; it has float32, float16, int8"):
        Device(runtime="onnxruntime", precision="bfloat16")
    with pytest.raises(RequestError, match=r"device\.precision: torch has no int8"):
        Request.parse({"task": {"classes": ["a"]}, "device": {"runtime": "torch", "precision": "int8"}})


@pytest.mark.parametrize("agent", ["ftp://pi", "pi:80", "http://"])
def test_an_agent_is_an_address(agent: str) -> None:
    with pytest.raises(RequestError, match="agent"):
        Device(agent=agent)
    assert Device(agent="http://127.0.0.1:8000").agent == "http://127.0.0.1:8000"
