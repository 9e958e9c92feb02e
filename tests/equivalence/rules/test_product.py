"""Matrix products and einsum: contracted axes are consumed, batch axes are heads, the rest passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sarto.testing.surgery_contract import check_slicing


class Attention(nn.Module):
    """Attention written out, tokens (batch, 5, 12), 3 heads of 4."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (f(x).view(batch, tokens, 3, 4) for f in (self.q, self.k, self.v))
        if self.form == "einsum":
            scores = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
            return self.out(torch.einsum("bhij,bjhd->bihd", scores, v).flatten(2))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if self.form == "matmul":
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            q, k, v = (t.reshape(batch * 3, tokens, 4) for t in (q, k, v))
            scores = torch.bmm(q, k.transpose(1, 2)) if self.form == "bmm" else self.added(q, k)
            mixed = torch.bmm(scores.softmax(-1), v).view(batch, 3, tokens, 4)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, 12))

    def added(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.baddbmm(torch.zeros(1, 5, 5), q, k.transpose(1, 2))


@pytest.mark.parametrize("form", ["einsum", "matmul", "bmm", "baddbmm"])
def test_attention_written_out_is_heads_query_key_pairs_and_value_dims(form: str) -> None:
    found = {"heads": 1, "query-key pairs": 1, "value dims": 1}
    check_slicing(Attention(form), torch.randn(2, 5, 12), found)


class Weighted(nn.Module):
    """Layers whose weight stands on the other side: x @ W, and `addmm` with its own bias."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.w1, self.w2 = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(9, 4))
        self.bias = nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "addmm":
            return torch.addmm(torch.zeros(4), torch.addmm(self.bias, x, self.w1).relu(), self.w2)
        if self.form == "mm":
            return torch.mm(torch.mm(x, self.w1).relu(), self.w2)
        if self.form == "transposed":
            return (self.w2.t() @ (self.w1.t() @ x.t()).relu()).t()
        return torch.einsum("bj,jk->bk", torch.einsum("bi,ij->bj", x, self.w1).relu(), self.w2)


@pytest.mark.parametrize("form", ["addmm", "mm", "transposed", "einsum"])
def test_a_weight_on_either_side_makes_hidden_units(form: str) -> None:
    check_slicing(Weighted(form), torch.randn(2, 6), {"hidden units": 1})


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(3, 8), nn.Linear(5, 11), nn.Linear(11, 5)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.two(self.one(self.stem(x).transpose(1, 2)).relu()).transpose(1, 2)
        return self.head(mixed.mean(1))


def test_layers_over_tokens_have_hidden_units_of_their_own() -> None:
    graph = check_slicing(Mixer(), torch.randn(2, 5, 3), {"hidden units": 2})
    assert any("input" in why for why in graph.analysis.groups["two.weight:0"].pinned) is False
    assert any("mean" in why for why in graph.analysis.groups["two.weight:0"].pinned)


class Ellipsis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.two(torch.einsum("...i,...i->...i", hidden, hidden))


def test_an_equation_with_an_ellipsis_pins_and_is_named() -> None:
    graph = check_slicing(Ellipsis(), torch.randn(2, 4), {})
    assert any("einsum" in why for why in graph.analysis.groups["one.weight:0"].pinned)
