"""The detector by centres: its shape, what can be sliced, and that it learns to find one square."""

from __future__ import annotations

import pytest
import torch

from sarto import zoo
from sarto.engines.factory.spaces.detection import average_precision, boxes_of, detection_loss
from sarto.engines.factory.supernet import placed
from sarto.graph import capture


def squares(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise with one bright square each, and its box."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(n, 3, 32, 32, generator=generator)
    boxes = torch.zeros(n, 1, 5)
    for place in range(n):
        left, top = (int(v) for v in torch.randint(0, 20, (2,), generator=generator))
        images[place, :, top : top + 12, left : left + 12] += 1
        boxes[place, 0] = torch.tensor([1.0, left, top, left + 12, top + 12])
    return images, boxes


def test_maps_have_a_stride_of_eight_and_blocks_can_be_gated() -> None:
    for depths in ((1, 1), (1, 2, 1), (1, 1, 1, 1)):
        net = zoo.centre_detector(3, depths, 4).eval()
        side = 4 * 2 ** len(depths)
        assert net(torch.rand(2, 3, side, side)).shape == (2, 5, side // 8, side // 8)
    graph = capture(zoo.centre_detector(3, (1, 1, 1), 4).eval(), torch.rand(2, 3, 32, 32), prove=False)
    assert len(placed(graph)) == 5 and len(placed(graph, "wide")) > 5  # a stem, three blocks, the head
    with pytest.raises(ValueError, match="two stages or more"):
        zoo.centre_detector(3, (1,))
    with pytest.raises(ValueError, match="width"):
        zoo.centre_detector(width=0)


def test_it_learns_to_find_a_square() -> None:
    torch.manual_seed(0)
    net = zoo.centre_detector(3, (1, 1), 8)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(40):
        images, boxes = squares(16, step)
        loss = detection_loss(net(images), boxes, 32).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    images, boxes = squares(40, 1000)
    with torch.no_grad():
        found = boxes_of(net.eval()(images), 32)
    assert average_precision(found, boxes) > 0.5
