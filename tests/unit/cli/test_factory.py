"""`sarto factory`: a supernet trained, listed, shown, asked for curves and deltas from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sarto.market import Store
from tests.unit.cli.markets import run
from tests.unit.factory_assets import SPACE, described

#: The function of the pico space.
NUMVQA = "sarto.engines.factory.spaces.numvqa:numvqa"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a market that holds the supernet `few`."""
    folder = tmp_path_factory.mktemp("factory")
    assert run("market", "init", folder / "market").exit_code == 0
    (folder / "train.yaml").write_text(yaml.safe_dump(described(folder)), encoding="utf-8")
    done = run("factory", "train", folder / "train.yaml", "-m", folder / "market")
    assert done.exit_code == 0, done.output
    assert "stocked it in" in done.output and "gated units" in done.output
    return folder


def told(*words: Any) -> Any:
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_trained_supernet_is_listed_and_shown(trained: Path) -> None:
    (item,) = told("factory", "ls", "-m", trained / "market")["supernets"]
    assert item["name"] == "few" and item["licence"] == "CC0-1.0" and item["backbone"] == "zoo resnet"
    # 5 trained tasks and an unseen one, at three limits
    assert len(item["qualities"]) == 18
    assert all(row["ratio"] <= row["limit"] + 1e-9 for row in item["qualities"])
    assert item["floor"]["params"] < item["cost"]["params"]
    shown = run("factory", "show", item["id"][7:15], "-m", trained / "market")
    assert "5 tasks trained, 1 kept aside" in shown.output
    assert "few" in run("factory", "ls", "-m", trained / "market").output
    assert told("market", "ls", "-m", trained / "market")["supernets"] == [item]
    assert "1 supernets" in run("market", "ls", "-m", trained / "market").output
    with Store.open(trained / "market") as store:
        assert store.verify() == [] and store.clean() == ()
    # Early pictures: eight steps, a look after each but the last.
    looked = json.loads((trained / "market.few.training" / "accuracy.json").read_text())
    assert list(looked) == [str(step) for step in range(1, 8)] and looked["7"].keys() == {
        "20%",
        "50%",
        "100%",
    }
    assert "<svg" in (trained / "market.few.training" / "accuracy.svg").read_text()


def test_a_supernet_is_a_model_to_inspect_and_to_measure(trained: Path) -> None:
    shown = run("inspect", "few", "-m", trained / "market")
    assert shown.exit_code == 0 and "layer1.0.conv1" in shown.output, shown.output


def test_the_curve_of_a_task_rises_in_cost(trained: Path, tmp_path: Path) -> None:
    found = told("factory", "curve", "few", "has+digit_7", "-m", trained / "market")
    sizes = [point["size_bytes"] for point in found["points"]]
    assert sizes == sorted(sizes) and found["points"][-1]["ratio"] == 1.0
    assert all(0 <= point["quality"] <= 1 for point in found["points"])
    assert "judged on 20 test samples" in found["basis"]
    drawn = run(
        *("factory", "curve", "few", "exactly_2+odd", "-m", trained / "market"),
        *("--plot", tmp_path / "curve.svg"),
    )
    assert drawn.exit_code == 0 and (tmp_path / "curve.svg").read_text().count("<svg") == 1
    wrong = run("factory", "curve", "few", "has+digit_8", "-m", trained / "market")
    assert wrong.exit_code == 2 and "'digit_8' is no property of 'few' (did you mean 'digit_" in wrong.stderr


def test_a_delta_counts_what_must_be_downloaded(trained: Path) -> None:
    market = ("-m", trained / "market")
    grown = told("factory", "delta", "few", "has+digit_7@0.3", "has+digit_7@0.6", *market)
    assert grown["dropped"] == {} and 0 < grown["download_bytes"] < grown["whole_bytes"]
    same = told("factory", "delta", "few", "has+odd@0.5", "odd+has@0.5", *market)
    assert same["download_bytes"] == 0
    budget = f"has+digit_7@size_bytes={grown['whole_bytes']}"
    assert told("factory", "delta", "few", "has+digit_7@0.3", budget, *market)["dropped"] == {}
    assert "to download" in run("factory", "delta", "few", "has+odd@0.3", "has+odd@1", *market).output
    bad = run("factory", "delta", "few", "has+odd", "has+odd@0.5", *market)
    assert bad.exit_code == 2 and "write task@limit" in bad.stderr


