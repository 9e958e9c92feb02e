"""Donors that are not like the others: no bias in the head, nothing to cut, no samples, other images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto import zoo
from sarto.errors import RequestError
from sarto.graph import INSIDE_HEADS, capture
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import propose
from sarto.pipeline.order import check_order
from sarto.types import BlockNode, SliceNode
from tests.e2e.conftest import PREPROCESSING, SIDE, Plain, Shop, train


class Bare(Plain):
    """Its classifier has no bias."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.fc = nn.Linear(self.fc.in_features, n_classes, bias=False)


class Blind(nn.Module):
    """A linear classifier of pooled pixels: there is nothing to cut."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


def test_a_donor_without_a_bias_in_its_head_is_counted_as_it_is(shop: Shop) -> None:
    classes = ("green disc", "green cross", "green bar")
    shop.add("bare", classes, train(Bare, classes, 4))
    artifact = shop.make(shop.order("bare:green disc", "bare:green cross", heldout=None, baselines=[]))
    checks = {check.name: check for check in artifact.report.checks}
    assert all(check.ok for check in checks.values()), checks
    donor = next(item for item in shop.market.learnwares() if item.name == "bare")
    assert not donor.own_bias and all(item.own_bias for item in shop.market.learnwares() if item != donor)
    order = check_order(shop.order("bare:green disc", "bare:green cross", heldout=None), shop.market.store)
    plans = propose(order).all
    own = [plan for plan in plans if plan.nodes[plan.out].op == "head" and "own classifier" in plan.note]
    assert own and any("as it is" in plan.note for plan in plans)
    for plan in own[:1]:
        held = {order.samples.digest: order.samples, **{s.digest: s for s in order.donor_samples.values()}}
        built = Builder(shop.market.store, held).build(plan).graph
        assert plan.predicted is not None
        assert plan.predicted.params == sum(built.tensors[name].numel() for name in built.parameters)


def test_a_donor_that_nothing_can_be_cut_off_goes_whole_beside_slices_of_others(shop: Shop) -> None:
    classes = ("green cross", "green bar")
    shop.add("blind", classes, Blind(2).eval())
    order = check_order(shop.order("red disc", "red cross", "blind:green bar"), shop.market.store)
    packs = [plan for plan in propose(order).all if plan.engine == "slicepack"]
    assert packs
    blind = next(item.id for item in shop.market.learnwares() if item.name == "blind")
    for plan in packs:
        cut = [node for node in plan.nodes.values() if isinstance(node, SliceNode)]
        whole = [
            node
            for node in plan.nodes.values()
            if isinstance(node, BlockNode) and getattr(plan.nodes[node.of], "of", None) == blind
        ]
        assert cut and len(whole) == 1


def test_heads_of_a_transformer_without_samples_are_not_cut_inside(shop: Shop) -> None:
    model = zoo.vit(2, SIDE, patch=4, width=16, depth=1, heads=4, mlp_ratio=2.0)
    shop.add("vit", ("green cross", "green bar"), model.eval(), samples=None)
    donor = next(item for item in shop.market.learnwares() if item.name == "vit")
    groups = capture(model, torch.rand(2, 3, SIDE, SIDE), prove=False).analysis.sliceable
    inside = {group.id for group in groups if group.kind in INSIDE_HEADS}
    assert inside, "there would be something to cut inside of heads"
    sizes = {group.id: group.size for group in groups}
    for width in donor.widths:
        assert all(width.keep.get(name, sizes[name]) == sizes[name] for name in inside)
    assert any(width.ratio < 1 and dict(width.keep) for width in donor.widths)


def test_who_knows_a_class_too_but_reads_other_images_is_named(shop: Shop) -> None:
    model = Plain(2)
    model.fc = nn.Linear(16 * 8 * 8, 2)
    large = {**PREPROCESSING, "size": [2 * SIDE, 2 * SIDE]}
    shop.add("large", ("red disc", "red bar"), model.eval(), samples=None, preprocessing=large)
    order = check_order(shop.order("discs:red disc", "crosses:red cross"), shop.market.store)
    assert not order.requirement.notes
    order = check_order(shop.order("red disc", "red cross"), shop.market.store)
    told = [note for note in order.requirement.notes if "large knows red disc too" in note]
    assert len(told) == 1 and "large:red disc" in told[0]


def test_numbers_of_the_papers_method_that_an_order_can_not_keep_are_refused(shop: Shop) -> None:
    for paper in ({"beta": 0.3}, {"streams": True}):
        with pytest.raises(RequestError, match="an order is planned by size"):
            shop.order("red disc", "red cross", method="paper", paper=paper)
    drawn = shop.order("red disc", "red cross", method="paper", seed=7)
    plans = propose(check_order(drawn, shop.market.store)).all
    seeds = {
        node.paper.seed for plan in plans for node in plan.nodes.values() if getattr(node, "paper", None)
    }
    assert seeds == {7}


def test_a_report_says_whose_probabilities_a_model_gives(shop: Shop) -> None:
    own = shop.make(
        shop.order("red disc", "green disc", heldout=None, engines=["slicepack"], baselines=[]), "own"
    )
    fitted = shop.make(
        shop.order("red disc", "red cross", heldout=None, engines=["slicepack"], baselines=[]), "fitted"
    )
    for artifact in (own, fitted):
        head = artifact.report.plan.nodes[artifact.report.plan.out]
        told = any(text.startswith("calibration: ") for text in artifact.report.not_tried)
        assert told == (getattr(head, "kind", None) == "restrict")
    assert not any(text.startswith("calibration: ") for text in fitted.report.not_tried)
