"""Indexed zoos that are awkward or change: what chains are fitted, chosen and scored on is told, and nobody is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sarto import Samples
from sarto.errors import RequestError
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import propose
from sarto.pipeline.contest import score_plan
from sarto.pipeline.indexing import index_zoo, indices
from sarto.pipeline.order import Order, check_order
from sarto.types import ChainNode, Plan
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
