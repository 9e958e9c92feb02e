"""Fragments stocked ahead of orders: only what is missing is made, nothing finished is lost, orders only pack."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sarto.pipeline.slicing as slicing
from sarto import Market, RequestError, StoreError
from sarto.pipeline import Stocking

STOCKS = """
import sys
import torch
from sarto import Market

torch.set_num_threads(1)
with Market.open(sys.argv[1]) as market:
    market.stock_fragments(processes=int(sys.argv[2]), progress=lambda *said: print(*said, flush=True))
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The classes of every fragment that this process slices."""
    seen: list[tuple[int, ...]] = []
    make = slicing.make_fragment

    def counted(readings: Any, classes: Any, *rest: Any, **more: Any) -> Any:
        seen.append(tuple(classes))
        return make(readings, classes, *rest, **more)

    monkeypatch.setattr(slicing, "make_fragment", counted)
    yield seen


def keys_of(done: Stocking) -> set[str]:
    return {made.piece.key for made in done.made}


def test_each_class_is_sliced_once_and_costs_what_plans_say(shop: Any, calls: list[Any]) -> None:
    done = shop.market.stock_fragments(sizes=[0.5, 0.25], processes=1)
    assert len(done.made) == len(calls) == 3 * 3 * 2
    assert (done.present, done.failed, done.skipped) == ((), (), ())
    widths = {
        (learnware.name, width.ratio): width.params
        for learnware in shop.market.learnwares()
        for width in learnware.widths
        if width.objective == "params"
    }
    for made in done.made:
        assert made.params == widths[made.piece.name, made.piece.share]
    listed = shop.market.fragments("discs")
    assert {item["key"] for item in listed} == {m.piece.key for m in done.made if m.piece.name == "discs"}
    donor = shop.market.get("discs")
    for item in listed:
        assert item["learnware"] == donor.id and item["samples"] == donor.samples_hash
        assert item["share"] in (0.5, 0.25) and item["select"] == "css" and item["versions"]["torch"]
        width = next(w for w in donor.widths if w.ratio == item["share"] and w.objective == "params")
        assert item["kept"] == dict(width.keep)
    calls.clear()
    again = shop.market.stock_fragments(sizes=[0.5, 0.25], processes=1)
    assert calls == [] and again.made == () and len(again.present) == 18
    assert shop.market.verify() == []


def test_orders_look_for_the_keys_that_stocking_uses(shop: Any) -> None:
    plans = shop.market.plan(shop.order("red disc", "blue cross", engines=["slicepack"], heldout=None)).all
    shares = {w.ratio for w in shop.market.get("discs").widths if w.ratio < 1}
    classes = ["red disc", "blue cross"]
    shop.market.stock_fragments(["discs", "crosses"], sizes=sorted(shares), classes=classes, processes=1)
    wanted = {key for plan in plans for name, key in plan.subkeys().items() if plan.nodes[name].op == "slice"}
    assert wanted == set(shop.fragments())


def test_what_is_stocked_by_default_is_what_an_order_without_a_budget_takes(
    shop: Any, calls: list[Any]
) -> None:
    """One class of each donor; its control draws units at random: nobody stocks that."""
    classes = ["red disc", "blue cross", "red bar"]
    shop.market.stock_fragments(classes=classes, processes=1)
    calls.clear()
    artifact = shop.make(shop.order(*classes, engines=["slicepack"], heldout=None))
    control = [text for text in shop.said if text.startswith("drawing random units")]
    assert shop.sliced() == [] and len(calls) == len(control) == 3
    assert artifact.damage() == []


def test_what_is_stocked_for_an_order_has_the_fronts_that_classes_share(shop: Any, calls: list[Any]) -> None:
    request = shop.order("red disc", "green disc", "blue cross", engines=["slicepack"], heldout=None)
    done = shop.market.stock_order(request)
    pieces = [made.piece for made in done.made]
    assert len(pieces) == len(calls) == len(shop.fragments()) > 4 and done.failed == done.present == ()
    assert {"red disc, green disc", "red disc", "blue cross"} <= {piece.cls for piece in pieces}
    fronts = [piece for piece in pieces if len(piece.node.classes) == 2 and piece.share is None]
    assert fronts, "what two classes share is no size of its own"
    calls.clear()
    assert len(shop.market.stock_order(request).present) == len(pieces) and calls == []
    shop.make(request)
    assert shop.sliced() == []


def test_what_an_order_misses_is_told_and_the_rest_is_stocked(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = slicing.make_fragment

    def failing(readings: Any, classes: Any, *rest: Any, **more: Any) -> Any:
        if list(classes) == [2]:
            raise ValueError("no luck")
        return make(readings, classes, *rest, **more)

    monkeypatch.setattr(slicing, "make_fragment", failing)
    request = shop.order("red disc", "blue cross", heldout=None)
    done = shop.market.stock_order(request)
    assert {failed.piece.cls for failed in done.failed} == {"blue cross"} and done.made
    assert {failed.left for failed in done.failed} == {"missing"}
    monkeypatch.setattr(slicing, "make_fragment", make)
    assert {made.piece.key for made in shop.market.stock_order(request).made} == {
        failed.piece.key for failed in done.failed
    }


def test_only_what_changed_is_made_anew(shop: Any, calls: list[Any]) -> None:
    first = shop.market.stock_fragments(["discs"], sizes=[0.5], processes=1)
    calls.clear()
    # Other samples: other keys. The old ones stay for orders of all samples.
    fewer = shop.market.stock_fragments(["discs"], sizes=[0.5], samples_per_class=3, processes=1)
    assert len(calls) == 3 and keys_of(fewer).isdisjoint(keys_of(first))
    calls.clear()
    # Another size of one class: one fragment.
    wider = shop.market.stock_fragments(["discs"], sizes=[0.5, 0.8], classes=["red disc"], processes=1)
    assert len(calls) == 1 and len(wider.present) == 1
    calls.clear()
    # Another donor: its own fragments only.
    more = shop.market.stock_fragments(["discs", "bars"], sizes=[0.5], processes=1)
    assert len(calls) == 3 and {made.piece.name for made in more.made} == {"bars"}


def test_other_settings_give_other_keys_and_prune_takes_the_older_ones(
    shop: Any, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shop.market.stock_fragments(["discs", "bars"], sizes=[0.5], processes=1)
    assert shop.market.prune_fragments().removed == ()
    monkeypatch.setattr(importlib.import_module("sarto.engines.slicepack.propose"), "LAM", 0.5)
    calls.clear()
    second = shop.market.stock_fragments(["discs"], sizes=[0.5], processes=1)
    assert len(calls) == 3 and keys_of(first).isdisjoint(keys_of(second))
    pruned = shop.market.prune_fragments("discs")
    old = {made.piece.key for made in first.made if made.piece.name == "discs"}
    assert dict(pruned.removed) == dict.fromkeys(old, "repaired with other settings (lam)")
    assert pruned.freed_bytes > 0
    assert set(shop.fragments()) == keys_of(second) | (keys_of(first) - old)
    assert shop.market.verify() == []


def test_fragments_go_with_their_learnware_and_come_again(shop: Any) -> None:
    done = shop.market.stock_fragments(["discs", "bars"], sizes=[0.5], processes=1)
    removed = shop.market.remove("discs")
    assert set(removed.fragments) == {made.piece.key for made in done.made if made.piece.name == "discs"}
    with pytest.raises(RequestError, match=r"learnware 'discs' .* was removed"):
        shop.market.stock_fragments(["discs"])
    assert shop.market.prune_fragments().removed == ()
    with pytest.raises(RequestError, match=r"'discs' .* was removed"):
        shop.market.prune_fragments("discs")


def test_a_learnware_that_is_removed_meanwhile_is_reported_and_the_others_go_on(shop: Any) -> None:
    def remove(step: str, done: int, total: int) -> None:
        if step == "slicing green disc out of discs" and done == 1:
            shop.market.remove("discs")

    done = shop.market.stock_fragments(["discs", "bars"], sizes=[0.5], processes=1, progress=remove)
    assert [failed.piece.cls for failed in done.failed] == ["green disc", "blue disc"]
    assert all("was removed" in failed.reason for failed in done.failed)
    assert {item["name"] for item in shop.market.fragments()} == {"bars"}
    assert shop.market.verify() == []


def test_a_damaged_fragment_is_made_again(shop: Any, calls: list[Any]) -> None:
    done = shop.market.stock_fragments(["discs"], sizes=[0.5], processes=1)
    fragment = shop.market.store.fragments()[0]
    digits = fragment.weights_hash.removeprefix("sha256:")
    blob = shop.market.path / "blobs" / digits[:2] / digits[2:]
    blob.write_bytes(blob.read_bytes()[:-1])
    calls.clear()
    again = shop.market.stock_fragments(["discs"], sizes=[0.5], processes=1)
    assert keys_of(again) == {fragment.key} and len(calls) == 1
    assert shop.market.verify() == []
    assert set(shop.fragments()) == keys_of(done)


def test_again_replaces_what_is_there(shop: Any, calls: list[Any]) -> None:
    shop.market.stock_fragments(["discs"], sizes=[0.5], processes=1)
    before = {fragment.key: fragment.created for fragment in shop.market.store.fragments()}
    calls.clear()
    shop.market.stock_fragments(["discs"], sizes=[0.5], again=True, processes=1)
    after = {fragment.key: fragment.created for fragment in shop.market.store.fragments()}
    assert len(calls) == 3 and before.keys() == after.keys()
    assert all(after[key] > created for key, created in before.items())
    assert shop.market.verify() == []


def test_all_that_is_wrong_is_said_at_once(shop: Any) -> None:
    shop.add("bare", ("x", "y", "z"), samples=None)
    with pytest.raises(RequestError) as refused:
        shop.market.stock_fragments(
            ["disc", "discs", "bare"],
            sizes=[0.5, 1.0, 0.3, -1],
            classes=["red disk"],
            samples_per_class=0,
            processes=0,
        )
    told = "\n".join(refused.value.problems)
    for words in (
        r"no learnware 'disc' \(did you mean 'discs'\?\)",
        r"'bare' has no samples to slice it with",
        r"no chosen learnware knows 'red disk' \(did you mean 'red disc'\?\)",
        r"--sizes: 1 is no share",
        r"--sizes: -1 is no share",
        r"--sizes: 0\.3 is none of the sizes of learnware 'discs'; orders take one of 0\.8, ",
        r"--samples-per-class: must be at least 1, got 0",
        r"--processes: must be at least 1, got 0",
        r"learnware 'discs' knows none of red disk",
    ):
        assert re.search(words, told), words
    assert shop.fragments() == {}


def test_what_can_not_be_sliced_is_passed_over_unless_it_is_named(shop: Any) -> None:
    shop.add("bare", ("x", "y", "z"), samples=None)
    done = shop.market.stock_fragments(sizes=[0.5], classes=["red bar"], processes=1)
    assert [made.piece.cls for made in done.made] == ["red bar"]
    assert len(done.skipped) == 1 and "'bare' has no samples" in done.skipped[0]
    with Market.create(shop.folder / "empty") as empty, pytest.raises(RequestError, match="is empty"):
        empty.stock_fragments()


def test_two_processes_make_what_one_makes(shop: Any, calls: list[Any]) -> None:
    two = shop.market.stock_fragments(["discs", "bars"], sizes=[0.25], processes=2)
    assert calls == [] and len(two.made) == 6 and two.failed == (), "other processes sliced"
    found = shop.fragments()
    shop.market.stock_fragments(["discs", "bars"], sizes=[0.25], processes=1, again=True)
    assert len(calls) == 6 and shop.fragments() == found


def test_an_interrupted_round_goes_on_where_it_stopped(shop: Any, calls: list[Any]) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step.startswith("slicing") and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.market.stock_fragments(sizes=[0.25], processes=1, progress=interrupt)
    kept = shop.fragments()
    assert len(kept) == len(calls) == 5
    rest = shop.market.stock_fragments(sizes=[0.25], processes=1)
    assert (len(rest.present), len(rest.made), len(calls)) == (5, 4, 9)
    assert kept.items() <= shop.fragments().items() and shop.market.verify() == []


@pytest.mark.slow
def test_a_process_that_dies_takes_one_fragment_along(shop: Any) -> None:
    killed: list[str] = []

    def kill(step: str, done: int, total: int) -> None:
        # Said before the piece is sent: the process that gets it is dead by then.
        if step.startswith("slicing") and not killed:
            me = os.getpid()
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            killed.append(step.split(" ", 1)[1])

    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("this system does not list the children of a process")
    done = shop.market.stock_fragments(sizes=[0.5], processes=2, progress=kill)
    assert [f"{f.piece.cls} out of {f.piece.name}" for f in done.failed] == killed
    assert "was killed by SIGKILL" in done.failed[0].reason
    assert len(done.made) == 8 and shop.market.verify() == []
    rest = shop.market.stock_fragments(sizes=[0.5], processes=1)
    assert keys_of(rest) == {done.failed[0].piece.key}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "processes"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)])
def test_killed_in_the_middle_it_goes_on_where_it_stopped(shop: Any, how: int, processes: int) -> None:
    command = [sys.executable, "-c", STOCKS, str(shop.market.path), str(processes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("sliced") and int(line.split()[-2]) >= 4:
                running.send_signal(how)
                break
        running.communicate(timeout=60)
    assert running.returncode != 0
    with Market.open(shop.market.path) as market:
        kept = {fragment.key for fragment in market.store.fragments()}
        assert 4 <= len(kept) < 18, "what was finished is there"
        rest = market.stock_fragments(processes=1)
        now = {fragment.key for fragment in market.store.fragments()}
        assert len(now) == 18 and kept <= now
        # Processes whose parent was killed may finish the piece that they hold.
        assert kept.isdisjoint(keys_of(rest)) and len(rest.made) + len(rest.present) == 18
        assert market.verify() == []


@pytest.mark.slow
def test_a_process_whose_parent_was_killed_ends_quietly(shop: Any) -> None:
    command = [sys.executable, "-m", "sarto.pipeline.hand", str(shop.market.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as hand:
        assert hand.stdout is not None and hand.stderr is not None
        hand.stdout.close()
        assert hand.stderr.read() == ""
        assert hand.wait(60) == 0


def test_a_market_that_is_gone_ends_in_an_error(shop: Any) -> None:
    shutil.rmtree(shop.market.path)
    with pytest.raises(StoreError):
        shop.market.stock_fragments(processes=1)
