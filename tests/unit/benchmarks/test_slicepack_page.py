"""The tables of docs/slice-and-pack.md say what the result files say, with their spread and what they take."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from benchmarks.schema import Result
from benchmarks.slicepack.page import PAGE, ROOT, page, tables
from benchmarks.slicepack.page_details import (
    above_controls,
    above_over_orders,
    cell,
    costs,
    figure,
    provenance,
    spread_over_draws,
    spread_over_orders,
)


def read(name: str) -> Result:
    return Result.read(ROOT / "benchmarks" / "results" / f"slicepack-{name}.json")


def small(numbers: dict[str, float], rows: tuple[dict[str, Any], ...] = (), **parameters: object) -> Result:
    return read("t3-vgg16").replace(numbers=numbers, rows=rows, parameters=parameters)


def test_the_page_is_that_of_the_result_files() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run: python -m benchmarks.slicepack.page"


def test_every_result_with_rows_of_methods_stands_on_the_page() -> None:
    shown = tables()
    for path in sorted((ROOT / "benchmarks" / "results").glob("slicepack-*.json")):
        if path.stem != "slicepack-demo-seconds":  # its numbers stand in README.md
            assert f"### {path.stem}\n" in shown


def test_spreads_are_in_points_and_of_more_than_one() -> None:
    rows = [
        {"accuracy_tested": 0.7, "accuracy_tested_deviation": 0.04, "n_orders": 3},
        {"accuracy_tested": 0.9, "accuracy_tested_deviation": 0.02, "n_orders": 3},
    ]
    assert spread_over_orders(rows) == pytest.approx(3.0)
    assert spread_over_draws(rows) == pytest.approx(100 * np.std([0.7, 0.9], ddof=1))
    assert spread_over_draws(rows[:1]) is None
    assert spread_over_orders([{**rows[0], "n_orders": 1}]) is None
    assert cell(0.8004, 3.04) == "80.0 ± 3.0" and cell(0.8004, None) == "80.0"


def test_controls_that_are_better_are_told_so() -> None:
    result = small(
        {
            "accuracy_ours_6_k5": 0.624,
            "accuracy_ours_6_k20": 0.70001,
            "accuracy_random_6_k5": 0.64,
            "accuracy_random_6_k20": 0.70003,
            "params_ratio_random_6": 0.0621,
        },
        ks=[5, 20],
        methods=["ours_6", "random_6", "random_1"],
    )
    (_, said) = above_controls(result)
    assert said.endswith("points at k = 5, 20: random units, repaired at 6 %: -1.6, +0.0.")
    assert above_controls(small({"accuracy_ours_6_k5": 0.5}, ks=[5], methods=["ours_6"])) == []


def test_distances_over_orders_are_of_pairs() -> None:
    pairs = {"ours": (0.80, 0.90, 0.7), "grail": (0.79, 0.87, 0.71), "probe": (0.1, 0.2, 0.3)}
    rows = tuple(
        {"method": method, "accuracy_tested": score, "order": str(place)}
        for place in range(3)
        for method, scores in pairs.items()
        for score in scores[place : place + 1]
    )
    result = small({"params_ours": 10, "params_grail": 10, "params_probe": 7}, rows)
    points = 100 * np.array([0.01, 0.03, -0.01])
    said = f"{points.mean():+.1f} ± {points.std(ddof=1) / 3**0.5:.1f}."
    told = above_over_orders(result)
    assert told.endswith(said) and "GRAIL" in told and "best single" not in told


def test_costs_are_those_of_the_rows_and_blank_where_nothing_was_measured() -> None:
    result = read("t3-vgg16")
    lines = costs(result, ["probe", "ours_6"])
    mine = [row for row in result.rows if row["method"] == "ours_6"]
    assert [part.strip() for part in lines[-1].split("|")[2:5]] == [
        f"{statistics.median(row['flops_mean'] for row in mine) / 1e6:,.0f} M",
        f"{statistics.median(row['size_bytes_mean'] for row in mine) / 1e6:.1f} M",
        f"{statistics.median(row['slice_seconds_per_class'] for row in mine):.2f}",
    ]
    assert [part.strip() for part in lines[-2].split("|")[2:5]] == ["", "", ""]


def test_test_images_that_were_left_out_are_told() -> None:
    (said, _) = provenance(small({"n_orders": 5}, task="T1", n_tested=100))
    assert said.endswith("orders 5; 100 of 1,000 test images a class.")
    (said, _) = provenance(small({"n_orders": 5}, task="T4", n_tested=100))
    assert said.endswith("all 100 test images a class.")


def test_a_figure_says_what_was_not_run() -> None:
    result = read("expansion")
    told = "".join(figure(result))
    for k in result.parameters["ks"]:
        assert f"{result.numbers[f'expansion_times_error_20_k{k}']:,.0f}" in told
    assert ("Not run" in told) == (set(result.parameters["ks"]) != {5, 10, 20})
    rows = tuple({**row, "n_samples_per_class": k} for row in result.rows for k in (5, 10, 20))
    numbers = {
        name.replace("_k20", f"_k{k}"): value for name, value in result.numbers.items() for k in (5, 10, 20)
    }
    whole = result.replace(rows=rows, numbers=numbers, parameters={**result.parameters, "ks": [5, 10, 20]})
    assert "Not run" not in "".join(figure(whole))
