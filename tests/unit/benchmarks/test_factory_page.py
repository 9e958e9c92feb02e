"""The page on NN-Factory: its tables and pictures say what the result files say."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.factory.page import BEGIN, END, IMAGES, PAGE, RESULTS, tables
from benchmarks.factory.plots import PICTURES, by_limit, draw
from benchmarks.schema import Result

NUMVQA = RESULTS / "factory-numvqa.json"


def test_the_page_is_that_of_the_result_files(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    body = text.partition(BEGIN)[2].partition(END)[0].strip("\n")
    assert body == "\n".join(tables(RESULTS, tmp_path)).strip("\n"), "run: python -m benchmarks.factory.page"
    named = {path.name for path in tmp_path.iterdir()}
    assert named and all((IMAGES / name).is_file() for name in named)


@pytest.mark.parametrize("kind", ["seen", "unseen"])
def test_rows_that_are_drawn_have_the_numbers_of_the_result(kind: str) -> None:
    result = Result.read(NUMVQA)
    for limit, values in by_limit(result.rows, kind, "accuracy").items():
        key = f"{round(100 * limit)}"
        assert statistics.fmean(values) == pytest.approx(result.numbers[f"accuracy_{kind}_mean_{key}"])
        assert min(values) == pytest.approx(result.numbers[f"accuracy_{kind}_worst_{key}"])
    for limit, values in by_limit(result.rows, kind, "ratio").items():
        assert max(values) <= limit


def test_pictures_are_drawn_from_the_rows_that_are_there(tmp_path: Path) -> None:
    result = Result.read(NUMVQA)
    plain = [row for row in result.rows if row["kind"] in ("seen", "unseen")]
    few: Any = {"rows": tuple(plain)}
    drawn = [name for name, _ in draw(result.replace(**few), tmp_path)]
    assert drawn == [f"factory-numvqa-{name}.svg" for name in ("quality", "ratios", "tasks")]
    more = [
        *plain,
        *({"kind": "progress", "step": step, "limit": 0.1, "accuracy": 0.9} for step in (10, 20)),
        *(
            {"kind": "overlap", "task": one, "other": two, "limit": 0.1, "overlap": 0.5 + 0.5 * (one == two)}
            for one in "ab"
            for two in "ab"
        ),
    ]
    every: Any = {"rows": tuple(more)}
    assert [name for name, _ in draw(result.replace(**every), tmp_path)] == [
        f"factory-numvqa-{name}.svg" for name in PICTURES if name != "tradeoff"
    ]
    ways = ("ours", "retrain", "retrain_small")
    row = {f"{what}_{way}": 0.5 for what in ("latency_ms", "map") for way in ways}
    only: Any = {"rows": ({"task": "car", **row},), "name": "factory-attrod"}
    assert [name for name, _ in draw(result.replace(**only), tmp_path)] == ["factory-attrod-tradeoff.svg"]
    assert all("<svg" in path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


def test_results_that_are_not_there_yet_have_tables_too(tmp_path: Path) -> None:
    assert list(tables(tmp_path)) == ["No result yet."]
    kinds = {f"accuracy_{kind}_{what}": 0.5 for kind in ("seen", "unseen") for what in ("mean_5", "worst_5")}
    shared = {f"accuracy_{kind}_mean_shared": 0.8 for kind in ("seen", "unseen")}
    ways = {"map_share_mean_ours": 0.61, "map_share_mean_few_ours": 0.4, "map_share_mean_retrain": 0.62}
    seconds = {
        "prepare_seconds_ours": 7200.0,
        "customise_seconds_ours": 2.5,
        "customise_seconds_retrain": 800.0,
    }
    written = {
        "cifar100": (
            {"n_steps": 10, "n_units": 20, **kinds, **shared},
            {"n_tasks": 3, "n_test": 4, "limits": [0.05, 0.9]},
            [],
        ),
        "attrod": (
            {
                "n_tasks": 2,
                "n_tasks_few": 1,
                "few_samples_count": 9,
                "n_delivered": 2,
                "within_latency_share": 1.0,
                "unused_latency_share_mean": 0.04,
                **ways,
                **seconds,
            },
            {},
            [{"latency_ms_ours": 1.0}, {"latency_ms_ours": 3.0, "keeps_retrain": False}],
        ),
        "orders": (
            {
                "n_orders": 60,
                "n_devices": 2,
                "within_budget_share": 0.95,
                "unused_share_mean": 0.04,
                "unused_share_mean_as_reported": 0.03,
            },
            {},
            [],
        ),
    }
    for name, (numbers, parameters, rows) in written.items():
        held = {"numbers": numbers, "parameters": parameters, "rows": rows}
        (tmp_path / f"factory-{name}.json").write_text(json.dumps(held))
    for name, said in (("cifar100", "**CIFAR-100 by attributes, smaller**"), ("attrod", "images, smaller**")):
        (tmp_path / f"factory-{name}-small.json").write_text((tmp_path / f"factory-{name}.json").read_text())
        assert sum(said in text for text in tables(tmp_path)) == 1
    found = list(tables(tmp_path))
    assert "| 5 % | 50.0 % | 50.0 % | 50.0 % | 50.0 % |" in found and not any("90 %" in t for t in found)
    assert "| subnet for the task and the budget | 61.0 % | 40.0 % | 2.00 |  | 7,200 s | 2.5 s |" in found
    assert "| the whole network, trained for each task | 62.0 % |  |  | 0 of 1 |  | 800.0 s |" in found
    assert any(
        text.startswith("**60 orders") and "95 % within" in text and "4.0 % of it" in text for text in found
    )


def test_what_one_would_do_without_an_assembler_is_told_with_its_size(tmp_path: Path) -> None:
    numbers = {
        "n_questions": 6,
        "accuracy_shared": 0.9,
        "shared_params": 9000,
        "shared_prepare_cpu_seconds": 60.0,
    }
    numbers |= {
        "accuracy_retrain_whole": 0.8,
        "retrain_whole_params": 8000,
        "retrain_whole_cpu_seconds": 30.0,
    }
    numbers |= {"widths_prepare_cpu_seconds": 70.0}
    for way in ("widths", "retrain", "prune_tune"):
        numbers |= {f"accuracy_{way}_10": 0.7, f"{way}_params_10": 1234, f"{way}_cpu_seconds_10": 5.0}
    held = {"numbers": numbers, "parameters": {}, "rows": []}
    (tmp_path / "factory-baselines.json").write_text(json.dumps(held))
    found = [text for text in tables(tmp_path) if text.startswith("| ") and "way" not in text]
    assert [text.split("|")[3].strip() for text in found] == ["9,000", "8,000", "1,234", "1,234", "1,234"]
    assert [text.split("|")[4].strip() for text in found] == [
        "60 once",
        "30 a question",
        "70 once",
        "5 a question",
        "5 a question",
    ]
