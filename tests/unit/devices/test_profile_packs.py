"""Packs in profiles: subnets side by side, measured and fitted, so that bounds of orders hold for several parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sarto.devices import flops_by_node
from sarto.devices.profiling import Backbone, make_profile, terms_of
from sarto.devices.profiling.blocks import blocks
from sarto.devices.profiling.packs import fit_packs, pack_counts, pack_graph
from sarto.graph import ModelGraph, capture
from sarto.types import Device
from sarto.types.profile import DeviceProfile

#: What each further part adds on the simulated device.
SHARE = 0.08


def model() -> ModelGraph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1), nn.ReLU()]
    whole = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return capture(whole.eval(), torch.randn(2, 3, 8, 8), prove=False)


@dataclass
class Machine:
    """Milliseconds follow FLOPs and calls; parts that are joined take longer the more there are."""

    share: float

    def open(self, graph: ModelGraph | Path) -> Machine.Model:
        assert isinstance(graph, ModelGraph)
        parts = next((len(n.args["tensors"]) for n in graph.nodes if n.op == "aten.cat.default"), 1)
        taken = 1e-6 * sum(flops_by_node(graph).values()) + 0.01 * len(graph.nodes)
        return Machine.Model(taken * (1 + self.share * (parts - 1)))

    @dataclass
    class Model:
        ms: float

        def times_ms(self, runs: int) -> list[float]:
            return [self.ms] * runs

        def close(self) -> None:
            pass


def profile(share: float, **more: object) -> DeviceProfile:
    few = [block for block in blocks() if block.name in ("linear-64x8", "pool-16x32", "bare-64x8x4")]
    opener: Callable[[ModelGraph | Path], Machine.Model] = Machine(share).open
    return make_profile(
        "desk",
        Device.parse({"runtime": "torch"}),
        "9.9",
        opener,
        backbones=[Backbone("small", model())],
        n_subnets=24,
        built_in=few,
        seconds=0.01,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.slow  # ten seconds and more
def test_what_each_further_part_adds_is_found() -> None:
    found, plain = profile(SHARE).backbones[0].packs, profile(0.0).backbones[0].packs
    assert found is not None and plain is not None
    assert len(found.shares) == 9
    # The fit of the parts is not exact either: heads come from blocks of another kind.
    assert found.share_per_part - plain.share_per_part == pytest.approx(SHARE, abs=0.02)
    assert found.error_share < 0.03


def test_a_profile_holds_the_parts_of_packs_and_is_not_measured_twice() -> None:
    first = profile(SHARE)
    packs = [row for row in first.rows if row.what == "pack"]
    assert sorted({len(row.parts) for row in packs}) == [2, 3, 4] and all(not row.counts for row in packs)
    assert DeviceProfile.parse(first.to_json()) == first
    assert profile(SHARE, onto=first) is first


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_the_share_is_fitted_and_never_below_zero(share: float) -> None:
    rng = np.random.default_rng(0)
    alone, n_parts = rng.uniform(1, 5, 24), np.array([2, 3, 4] * 8)
    noise = 1 + 0.01 * rng.standard_normal(24)
    found = fit_packs(alone, n_parts.tolist(), alone * (1 + share * (n_parts - 1)) * noise)
    assert found is not None and found.share_per_part == pytest.approx(share, abs=0.01)
    assert np.std(found.shares) == pytest.approx(0.01, rel=0.5)
    quicker = fit_packs(alone, n_parts.tolist(), 0.9 * alone)
    assert quicker is not None and quicker.share_per_part == 0.0
    assert quicker.shares == pytest.approx([-0.1] * 24)
    assert fit_packs(alone[:1], [2], alone[:1]) is None


def test_a_pack_computes_every_part_even_where_they_are_equal() -> None:
    graph = model()
    terms = terms_of(graph)
    for parts in pack_counts(terms, 6, seed=1):
        pack = pack_graph(graph, parts)
        n_convs = sum(node.op == "aten.conv2d.default" for node in pack.nodes)
        assert n_convs == 2 * len(parts)
        last = list(terms.groups)[-1]
        assert pack.node(pack.outputs[0]).shape[1] == 3
        joined = next(node for node in pack.nodes if node.op == "aten.cat.default")
        assert joined.shape[1] == sum(counts[last] for counts in parts)
