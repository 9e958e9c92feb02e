"""The coverage benchmark: rows tell the truth about models that work, fail, or change too little to prove anything."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import coverage, coverage_models, coverage_torch_pruning
from benchmarks.coverage import limited, measure, summary
from benchmarks.coverage_models import ARCHITECTURES, Architecture, Given, architectures
from benchmarks.runner import read_case

PIXELS = {"x": Given("image", (3, 8, 8))}


def built(monkeypatch: pytest.MonkeyPatch, module: nn.Module, inputs: dict[str, Given]) -> Architecture:
    """An architecture that builds this module."""
    monkeypatch.setattr(Architecture, "module", lambda _: module.eval())
    return Architecture("made", "zoo", "made", inputs)


def row_of(architecture: Architecture, limit_seconds: float = 60) -> dict[str, object]:
    return measure(architecture, percents=[50], limit_seconds=limit_seconds, seed=0)


class Spectrum(nn.Module):
    """Has an operator that no graph may hold."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


class Counted(nn.Module):
    """Makes the batch a plain number, which torch.export refuses for a free batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(5)
        return x


def test_a_network_that_works_is_exact_in_all_that_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    row = row_of(built(monkeypatch, net, PIXELS))
    assert (row["outcome"], row["n_groups"], row["n_alone_equal"]) == ("exact", 2, 2)
    assert row["kinds"] and row["n_cuts"] and 0 < row["difference_50"] + 1e-30 < 1e-12
    # By hand: all of both convolutions, and the classifier's weight but not its bias, lie on some unit.
    touched = sum(p.numel() for p in net.parameters()) - 5
    assert row["sliceable_params_share"] == round(touched / sum(p.numel() for p in net.parameters()), 4)


@pytest.mark.parametrize(
    ("module", "outcome", "reason"),
    [
        (Spectrum(), "not captured", r"may not hold: .*fft"),
        (Counted(), "not exported", r"specialized|Constraints"),
        (nn.LayerNorm(8), "no group", r"pinned by"),
    ],
)
def test_what_fails_is_a_row_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, outcome: str, reason: str
) -> None:
    row = row_of(built(monkeypatch, module, PIXELS))
    assert row["outcome"] == outcome
    assert re.search(reason, str(row["reason"])), row["reason"]


def test_a_model_that_takes_too_long_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of(built(monkeypatch, Slow(), PIXELS), limit_seconds=0.2)
    assert (row["outcome"], row["reason"]) == ("too slow", "not done within 0.2 s")


def test_a_wrong_slice_is_found_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    architecture = built(monkeypatch, net, {"x": Given("signal", (6,))})
    right = coverage.zeroed
    monkeypatch.setattr(coverage, "zeroed", lambda *given: tuple(1.001 * out for out in right(*given)))
    row = row_of(architecture)
    assert row["outcome"] == "inexact"
    assert "50 % of all: differs by 1.0e-03" in str(row["reason"]) and "alone: " in str(row["reason"])


def test_an_extra_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(coverage_models.PACKAGES, "zoo", "no_such_package")  # type: ignore[misc]
    row = row_of(ARCHITECTURES[0])
    assert (row["outcome"], row["reason"]) == ("skipped", "extra not installed: no_such_package")
    cells = coverage_torch_pruning.prune_apart(ARCHITECTURES[0].name, limit_seconds=1, seed=0)
    assert cells["torch_pruning"] == "skipped" and "extra not installed" in cells["torch_pruning_reason"]
    assert summary([row])["n_architectures"] == 0


def test_the_limit_leaves_the_clock_as_it_was() -> None:
    with pytest.raises(coverage.OutOfTime), limited(0.05):
        time.sleep(2)
    with limited(0.05):
        pass
    time.sleep(0.1)


def test_names_are_unique_and_their_beginnings_pick_several() -> None:
    names = [architecture.name for architecture in ARCHITECTURES]
    assert len(set(names)) == len(names)
    assert [a.name for a in architectures(("transformers",), ("swin",))] == ["swin"]
    assert [a.name for a in architectures(("transformers",), ("rt-detr-",))] == [
        "rt-detr-encoder",
        "rt-detr-decoder",
        "rt-detr-backbone",
    ]
    with pytest.raises(ValueError, match=r"no architecture \['swiin'\]; known: .*'swin'"):
        architectures(("transformers",), ("swiin",))


def test_every_architecture_of_the_zoo_is_there_to_build() -> None:
    import sarto.zoo

    zoo = [architecture for architecture in ARCHITECTURES if architecture.source == "zoo"]
    assert not [a.build for a in zoo if not hasattr(sarto.zoo, a.build)]


def test_a_mask_has_a_tail_of_zeros_and_ids_are_words() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = Given("mask", (8,)).make(3, generator)
    assert mask.tolist() == [[1] * 6 + [0] * 2, [1] * 8, [1] * 8]
    ids = Given("ids", (8,), high=10).make(3, generator)
    assert ids.dtype == torch.int64 and int(ids.min()) >= 3 and int(ids.max()) < 10


def test_small_runs_need_no_extra(repository: Path) -> None:
    for name in ("coverage", "surgery-speed"):
        case = read_case(repository / "benchmarks" / "cases" / f"{name}.yaml")
        given = case.effective(smoke=True)
        assert not given["torch_pruning"]
        assert "transformers" not in given.get("sources", [])
