"""What can't be delivered gives way to the next in rank, and the report says so."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest

from sarto.errors import GraphError, VerifyError
from sarto.pipeline import verify
from sarto.pipeline.choose import propose
from sarto.pipeline.contest import Score
from sarto.pipeline.order import check_order
from tests.e2e.conftest import Shop
from tests.e2e.test_profiled_orders import profile

RED = ("red disc", "green disc")
QUICK = {"engines": ["slicepack", "baselines"], "baselines": []}


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception, *, times: int) -> list[int]:
    """The export to ONNX fails so many times; the parameters of what was tried, in order."""
    real, tried = verify.export_onnx, list[int]()

    def export(graph: Any, *given: Any, **more: Any) -> Any:
        tried.append(sum(graph.tensors[name].numel() for name in graph.parameters))
        if len(tried) <= times:
            raise error
        return real(graph, *given, **more)

    monkeypatch.setattr(verify, "export_onnx", export)
    return tried


def test_a_model_that_can_t_be_exported_gives_way_to_the_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shop.make(shop.order(*RED, **QUICK), "free")
    tried = refusing(monkeypatch, GraphError("the operator strange_op can't be exported"), times=1)
    made = shop.make(shop.order(*RED, **QUICK), "next")
    assert tried[0] == first.report.measured.params, "the same comes first"
    assert made.report.measured.params == tried[1] and made.plan.key() != first.plan.key()
    (told,) = [text for text in made.report.sentences if text.startswith("Ranked before, and not delivered")]
    assert "strange_op can't be exported" in told and first.report.pick.name in told


def test_where_none_can_be_exported_or_one_was_ordered_the_order_ends(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = VerifyError("ONNX Runtime differs from eager")
    tried = refusing(monkeypatch, error, times=10**6)
    with pytest.raises(VerifyError, match="differs from eager"):
        shop.make(shop.order(*RED, **QUICK), "none")
    assert 1 < len(tried) <= verify.FAILURES
    tried.clear()
    plan = shop.market.plan(shop.order(*RED, **QUICK)).feasible[0]
    with pytest.raises(VerifyError, match="differs from eager"):
        shop.make(shop.order(*RED, **QUICK), "given", plan=plan)
    assert len(tried) == 1


def test_what_is_predicted_to_be_too_slow_is_not_measured_first(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole donors stand beside packs to be compared with; one that is best on the samples is no candidate for that."""

    class MeasuredError(Exception):
        pass

    def stop(bench: object, score: Any) -> None:
        raise MeasuredError(score.plan.key())

    shop.market.store.profiles.put(profile(unit_step=1))
    asked = {**QUICK, "device": {"profile": "paper"}}
    free = propose(check_order(shop.order(*RED, **asked), shop.market.store))
    whole = next(plan.predicted for plan in free.all if plan.note == "probe on discs")
    assert whole is not None and whole.latency_low_ms is not None
    request = shop.order(*RED, budget={"latency_ms": 0.8 * whole.latency_low_ms}, **asked)
    plans = propose(check_order(request, shop.market.store))
    refused = {plan.key() for plan, _ in plans.refused}
    assert any(plan.note == "probe on discs" and plan.key() in refused for plan in plans.all)
    room = importlib.import_module("sarto.pipeline.make")
    real = room.score_all

    def favouring(*given: Any) -> list[Score]:
        """The whole donor is the best on the samples."""
        return [
            replace(one, row=one.row.replace(accuracy_loto=1.0 if one.row.name == "probe on discs" else 0.5))
            for one in real(*given)
        ]

    monkeypatch.setattr(room, "score_all", favouring)
    monkeypatch.setattr(verify._Bench, "measured", stop)
    with pytest.raises(MeasuredError) as caught:
        shop.make(request, "first")
    assert caught.value.args[0] in {plan.key() for plan in plans.feasible}
