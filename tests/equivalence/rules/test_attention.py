"""Fused attention: plain, with a mask, grouped queries in three spellings, rotary positions, fused projections."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.testing.surgery_contract import check_slicing

TOKENS = 6


class Attention(nn.Module):
    """Tokens (batch, 6, 12), 4 query heads of 3, `groups` key and value heads."""

    def __init__(self, form: str, key_heads: int = 4) -> None:
        super().__init__()
        self.form, self.key_heads = form, key_heads
        self.q, self.out = nn.Linear(12, 24), nn.Linear(24, 5)
        self.k, self.v = nn.Linear(12, 6 * key_heads), nn.Linear(12, 6 * key_heads)
        self.register_buffer("mask", torch.randn(1, 4, TOKENS, TOKENS))
        angles = torch.outer(torch.arange(TOKENS).float(), torch.tensor([1.0, 0.3, 0.1])).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        q, k, v = (f(x).view(batch, TOKENS, -1, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.form == "rotary":
            q, k = self.turned(q), self.turned(k)
        if self.form == "expand":
            k, v = self.copied(k), self.copied(v)
        if self.form == "repeat":
            k, v = (t.repeat_interleave(4 // self.key_heads, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=self.mask if self.form == "mask" else None,
            is_causal=self.form == "causal",
            enable_gqa=self.form == "gqa",
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, TOKENS, 24))

    def turned(self, t: Tensor) -> Tensor:
        half = torch.cat([-t[..., 3:], t[..., :3]], dim=-1)
        return t * self.cos + half * self.sin

    def copied(self, t: Tensor) -> Tensor:
        batch, heads, tokens, width = t.shape
        times = 4 // self.key_heads
        return t[:, :, None].expand(batch, heads, times, tokens, width).reshape(batch, 4, tokens, width)


@pytest.mark.parametrize("form", ["plain", "mask", "causal"])
def test_heads_query_key_pairs_and_value_dims(form: str) -> None:
    found = {"heads": 1, "query-key pairs": 1, "value dims": 1}
    graph = check_slicing(Attention(form), torch.randn(2, TOKENS, 12), found)
    heads = graph.analysis.group("q.weight:0.0")
    assert (heads.size, heads.granularity, heads.kind) == (4, 6, "heads")


@pytest.mark.parametrize("form", ["expand", "repeat", "gqa"])
def test_grouped_queries_are_key_heads_times_queries_of_each(form: str) -> None:
    found = {"heads": 2, "query-key pairs": 1, "value dims": 1}
    graph = check_slicing(Attention(form, key_heads=2), torch.randn(2, TOKENS, 12), found)
    assert sorted(g.size for g in graph.analysis.sliceable if g.kind == "heads") == [2, 2]


def test_rotary_positions_make_the_pair_the_unit() -> None:
    found = {"heads": 1, "query-key pairs": 1, "value dims": 1}
    graph = check_slicing(Attention("rotary"), torch.randn(2, TOKENS, 12), found)
    (pairs,) = (g for g in graph.analysis.sliceable if g.kind == "query-key pairs")
    assert pairs.size == 3, "half of the six query dims: each unit is two of them"


class Fused(nn.Module):
    """One projection for queries, keys and values: `chunk` (a sum of three) or `view` (a product with three)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if self.form == "chunk":
            q, k, v = (t.view(batch, TOKENS, 3, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        else:
            q, k, v = self.qkv(x).view(batch, TOKENS, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, TOKENS, 12))


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("chunk", {"heads": 1, "query-key pairs": 1, "value dims": 1}),
        ("view", {"heads": 1, "head dims": 1}),
    ],
)
def test_a_fused_projection_keeps_its_structure(form: str, found: dict[str, int]) -> None:
    check_slicing(Fused(form), torch.randn(2, TOKENS, 12), found)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(12, 3, batch_first=True)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x, x, x, need_weights=False)[0])


def test_torch_multihead_attention_has_heads() -> None:
    graph = check_slicing(
        Encoder().eval(), torch.randn(2, TOKENS, 12), {"heads": 1, "head dims": 1, "hidden units": 1}
    )
    assert graph.analysis.sliceable
