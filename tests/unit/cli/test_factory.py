"""`sarto factory`: a supernet trained, listed, shown, asked for curves and deltas from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sarto.engines.factory.delta import apply_delta
from sarto.graph.file import read_graph
from sarto.market import Store
from sarto.pipeline.artifact import GRAPH
from tests.unit.cli.markets import run
from tests.unit.factory_assets import SPACE, described

#: Two tasks over generated images of objects.
OBJECTS = """
space: 1
name: objects
kind: detection
groups: {category: [car, person]}
function: sarto.engines.factory.spaces.attrod:drawn
arguments: {side: 32}
answers: [object]
"""
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
    assert "1 supernet (" in run("market", "ls", "-m", trained / "market").output
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
    known = [point for point in found["points"] if point["quality"] is not None]
    assert known == found["points"][-len(known) :], "nothing is expected of fewer units than were judged"
    assert all(0 <= point["quality"] <= 1 for point in known)
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


def test_a_delta_begins_at_what_was_delivered(trained: Path, tmp_path: Path) -> None:
    market = ("-m", trained / "market")
    size = 2 * told("factory", "delta", "few", "has+odd@0.1", "has+odd@0.2", *market)["whole_bytes"]
    told("make", "--task", "has+odd", "--max-size-bytes", size, *market, "-o", tmp_path / "out")
    held, new = read_graph(tmp_path / "out" / GRAPH), tmp_path / "new.safetensors"
    alike = told("factory", "delta", "few", tmp_path / "out", f"has+odd@size_bytes={size}", *market)
    assert alike["download_bytes"] == 0 and alike["added"] == alike["dropped"] == {}
    grown = told("factory", "delta", "few", tmp_path / "out", "has+digit_7@1", *market, "--out", new)
    assert grown["dropped"] == {} and sum(grown["added"].values()) > 0
    assert 0 < grown["download_bytes"] < grown["whole_bytes"]
    wider = apply_delta(held, new)
    for group, n_units in grown["added"].items():
        weight = group.removesuffix(":0")
        assert len(wider.tensors[weight]) - len(held.tensors[weight]) == n_units
    # Nothing is delivered in another folder, and another folder's model is none of this supernet's.
    nothing = run("factory", "delta", "few", trained / "market", "has+odd@1", *market)
    assert nothing.exit_code == 1 and "no artifact in" in nothing.stderr
    plan = tmp_path / "out" / "plan.json"
    plan.write_text(plan.read_text().replace(made_of(plan), "sha256:" + "0" * 64))
    other = run("factory", "delta", "few", tmp_path / "out", "has+odd@1", *market)
    assert other.exit_code == 2 and "a delta is between subnets of 'few'" in " ".join(other.stderr.split())


def made_of(plan: Path) -> str:
    """Id of the supernet that a plan's subnet is cut from."""
    return str(json.loads(plan.read_text())["nodes"]["subnet"]["of"])


def test_training_again_is_refused_by_name_and_goes_on_when_it_is_the_same(trained: Path) -> None:
    done = told("factory", "train", trained / "train.yaml", "-m", trained / "market")
    assert done["resumed_from"] == 8 and done["stopped"] is None
    other = described(trained, joint={"steps": 9, "batch": 12})
    (trained / "other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    refused = run("factory", "train", trained / "other.yaml", "-m", trained / "market")
    assert refused.exit_code == 2 and "'few' of another training (another joint)" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "which"),
    [
        (
            {"backbone": {"zoo": "resnet", "arguments": {"in_channels": 1, "depths": [1], "stem": "cifar"}}},
            "backbone",
        ),
        ({"assembler": {"hidden": 9, "gaters": 2}, "licence": "MIT"}, "assembler, another licence"),
        ({"placement": "wide"}, "placement"),
    ],
)
def test_a_taken_name_is_refused_before_training(trained: Path, changes: dict[str, Any], which: str) -> None:
    (trained / "other.yaml").write_text(yaml.safe_dump(described(trained, **changes)), encoding="utf-8")
    refused = run(
        *("factory", "train", trained / "other.yaml", "-m", trained / "market"),
        *("--checkpoints", trained / "elsewhere"),
    )
    assert refused.exit_code == 2 and f"of another training (another {which})" in refused.stderr
    assert not (trained / "elsewhere").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": "numvqe"}, "did you mean 'numvqa'?"),
        ({"data": {"folder": "$NOWHERE_AT_ALL/x"}}, "a variable that the environment does not have"),
        ({"backbone": {"zoo": "resnett"}}, "the zoo has no network 'resnett'"),
        ({"backbone": {"zoo": "resnet", "learnware": "x"}}, "name one of them"),
        ({"backbone": {"learnware": "nobody"}}, "no learnware 'nobody'"),
        ({"preprocessing": {"size": [9, 9], "channels": 1, "mean": [0.5], "std": [0.5]}}, "makes [1, 9, 9]"),
        (
            {"preprocessing": {"size": [12, 12], "channels": 1, "mean": [0.485], "std": [0.5]}},
            "preprocessing.mean: is [0.485], the data of 'few' draw with [0.5]",
        ),
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
        ("size_bytes=inf", "'inf' is no finite number"),
    ],
)
def test_limits_that_are_none_are_told_in_words(trained: Path, limit: str, says: str) -> None:
    done = run("factory", "delta", "few", "has+odd@0.5", f"has+odd@{limit}", "-m", trained / "market")
    assert done.exit_code in (1, 2, 3) and says in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            "fails",
            "tests.unit.factory_assets:odd(wrong='fails') failed: ValueError: no such folder of images",
        ),
        ("test fails", "task 'has+digit_7', test split: Odd.draw of the space's data failed: IndexError"),
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
    assert done.exit_code == 2 and says in " ".join(done.stderr.split()), done.stderr
    assert "a defect of sarto" not in done.stderr
    assert not list((trained / "market.odd.training").glob("*.safetensors"))


