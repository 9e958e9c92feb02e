"""Rules about donors hold for every plan of an order; what can't be kept together is named."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from sarto.cli.app import app
from sarto.errors import InfeasibleError, RequestError
from sarto.pipeline.choose import Plans
from sarto.pipeline.indexing import index_zoo
from sarto.types import ChainNode, Plan, SourceNode
from tests.e2e.conftest import Shop

RED = ("red disc", "green disc")


@pytest.fixture
def indexed(shop: Shop) -> Shop:
    index_zoo(shop.market.store, "zoo", n_probes=32, batch=8)
    return shop


def _plans(shop: Shop, **rules: Any) -> Plans:
    found = shop.market.plan(shop.order(*RED, donors=rules))
    assert isinstance(found, Plans)
    return found


def _used(shop: Shop, plans: Plans) -> list[set[str]]:
    names = {item.id: item.name for item in shop.market.learnwares()}
    return [{names[id_] for id_ in plan.learnwares} for plan in plans.feasible]


def test_a_donor_that_must_be_used_is_in_every_plan_and_one_to_avoid_in_none(indexed: Shop) -> None:
    free = _used(indexed, _plans(indexed))
    assert {"discs"} in free
    assert any("bars" in used for used in free)
    kept = _used(indexed, _plans(indexed, must=["crosses"], avoid=["bars"]))
    assert kept
    assert all("crosses" in used and "bars" not in used for used in kept)


def test_the_number_of_donors_holds_for_every_plan(indexed: Shop) -> None:
    assert {len(used) for used in _used(indexed, _plans(indexed, most=1))} == {1}
    assert {len(used) for used in _used(indexed, _plans(indexed, least=2))} == {2}
    with pytest.raises(InfeasibleError, match="No chain of 2 blocks keeps at least 3 donors"):
        _plans(indexed, least=3)


def test_listed_chains_differ_in_as_many_blocks_as_was_asked(indexed: Shop) -> None:
    free = [plan for plan in _plans(indexed).feasible if plan.engine == "reassembly"]
    told = [plan for plan in _plans(indexed, differ=2).feasible if plan.engine == "reassembly"]
    assert len(told) < len(free)
    for kind in ("restrict", "ridge"):
        blocks = [_blocks(plan) for plan in told if getattr(plan.nodes[plan.out], "kind", "") == kind]
        assert blocks
        for one, two in itertools.combinations(blocks, 2):
            assert all(a != b for a, b in zip(one, two, strict=True))
    assert len(told) > 2


def _blocks(plan: Plan) -> list[str]:
    """The donor of each block of a chain."""
    (chain,) = [node for node in plan.nodes.values() if isinstance(node, ChainNode)]
    sources = [plan.nodes[name] for name in chain.of]
    return [source.of for source in sources if isinstance(source, SourceNode)]


def test_licences_leave_donors_out(indexed: Shop) -> None:
    discs = indexed.donors["discs"][1]
    indexed.add("grabby", discs, samples=None, licence="GPL-3.0-only")
    indexed.add("mute", discs, indexed.models["bars"], samples=None)
    index_zoo(indexed.market.store, "zoo")
    asked = {"deny_licences": ["gpl-3.0-ONLY"]}
    assert all("grabby" not in used for used in _used(indexed, _plans(indexed, **asked)))
    allowed = _used(indexed, _plans(indexed, allow_licences=["CC0-1.0"]))
    assert allowed
    assert all(not used & {"grabby", "mute"} for used in allowed)
    with pytest.raises(RequestError, match=r"'mute' must be used, but it states no licence"):
        _plans(indexed, must=["mute"], allow_licences=["CC0-1.0"])


def test_a_class_whose_donors_are_all_refused_says_why(indexed: Shop) -> None:
    with pytest.raises(RequestError, match=r"'discs' knows it, but it is to be avoided"):
        _plans(indexed, avoid=["discs"])
    with pytest.raises(RequestError, match=r"its licence 'CC0-1.0' is not allowed"):
        _plans(indexed, deny_licences=["CC0-1.0"])


def test_a_name_that_nobody_has_is_refused_with_a_suggestion(indexed: Shop) -> None:
    with pytest.raises(RequestError, match=r"donors\.must\[0\]: no learnware or supernet 'crases'.*crosses"):
        _plans(indexed, must=["crases"])


def test_rules_that_contradict_each_other_are_refused() -> None:
    from sarto.types import DonorRules

    for said, match in (
        ({"must": ["a"], "avoid": ["a"]}, "'a' must be used too"),
        ({"must": ["a", "b"], "most": 1}, "is 1, but 2 must be used"),
        ({"least": 3, "most": 2}, r"is 2, but \.least asks for 3"),
        ({"allow_licences": ["MIT"], "deny_licences": ["mit"]}, "'mit' is allowed too"),
    ):
        with pytest.raises(RequestError, match=match):
            DonorRules.parse(said)


def test_what_can_not_be_kept_together_is_named(indexed: Shop) -> None:
    request = indexed.order(
        *RED, engines=["reassembly"], donors={"must": ["bars", "crosses"]}, budget={"params": 1_500}
    )
    with pytest.raises(InfeasibleError) as caught:
        indexed.market.plan(request)
    text = str(caught.value)
    assert "These can't be kept together, any one fewer can" in text
    assert "params <= 1500" in text and ("with bars" in text or "with crosses" in text)
    with pytest.raises(InfeasibleError, match=r"Of \d+ plans so many break each: .*with bars"):
        indexed.market.plan(indexed.order(*RED, engines=["slicepack"], donors={"must": ["bars"]}))


def test_the_delivered_model_keeps_the_rules_and_names_its_licences(indexed: Shop) -> None:
    request = indexed.order(*RED, baselines=[], donors={"must": ["bars"]})
    artifact = indexed.make(request, "ruled")
    assert "bars" in {donor.name for donor in artifact.report.lineage}
    rows = {row.role for row in artifact.report.rows}
    # What the rules rule out still stands beside the pick.
    assert "donor" in rows
    assert artifact.report.licences == artifact.manifest.licences == ("CC0-1.0",)
    plan = next(p for p in _plans(indexed).feasible if len(p.learnwares) == 1)
    with pytest.raises(RequestError, match="the given plan breaks what the order asks of donors: with bars"):
        indexed.make(request, "given", plan=plan)


def test_rules_are_options_of_plan(indexed: Shop) -> None:
    market = str(indexed.market.path)
    told = CliRunner().invoke(
        app,
        [
            "plan",
            "--classes",
            ",".join(RED),
            "--must-use",
            "bars",
            "--max-donors",
            "2",
            "-m",
            market,
            "--json",
        ],
    )
    assert told.exit_code == 0, told.output
    listed = json.loads(told.stdout)["plans"]
    bars = indexed.market.get("bars").id
    kept = [item for item in listed if not item["breaks"]]
    broken = [item for item in listed if item["breaks"]]
    assert kept and all(bars in json.dumps(item["plan"]) for item in kept)
    assert any("with bars" in item["breaks"] for item in broken)
