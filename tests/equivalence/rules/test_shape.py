"""Shape operators: shuffles, windows, padding by channels, repeats, pixel shuffle, glu."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.graph import Selection, slice
from sarto.testing.surgery_contract import check_slicing

IMAGE = torch.randn(2, 3, 8, 8)


class Shaped(nn.Module):
    def __init__(self, form: str, made: int, read: int) -> None:
        super().__init__()
        self.form = form
        self.stem, self.head = nn.Conv2d(3, made, 3, padding=1), nn.Conv2d(read, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, height, width = x.shape
        if self.form == "shuffle":
            x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        elif self.form == "pixel_shuffle":
            x = F.pixel_shuffle(x, 2)
        elif self.form == "pixel_unshuffle":
            x = F.pixel_unshuffle(x, 2)
        elif self.form == "pad":
            x = F.pad(x, (0, 0, 0, 0, 2, 3))
        elif self.form == "repeat":
            x = x.repeat(1, 2, 1, 1)
        elif self.form == "interleave":
            x = x.repeat_interleave(2, dim=1)
        elif self.form == "glu":
            x = F.glu(x, dim=1)
        elif self.form == "split":
            one, two, _ = x.split([3, 5, channels - 8], 1)
            x = torch.cat([two, one, two], 1)
        elif self.form == "stack":
            x = torch.stack([x, x.tanh()], 1).flatten(1, 2)
        elif self.form == "unfold":
            x = F.unfold(x, 3, padding=1).view(batch, channels * 9, height, width)
        elif self.form == "windows":
            x = x.view(batch, channels, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(batch * 4, 16, channels)
            x = (
                x.relu()
                .view(batch, 2, 2, 4, 4, channels)
                .permute(0, 5, 1, 3, 2, 4)
                .reshape(batch, channels, 8, 8)
            )
        elif self.form == "roll":
            x = x.roll((1, 2), (2, 3))
        return self.head(x.relu())


@pytest.mark.parametrize(
    ("form", "made", "read", "sizes"),
    [
        ("shuffle", 12, 12, [2, 6]),
        ("pixel_shuffle", 12, 3, [3]),
        ("pixel_unshuffle", 5, 20, [5]),
        ("pad", 6, 11, [6]),
        ("repeat", 6, 12, [6]),
        ("interleave", 6, 12, [6]),
        ("glu", 12, 6, [6]),
        ("split", 10, 13, [3, 5]),
        ("stack", 6, 12, [6]),
        ("unfold", 4, 36, [4]),
        ("windows", 6, 6, [6]),
        ("roll", 6, 6, [6]),
    ],
)
def test_channels_keep_their_structure(form: str, made: int, read: int, sizes: list[int]) -> None:
    graph = check_slicing(Shaped(form, made, read), IMAGE, {"filters": len(sizes)})
    assert sorted(g.size for g in graph.analysis.sliceable) == sizes


class OptionA(nn.Module):
    """A shortcut that pads channels with zeros and skips every other position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).relu())


def test_a_shortcut_padded_with_zeros_ties_the_middle_channels_to_the_stage_before() -> None:
    graph = check_slicing(OptionA(), IMAGE, {"stream": 1})
    (group,) = graph.analysis.sliceable
    small = slice(graph, Selection({group.id: (0, 3)}))
    assert small.tensors["stem.weight"].shape[0] == 2
    assert small.tensors["body.weight"].shape[:2] == (6, 2), "two padded ones on each side stay"
