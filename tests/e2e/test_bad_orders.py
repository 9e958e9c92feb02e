"""Bad input is refused in words that say what to do, and changes nothing."""

from __future__ import annotations

import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import sarto
from sarto import GraphError, Market, Request, RequestError, ShapeError, StoreError
from sarto.pipeline import Artifact
from sarto.pipeline.job import Job
from sarto.pipeline.order import check_order
from sarto.pipeline.sources import load_source, load_weights

Files = Callable[[Path], dict[str, Any]]
RED = ("red disc", "red bar")


# --- what is asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("red disk", "red bar"), [r"no model in the market knows 'red disk' \(did you mean 'red disc'\?\)"]),
        (("red disk", "gren bar", "red bar"), ["2 problems", "'red disk'", "did you mean 'green bar'"]),
        (("disks:red disc", "red bar"), [r"no learnware 'disks' \(did you mean 'discs'\?\)"]),
        (("bars:red disc", "red bar"), ["learnware 'bars' does not know 'red disc'; 'discs' does"]),
        (
            ("bars:red disk", "red bar"),
            [r"learnware 'bars' does not know 'red disk' \(known: blue bar, green bar, red bar\)"],
        ),
        (("discs:red disc", "red disc"), ["'red disc' is asked from two learnwares"]),
        (("red disc", "red disc"), ["'red disc' is named twice"]),
    ],
)
def test_unknown_classes_are_all_named(shared: Any, classes: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        shared.make(shared.order(*classes), "never")
    for word in words:
        assert re.search(word, str(caught.value))
    assert not (shared.folder / "never").exists()


def test_an_unknown_engine_is_named(shared: Any) -> None:
    with pytest.raises(RequestError, match=r"no engine 'slicepak' \(did you mean 'slicepack'\?\)"):
        shared.make(shared.order(*RED, engines=["slicepak"]), "never")


def test_samples_and_heldout_that_are_missing_or_lack_a_class_are_named(shared: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere"):
        shared.make(shared.order(*RED, samples=str(tmp_path / "nowhere")), "never")
    with pytest.raises(RequestError, match="nowhere"):
        shared.make(shared.order(*RED, heldout=str(tmp_path / "nowhere")), "never")
    some = str(shared.write_images(shared.draw(["red disc"], 2, 1), tmp_path / "some"))
    with pytest.raises(RequestError, match=r"heldout: .*some has none of red bar"):
        shared.make(shared.order(*RED, heldout=some), "never")
    with pytest.raises(RequestError, match=r"samples: .*some has none of class 'red bar'"):
        shared.make(shared.order(*RED, samples=some), "never")
    assert not (shared.folder / "never").exists()


def test_heldout_images_that_decide_the_order_are_refused(shared: Any, tmp_path: Path) -> None:
    own = shared.draw(RED, 3, 5)
    path = str(shared.write_images(own, tmp_path / "own"))
    words = r"heldout: .*own: 6 of 6 held-out images equal images that the order is decided on.*give others"
    with pytest.raises(RequestError, match=words):
        check_order(shared.order(*RED, samples=path, heldout=path), shared.market.store)
    stocked = shared.market.store.samples("discs").only(["red disc"]).take(2)
    mixed = stocked.concat(shared.draw(["red disc", "red bar"], 2, 6))
    path = str(shared.write_images(mixed, tmp_path / "mixed"))
    with pytest.raises(RequestError, match="2 of 6 held-out images equal images"):
        check_order(shared.order(*RED, heldout=path), shared.market.store)
    order = check_order(shared.order(*RED), shared.market.store)
    assert order.heldout is not None and len(order.heldout) == 24


def test_samples_that_are_not_used_are_noted(shared: Any, tmp_path: Path) -> None:
    path = str(shared.write_images(shared.draw([*RED, "blue bar"], 3, 5), tmp_path / "own"))
    noted = check_order(shared.order(*RED, samples=path, samples_per_class=50), shared.market.store)
    assert noted.requirement.notes == (
        f"samples of blue bar in {path} are left out: the order is for red disc, red bar",
        "50 samples of each class were asked for, but red disc has 3, red bar has 3: all of them are used",
    )
    for used in (shared.order(*RED, samples_per_class=3), shared.order("blue bar", *RED, samples=path)):
        assert check_order(used, shared.market.store).requirement.notes == ()


def test_two_processes_do_not_make_in_one_folder(shared: Any, tmp_path: Path) -> None:
    request = shared.order(*RED)
    holder = "import sys; from pathlib import Path; from sarto import Request; from sarto.pipeline.job import Job\n"
    holder += "job = Job(Path(sys.argv[1]), Request.parse(sys.argv[2])); print('held', flush=True); input()"
    said = [sys.executable, "-c", holder, str(tmp_path / "out"), request.to_json()]
    with subprocess.Popen(said, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(
            RequestError, match=r"another make works in .*out: wait until it is done, or choose"
        ):
            Job(tmp_path / "out", request)
        other.communicate("\n")
    assert Job(tmp_path / "out", request).finished is None, "a dead process holds nothing"


def test_images_of_another_size_in_an_order_are_refused(shared: Any, tmp_path: Path) -> None:
    drawn = shared.draw(RED, 3, 1)
    small = sarto.Samples(drawn.images[:, :12, :12], drawn.labels, drawn.classes)
    path = str(shared.write_images(small, tmp_path / "small"))
    for place in ("samples", "heldout"):
        with pytest.raises(
            (ShapeError, RequestError), match=r"images are 12x12.*the model reads 16x16"
        ) as told:
            shared.make(shared.order(*RED, **{place: path}), f"never-{place}")
        assert str(told.value).startswith(f"{place}: {path}: images are 12x12")


def test_folders_that_hold_something_else_are_left_alone(
    made: Artifact, shared: Any, tmp_path: Path, files: Files
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"is not empty \(notes.txt\); choose a new folder"):
        shared.make(shared.order(*RED), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    before = files(made.folder)
    with pytest.raises(RequestError, match="holds another order; choose another folder"):
        shared.make(shared.order(*RED), "made")
    assert files(made.folder) == before


# --- what is stocked ----------------------------------------------------------------------------------------------


def test_a_class_without_samples_needs_the_orders_own(shop: Any, tmp_path: Path) -> None:
    shop.add("bare", ["mauve disc", "ochre disc", "black disc"], samples=None)
    with pytest.raises(RequestError, match="'mauve disc' is taken from 'bare', which has no samples of it"):
        shop.make(shop.order("mauve disc", "red bar", heldout=None))
    drawn = shop.draw(["red disc", "red bar"], 4, 3)
    own = sarto.Samples(drawn.images, drawn.labels, ("mauve disc", "red bar"))
    path = str(shop.write_images(own, tmp_path / "own"))
    artifact = shop.make(
        shop.order("mauve disc", "red bar", samples=path, heldout=None, engines=["slicepack"])
    )
    assert artifact.classes == ("mauve disc", "red bar")
    told = "bare came without samples: its fragments are cut on the order's samples alone"
    assert told in artifact.report.not_tried


def test_samples_of_misspelt_classes_are_refused_all_at_once(shop: Any) -> None:
    drawn = shop.draw(["red disc", "green disc", "blue disc"], 2, 1)
    given = sarto.Samples(drawn.images, drawn.labels, ("Red disc", "green disc", "blue_disc"))
    with pytest.raises(RequestError) as refused:
        shop.add("cased", ["red disc", "green disc", "blue disc"], samples=given)
    told = "samples: the model has no class {!r} (did you mean {!r}?), and {!r} has no samples: rename them, or leave"
    assert [problem.rpartition(" out those of")[0] for problem in refused.value.problems] == [
        told.format("Red disc", "red disc", "red disc"),
        told.format("blue_disc", "blue disc", "blue disc"),
    ]
    assert "cased" not in {learnware.name for learnware in shop.market.learnwares()}


def test_samples_of_other_classes_and_classes_without_samples_are_told(shop: Any) -> None:
    drawn = shop.draw(["red disc", "green disc", "blue disc"], 2, 1)
    given = sarto.Samples(drawn.images, drawn.labels, ("oak", "elm", "granite"))
    shop.add("trees", ["oak", "elm", "spruce"], samples=given, progress=shop.progress)
    assert "samples of granite are left out: trees has no such class" in shop.said
    assert any(text.startswith("no samples of spruce: slicing tells each class from") for text in shop.said)
    told = "trees came without samples of spruce: its fragments are cut on the order's samples alone"
    order = check_order(shop.order("oak", "elm", heldout=None), shop.market.store)
    assert order.requirement.notes == (told,) and order.donor_samples[order.donors[0].id] == order.samples
    unsliced = shop.order("oak", "elm", heldout=None, engines=["baselines"])
    assert check_order(unsliced, shop.market.store).requirement.notes == ()


def test_models_that_do_not_fit_their_description_are_refused_and_nothing_is_stocked(
    shop: Any, files: Files
) -> None:
    before = set(files(shop.market.path / "blobs"))
    with pytest.raises(RequestError, match=r"the model has 3 outputs, 2 class names were given"):
        shop.add("two", ["red disc", "green disc"])
    wide = {**shop.preprocessing, "size": [20, 20]}
    with pytest.raises((RequestError, ShapeError, GraphError), match="20"):
        shop.add("wide", ["red disc", "green disc", "blue disc"], preprocessing=wide)
    with pytest.raises(RequestError, match="the samples hold none of the model's classes"):
        shop.add("other", ["a", "b", "c"], samples=shop.draw(["red disc"], 2, 1))
    with pytest.raises(StoreError, match="discs"):
        shop.add("discs", ["red disc", "green disc", "blue disc"])
    broken = shop.donors["discs"][0](3).eval()
    with torch.no_grad():
        broken.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(GraphError, match=r"(?i)nan|not finite"):
        shop.add("broken", ["red disc", "green disc", "blue disc"], broken)
    assert [lw.name for lw in shop.market.learnwares()] == ["discs", "crosses", "bars"]
    assert shop.market.verify() == []
    shop.market.close()
    assert set(files(shop.market.path / "blobs")) == before


def test_images_of_another_kind_are_refused(made: Artifact, photos: Any, tmp_path: Path) -> None:
    model = sarto.load(made.folder)
    with pytest.raises(ShapeError, match=r"images are 12x16 .height x width., the model reads 16x16"):
        model(photos[:, :12])
    with pytest.raises(ShapeError, match="1 channels, the model reads 3"):
        model(photos[..., :1])
    with pytest.raises(ShapeError, match="shape"):
        model(photos[0, 0])
    with pytest.raises(RequestError, match=r"must be uint8 .* got int64"):
        model(photos.astype(np.int64))
    with pytest.raises(RequestError, match="divide by 255"):
        model(photos.astype(np.float32))
    blank = photos / 255
    blank[0, 0, 0, 0] = np.nan
    with pytest.raises(RequestError, match="1 values of images are NaN"):
        model(blank)
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "missing.png"):
        with pytest.raises(RequestError, match=rf"{name} can't be read as an image"):
            model(tmp_path / name)


# --- weights ------------------------------------------------------------------------------------------------------


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "model"])
def test_a_pickle_is_refused_before_any_of_its_code_runs(tmp_path: Path, name: str) -> None:
    path, trace = tmp_path / name, tmp_path / "trace"
    path.write_bytes(pickle.dumps(Evil(trace)))
    words = (
        rf"{name} is not read: it may hold code.*weights_only=True.*save_file|{name} is not read: it may hold"
    )
    with pytest.raises(RequestError, match=words) as caught:
        load_source("torch.nn:Linear", arguments={"in_features": 2, "out_features": 2}, weights=path)
    assert "weights_only=True" in str(caught.value) and "save_file" in str(caught.value)
    with pytest.raises(RequestError, match="is not read"):
        load_source(str(path))
    assert not trace.exists()
    pickle.loads(path.read_bytes()).close()
    assert trace.exists(), "the file would have run"


def test_weights_that_do_not_fit_are_all_named(shared: Any, tmp_path: Path) -> None:
    model = shared.donors["discs"][0](3)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["conv3.weight"] = state.pop("conv2.weight")
    state["fc.bias"] = torch.zeros(4)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    before = model.fc.weight.clone()
    with pytest.raises(RequestError, match="3 problems") as caught:
        load_weights(model, path)
    for words in (
        "conv3.weight: the model has no such tensor",
        "conv2.weight: is missing in weights.safetensors",
        "fc.bias: has shape [4], the model takes [3]",
    ):
        assert words in str(caught.value)
    assert torch.equal(model.fc.weight, before)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RequestError, match="can't read weights"):
        load_weights(model, path)


