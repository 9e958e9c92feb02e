"""Where gates stand, and what is said of a backbone in which none can."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sarto.engines.factory.supernet import placed
from sarto.errors import GraphError
from sarto.graph import capture


def test_a_backbone_with_streams_alone_is_sent_to_the_wide_placement() -> None:
    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.one(x) + self.two(x)).mean((2, 3)))

    graph = capture(Streams().eval(), torch.rand(2, 1, 6, 6), prove=False)
    (name,) = placed(graph, "wide")
    with pytest.raises(GraphError) as caught:
        placed(graph)
    assert f"with placement: wide {name} can." in str(caught.value) and "None" not in str(caught.value)
    assert "head.weight:0: it can't be sliced" in str(caught.value)