def test_training_again_is_refused_by_name_and_goes_on_when_it_is_the_same(trained: Path) -> None:
    done = told("factory", "train", trained / "train.yaml", "-m", trained / "market")
    assert done["resumed_from"] == 8 and done["stopped"] is None
    other = described(trained, joint={"steps": 9, "batch": 12})
    (trained / "other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    refused = run("factory", "train", trained / "other.yaml", "-m", trained / "market")
    assert refused.exit_code == 2 and "holds a supernet 'few' of another training" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": "numvqe"}, "did you mean 'numvqa'?"),
        ({"data": {"folder": "$NOWHERE_AT_ALL/x"}}, "a variable that the environment does not have"),
        ({"backbone": {"zoo": "resnett"}}, "the zoo has no network 'resnett'"),
        ({"backbone": {"zoo": "resnet", "learnware": "x"}}, "name one of them"),
        ({"backbone": {"learnware": "nobody"}}, "no learnware 'nobody'"),
        ({"preprocessing": {"size": [9, 9], "channels": 1, "mean": [0.5], "std": [0.5]}}, "makes [1, 9, 9]"),
        ({"judging": {"limits": [0.001]}}, "all are under"),
        ({"judging": {"limits": [0.0]}}, "judging.limits[0]"),
        ({"backbone": {"zoo": "text_cnn"}}, "TextCNN"),
    ],
)
def test_bad_descriptions_are_told_in_words(trained: Path, changes: dict[str, Any], says: str) -> None:
    config = described(trained, name="bad", **changes)
    (trained / "bad.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run("factory", "train", trained / "bad.yaml", "-m", trained / "market")
    assert done.exit_code in (1, 2), done.output
    assert says in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--task", ""), "--task '': a task has properties with plus signs between them, for instance"),
        (("--task", "has+odd", "--task", "has+"), "--task 'has+odd' 'has+': a task has properties"),
        (("--task", "has+digit_8"), "'digit_8' is no property of 'few' (did you mean 'digit_"),
        (("--task", "exactly_2"), "nothing of group 'predicate' is named; give one of digit_7, digit_1, odd"),
        (("--task", "has+exactly_2+odd"), "has and exactly_2 contradict each other"),
        (("--task", "has+has+odd"), "'has' is named twice"),
        (("--task", "has+odd", "--max-size-bytes", "10"), "Raise size_bytes to"),
        (("--task", "has+odd", "--max-latency-ms", "0"), "latency_ms"),
        (("--task", "has+odd", "--profile", "nowhere"), "no device profile 'nowhere'"),
    ],
)
def test_bad_orders_by_task_are_told_in_words(trained: Path, words: tuple[str, ...], says: str) -> None:
    done = run("plan", *words, "-m", trained / "market")
    assert done.exit_code in (1, 2, 3), done.output
    assert says in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("0", "a limit is a share of units in (0, 1], got 0"),
        ("1.5", "a limit is a share of units in (0, 1], got 1.5"),
        ("-1", "a limit is a share of units in (0, 1], got -1"),
        ("nan", "a limit is a share of units in (0, 1], got nan"),
        ("0.001", "the smallest limit is 0.0"),
        ("much", "'much' is no number"),
        ("size_bytes=10", "Raise size_bytes to"),
    ],
)
def test_limits_that_are_none_are_told_in_words(trained: Path, limit: str, says: str) -> None:
    done = run("factory", "delta", "few", "has+odd@0.5", f"has+odd@{limit}", "-m", trained / "market")
    assert done.exit_code in (1, 2, 3) and says in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("no samples", "task 'has+digit_7': it has no samples in the train split"),
        ("none at all", "64 samples were asked for, 0 inputs and 0 answers were drawn"),
        ("never yes", "task 'has+digit_7': all of 64 samples answer 'no'; nothing can be learnt from that"),
    ],
)
def test_data_that_nothing_can_be_learnt_from_are_refused_before_training(
    trained: Path, wrong: str, says: str
) -> None:
    (trained / "odd.yaml").write_text(SPACE.replace(NUMVQA, "tests.unit.factory_assets:odd"))
    config = described(trained, name="odd", space=str(trained / "odd.yaml"), data={"wrong": wrong})
    (trained / "bad.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run("factory", "train", trained / "bad.yaml", "-m", trained / "market")
    assert done.exit_code in (1, 2) and says in " ".join(done.stderr.split()), done.stderr
    assert not list((trained / "market.odd.training").glob("*.safetensors"))


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(trained: Path) -> None:
    (trained / "odd.yaml").write_text(SPACE.replace(NUMVQA, "tests.unit.factory_assets:odd"))
    config = described(
        trained,
        name="later",
        space=str(trained / "odd.yaml"),
        data={"wrong": "infinite later"},
        joint={"steps": 8, "batch": 12, "save_every": 1, "lr": 0.01},
        judging={"limits": [0.5], "samples": 4, "most_tasks": 1},
    )
    (trained / "later.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run("factory", "train", trained / "later.yaml", "-m", trained / "market")
    assert "training ended early: the loss of step" in done.stderr, done.stderr
    assert "the weights are those of step" in done.stderr
    assert done.exit_code == 0 and "stocked it in" in done.output


def test_a_backbone_without_groups_to_slice_is_refused(trained: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch

    from sarto import Market, Samples

    torch.manual_seed(0)
    with Market.create(tmp_path / "market") as market:
        market.add(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2)).eval(),
            name="flat",
            classes=("a", "b"),
            preprocessing={"size": [12, 12], "channels": 1, "mean": [0.5], "std": [0.5]},
            samples=Samples(np.zeros((4, 12, 12, 1), np.uint8), np.array([0, 0, 1, 1]), ("a", "b")),
        )
    config = described(tmp_path, backbone={"learnware": "flat"})
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run("factory", "train", tmp_path / "train.yaml", "-m", tmp_path / "market")
    assert done.exit_code in (1, 2), done.output
    assert "no channel group of this model can have gates" in done.stderr, done.stderr


def test_a_learnware_can_be_the_backbone(trained: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch

    from sarto import Market, Samples, zoo

    torch.manual_seed(3)
    net = zoo.resnet(3, 1, (1,), 6, False, "cifar").eval()
    with Market.create(tmp_path / "market") as market:
        market.add(
            net,
            name="donor",
            classes=("a", "b", "c"),
            preprocessing={"size": [12, 12], "channels": 1, "mean": [0.5], "std": [0.5]},
            samples=Samples(
                np.random.default_rng(0).integers(0, 255, (6, 12, 12, 1), dtype=np.uint8),
                np.array([0, 0, 1, 1, 2, 2]),
                ("a", "b", "c"),
            ),
        )
    config = described(tmp_path, backbone={"learnware": "donor"})
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = told("factory", "train", tmp_path / "train.yaml", "-m", tmp_path / "market")
    assert done["supernet"]["backbone"].startswith("learnware donor")
    gone = told("factory", "rm", "few", "-m", tmp_path / "market")
    assert gone["freed_bytes"] > 0 and told("factory", "ls", "-m", tmp_path / "market")["supernets"] == []


def test_spaces_that_ship_are_listed() -> None:
    found = {space["name"]: space for space in told("factory", "spaces")["spaces"]}
    assert {"numvqa", "attrod"} <= found.keys()
    assert "numvqa" in run("factory", "spaces").output
