"""Zoos that can't be what was asked, as the command line tells it: each ends in a clear error or a told choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from sarto.cli.app import app
from tests.e2e.conftest import Shop

INDEX = ("zoo", "index", "z", "--n-probes", "32", "--batch", "8")
ORDER = ("--classes", "red disc,green disc", "--engines", "reassembly", "--baselines", "none")


def _run(shop: Shop, *words: str) -> tuple[int, str]:
    """Exit code and all that was said, on one line."""
    done = CliRunner().invoke(app, [*words, "-m", str(shop.market.path)])
    return done.exit_code, " ".join((done.stdout + done.stderr).split())


def _plain(shop: Shop, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the JSON that was said."""
    done = CliRunner().invoke(app, [*words, "-m", str(shop.market.path), "--json"])
    return done.exit_code, json.loads(done.stdout)


class _Overflow(nn.Module):
    """Finite on noise of usual size, beyond single precision on images that are a thousand times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)
        with torch.no_grad():
            self.one.weight.mul_(1e18)
            self.two.weight.mul_(1e19)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.fc(x.mean((2, 3)))


class _Turned(nn.Module):
    """A network that reads blue, green, red."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flip(1))


def test_a_zoo_of_one_model_can_be_no_chain(shop: Shop) -> None:
    assert _run(shop, *INDEX, "--model", "discs")[0] == 0
    for words in (("zoo", "map", "z"), ("zoo", "front", "z")):
        code, said = _run(shop, *words)
        assert (
            code == 2
            and "has 1 models that can be used" in said
            and "index more with sarto zoo index" in said
        )
    code, said = _run(shop, "plan", *ORDER)
    assert code == 2 and "a reassembly needs two" in said


def test_too_few_probe_images_say_how_many_are_needed(shop: Shop) -> None:
    code, said = _run(shop, "zoo", "index", "z", "--n-probes", "32")
    assert code == 2 and "needs at least 64 probe images, got 32" in said and "--batch" in said
    few = shop.write_images(shop.draw(("red disc",), 5, 3), shop.folder / "few")
    code, said = _run(shop, "zoo", "index", "z", "--probes", str(few / "red disc"))
    assert code == 2 and "needs at least 64 probe images, got 5" in said
    assert _plain(shop, "zoo", "ls")[1] == {"indices": []}


def test_models_that_can_not_be_indexed_are_left_out_with_the_reason(shop: Shop) -> None:
    wide = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    shop.add(
        "wide", ("x", "y"), wide.eval(), samples=None, preprocessing={**shop.preprocessing, "size": [24, 24]}
    )
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()
    shop.add("flat", ("x", "y", "z"), flat, samples=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loud = _Overflow().eval()
    large = {**shop.preprocessing, "std": [1e-3] * 3}
    shop.add("loud", ("x", "y"), loud, samples=None, preprocessing=large)
    shop.add("copy", ("x", "y", "z"), shop.models["discs"], samples=None)
    known = shop.donors["discs"][1]
    turned = {
        key: value[::-1] if key in ("mean", "std") else value for key, value in shop.preprocessing.items()
    }
    shop.add(
        "turned",
        known,
        _Turned(shop.models["discs"]).eval(),
        samples=shop.draw(known, 8, 3),
        preprocessing=turned,
    )
    code, said = _run(shop, *INDEX)
    # What only seems wrong is entered.
    assert code == 0 and "index z: 4 models added" in said
    assert "look at turned:" in said and "seems to read blue, green, red" in said
    assert "left out wide:" in said and "24x24" in said and "16x16" in said
    assert "left out flat:" in said and "no cut point" in said
    assert "left out loud: at" in said and "NaN or infinity" in said
    assert "left out copy: it is a copy of 'discs': the same graph and weights" in said
    # What was left out is asked for again at the next call, and said again.
    assert "left out copy" in _run(shop, *INDEX)[1]


def test_a_budget_that_no_chain_keeps_names_the_smallest_one(shop: Shop) -> None:
    assert _run(shop, *INDEX)[0] == 0
    code, said = _run(shop, "plan", *ORDER, "--max-params", "10")
    assert code == 2 and "params <= 10" in said and "Floor" in said
    code, told = _plain(shop, "plan", *ORDER, "--max-params", "10")
    least = int(told["error"]["nearest"]["params"])
    assert code == 2 and least > 10
    code, told = _plain(shop, "plan", *ORDER, "--max-params", str(least))
    assert code == 0 and [item for item in told["plans"] if not item["breaks"]]
    assert _plain(shop, "plan", *ORDER, "--max-params", str(least - 1))[0] == 2


def test_a_donor_that_was_removed_is_left_out_of_chains(shop: Shop, tmp_path: Path) -> None:
    assert _run(shop, *INDEX)[0] == 0
    assert _run(shop, "rm", "bars")[0] == 0
    code, told = _plain(shop, "plan", *ORDER)
    assert code == 0
    notes = [item["plan"]["note"] for item in told["plans"]]
    assert any(note.startswith("chain ") for note in notes) and not any("bars" in note for note in notes)
    assert _run(shop, "rm", "crosses")[0] == 0
    code, said = _run(shop, "make", *ORDER, "-o", str(tmp_path / "out"))
    assert code == 2 and "has 1 models that can be used (2 were removed" in said


@pytest.mark.parametrize("flag", [("--train-on", "labels"), ("--train-scope", "full")])
def test_how_to_train_without_for_how_long_is_refused(flag: tuple[str, str], shop: Shop) -> None:
    code, said = _run(shop, "plan", *ORDER, *flag)
    assert code == 2 and "give --train EPOCHS too" in said
