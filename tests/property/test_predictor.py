"""Predictions of latency: a unit more never takes less, the parts add up, and files hold what they are made from."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sarto.devices.profiling import Predictor, random_counts, terms_of
from sarto.devices.profiling.design import design
from sarto.devices.profiling.features import FEATURES
from sarto.devices.profiling.fit import fit_backbone
from sarto.devices.profiling.generic import FIXED
from sarto.devices.profiling.making import backbone_model
from sarto.errors import RequestError
from sarto.graph import ModelGraph, capture, slice
from sarto.graph.selection import leading
from sarto.types.profile import (
    DeviceProfile,
    KindModel,
    MemoryModel,
    ProfiledDevice,
    Residuals,
)
from sarto.zoo import cifar_resnet, mobilenet_v2

HERE = ProfiledDevice(
    processor="paper",
    cores=2,
    system="none",
    runtime="torch",
    version="9.9",
    threads=1,
    batch=1,
    sarto="0.1.0",
    started="2026-01-01T00:00:00+00:00",
)
KINDS = KindModel(
    names=(*(f"*.{feature}" for feature in FEATURES), FIXED),
    weights=(0.02, 0.1, 0.1, 0.2, 0.1, 0.01, 0.5),
    vector_width=4,
    residuals=Residuals(folds=((0.02, 0.1, 0.1, 0.2, 0.1, 0.01, 0.5),) * 2, part=(0, 1), shares=(0.3, -0.2)),
)


@cache
def resnet() -> ModelGraph:
    return capture(cifar_resnet(10, 8).eval(), torch.randn(2, 3, 32, 32), prove=False)


@cache
def mobilenet() -> ModelGraph:
    model = mobilenet_v2(4, 8, ((2, 8, 1, 1), (3, 12, 2, 2)), 16)
    return capture(model.eval(), torch.randn(2, 3, 8, 8), prove=False)


@cache
def profile() -> DeviceProfile:
    """Fitted to noisy times with stairs, on 30 subnets."""
    terms = terms_of(resnet())
    rng = np.random.default_rng(0)
    rows = design(terms, 30).astype(float)
    times = terms.at(rows, width=8) @ rng.uniform(0.01, 0.1, len(terms.terms)) + 0.1
    fit = fit_backbone(
        terms, rows, times * (1 + 0.03 * rng.standard_normal(30)), np.full(len(terms.terms), 0.05)
    )
    return DeviceProfile(
        name="desk",
        device=HERE,
        kinds=KINDS,
        backbones=(backbone_model("resnet", terms, fit),),
        memory=MemoryModel(
            fixed_bytes=1e6, per_size_byte=1.5, per_activation_byte=2.0, least_factor=0.9, most_factor=1.2
        ),
    )


@given(st.data())
def test_a_unit_more_never_lowers_a_prediction_or_a_bound(data: st.DataObject) -> None:
    compiled = Predictor(profile()).compiled(resnet())
    counts = {group: data.draw(st.integers(1, size)) for group, size in compiled.groups.items()}
    more = {group: data.draw(st.integers(counts[group], size)) for group, size in compiled.groups.items()}
    found = compiled.latency_ms([counts, more])
    assert (found[:, 0] <= found[:, 1] + 1e-12).all()
    assert (found[0] <= found[1]).all() and (found[1] <= found[2]).all()


@given(st.data())
def test_of_any_graph_too(data: st.DataObject) -> None:
    graph = mobilenet()
    compiled = Predictor(profile()).compiled(graph)
    assert not compiled.of_backbone
    counts = {group: data.draw(st.integers(1, size)) for group, size in compiled.groups.items()}
    found = compiled.latency_ms([counts, {}])
    assert (found[:, 0] <= found[:, 1] + 1e-12).all()


def test_a_subnet_that_was_built_and_its_counts_give_one_prediction() -> None:
    predictor, terms = Predictor(profile()), terms_of(resnet())
    rng = np.random.default_rng(3)
    counts = {group: int(rng.integers(2, size + 1)) for group, size in terms.groups.items()}
    by_counts = predictor.predict(resnet(), counts)
    assert predictor.predict(slice(resnet(), leading(counts))) == pytest.approx(by_counts)
    assert predictor.compiled(slice(resnet(), leading(counts))).of_backbone


def test_the_shares_of_the_layers_add_up_to_the_prediction() -> None:
    for graph in (resnet(), capture(torch.nn.Linear(4, 3), torch.randn(2, 4), prove=False)):
        predictor = Predictor(profile())
        shares = predictor.explain(graph)
        middle = predictor.predict(graph).middle
        assert sum(share.latency_ms for share in shares) == pytest.approx(middle)
        assert sum(share.share for share in shares) == pytest.approx(1)
        assert all(share.latency_ms >= 0 for share in shares)
    names = [share.layer for share in Predictor(profile()).explain(resnet())]
    assert names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"] and names[-1] == "linear"
    nodes = [node for share in Predictor(profile()).explain(resnet()) for node in share.nodes]
    assert sorted(nodes) == sorted(node.name for node in resnet().nodes)


def test_a_profile_that_went_through_a_file_predicts_the_same() -> None:
    again = DeviceProfile.parse(profile().to_json())
    assert again == profile()
    rows = random_counts(terms_of(resnet()).groups, 20, np.random.default_rng(1))
    one, two = (Predictor(found).compiled(resnet()).latency_ms(rows) for found in (profile(), again))
    np.testing.assert_array_equal(one, two)


def test_a_batch_of_candidates_is_each_alone() -> None:
    compiled = Predictor(profile()).compiled(resnet())
    rows = random_counts(compiled.groups, 99, np.random.default_rng(1))
    together = compiled.latency_ms(rows)
    alone = np.concatenate([compiled.latency_ms(rows[place : place + 1]) for place in range(99)], axis=1)
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    with pytest.raises(
        RequestError, match=r"2 problems.*'nobody' is no sliceable group.*must be from 0 to 16, got 17"
    ):
        compiled.latency_ms([{"nobody": 1, "layer1.0.conv1.weight:0": 17}])


def test_memory_is_counted_bytes_times_what_was_measured() -> None:
    found = Predictor(profile()).memory_bytes(resnet())
    from sarto.devices import count, peak_bytes

    assert found.middle == 1e6 + 1.5 * count(resnet()).size_bytes + 2 * peak_bytes(resnet())
    assert (found.low, found.high) == (0.9 * found.middle, 1.2 * found.middle)
    with pytest.raises(RequestError, match="holds no measured memory; measure it again with --memory"):
        Predictor(profile().replace(memory=None)).memory_bytes(resnet())


def test_a_profile_whose_parts_do_not_fit_together_is_refused() -> None:
    with pytest.raises(RequestError, match="weights: 7 are expected"):
        KINDS.replace(weights=(1.0,))
    with pytest.raises(RequestError, match="2 parts for 1 rows"):
        Residuals(folds=((1.0,),), part=(0, 0), shares=(0.1,))
    with pytest.raises(RequestError, match="places among"):
        profile().backbones[0].replace(column=(99,) * len(profile().backbones[0].base_ms))
