"""Indexed zoos that are awkward or change: what chains are fitted, chosen and scored on is told, and nobody is lost."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from typer.testing import CliRunner

from sarto import Samples
from sarto.cli.app import app
from sarto.engines.reassembly import best_chains
from sarto.errors import InfeasibleError, RequestError
from sarto.pipeline import Artifact
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import propose
from sarto.pipeline.contest import score_plan
from sarto.pipeline.indexed_zoo import usable, zoo_of
from sarto.pipeline.indexing import index_zoo, indices
from sarto.pipeline.locking import lock_of, read_lock
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.zoo_front import zoo_front
from sarto.pipeline.zoo_map import similarity_map
from sarto.types import Budget, ChainNode, DonorRules, Plan
from tests.e2e.conftest import Shop

RED = ("red disc", "green disc")


@pytest.fixture
def indexed(shop: Shop) -> Shop:
    index_zoo(shop.market.store, "zoo", n_probes=32, batch=8)
    return shop


def _order(shop: Shop, *classes: str, **more: Any) -> Order:
    said = {"engines": ["reassembly"], "baselines": [], "heldout": None, **more}
    return check_order(shop.order(*(classes or RED), **said), shop.market.store)


def _chain(order: Order, kind: str) -> Plan:
    """The first whole chain under a head of some kind."""
    plans = [plan for plan in propose(order).feasible if plan.note.startswith("chain ")]
    return next(plan for plan in plans if getattr(plan.nodes[plan.out], "kind", "") == kind)


def _equal(one: Samples, two: Samples) -> int:
    """How many images of one are in the other, pixel by pixel."""
    return sum(bool((two.images == image).all((1, 2, 3)).any()) for image in one.images)


def test_an_interval_says_on_how_many_of_its_images_stitches_were_fitted(indexed: Shop) -> None:
    store, order = indexed.market.store, _order(indexed)
    n = _equal(order.samples, indices(store).get("zoo").probes())
    assert 0 < n < len(order.samples)
    told = f"stitches fitted on {n} of these images, labels unread"
    builder = Builder(store, {s.digest: s for s in (order.samples, *order.donor_samples.values())})
    own, new = _chain(order, "restrict"), _chain(order, "ridge")
    donor = {
        "donor": {"op": "source", "of": order.donors[0].id},
        "head": {"op": "head", "of": "donor", "kind": "restrict", "classes": list(RED)},
    }
    chance = {
        name: node.replace(stitch=node.stitch.replace(random=1)) if isinstance(node, ChainNode) else node
        for name, node in own.nodes.items()
    }
    for plan, method in (
        (own, f"jeffreys, {told}"),
        (new, f"jeffreys, one of each class left out; {told}"),
        (own.replace(nodes=chance), "jeffreys, nothing was fitted"),
        (Plan.parse({"nodes": donor, "out": "head"}), "jeffreys, nothing was fitted"),
    ):
        interval = score_plan(builder, plan, order.samples, "plan", "scored").row.interval
        assert interval is not None and interval.method == method
    others = score_plan(builder, own, indexed.draw(RED, 4, 9), "plan", "scored").row.interval
    assert others is not None and others.method == "jeffreys, nothing was fitted"


def test_heldout_images_that_are_probe_images_are_refused(indexed: Shop) -> None:
    store, classes = indexed.market.store, indexed.donors["bars"][1][:2]
    # Images of a donor that the order is not of, so that only the index has them.
    stocked = store.samples(store.get("bars").id).only(classes)
    assert isinstance(stocked, Samples)
    n = _equal(stocked, indices(store).get("zoo").probes())
    assert 0 < n < len(stocked)
    images = np.concatenate([stocked.images, indexed.draw(classes, 2, 8).images])
    path = str(indexed.write_images(_half_each(images), indexed.folder / "held"))
    words = rf"{n} of {len(images)} held-out images are probe images of index 'zoo'.*give others"
    with pytest.raises(RequestError, match=words) as caught:
        _order(indexed, heldout=path)
    assert len(caught.value.problems) == 1
    plain = _order(indexed, heldout=path, engines=["slicepack"])
    assert plain.heldout is not None and len(plain.heldout) == len(images)
    # With images of the order among them, both are told.
    images = np.concatenate([images, plain.samples.images[:2]])
    path = str(indexed.write_images(_half_each(images), indexed.folder / "both"))
    with pytest.raises(RequestError) as caught:
        _order(indexed, heldout=path)
    assert ["decided on" in text for text in caught.value.problems] == [True, False]


def _half_each(images: NDArray[np.uint8]) -> Samples:
    """Images that are said to be of the two ordered classes in turn."""
    return Samples(images, np.arange(len(images)) % 2, RED)


def _untrained(shop: Shop, name: str) -> nn.Module:
    """A network of the shape of a donor, with weights of its own."""
    factory, classes, _ = shop.donors[name]
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return factory(len(classes)).eval()


def test_a_donor_without_samples_has_the_median_skill_of_its_zoo_and_is_told(shop: Shop) -> None:
    classes = shop.donors["crosses"][1]
    shop.add("poor", classes, _untrained(shop, "crosses"))
    shop.add("mute", classes, _untrained(shop, "bars"), samples=None)
    store = shop.market.store
    index_zoo(store, "zoo", n_probes=32, batch=8)
    found = usable(store, indices(store).get("zoo"), RED)
    skills = {held.name: one.skill for one, held in zip(found.zoo.entries, found.learnwares, strict=True)}
    known = [skill for name, skill in skills.items() if name != "mute"]
    assert skills["mute"] == np.median(known) > min(known)
    told = f"taken as {skills['mute']:.0%} right, the median of its zoo"
    assert found.notes == (f"mute came without samples, so its skill is not known: {told}",)
    assert found.notes[0] in zoo_front(store, indices(store).get("zoo")).notes
    chains = [plan for plan in propose(_order(shop)).feasible if plan.note.startswith("chain ")]
    with_mute = [plan for plan in chains if store.get("mute").id in plan.learnwares]
    assert with_mute and len(with_mute) < len(chains)
    for plan in chains:
        assert (f"; skill of mute unknown, {told}" in plan.note) == (plan in with_mute)
    for name in ("discs", "bars", "crosses", "poor"):
        shop.market.remove(name)
    shop.add("dumb", classes, _untrained(shop, "discs"), samples=None)
    index_zoo(store, "zoo")
    alone = usable(store, indices(store).get("zoo"))
    assert [entry.skill for entry in alone.zoo.entries] == [0.5, 0.5]
    gone = {f"{name} is left out: it was removed from the market" for name in alone.absent}
    assert set(alone.absent) == {"discs", "bars", "crosses", "poor"} and gone < set(alone.notes)
    assert len(alone.notes) == len(gone) + 2


def test_skill_is_that_of_the_wanted_classes(shop: Shop) -> None:
    classes = shop.donors["discs"][1]
    shop.add("uneven", classes, _untrained(shop, "crosses"))
    store = shop.market.store
    index_zoo(store, "zoo", n_probes=32, batch=8)
    measured = dict(store.get("uneven").skill or {})
    assert len(set(measured.values())) > 1

    def skill(*wanted: str) -> float:
        zoo, held = zoo_of(store, indices(store).get("zoo"), wanted)
        return next(e.skill for e, item in zip(zoo.entries, held, strict=True) if item.name == "uneven")

    for cls in classes:
        assert skill(cls) == skill(cls, "red bar") == measured[cls]
    assert skill(*classes[:2]) == pytest.approx((measured[classes[0]] + measured[classes[1]]) / 2)
    assert skill() == skill("red bar") == pytest.approx(sum(measured.values()) / 3)


def test_a_search_that_is_cut_off_is_told_in_plans_reasons_and_the_lock(
    indexed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = _order(indexed)
    whole = [plan.key() for plan in propose(order).feasible if plan.note.startswith("chain ")]

    def most(n: int) -> None:
        limited = functools.partial(best_chains, most_expanded=n)
        monkeypatch.setattr("sarto.pipeline.reassembling.best_chains", limited)

    most(4)
    some = [plan for plan in propose(order).feasible if plan.note.startswith("chain ")]
    searched = [plan for plan in some if not any(node.op == "slice" for node in plan.nodes.values())]
    assert searched and len(some) < len(whole)
    # Less of the list, but no other chains.
    assert {plan.key() for plan in searched} <= set(whole)
    told = "search cut off after 4 partial chains: there may be further chains"
    assert all(plan.note.endswith(f"; {told}") for plan in searched)
    request = indexed.order(*RED, engines=["reassembly"], baselines=[], heldout=None)
    lock = read_lock(indexed.make(request, "cut", plan=searched[0]).folder)
    assert lock.solver["blocks"] == "a given plan" and "cut off" in lock.plan.note
    report = Artifact.read(indexed.folder / "cut").report
    free = lock_of(indexed.market.store, report, given=False)
    assert free is not None and free.solver["blocks"] == (
        "A* with completion bounds, search cut off, of its list the least divergence from the last donor"
    )
    most(1)
    with pytest.raises(
        InfeasibleError, match="under a new head: search cut off after 1 partial chains, before"
    ):
        indexed.market.plan(request)


def test_of_two_copies_the_indexed_one_is_used_and_named(shop: Shop) -> None:
    store, known = shop.market.store, shop.donors["bars"][1]
    for name, licence in (("middle", "MIT"), ("late", "CC0-1.0")):
        shop.add(name, known, shop.models["bars"], samples=None, licence=licence)
    index_zoo(store, "zoo", ["discs", "crosses", "late"], n_probes=32, batch=8)

    def used() -> set[str]:
        return {item.name for item in zoo_of(store, indices(store).get("zoo"))[1]}

    assert used() == {"discs", "crosses", "late"}
    for name in ("bars", "middle"):
        asked = shop.order(*RED, engines=["reassembly"], heldout=None, donors={"must": [name]})
        words = f"{name} must be used, but is a copy of late, which is indexed: name that one"
        with pytest.raises(InfeasibleError, match=words):
            shop.market.plan(asked)
    shop.add("apart", known, _untrained(shop, "bars"))
    asked = shop.order(*RED, engines=["reassembly"], heldout=None, donors={"must": ["apart", "bars"]})
    both = r"late, which is indexed: name that one; apart must be used, but is not among .*: index it"
    with pytest.raises(InfeasibleError, match=both):
        shop.market.plan(asked)
    # Without the indexed one its oldest copy takes its place, so far as it may.
    shop.market.remove("late")
    assert used() == {"discs", "crosses", "bars"}
    only = [store.get(name).id for name in ("discs", "crosses", "middle")]
    held = zoo_of(store, indices(store).get("zoo"), only=only)[1]
    assert {item.name for item in held} == {"discs", "crosses", "middle"}
    shop.market.remove("bars")
    assert used() == {"discs", "crosses", "middle"}


def test_donors_too_shallow_for_two_blocks_are_left_out_by_name_and_the_others_kept(shop: Shop) -> None:
    store, known = shop.market.store, shop.donors["discs"][1]
    before = {held.name for held in store.learnwares()}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        one = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3))
        two = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
    shop.add("one", known, one.eval())
    shop.add("two", known, two.eval())
    done = index_zoo(store, "zoo", n_probes=32, batch=8)
    index = indices(store).get("zoo")
    assert {model.name: len(model.places) for model in index.models() if model.name in ("one", "two")} == {
        "one": 1,
        "two": 2,
    }
    why = {
        "one": "it has 1 cut point, 3 are the least for two blocks, so chains leave it out",
        "two": "it has 2 cut points, 3 are the least for two blocks, so chains leave it out",
    }
    assert dict(done.doubtful) == why
    order = _order(shop)
    assert order.chains is not None
    offered = order.chains.offered(
        order.classes, order.samples.digest, Budget(), order.donors[0].input_shape, DonorRules()
    )
    assert offered.plans and not offered.why_not
    shallow = {store.get(name).id for name in why}
    assert not any(shallow & set(plan.learnwares) for plan in offered.plans)
    left = [f"{name} is left out: {reason}" for name, reason in why.items()]
    fewer = "models are parted into 2 blocks, not 4, for want of cut points: crosses has 3"
    assert offered.notes == tuple(f"index zoo: {note}" for note in (*left, fewer))
    found = similarity_map(store, index)
    assert {model.name for model in found.models} == before
    assert found.notes == zoo_front(store, index).notes == (*left, fewer)
    assert similarity_map(store, index, 2).notes == tuple(left)
    for words in (("zoo", "map"), ("zoo", "front")):
        said = CliRunner().invoke(app, [*words, "zoo", "-m", str(shop.market.path)])
        assert said.exit_code == 0 and all(note in said.stdout for note in (*left, fewer))
    asked = shop.order(*RED, engines=["reassembly"], heldout=None, donors={"must": ["two"]})
    with pytest.raises(InfeasibleError, match=f"two must be used, but {why['two']}"):
        shop.market.plan(asked)


def test_deep_donors_are_parted_into_as_many_blocks_as_usual(shop: Shop) -> None:
    known, widths = shop.donors["bars"][1], (8, 12, 16, 8, 12)
    for name in ("deep", "deeper"):
        layers: list[nn.Module] = []
        with torch.random.fork_rng():
            torch.manual_seed(len(name))
            for before, after in itertools.pairwise((3, *widths)):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12 * 4, 3))
        shop.add(name, known, model.eval())
    store = shop.market.store
    index_zoo(store, "deep", ["deep", "deeper"], n_probes=32, batch=8)
    found = similarity_map(store, indices(store).get("deep"))
    assert found.k == 4 and found.notes == ()
