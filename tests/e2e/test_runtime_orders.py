"""Orders whose device is another runtime: exported to it, compared with eager, measured there, delivered."""

from __future__ import annotations

from typing import Any

import pytest

from sarto.devices.runtimes import is_available
from sarto.errors import InfeasibleError

CLASSES = ("red disc", "blue cross", "red bar")
ENGINES = ["slicepack", "baselines"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("runtime", "package", "precision"),
    [
        ("openvino", "openvino", "float32"),
        ("openvino", "openvino", "int8"),
        ("litert", "ai_edge_litert", "float32"),
        ("executorch", "executorch", "float32"),
    ],
)
def test_an_order_is_delivered_in_its_runtime(shop: Any, runtime: str, package: str, precision: str) -> None:
    pytest.importorskip(package)
    if not is_available(runtime, converting=True):
        pytest.skip(f"extra not installed: {runtime}")
    device = {"runtime": runtime, "precision": precision}
    request = shop.order(*CLASSES, device=device, budget={"latency_ms": 1_000}, baselines=[], engines=ENGINES)
    report = shop.make(request).report
    assert report.request.device.runtime == runtime and report.request.device.precision == precision
    assert report.measured.latency_ms is not None and 0 < report.measured.latency_ms <= 1_000
    assert all(check.ok for check in report.checks)
    (kept,) = [check for check in report.checks if check.name == "budget: latency_ms"]
    assert kept.value == report.measured.latency_ms


def test_a_budget_that_the_runtime_can_not_keep_says_what_was_measured_there(shop: Any) -> None:
    pytest.importorskip("openvino")
    request = shop.order(
        *CLASSES,
        device={"runtime": "openvino"},
        budget={"latency_ms": 0.000_5},
        baselines=[],
        engines=ENGINES,
    )
    with pytest.raises(InfeasibleError, match=r"as measured with openvino, 1 threads|Floor: latency_ms"):
        shop.make(request)
