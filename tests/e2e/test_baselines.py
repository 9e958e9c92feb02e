"""Baselines that an order asks for stand in its report, and choose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sarto import RequestError
from sarto.engines import baselines
from sarto.engines.baselines import Budget, Given, Trained
from sarto.pipeline import alternatives

CLASSES = ("red disc", "blue cross", "red bar")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trained baselines that take a few steps."""

    def few(name: str) -> baselines.Baseline:
        def run(given: Given) -> Trained:
            return baselines.BASELINES[name](replace(given, budget=Budget(steps=6)))

        return run

    monkeypatch.setattr(alternatives, "BASELINES", {name: few(name) for name in baselines.BASELINES})
    yield


def test_rows_of_the_literature_stand_in_the_report_and_leave_the_model_as_it_is(
    shop: Any, short: None
) -> None:
    plain = shop.make(shop.order(*CLASSES, baselines=[]), "plain")
    asked = shop.make(shop.order(*CLASSES, baselines=["camkd", "netgraft", "grail"]), "asked")
    assert (
        plain.manifest.files["graph/weights.safetensors"] == asked.manifest.files["graph/weights.safetensors"]
    )
    assert [row.name for row in plain.report.rows if row.role in ("baseline", "finetune")] == []
    rows = {row.name: row for row in asked.report.rows if row.role == "baseline"}
    assert set(rows) == {"CA-MKD", "NetGraft", "GRAIL"}
    for row in rows.values():
        assert row.accuracy_heldout is not None and row.cost is not None and row.cost.params > 0
    ordered = sum(asked.report.requirement.n_samples.values())
    assert rows["CA-MKD"].samples_used == ordered == 18
    # NetGraft reads all classes of its donors, and so do slices: three donors of three classes, six images each.
    for row in (rows["NetGraft"], rows["GRAIL"], *(row for row in asked.report.rows if row.role == "plan")):
        assert row.samples_used == 54, row.name
    assert "scored on the held-out samples alone" in rows["CA-MKD"].note
    assert rows["NetGraft"].accuracy_loto is not None
    assert any(text.startswith("CA-MKD: ask for it") for text in plain.report.not_tried)
    assert not any("CA-MKD" in text for text in asked.report.not_tried)
    page = (asked.folder / "report.html").read_text()
    assert "other method" in page and "CA-MKD" in page


def test_without_held_out_images_samples_are_left_out(shop: Any, short: None) -> None:
    made = shop.make(shop.order(*CLASSES, baselines=["camkd"], heldout=None))
    (row,) = (row for row in made.report.rows if row.role == "baseline")
    assert row.accuracy_loto is not None and row.interval is not None
    assert "three folds" in row.note


def test_an_unknown_baseline_is_refused_before_anything_is_built(shop: Any) -> None:
    with pytest.raises(RequestError, match=r"baselines: no baseline 'camdk' \(did you mean 'camkd'"):
        shop.make(shop.order(*CLASSES, baselines=["camdk"]))
    assert shop.fragments() == {}
