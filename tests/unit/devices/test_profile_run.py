"""Measuring a design: drift goes, crashes cost a chunk, noise is told; on a machine whose speed is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from sarto.devices.profiling import Backbone, Predictor, Wanted, make_profile, measure_all, open_here
from sarto.devices.profiling.blocks import blocks
from sarto.devices.profiling.features import skeleton
from sarto.devices.profiling.memory import fit_memory
from sarto.devices.profiling.run import noise_notes, noise_of, with_repeats
from sarto.errors import RequestError
from sarto.export import to_onnx
from sarto.graph import ModelGraph, capture, graph_hash
from sarto.types import Device
from sarto.types.profile import DeviceProfile, MeasuredRow, MemoryRow


@cache
def graph(width: int) -> ModelGraph:
    return capture(nn.Linear(width, width), torch.randn(2, width), prove=False)


@dataclass
class Machine:
    """Takes as many milliseconds as a model's linear layer is wide, more with each opened model; may fail."""

    slower: float = 0.0
    fails_at: int | None = None
    unlucky: int | None = None
    opened: list[int] = field(default_factory=list)
    alive: int = 0

    def open(self, model: ModelGraph | Path) -> Machine._Model:
        assert isinstance(model, ModelGraph)
        width = int(str(model.nodes[-1].shape[1]))
        if len(self.opened) == self.fails_at:
            raise RequestError("the machine broke down")
        self.opened.append(width)
        self.alive += 1
        return Machine._Model(self, width * (3 if len(self.opened) == self.unlucky else 1))

    @dataclass
    class _Model:
        machine: Machine
        ms: float

        def times_ms(self, runs: int) -> list[float]:
            now = self.ms * (1 + self.machine.slower * len(self.machine.opened))
            return [now, *[now * 1.001] * (runs - 1)]

        def close(self) -> None:
            self.machine.alive -= 1


def wanted(*widths: int) -> list[Wanted]:
    return [Wanted("block", f"linear-{width}", {}, lambda width=width: graph(width)) for width in widths]  # type: ignore[misc]


def measure(
    items: Sequence[Wanted], machine: Machine, journal: Path | None = None, **about: object
) -> list[float]:
    rows = measure_all(items, machine.open, graph(8), journal=journal, about=about, chunk=3, passes=1)
    return [row.latency_ms for row in rows]


