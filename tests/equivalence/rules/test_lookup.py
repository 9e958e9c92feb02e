"""Look-ups: rows of a table are pinned, its columns pass; the same for index, select, flip and roll."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sarto.testing.surgery_contract import check_slicing


class Words(nn.Module):
    """Token ids (batch, 5) through a table of 20 words."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.table = nn.Embedding(20, 6)
        self.register_buffer("order", torch.tensor([4, 0, 2]))
        self.mid, self.head = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mid(self.table(ids)).relu()
        if self.form == "index":
            x = x[:, self.order]
        elif self.form == "index_select":
            x = x.index_select(1, self.order)
        elif self.form == "flip":
            x = x.flip(1)
        elif self.form == "roll":
            x = x.roll(2, 1)
        elif self.form == "strided":
            x = x[:, ::2]
        elif self.form == "gather":
            x = x.transpose(1, 2)[:, :, self.order].transpose(1, 2)
        elif self.form == "last":
            return self.head(x[:, -1])
        return self.head(x.amax(1))


@pytest.mark.parametrize(
    "form", ["plain", "index", "index_select", "flip", "roll", "strided", "gather", "last"]
)
def test_columns_of_a_table_pass_every_look_up_along_tokens(form: str) -> None:
    graph = check_slicing(Words(form), torch.randint(0, 20, (2, 5)), {"hidden units": 2})
    assert {g.size for g in graph.analysis.sliceable} == {6, 7}


class Picked(nn.Module):
    """Looks into the channels themselves, so these are pinned."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.one, self.two = nn.Linear(4, 6), nn.Linear(3, 2)
        self.register_buffer("order", torch.tensor([4, 0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.form == "index":
            return self.two(x[:, self.order])
        if self.form == "strided":
            return self.two(x[:, ::2])
        if self.form == "flip":
            return self.two(x.flip(1)[:, :3])
        if self.form == "sort":
            return self.two(x.sort(1)[0][:, :3])
        if self.form == "topk":
            return self.two(x.topk(3, 1)[0])
        if self.form == "cumsum":
            return self.two(x.cumsum(1)[:, :3])
        return self.two(torch.stack([x[:, 0], x[:, 1], x[:, 5]], 1))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("index", "index"),
        ("strided", "slice"),
        ("flip", "flip"),
        ("sort", "sort"),
        ("topk", "topk"),
        ("cumsum", "cumsum"),
        ("select", "select"),
    ],
)
def test_looking_into_channels_pins_them_by_name(form: str, reason: str) -> None:
    graph = check_slicing(Picked(form), torch.randn(2, 4), {})
    made_by_one = [group for name, group in graph.analysis.groups.items() if name.startswith("one.weight:0")]
    assert made_by_one and all(any(reason in why for why in group.pinned) for group in made_by_one)
