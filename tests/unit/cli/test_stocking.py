"""`sarto stock`, and fragments in `ls` and `show`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.unit.cli.markets import CLASSES, run


@pytest.fixture
def own(market: Path, tmp_path: Path) -> Path:
    """A copy of the market, without fragments."""
    return Path(shutil.copytree(market, tmp_path / "market"))


def test_stock_makes_what_is_missing_and_lists_it(own: Path) -> None:
    first = run("stock", "--market", own, "--sizes", ".5", "--processes", 1)
    assert first.exit_code == 0 and "stocked 3 fragments" in first.stdout, first.output
    again = run("stock", "tiny", "--market", own, "--sizes", "0.5,0.8", "--json")
    said = json.loads(again.stdout)
    assert [piece["share"] for piece in said["made"]] == [0.8] * 3 and len(said["present"]) == 3
    assert {piece["class"] for piece in said["made"]} == set(CLASSES)
    listed = run("ls", "--fragments", "--market", own)
    assert "6 fragments of 1 learnwares" in listed.stdout and "[red]ship" in listed.stdout
    shown = json.loads(run("market", "show", "tiny", "--fragments", "--json", "--market", own).stdout)
    keys = {piece["key"] for piece in [*said["made"], *said["present"]]}
    assert {item["key"] for item in shown["fragments"]} == keys
    counted = json.loads(run("ls", "--json", "--market", own).stdout)
    assert counted["n_fragments"] == 6 and "fragments" not in counted


def test_an_order_says_what_is_stocked_for_it(own: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.yaml"
    order.write_text("task: {classes: [cat, dog]}\nengines: [slicepack]\n")
    said = json.loads(run("stock", "--for", order, "--market", own, "--json").stdout)
    assert {piece["class"] for piece in said["made"]} >= {"cat, dog"} and said["failed"] == []
    again = run("stock", "--for", order, "--market", own)
    assert again.exit_code == 0 and "stocked 0 fragments" in again.stdout, again.output
    assert f"{len(said['made'])} were there already" in again.stdout
    refused = run("stock", "tiny", "--for", order, "--sizes", ".5", "--processes", 1, "--market", own)
    assert refused.exit_code == 2
    assert "--for: the order says what is sliced; leave out NAME, --sizes, --processes" in refused.stderr
    order.write_text("task: {classes: [cat, dgo]}\n")
    unknown = run("stock", "--for", order, "--market", own)
    assert unknown.exit_code == 2 and "(did you mean 'dog'?)" in unknown.stderr


def test_prune_says_what_it_took_and_slices_nothing(own: Path) -> None:
    run("stock", "--market", own, "--sizes", ".5", "--processes", 1)
    pruned = run("stock", "--prune", "--market", own)
    assert pruned.exit_code == 0 and "removed 0 fragments; 0 bytes freed" in pruned.stdout
    refused = run("stock", "--prune", "--sizes", ".5", "--again", "--market", own)
    assert refused.exit_code == 2 and "leave out --sizes, --again" in refused.stderr


def test_bad_words_end_in_one_message_with_all_problems(own: Path) -> None:
    refused = run("stock", "tin", "--market", own, "--sizes", "1.5", "--classes", "dgo", "--processes", 0)
    assert refused.exit_code == 2
    for words in (
        "no learnware 'tin' (did you mean 'tiny'?)",
        "1.5 is no share",
        "'dgo' (did you mean 'dog'?)",
    ):
        assert words in refused.stderr
    assert "--processes: must be at least 1, got 0" in refused.stderr and refused.stderr.count("error:") == 1
    gone = run("stock", "--market", own / "nowhere")
    assert gone.exit_code == 1 and "is not a market" in gone.stderr


def test_a_fragment_that_fails_is_named_and_the_exit_code_says_so(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sarto.pipeline.slicing as slicing

    make = slicing.make_fragment

    def failing(readings: object, classes: list[int], *rest: object, **more: object) -> object:
        if classes == [1]:
            raise ValueError("no\nluck")
        return make(readings, classes, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(slicing, "make_fragment", failing)
    failed = run("stock", "--market", own, "--sizes", ".5", "--processes", 1)
    assert failed.exit_code == 1 and "stocked 2 fragments" in failed.stdout
    assert "error: dog of tiny at 50.0%: ValueError: no luck" in failed.stderr
    assert "1 fragments are missing; run the same command again" in failed.stderr


def test_what_failed_says_what_it_leaves(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sarto.errors import StoreError
    from sarto.market import Store

    run("stock", "--market", own, "--sizes", ".5", "--processes", 1)

    def refused(self: Store, *given: object, **more: object) -> object:
        raise StoreError("the market can't be written to")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_fragment", refused)
        again = run("stock", "--again", "--market", own, "--sizes", ".5", "--processes", 1)
    assert again.exit_code == 1 and again.stderr.count("the market can't be written to") == 3
    assert (
        "3 fragments could not be replaced; none is missing: the older ones are still there" in again.stderr
    )
    assert "run the same command again" not in again.stderr

    def removing(self: Store, *given: object, **more: object) -> object:
        if any(found.name == "tiny" for found in self.learnwares()):
            self.remove("tiny")
        raise StoreError("learnware 'tiny' was removed")

    monkeypatch.setattr(Store, "put_fragment", removing)
    gone = run("stock", "--market", own, "--sizes", ".8", "--processes", 1)
    assert gone.exit_code == 1
    assert "learnware 'tiny' was removed meanwhile: its fragments are not needed any more" in gone.stderr
    assert "missing" not in gone.stderr
