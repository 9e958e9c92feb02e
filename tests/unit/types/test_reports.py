from __future__ import annotations

import json
from typing import Any

import pytest

from sarto.errors import RequestError
from sarto.types import (
    Check,
    ClassOffer,
    ClassScore,
    Comparison,
    Confusion,
    Cost,
    DeviceFile,
    Donor,
    Environment,
    HeadNode,
    Interval,
    Part,
    Plan,
    Report,
    Request,
    Requirement,
    Row,
    SourceNode,
)

SHA = "sha256:" + "a" * 64


def report(**changes: Any) -> Report:
    order = Request.parse("task: {classes: [cat, dog]}\nbudget: {params: 20, latency_ms: 3}")
    plan = Plan(
        nodes={"a": SourceNode(of=SHA), "h": HeadNode(of="a", kind="restrict", classes=("cat", "dog"))},
        out="h",
    )
    predicted = Cost(params=10, flops=10, memory_bytes=10, size_bytes=40, basis="predicted")
    measured = predicted.replace(basis="measured", latency_ms=1.5)
    interval = Interval(low=0.7, high=0.9, level=0.9, method="bootstrap over samples")
    fields: dict[str, Any] = {
        "request": order,
        "requirement": Requirement(
            request=order,
            offers=tuple(
                ClassOffer(cls=cls, learnware=SHA, label=at) for at, cls in enumerate(("cat", "dog"))
            ),
            n_samples={"cat": 5, "dog": 5},
            samples_digest=SHA,
        ),
        "plan": plan,
        "predicted": predicted,
        "measured": measured,
        "rows": (
            Row(name="the pick", role="pick", plan_key=plan.key(), accuracy_loto=0.8, interval=interval),
            Row(name="chance", role="trivial", accuracy_loto=0.5, note="two classes"),
        ),
        "comparisons": (Comparison(row="chance", basis="loto", gap=0.3, p_value=0.01, verdict="better"),),
        "per_class": (ClassScore(cls="cat", learnware=SHA, donor="resnet", n_samples=5, recall_loto=0.8),),
        "confusion": Confusion(classes=("cat", "dog"), counts=((4, 1), (1, 4)), basis="loto"),
        "where_params": (Part(name="resnet: cat, dog", learnware=SHA, classes=("cat", "dog"), params=10),),
        "checks": (Check(name="exported equals built", value=1e-7, limit=1e-5, ok=True),),
        "lineage": (Donor(learnware=SHA, name="resnet", licence="MIT", graph_hash=SHA),),
        "hashes": {"model.onnx": SHA},
        "environment": Environment(versions={"torch": "2.13.0"}, threads=1, machine="x86, 2 cores"),
        "seconds": {"assemble": 0.5},
        "sentences": ("About 80 % (70-90, nine times of ten) on images like your 10.",),
    }
    return Report(**(fields | changes))


def test_a_report_is_read_back_from_its_text() -> None:
    made = report()
    assert Report.parse(made.to_json()) == made
    assert Report.parse(made.to_yaml()) == made
    assert Report.parse(made.to_json(pretty=True)) == made


def test_a_page_can_be_drawn_from_the_text_alone() -> None:
    page = json.loads(report().to_json())
    assert [(row["name"], row["accuracy_loto"]) for row in page["rows"]] == [
        ("the pick", 0.8),
        ("chance", 0.5),
    ]
    assert page["confusion"]["counts"] == [[4, 1], [1, 4]]
    assert sum(part["params"] for part in page["where_params"]) == page["measured"]["params"]
    assert page["rows"][0]["interval"] == {
        "low": 0.7,
        "high": 0.9,
        "level": 0.9,
        "method": "bootstrap over samples",
    }


def test_predicted_stands_beside_measured_and_budget() -> None:
    lines = [(line.name, line.predicted, line.measured, line.budget) for line in report().cost_lines()]
    assert lines == [
        ("params", 10, 10, 20),
        ("flops", 10, 10, None),
        ("memory_bytes", 10, 10, None),
        ("size_bytes", 40, 40, None),
        ("latency_ms", None, 1.5, 3),
    ]
    assert report().pick.name == "the pick"


def test_what_was_not_predicted_is_told_as_counted() -> None:
    def bases(found: Report) -> dict[str, tuple[str, float | None]]:
        return {line.name: (line.basis, line.foretold) for line in found.cost_lines()}

    planned = report()
    assert bases(planned)["params"] == ("counted", 10) and bases(planned)["latency_ms"] == ("predicted", None)
    timed = report(predicted=planned.predicted.replace(latency_ms=2.0))
    assert bases(timed)["latency_ms"] == ("predicted", 2.0)
    # A plan that says no cost: nothing was known before, so there is nothing to compare with.
    built = report(predicted=planned.predicted.replace(basis="measured"))
    assert bases(built)["flops"] == ("counted in the built model", None)
    small = DeviceFile(name="x", format="onnx", precision="int8", size_bytes=9, difference=0, error=0)
    assert bases(report(device_file=small))["size_bytes"] == ("counted in single precision", None)


def test_a_report_has_one_pick_and_names_its_rows_once() -> None:
    row = Row(name="chance", role="trivial")
    with pytest.raises(RequestError) as caught:
        report(rows=(row, row), comparisons=(Comparison(row="x", basis="loto", gap=0, verdict="worse"),))
    assert caught.value.problems == (
        "rows: 'chance' is named twice; name each row once",
        "rows: one row is the pick, got none",
        "comparisons[0].row: no row 'x'",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"confusion": {"classes": ["a"], "counts": [[1, 2]], "basis": "loto"}},
            "confusion.counts: 1 rows of 1",
        ),
        ({"hashes": {"model.onnx": "abc"}}, "hashes.model.onnx: must be 'sha256:' and 64 hex digits"),
        ({"seconds": {"export": -1.0}}, "seconds.export: must be >= 0, got -1"),
        ({"report": 2}, "report: must be 1, got 2"),
        ({"rows": [{"name": "x", "role": "winner"}]}, r"rows\[0\].role: must be 'pick', .* got 'winner'"),
    ],
)
def test_bad_reports_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        report(**change)


def test_an_interval_has_its_ends_in_order() -> None:
    with pytest.raises(RequestError, match=r"low <= high was expected, got 2.0 and 1.0"):
        Interval(low=2, high=1, level=0.9, method="wilson")
    with pytest.raises(RequestError, match="level: must be < 1, got 1"):
        Interval(low=1, high=2, level=1, method="wilson")
