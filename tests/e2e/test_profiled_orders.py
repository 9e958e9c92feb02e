"""Orders whose device names a profile: predicted before anything is built, filled up to the budget, measured after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sarto.cli.app import app
from sarto.devices import processor
from sarto.devices.profiling import Predictor, design, terms_of
from sarto.devices.profiling.features import FEATURES
from sarto.devices.profiling.fit import fit_backbone
from sarto.devices.profiling.generic import FIXED
from sarto.devices.profiling.making import backbone_model
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import graph_hash, leading, slice
from sarto.pipeline.builder import Builder, ready
from sarto.pipeline.choose import kind_of, propose, refilled
from sarto.pipeline.closing import closed
from sarto.pipeline.order import check_order
from sarto.pipeline.reference import measured_beside, reference_of
from sarto.types import Cost, Plan
from sarto.types.profile import (
    BackboneModel,
    DeviceProfile,
    KindModel,
    MeasuredRow,
    MemoryModel,
    PackModel,
    ProfiledDevice,
    Residuals,
)

ENGINES = ["slicepack", "baselines"]
CLASSES = ("red disc", "green disc", "blue cross", "red bar")
#: Milliseconds for one of each feature: much more than any machine takes, so that measured orders keep the budget.
WEIGHTS = (2.0, 20.0, 20.0, 40.0, 20.0, 0.3, 1.0)


def profile(**more: Any) -> DeviceProfile:
    """A device that takes exactly what kinds of operators say, within a twentieth; step 4."""
    device = {"processor": "paper", "cores": 2, "system": "none", "runtime": "onnxruntime", "version": "9.9"}
    device |= {"threads": 1, "batch": 1, "sarto": "0.1.0", "started": "2026-01-01T00:00:00+00:00"}
    kinds = KindModel(
        names=(*(f"*.{feature}" for feature in FEATURES), FIXED),
        weights=WEIGHTS,
        vector_width=4,
        residuals=Residuals(
            folds=(WEIGHTS,) * 2, part=tuple(n % 2 for n in range(60)), shares=(0.02, -0.02) * 30
        ),
    )
    return DeviceProfile(
        name="paper",
        device=ProfiledDevice.parse(device),
        kinds=kinds,
        memory=MemoryModel(fixed_bytes=1e6, per_size_byte=2.0, per_activation_byte=3.0, most_factor=1.5),
        **{"unit_step": 4, **more},
    )


def order(shop: Any, step: int = 4, **more: Any) -> Any:
    shop.market.store.profiles.put(profile(unit_step=step))
    request = shop.order(*CLASSES, **{"device": {"profile": "paper"}, "engines": ENGINES, **more})
    return check_order(request, shop.market.store)


def took(cost: Cost, latency_ms: float) -> Cost:
    """The cost with a measured latency."""
    return cost.replace(
        latency_low_ms=latency_ms, latency_ms=latency_ms, latency_high_ms=latency_ms, basis="measured"
    )


def fragments(plans: Sequence[Plan]) -> list[Any]:
    """Packs with a part for each class, none of it shared."""
    packs = [plan for plan in plans if plan.engine == "slicepack"]
    return [plan for plan in packs if "together" not in plan.note and "shared" not in plan.note]


def halfway(values: Sequence[float]) -> float:
    return (min(values) + max(values)) / 2


def builder_of(found: Any) -> Builder:
    held = {s.digest: s for s in found.donor_samples.values()}
    return Builder(found.predictor.store, {found.samples.digest: found.samples, **held})


def test_every_plan_has_an_interval_that_is_near_what_its_built_graph_is_predicted_to_take(shop: Any) -> None:
    found = order(shop, step=1)
    plans, predictor = propose(found).all, Predictor(profile(unit_step=1))
    assert all(plan.predicted.latency_high_ms is not None for plan in plans if plan.predicted is not None)
    for plan in (plans[0], plans[-1], next(plan for plan in plans if "shared" in plan.note)):
        cost, graph = plan.predicted, builder_of(found).build(plan).graph
        assert cost is not None and cost.latency_ms is not None and cost.process_bytes is not None
        assert cost.latency_low_ms <= cost.latency_ms <= cost.latency_high_ms
        whole = predictor.predict(graph).middle
        if "shared" in plan.note:
            # What fragments happen to share beside their front is not foreseen.
            assert whole <= cost.latency_ms <= 1.3 * whole
        else:
            assert cost.latency_ms == pytest.approx(whole, rel=0.01)
        assert cost.process_low_bytes <= cost.process_bytes < cost.process_high_bytes


def test_plans_whose_process_may_take_more_than_is_allowed_are_refused(shop: Any) -> None:
    def most(plan: Plan) -> float:
        cost = plan.predicted
        assert cost is not None
        return 1.5 * (1e6 + 2 * cost.size_bytes + 3 * cost.memory_bytes)

    bounds = [most(plan) for plan in propose(order(shop)).all]
    limit = round(halfway(bounds))
    plans = propose(order(shop, budget={"process_bytes": limit}))
    assert plans.feasible and plans.refused
    assert all(most(plan) <= limit + 1 for plan in plans.feasible)
    assert all(most(plan) >= limit - 1 and broken == ("process_bytes",) for plan, broken in plans.refused)
    with pytest.raises(InfeasibleError, match="Raise process_bytes to") as caught:
        shop.make(order(shop, budget={"process_bytes": 1000}).request)
    # Where every bound is over, what should just about fit is tried: the floor is that of the middle.
    assert caught.value.floor is not None
    assert caught.value.floor["process_bytes"] == pytest.approx(min(bounds) / 1.5, abs=1)


def test_a_profile_of_another_processor_is_told(shop: Any) -> None:
    (note,) = [text for text in order(shop).requirement.notes if "profile" in text]
    assert "'paper' was measured on 'paper'" in note and repr(processor()) in note and "agent" in note
    here = profile().device.replace(processor=processor())
    shop.market.store.profiles.put(profile().replace(name="here", device=here))
    request = shop.order(*CLASSES, device={"profile": "here"}, engines=ENGINES)
    notes = check_order(request, shop.market.store).requirement.notes
    assert not [text for text in notes if "profile" in text]


def fit_of_discs(store: Any) -> tuple[BackboneModel, np.ndarray]:
    """A fit of the donor `discs` to what a device takes that is known, and these milliseconds."""
    terms = terms_of(store.graph("discs").sketch())
    rows = design(terms, 16, step=4, pool=60).astype(float)
    times = terms.at(rows, width=4, step=4) @ np.full(len(terms.terms), 2.1) + 0.2
    fit = fit_backbone(terms, rows, times, np.full(len(terms.terms), 0.5), step=4, widths=(4,))
    return backbone_model("discs", terms, fit), times


def test_a_backbone_that_was_measured_counts_with_its_own_fit(shop: Any) -> None:
    store = shop.market.store
    graph = store.graph("discs")
    model, _ = fit_of_discs(store)
    known = profile(backbones=(model,))
    store.profiles.put(known)
    request = shop.order("red disc", "green disc", device={"profile": "paper"}, engines=ENGINES)
    found = check_order(request, store)
    plan = next(p for p in propose(found).all if "together" in p.note)
    counts = next(iter(found.predictor.parts(plan))).counts
    alone = Predictor(known).predict(slice(graph, leading(counts))).middle
    assert plan.predicted is not None and plan.predicted.latency_ms is not None
    # Normalisation and another head are added, the donor's own head goes.
    by_kinds = Predictor(profile()).predict(ready(graph, store.get("discs").preprocessing), counts).middle
    assert plan.predicted.latency_ms == pytest.approx(alone, rel=0.15) and alone > 2 * by_kinds


def measured_discs(shop: Any, level_ms: float, **device: Any) -> DeviceProfile:
    """A profile that holds subnets of the donor `discs`, measured beside a reference that took so long."""
    model, times = fit_of_discs(shop.market.store)
    model = model.replace(graph_hash=graph_hash(shop.market.store.graph("discs"), weights=False))
    found = [
        MeasuredRow(
            what="subnet",
            model="discs",
            latency_ms=one,
            raw_ms=one,
            reference_ms=level_ms * (1 + 0.1 * (chunk - 1)),
            chunk=chunk,
        )
        for chunk, one in enumerate(times[:3].tolist())
    ]
    here = profile().device.replace(processor=processor(), **device)
    return profile().replace(device=here, rows=tuple(found), backbones=(model,))


def test_latency_is_told_at_the_speed_that_the_machine_had_for_the_profile(shop: Any) -> None:
    asked = {"device": {"profile": "paper"}, "engines": ["slicepack"], "baselines": []}
    request = shop.order("red disc", "green disc", budget={"latency_ms": 1e5}, **asked)
    shop.market.store.profiles.put(measured_discs(shop, level_ms=500.0))
    with reference_of(check_order(request, shop.market.store)) as reference:
        assert reference is not None and reference.level_ms == pytest.approx(500.0)
        assert isinstance(reference.model, Path)
        # What takes as long as the reference does takes the reference's level, however slow the machine is now.
        latency, raw = measured_beside(reference.model, request.device, reference, seconds=0.05)
        assert latency.median_ms == pytest.approx(500.0, rel=0.5) and raw is not None and 0 < raw < 50
        assert latency.low_ms <= latency.median_ms <= latency.high_ms and latency.runtime == "onnxruntime"
        # An agent may run on another processor than the profile says.
        other = replace(reference, processor="another")
        latency, unknown = measured_beside(reference.model, request.device, other, seconds=0.05)
        assert unknown is None and latency.median_ms < 50
    report = shop.make(request).report
    measured = report.measured.latency_ms
    assert measured is not None and 50 < measured < 5000, "small models take a fraction of a millisecond here"
    (told,) = [text for text in report.sentences if "as it was measured" in text]
    assert "times as fast as it was for the profile" in told
    assert report.latency_raw_ms is not None and f"took {report.latency_raw_ms:.3g} ms" in told
    (check,) = [check for check in report.checks if check.name == "budget: latency_ms"]
    assert check.detail == f"measured, at the profile's speed; {report.latency_raw_ms:.3g} ms as it was"


def test_a_profile_of_another_processor_or_without_the_donor_is_no_reference(shop: Any) -> None:
    request = shop.order("red disc", "green disc", device={"profile": "paper"}, engines=["slicepack"])
    known = measured_discs(shop, level_ms=5.0)
    elsewhere = known.replace(device=known.device.replace(processor="another"))
    # The same operators in other sizes are another network.
    sizes = tuple(one.replace(graph_hash=f"sha256:{64 * '0'}") for one in known.backbones)
    others = [known.replace(backbones=changed) for changed in ((), sizes)]
    for other in (elsewhere, known.replace(rows=()), *others):
        shop.market.store.profiles.put(other)
        with reference_of(check_order(request, shop.market.store)) as reference:
            assert reference is None


def test_a_front_that_parts_share_is_not_slowed_down_by_parts_that_run_after_it(shop: Any) -> None:
    store = shop.market.store
    model, _ = fit_of_discs(store)
    request = shop.order("red disc", "green disc", device={"profile": "paper"}, engines=ENGINES)
    share, taken = 0.1, {}
    for slower in (0.0, share):
        packs = PackModel(share_per_part=slower, shares=(0.0,))
        store.profiles.put(profile(backbones=(model.replace(packs=packs),)))
        found = check_order(request, store)
        plan = next(p for p in propose(found).all if "shared" in p.note)
        parts = found.predictor.parts(plan)
        apart = [replace(part, front=None, shared=frozenset()) for part in parts]
        taken[slower] = [found.predictor.latency(one, 2).middle for one in (parts, apart)]
    n = len(parts)
    assert n == 2 and len({part.front for part in parts}) == 1
    # Apart, each part runs the front itself.
    front = (taken[0.0][1] - taken[0.0][0]) / (n - 1)
    more, more_apart = (taken[share][place] - taken[0.0][place] for place in (0, 1))
    assert front > 0 and more_apart > 0
    assert more == pytest.approx(more_apart - share * (n - 1) * n * front)


@pytest.mark.parametrize("step", [1, 4])
def test_a_latency_budget_is_filled_and_never_exceeded_by_the_bound(shop: Any, step: int) -> None:
    free = [plan.predicted for plan in propose(order(shop, step=step)).all if plan.engine == "slicepack"]
    least = min(cost.latency_high_ms for cost in free)
    most = max(cost.latency_high_ms for cost in free)
    unused = []
    for share in (0.15, 0.25, 0.5, 0.6):
        budget = least + share * (most - least)
        plans = propose(order(shop, step=step, budget={"latency_ms": budget}))
        bounds = {p.note: p.predicted.latency_high_ms for p in plans.feasible if p.predicted is not None}
        assert all(bound <= budget for bound in bounds.values())
        assert all("latency_ms" in broken for _, broken in plans.refused)
        solved, stocked = (
            fullest(bounds, "widths for FLOPs, widths solved for the time"),
            fullest(bounds, "FLOPs"),
        )
        assert solved and solved.keys() >= stocked.keys()
        # Stocked counts need not be multiples of the step.
        assert step > 1 or all(solved[shape] > bound for shape, bound in stocked.items())
        assert "solved for the time" in plans.feasible[0].note
        unused.append(1 - max(solved.values()) / budget)
    assert np.mean(unused) < 0.05


def fullest(bounds: Mapping[str, float], ending: str) -> dict[str, float]:
    """The largest bound of the packs whose notes end so, by how their parts share what they can."""
    found: dict[str, float] = {}
    for note, bound in bounds.items():
        if note.endswith(ending):
            shape = note.partition("extractor")[2].partition(", widths")[0]
            found[shape] = max(found.get(shape, 0.0), bound)
    return found


def test_counts_that_the_device_is_slow_at_are_kept_with_a_wider_bound_or_not_at_all(shop: Any) -> None:
    budget = halfway([plan.predicted.latency_high_ms for plan in fragments(propose(order(shop)).all)])
    shop.market.store.profiles.put(profile(off_step_ratio=2.0))
    asked = {"device": {"profile": "paper"}, "engines": ["slicepack"]}
    request = shop.order(*CLASSES, budget={"latency_ms": budget}, **asked)
    found = check_order(request, shop.market.store)
    plans = propose(found)
    sure = [plan for plan in plans.feasible if not found.predictor.is_off_step(found.predictor.parts(plan))]
    odd = [plan for plan in plans.feasible if plan not in sure]
    assert any("solved for the time" in plan.note for plan in sure)
    assert not [plan for plan in odd if "solved" in plan.note]
    for plan in odd:
        latency = found.predictor.latency(found.predictor.parts(plan), len(CLASSES))
        assert plan.predicted is not None
        assert plan.predicted.latency_high_ms == pytest.approx(2 * latency.high)
        assert plan.predicted.latency_ms == pytest.approx(latency.middle)
    assert max(p.predicted.latency_high_ms for p in sure if p.predicted is not None) > 0.9 * budget


@pytest.mark.parametrize(("speed", "room"), [(0.88, 0.9), (1.0, 0.9), (1.12, 1.2)])
def test_widths_are_solved_again_until_the_budget_is_kept_and_filled(
    shop: Any, speed: float, room: float
) -> None:
    # Small donors have few widths at whole steps.
    budget = room * halfway(
        [plan.predicted.latency_ms for plan in fragments(propose(order(shop, step=1)).all)]
    )
    found = order(shop, step=1, budget={"latency_ms": budget})
    first = next(plan for plan in fragments(propose(found).feasible) if "solved for the time" in plan.note)

    def measured(plan: Plan) -> Cost:
        # A device that takes another share of what the profile says, and a twentieth of a millisecond more.
        latency = found.predictor.latency(found.predictor.parts(plan), len(CLASSES)).middle
        assert plan.predicted is not None
        return took(plan.predicted, speed * latency + 0.05)

    rounds = closed(found, first, measured)
    best = max((one for one in rounds if not one.broken), key=lambda one: one.cost.latency_ms or 0.0)
    assert rounds[0].plan is first and best.cost.latency_ms is not None
    assert bool(rounds[0].broken) == (speed > 1)
    assert 0.95 * budget <= best.cost.latency_ms <= budget
    assert (best.cost.params > rounds[0].cost.params) == (speed < 1)
    assert (best.cost.params < rounds[0].cost.params) == (speed > 1)


def test_a_kind_that_only_its_bound_refused_is_tried_where_another_leaves_room(shop: Any) -> None:
    wide = Residuals(folds=(WEIGHTS,) * 2, part=tuple(n % 2 for n in range(60)), shares=(0.4, -0.4) * 30)
    unsure = profile(unit_step=1).replace(kinds=profile().kinds.replace(residuals=wide))

    def asked(**more: Any) -> Any:
        shop.market.store.profiles.put(unsure)
        request = shop.order(*CLASSES, device={"profile": "paper"}, engines=["slicepack"], **more)
        return check_order(request, shop.market.store)

    apart = [plan.predicted for plan in fragments(propose(asked()).all)]
    budget = 0.99 * min(cost.latency_high_ms for cost in apart)
    assert min(cost.latency_ms for cost in apart) < 0.8 * budget
    found = asked(budget={"latency_ms": budget})
    plans = propose(found)
    refused = [broken for plan, broken in plans.refused if plan in fragments([plan])]
    assert refused and set(refused) == {("latency_ms",)} and not fragments(plans.feasible)
    first = max(plans.feasible, key=lambda plan: plan.predicted.latency_ms if plan.predicted else 0.0)
    kind = kind_of(first)

    def measured(plan: Plan) -> Cost:
        latency = found.predictor.latency(found.predictor.parts(plan), len(CLASSES)).middle
        assert plan.predicted is not None
        # No pack of the first kind takes much.
        return took(plan.predicted, latency if kind_of(plan) != kind else min(latency, 0.5 * budget))

    rounds = closed(found, first, measured)
    others = [one for one in rounds if kind_of(one.plan) != kind]
    assert others and rounds[-len(others) :] == tuple(others)
    best = max((one for one in rounds if not one.broken), key=lambda one: one.cost.latency_ms or 0.0)
    assert best in others and 0.95 * budget <= (best.cost.latency_ms or 0.0) <= budget


def test_a_budget_with_room_for_whole_donors_is_solved_too(shop: Any) -> None:
    found = order(shop, budget={"latency_ms": 1e4})
    first = fragments(propose(found).feasible)[-1]
    again = refilled(found, first, 0.1)
    assert again is not None and again.predicted is not None and again.key() != first.key()
    assert again.predicted.params > first.predicted.params


def test_nothing_is_solved_again_without_a_limit_or_for_another_limit(shop: Any) -> None:
    def slow(plan: Plan) -> Cost:
        assert plan.predicted is not None
        return took(plan.predicted, 1e6)

    free = order(shop)
    plan = next(plan for plan in propose(free).all if plan.engine == "slicepack")
    assert [one.plan for one in closed(free, plan, slow)] == [plan]
    small = order(shop, budget={"params": 10, "latency_ms": 50})
    assert len(closed(small, plan, slow)) == 1
    donor = next(plan for plan in propose(free).all if plan.engine == "baselines")
    assert len(closed(order(shop, budget={"latency_ms": 50}), donor, slow)) == 1


def test_counts_are_rounded_up_where_that_is_free(shop: Any) -> None:
    found = order(shop)

    def odd(plan: Plan) -> int:
        parts = found.predictor.parts(plan)
        sizes = {
            part.learnware: found.predictor.donor(part.learnware).whole.analysis.groups for part in parts
        }
        return sum(
            n % 4 != 0 and n != sizes[part.learnware][group].size
            for part in parts
            for group, n in part.counts.items()
        )

    packs = [plan for plan in propose(found).all if plan.engine == "slicepack" and "together" in plan.note]
    rounded = 0
    for pack in packs[2:8:2]:
        assert pack.predicted is not None
        limit = round(1.15 * pack.predicted.params)
        for plan in propose(order(shop, budget={"params": limit})).feasible:
            if "rounded up" in plan.note and "together" in plan.note:
                assert odd(plan) < odd(pack) and plan.predicted is not None
                assert pack.predicted.params < plan.predicted.params <= limit
                rounded += 1
    assert rounded >= 2


def test_what_is_delivered_shows_interval_measurement_and_budget(shop: Any) -> None:
    budget = 0.6 * max(p.predicted.latency_ms for p in propose(order(shop)).all if p.predicted is not None)
    request = shop.order(
        *CLASSES, device={"profile": "paper"}, budget={"latency_ms": budget}, baselines=[], engines=ENGINES
    )
    report = shop.make(request).report
    line = next(line for line in report.cost_lines() if line.name == "latency_ms")
    assert line.predicted_low <= line.predicted <= line.predicted_high <= budget == line.budget
    assert line.measured is not None and line.measured <= budget
    (said,) = [text for text in report.sentences if "Predicted from the profile paper" in text]
    assert f"measured {line.measured:.3g}, {budget:.3g} allowed" in said
    assert all(check.ok for check in report.checks)
    page = (shop.folder / "out" / "report.html").read_text()
    assert f"({line.predicted_low:.3g} to {line.predicted_high:.3g})" in page


def test_the_command_line_shows_intervals(shop: Any) -> None:
    shop.market.store.profiles.put(profile())
    call = [
        "plan",
        "--classes",
        ",".join(CLASSES),
        "--profile",
        "paper",
        "-m",
        str(shop.folder / "market"),
        "--engines",
        "slicepack,baselines",
    ]
    told = CliRunner().invoke(app, [*call, "--max-latency-ms", "1000"], env={"COLUMNS": "220"})
    assert told.exit_code == 0 and "of 1e+03" in told.output and "process MB" in told.output, told.output
    plain = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    cost = plain["plans"][0]["plan"]["predicted"]
    assert cost["latency_low_ms"] <= cost["latency_ms"] <= cost["latency_high_ms"]


def test_a_budget_below_the_floor_and_a_profile_of_another_device_are_refused(shop: Any) -> None:
    store = shop.market.store
    store.profiles.put(profile())
    with pytest.raises(InfeasibleError, match="Floor: latency_ms"):
        shop.market.plan(
            shop.order(*CLASSES, device={"profile": "paper"}, budget={"latency_ms": 0.01}, engines=ENGINES)
        )
    with pytest.raises(RequestError) as caught:
        check_order(
            shop.order(*CLASSES, device={"profile": "paper", "threads": 2, "runtime": "torch"}), store
        )
    told = str(caught.value)
    assert "measured with runtime onnxruntime, the order's device has torch" in told and "threads 1" in told
    with pytest.raises(RequestError, match=r"no device profile 'papers'.*no file either"):
        check_order(shop.order(*CLASSES, device={"profile": "papers"}), store)


def test_a_profile_may_be_a_file(shop: Any) -> None:
    path = shop.folder / "elsewhere.json"
    profile().write(path)
    found = check_order(
        shop.order(*CLASSES, device={"profile": str(path)}, engines=ENGINES), shop.market.store
    )
    assert found.predictor is not None and found.predictor.profile.name == "paper"


def test_a_damaged_profile_is_told_with_its_file(shop: Any) -> None:
    (shop.folder / "empty.json").write_text("{}")
    with pytest.raises(RequestError) as caught:
        check_order(
            shop.order(*CLASSES, device={"profile": str(shop.folder / "empty.json")}), shop.market.store
        )
    assert len(caught.value.problems) > 1
    assert all(text.startswith("device.profile: empty.json: ") for text in caught.value.problems)