# --- markets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut short", "flipped", "missing"])
def test_a_damaged_blob_is_found_and_no_model_is_made_of_it(shop: Any, how: str, files: Files) -> None:
    key = shop.market.get("discs").weights_hash
    (blob,) = (
        path
        for path in (shop.market.path / "blobs").rglob("*")
        if path.is_file() and path.name.split(".")[0] in key
    )
    content = bytearray(blob.read_bytes())
    content[-5] ^= 1
    blob.chmod(0o644)
    if how == "missing":
        blob.unlink()
    else:
        blob.write_bytes(content if how == "flipped" else content[:-50])
    problems = [line for line in shop.market.verify() if not line.startswith("info:")]
    assert problems and all("discs" in line or key[7:19] in line for line in problems)
    before = files(shop.market.path / "blobs")
    with pytest.raises(StoreError, match="learnware 'discs' can't be read"):
        shop.make(shop.order(*RED, engines=["slicepack"], heldout=None))
    assert files(shop.market.path / "blobs") == before
    with pytest.raises(StoreError, match="no artifact"):
        Artifact.read(shop.folder / "out")
    # Orders of the other donors are still made.
    other = shop.order("red bar", "red cross", engines=["slicepack"], heldout=None)
    assert shop.make(other, "other").damage() == []


def test_markets_that_are_missing_or_newer_are_refused(pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such folder"):
        Market.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="holds"):
        Market.create(pristine)
    with Market.create(tmp_path / "empty") as empty, pytest.raises(RequestError, match="market is empty"):
        empty.make(Request.parse({"task": {"classes": list(RED)}}), tmp_path / "out")
    shutil.copytree(pristine / "market", tmp_path / "market")
    (index,) = (path for path in (tmp_path / "market").iterdir() if path.is_file())
    connection = sqlite3.connect(index)
    connection.execute("UPDATE meta SET schema_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"written by a newer version .schema 99.*upgrade sarto"):
        Market.open(tmp_path / "market")
