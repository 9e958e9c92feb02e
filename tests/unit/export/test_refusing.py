"""Which operator an exporter stumbles over, read from what exporters say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sarto.export.precision import halved
from sarto.export.refusing import operator_of, reason_of
from sarto.graph import capture

GRAPH = capture(nn.Sequential(nn.Linear(4, 4), nn.GELU()).eval(), torch.rand(2, 4), prove=False)


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("RuntimeError: Missing out variants: {'aten::gelu'}", "aten.gelu.default"),
        ("Lowering not found: aten.gelu.default", "aten.gelu.default"),
        ("Lowering not found: aten.frobnicate.default", "aten.frobnicate.default"),
        ("E 00:01 Missing operator: [3] aten::linear.out", "aten.linear.default"),
        ("the op is not in Core ATen opset: torch.ops.aten.linear.default", "aten.linear.default"),
        ("no decomposition for OpOverload(op='aten.gelu', overload='default')", "aten.gelu.default"),
        ("the disk is full", None),
    ],
)  # fmt: skip
def test_the_operator_is_named_as_the_graph_names_it(text: str, operator: str | None) -> None:
    assert operator_of(text, GRAPH) == operator


def test_a_reason_is_one_short_line() -> None:
    assert reason_of("\n \x1b[31mfirst   words\x1b[0m\nsecond") == "first words"
    assert reason_of("") == "no reason given" and len(reason_of("x" * 1000)) == 300


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_halved_graph_takes_and_gives_single_precision(precision: str) -> None:
    x = torch.rand(5, 4)
    half = halved(GRAPH, precision)  # type: ignore[arg-type]
    assert {str(tensor.dtype) for tensor in half.tensors.values()} == {f"torch.{precision}"}
    result = half(x)
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float32
    torch.testing.assert_close(result, GRAPH(x), rtol=0.05, atol=0.02)