def test_a_task_without_test_samples_is_trained_and_told(trained: Path, tmp_path: Path) -> None:
    (trained / "odd.yaml").write_text(SPACE.replace(NUMVQA, "tests.unit.factory_assets:odd"))
    config = described(
        trained, name="untested", space=str(trained / "odd.yaml"), data={"wrong": "no test samples"}
    )
    (trained / "untested.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    market = ("-m", trained / "market")
    done = told("factory", "train", trained / "untested.yaml", *market)
    assert done["notes"] == ["can't be judged: has+digit_7: it has no samples in the test split"]
    assert done["supernet"]["unjudged"] == ["has+digit_7"] and done["supernet"]["steps"] == 8
    assert {row["task"] for row in done["supernet"]["qualities"]} == {
        *("has+digit_1", "has+odd", "exactly_2+digit_7", "exactly_2+digit_1", "exactly_2+odd")
    }
    looked = json.loads((trained / "market.untested.training" / "accuracy.json").read_text())
    assert len(looked) == 7, "the other tasks are looked at while training goes on"
    shown = run("factory", "show", "untested", *market).output
    assert "1 tasks were not judged, for want of test samples: has+digit_7" in shown


def test_tasks_without_samples_are_left_out_where_the_description_says_so(trained: Path) -> None:
    (trained / "odd.yaml").write_text(SPACE.replace(NUMVQA, "tests.unit.factory_assets:odd"))
    config = described(
        trained,
        name="fewer",
        space=str(trained / "odd.yaml"),
        data={"wrong": "no samples"},
        empty_tasks="leave_out",
        joint={"steps": 2, "batch": 12},
    )
    (trained / "fewer.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = told("factory", "train", trained / "fewer.yaml", "-m", trained / "market")
    assert done["notes"] == ["left out of training: has+digit_7: it has no samples in the train split"]
    assert len(done["supernet"]["space"]["tasks"]) == 4
    assert ["has", "digit_7"] not in done["supernet"]["space"]["tasks"]
    again = told("factory", "train", trained / "fewer.yaml", "-m", trained / "market")
    assert again["supernet"]["id"] == done["supernet"]["id"] and again["resumed_from"] == 2


def test_a_function_beside_the_description_needs_the_path(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_alone.py").write_text("def draw():\n    raise AssertionError('no images')\n")
    (tmp_path / "mine.yaml").write_text(SPACE.replace(NUMVQA, "mine_alone:draw"))
    config = described(trained, name="mine", space=str(tmp_path / "mine.yaml"), data={})
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ("factory", "train", tmp_path / "train.yaml", "-m", trained / "market")
    done = run(*words)
    assert done.exit_code == 2 and "run with PYTHONPATH=." in done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    done = run(*words)
    assert done.exit_code == 2 and "mine_alone:draw() failed: AssertionError: no images" in done.stderr
    assert "a defect of sarto" not in done.stderr
    (tmp_path / "mine_broken.py").write_text("def draw(:\n")
    (tmp_path / "mine.yaml").write_text(SPACE.replace(NUMVQA, "mine_broken:draw"))
    done = run(*words)
    assert done.exit_code == 2 and "can't import 'mine_broken': SyntaxError" in done.stderr


def test_a_classifier_for_objects_is_refused_and_leaves_the_folder_free(trained: Path) -> None:
    config: dict[str, Any] = {
        "name": "objects",
        "space": str(trained / "objects-space.yaml"),
        "backbone": {"zoo": "resnet", "arguments": {"depths": [1], "width": 4, "stem": "cifar"}},
        "preprocessing": {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
        "assembler": {"hidden": 8, "gaters": 2},
        "joint": {"steps": 1, "batch": 4},
        "judging": {"limits": [0.5], "samples": 2, "most_tasks": 1},
    }
    (trained / "objects-space.yaml").write_text(OBJECTS)
    (trained / "objects.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ("factory", "train", trained / "objects.yaml", "-m", trained / "market")
    done = run(*words)
    assert done.exit_code == 2 and "error: backbone: its outputs have shape (2, 1)" in done.stderr
    assert "the zoo's centre_detector" in " ".join(done.stderr.split())
    assert not (trained / "market.objects.training").exists()
    config["backbone"] = {"zoo": "centre_detector", "arguments": {"depths": [1, 1], "width": 4}}
    (trained / "objects.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert told(*words)["supernet"]["space"]["kind"] == "detection"


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
    found = told("factory", "show", "later", "-m", trained / "market")
    assert 0 < found["steps"] < 8 and found["stopped"].startswith("the loss of step")
    shown = run("factory", "show", "later", "-m", trained / "market").output
    assert f"steps: {found['steps']} of 8, stopped" in shown and "training ended early: the loss" in shown
    assert f"{found['steps']} of 8, stopped" in run("factory", "ls", "-m", trained / "market").output


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