def test_a_machine_that_gets_slower_is_corrected_by_the_reference() -> None:
    widths = (4, 16, 2, 32, 5, 7, 9)
    steady, slowing = measure(wanted(*widths), Machine()), measure(wanted(*widths), Machine(slower=0.2))
    assert steady == pytest.approx(widths, rel=0.01)
    # The level is that of the reference in the middle of the run; nothing else is left of the slowing down.
    ratios = [a / b for a, b in zip(slowing, steady, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 7) and ratios[0] > 1.5


def test_a_model_that_was_loaded_in_an_unlucky_moment_counts_with_its_median() -> None:
    machine = Machine(unlucky=4)
    rows = measure_all(wanted(4, 16, 2, 32, 5), machine.open, graph(8), chunk=3)
    assert [row.latency_ms for row in rows] == pytest.approx([4, 16, 2, 32, 5], rel=0.01)
    assert len(machine.opened) == 1 + 3 * 5


def test_what_was_measured_before_a_crash_is_not_measured_again(tmp_path: Path) -> None:
    journal, items = tmp_path / "new" / "journal", wanted(4, 16, 2, 32, 5)
    with pytest.raises(RequestError, match="broke down"):
        measure(items, broken := Machine(fails_at=5), journal)
    assert broken.alive == 0 and len(journal.read_text().splitlines()) == 1 + 3
    journal.write_text(journal.read_text() + '{"key": "half a li')
    again = Machine()
    assert measure(items, again, journal) == pytest.approx([4, 16, 2, 32, 5], rel=0.01)
    assert sorted(again.opened) == [5, 8, 32]
    assert measure(items, third := Machine(), journal) == pytest.approx([4, 16, 2, 32, 5], rel=0.01)
    assert third.opened == []


def test_a_journal_of_another_device_or_no_journal_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    measure(wanted(4), Machine(), journal, threads=1)
    with pytest.raises(RequestError, match="was begun with another threads; remove it"):
        measure(wanted(4), Machine(), journal, threads=2)
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(RequestError, match="is no journal of measurements"):
        measure(wanted(4), Machine(), tmp_path / "other")
    with pytest.raises(RequestError, match="must be above 0, got 0"):
        measure_all(wanted(4), Machine().open, graph(8), seconds=0)


def test_measurements_of_another_network_of_the_same_name_are_not_gone_on_with(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    def measured(graph_hash: str, path: Path = journal) -> list[float]:
        item = Wanted("subnet", "mine", {"a": 1}, lambda: graph(4), graph_hash=graph_hash)
        return measure([item, *wanted(2)], Machine(), path)

    assert measured("sha256:one") == measured("sha256:one") == pytest.approx([4, 2], rel=0.01)
    before = journal.read_bytes()
    with pytest.raises(RequestError, match=r"another network that was called 'mine'; remove it"):
        measured("sha256:two")
    assert journal.read_bytes() == before
    # A journal of an older version says nothing of networks; blocks are those of sarto, with or without.
    old = [json.loads(line) for line in before.decode().splitlines()]
    lines = [{key: value for key, value in line.items() if key != "graph_hash"} for line in old]
    (tmp_path / "old").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        RequestError, match=r"of 'mine' by a version of sarto that did not note of which network"
    ):
        measured("sha256:one", tmp_path / "old")
    (tmp_path / "old").write_text("".join(json.dumps(line) + "\n" for line in (lines[0], *lines[2:])))
    assert measured("sha256:one", tmp_path / "old") == pytest.approx([4, 2], rel=0.01)


@pytest.mark.slow  # ten seconds and more
def test_a_profile_replaces_another_network_of_the_same_name_and_says_so() -> None:
    device = Device.parse({"runtime": "torch"})
    nets = [nn.Sequential(nn.Conv2d(3, n, 3), nn.ReLU(), nn.Conv2d(n, 4, 3)).eval() for n in (8, 12)]
    small, wide = (capture(net, torch.randn(2, 3, 9, 9), prove=False) for net in nets)
    few = [block for block in blocks() if block.name in ("linear-64x8", "pool-16x32")]

    def measured(given: ModelGraph, onto: DeviceProfile | None) -> DeviceProfile:
        return make_profile(
            "desk",
            device,
            "9.9",
            open_here(device),
            backbones=[Backbone("mine", given)],
            n_subnets=5,
            built_in=few if onto is None else None,
            onto=onto,
            seconds=0.01,
        )

    first = measured(small, None)
    assert skeleton(small) == skeleton(wide), "the same operators, at other sizes"
    assert measured(small, first) is first
    second = measured(wide, first)
    assert [model.graph_hash for model in second.backbones] == [graph_hash(wide, weights=False)]
    assert any("another network was called 'mine' in this profile" in note for note in second.notes)
    assert not [note for note in first.notes if "another network" in note]
    kept = [max(row.counts.values(), default=0) for row in second.rows if row.model == "mine"]
    assert max(kept) > 8, "no row is of the small one"
    # Profiles of older versions do not say which network they hold; they are taken at their word.
    unsaid = first.replace(backbones=tuple(model.replace(graph_hash=None) for model in first.backbones))
    assert measured(small, unsaid) is unsaid


def row(model: str, ms: float, chunk: int, reference: float, repeat: int = 0) -> MeasuredRow:
    return MeasuredRow(
        what="subnet",
        model="net",
        counts={model: 1},
        latency_ms=ms,
        raw_ms=ms,
        reference_ms=reference,
        chunk=chunk,
        repeat=repeat,
    )


def test_noise_is_that_of_models_measured_twice_and_of_the_reference() -> None:
    rows = [row("a", 1.0, 0, 2.0), row("b", 2.0, 1, 2.0), row("a", 1.1, 2, 2.6, 1), row("b", 2.0, 2, 2.6, 1)]
    noise = noise_of(rows)
    assert noise.repeat_share == pytest.approx(0.1 / 1.05 / 2)
    assert noise.drift_share == pytest.approx(0.3) and noise.trend_share == pytest.approx(0.3)
    told = " ".join(noise_notes(noise))
    assert "differs by 4.8%" in told and "up to 30% longer" in told and "30% slower" in told
    assert noise_notes(noise_of(rows[:2])) == ()
    assert [item.repeat for item in with_repeats(wanted(1, 2, 3, 4), 2)] == [0, 0, 0, 0, 1, 1]


def test_memory_is_fitted_with_numbers_that_are_never_negative() -> None:
    rows = [
        MemoryRow(
            model=str(size),
            size_bytes=size,
            activation_bytes=live,
            measured_bytes=2_000_000 + size + 3 * live,
        )
        for size, live in ((0, 10**6), (10**7, 10**6), (10**6, 10**7), (5 * 10**6, 10**5))
    ]
    found = fit_memory(rows)
    assert found.fixed_bytes == pytest.approx(2e6, rel=1e-6)
    assert (found.per_size_byte, found.per_activation_byte) == pytest.approx((1, 3), rel=1e-6)
    assert found.most_factor == pytest.approx(1, abs=1e-6)
    with pytest.raises(RequestError, match="at least 3 measured models, got 2"):
        fit_memory(rows[:2])


@pytest.mark.parametrize("runtime", ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_profile_is_measured_added_to_and_predicts(runtime: str, tmp_path: Path) -> None:
    device = Device.parse({"runtime": runtime})
    model = capture(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval(),
        torch.randn(2, 3, 9, 9),
        prove=False,
    )
    opener = open_here(
        device, to_onnx=(lambda g: to_onnx(g).SerializeToString()) if runtime == "onnxruntime" else None
    )
    few = [block for block in blocks() if block.name in ("linear-64x8", "pool-16x32")]
    first = make_profile(
        "desk", device, "9.9", opener, built_in=few, seconds=0.01, weigh=lambda g: 10**6 * len(g.nodes)
    )
    assert Predictor(first).predict(model).middle > 0 and not first.backbones and first.memory is not None
    found = make_profile(
        "desk",
        device,
        "9.9",
        opener,
        backbones=[Backbone("small", model)],
        n_subnets=5,
        onto=first,
        seconds=0.01,
        journal=tmp_path / "journal",
    )
    assert [entry.backbone for entry in found.backbones] == ["small"] and found.kinds == first.kinds
    assert sum(entry.what == "subnet" for entry in found.rows) == 9 and found.memory == first.memory
    assert Predictor(found).compiled(model).of_backbone
    assert (
        json.loads((tmp_path / "journal").read_text().splitlines()[0])["about"]["device"]["runtime"]
        == runtime
    )
    with pytest.raises(RequestError, match=r"version: the profile has '9\.9', here it is '10'"):
        make_profile("desk", device, "10", opener, onto=first)


@pytest.mark.slow  # ten seconds and more
def test_memory_that_is_known_is_not_measured_again() -> None:
    device = Device.parse({"runtime": "torch"})
    nets = [nn.Sequential(nn.Conv2d(3, n, 3), nn.ReLU(), nn.Conv2d(n, 4, 3)).eval() for n in (8, 12)]
    one, two = (
        Backbone(name, capture(net, torch.randn(2, 3, 9, 9), prove=False))
        for name, net in zip(("one", "two"), nets, strict=True)
    )
    asked: list[int] = []

    def weigh(graph: ModelGraph) -> int:
        asked.append(len(graph.nodes))
        return 10**6 * len(asked)

    few = [block for block in blocks() if block.name in ("linear-64x8", "pool-16x32")]
    profile, new = None, []
    for backbones in ([], [one], [two]):
        before = len(asked)
        profile = make_profile(
            "desk",
            device,
            "9.9",
            open_here(device),
            backbones=backbones,
            n_subnets=5,
            built_in=few if profile is None else None,
            onto=profile,
            seconds=0.01,
            weigh=weigh,
        )
        new.append(len(asked) - before)
    # Four blocks, then each model whole and at half its units; every row that was measured is there.
    assert new == [4, 2, 2] and profile is not None
    assert [row.measured_bytes for row in profile.memory_rows] == [10**6 * n for n in range(1, 9)]


def test_runtimes_that_do_not_run_here_are_refused() -> None:
    with pytest.raises(
        RequestError, match="litert can't be opened in this process; measure it through a worker"
    ):
        open_here(Device(runtime="litert"))
    with pytest.raises(RequestError, match="give to_onnx"):
        open_here(Device(runtime="onnxruntime"))
