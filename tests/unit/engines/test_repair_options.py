"""Switches of the closed form: sequential samples, recalibrated norms, polishing, selection criteria, bad samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sarto.engines.slicepack import (
    Evidence,
    Readings,
    RepairSettings,
    choose_units,
    make_fragment,
    read_donor,
)
from sarto.engines.slicepack import polish as polishing
from sarto.engines.slicepack.readings import part_of
from sarto.engines.slicepack.recalibration import recalibrated
from sarto.engines.slicepack.repair import sequential_samples
from sarto.errors import RequestError
from sarto.graph import capture, evaluate, uniform_counts
from sarto.testing.pico import pico


def reading(name: str = "plain", per_class: int = 6) -> Readings:
    model, x = pico(name)
    labels = torch.arange(3).repeat_interleave(per_class)
    shape = x.shape[1:]
    inputs = torch.randn((len(labels), *shape), generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    inputs += labels.reshape(-1, *[1] * len(shape)) * 0.5
    return read_donor(capture(model, x, prove=False), inputs, labels, 3)


def test_rivals_are_dealt_over_the_other_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 3])
    chosen = sequential_samples(labels, [0], 4)
    assert chosen.tolist() == [0, 1, 2, 3, 5, 8]
    assert sequential_samples(labels, [0], 1).tolist() == [0, 1, 2, 5, 8], "at least one of each other class"
    for everything in ([], [0, 1, 2, 3]):
        assert len(sequential_samples(labels, everything, 1)) == 9
    assert len(sequential_samples(labels, [0], None)) == 9


def test_part_of_a_reading_is_a_reading_of_the_part() -> None:
    readings = reading()
    chosen = torch.tensor([0, 2, 7, 8, 13])
    part = part_of(readings, chosen)
    anew = read_donor(readings.graph, readings.inputs[chosen], readings.labels[chosen], 3)
    for read, gram in anew.grams.items():
        torch.testing.assert_close(part.grams[read], gram)


def test_recalibrated_norms_give_the_donors_moments() -> None:
    """With full trust, each channel of a norm has the mean and spread that it has in the donor."""
    readings = reading(per_class=10)
    fragment, selection = make_fragment(readings, [], {"conv1.weight:0": 8, "conv2.weight:0": 3})
    # Let the first layer drift, as if it had been trained on.
    fragment.tensors["conv1.weight"].mul_(1.7)
    moved = recalibrated(readings, [], selection, fragment, wpos=0.33, n0=0)
    name = next(node.name for node in moved.nodes if node.op == "aten.batch_norm.default")
    _, small = evaluate(moved, readings.inputs, watch=[name])
    _, whole = evaluate(readings.graph, readings.inputs, watch=[name])
    for reduce in (Tensor.mean, Tensor.std):
        torch.testing.assert_close(
            reduce(small[name], (0, 2, 3)), reduce(whole[name], (0, 2, 3)), rtol=1e-3, atol=1e-4
        )


def test_recalibration_of_a_whole_donor_changes_nothing() -> None:
    readings = reading()
    whole = {group.id: group.size for group in readings.graph.analysis.sliceable}
    one, _ = make_fragment(readings, [1], whole)
    two, _ = make_fragment(readings, [1], whole, repair=RepairSettings(recalibrate=True))
    torch.testing.assert_close(two(readings.inputs), one(readings.inputs))


def test_polishing_is_taken_only_where_samples_left_out_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = reading("residual")
    keep = uniform_counts(readings.graph, 0.5)
    closed, _ = make_fragment(readings, [1], keep)
    told: list[Evidence] = []
    polished, _ = make_fragment(readings, [1], keep, repair=RepairSettings(polish=True), tell=told.append)
    (evidence,) = told
    assert evidence.taken == (evidence.after < evidence.before)
    same = all(torch.equal(closed.tensors[name], tensor) for name, tensor in polished.tensors.items())
    assert same != evidence.taken
    monkeypatch.setattr(polishing, "POLISH_RATE", 1.0)
    spoilt, _ = make_fragment(readings, [1], keep, repair=RepairSettings(polish=True), tell=told.append)
    assert not told[-1].taken and told[-1].after > told[-1].before
    assert all(torch.equal(closed.tensors[name], tensor) for name, tensor in spoilt.tensors.items())


def test_polishing_brings_features_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = reading("residual", per_class=10)
    keep = uniform_counts(readings.graph, 0.5)
    monkeypatch.setattr(polishing, "POLISH_STEPS", 80)
    monkeypatch.setattr(polishing, "POLISH_RATE", 1e-3)
    told: list[Evidence] = []
    # A ridge that hardly repairs leaves something to gain.
    make_fragment(readings, [], keep, repair=RepairSettings(lam=10.0, polish=True), tell=told.append)
    assert told[0].taken and told[0].after < told[0].before < 1


def test_one_sample_of_a_class_is_enough_but_no_evidence_for_polishing() -> None:
    readings = reading(per_class=1)
    told: list[Evidence] = []
    keep = uniform_counts(readings.graph, 0.5)
    fragment, _ = make_fragment(readings, [0], keep, repair=RepairSettings(polish=True), tell=told.append)
    assert bool(torch.isfinite(fragment(readings.inputs)).all())
    assert not told[0].taken


def test_fisher_takes_the_units_that_tell_the_class_apart() -> None:
    readings = reading(per_class=10)
    group = "conv1.weight:0"
    kept = choose_units(readings, [2], {group: 2}, "fisher", wpos=0.33).kept[group]
    read = next(read for read in readings.grams if read[2] == group)
    values = readings.units(read).mean(2)
    inside, outside = values[readings.labels == 2], values[readings.labels != 2]
    scores = (inside.mean(0) - outside.mean(0)) ** 2 / (
        inside.var(0, correction=0) + outside.var(0, correction=0)
    )
    assert set(kept) == set(scores.topk(2).indices.tolist())
    for classes in ([], [0, 1, 2]):
        with pytest.raises(RequestError, match="tell a fragment's classes from the others"):
            choose_units(readings, classes, {group: 2}, "fisher", wpos=0.33)


def test_samples_that_do_not_fit_the_donor_are_refused_all_at_once() -> None:
    readings = reading()
    with pytest.raises(RequestError, match=r"labelled \[7\], the donor has classes 0..2") as caught:
        read_donor(readings.graph, readings.inputs[:3], torch.tensor([0, 1, 7]), 3)
    assert "classes [2] have none" in str(caught.value)
    with pytest.raises(RequestError, match="need as many labels"):
        read_donor(readings.graph, readings.inputs[:3], torch.tensor([0, 1, 2, 0]), 3)
