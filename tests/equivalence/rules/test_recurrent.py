"""Fused recurrent layers: a hidden unit goes from all gates, states and readers at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sarto.graph import Selection, slice
from sarto.testing.surgery_contract import check_slicing


class Reader(nn.Module):
    """Reads (batch, 5, 4), last output or last state."""

    def __init__(self, kind: type[nn.RNNBase], *, state: bool = False, **options: object) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.core = kind(6, 7, **{"batch_first": True, **options})  # type: ignore[arg-type]
        self.state = state
        width = 7 * (2 if self.core.bidirectional and not state else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        outputs, state = self.core(x if self.core.batch_first else x.transpose(0, 1))
        if self.state:
            return self.head((state[0] if isinstance(state, tuple) else state)[-1])
        return self.head(outputs[:, -1] if self.core.batch_first else outputs[-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 2},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True},
        {"state": True},
        {"batch_first": False},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_hidden_units_go_together(kind: type[nn.RNNBase], options: dict[str, object]) -> None:
    model = Reader(kind, **options)  # type: ignore[arg-type]
    graph = check_slicing(model, torch.randn(2, 5, 4), {"hidden units": 1, "recurrent units": 1})
    (units,) = (g for g in graph.analysis.sliceable if g.kind == "recurrent units")
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    assert (units.size, units.granularity) == (7, gates)
    small = slice(graph, Selection({units.id: (0, 3)}))
    assert small.tensors["core.weight_ih_l0"].shape == (gates * 2, 6)
    assert small.tensors["core.weight_hh_l0"].shape == (gates * 2, 2)


def test_a_projected_lstm_is_pinned_and_named() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.LSTM(4, 7, proj_size=3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.core(x)[0]

    graph = check_slicing(Projected(), torch.randn(2, 5, 4), {})
    assert any("lstm" in why for group in graph.analysis.groups.values() for why in group.pinned) or not (
        graph.analysis.groups
    )
