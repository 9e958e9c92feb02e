"""Orders from text models with vocabularies of their own, and from image models of other sizes, end to end."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import sarto
from sarto import Market, Request, RequestError, Samples, StoreError
from sarto.cli.app import app
from sarto.graph.file import write_graph
from sarto.market import Intake, TextSamples, Vocabulary
from sarto.pipeline import Artifact, verify_artifact
from sarto.pipeline.exporting import export_artifact
from sarto.pipeline.market import described_by
from sarto.pipeline.order import check_order
from sarto.zoo import recurrent, text_cnn

#: A toy language: each subject has words of its own, all share the small words.
SUBJECTS: Mapping[str, Sequence[str]] = {
    "food": ["bread", "soup", "cheese", "apple", "salt", "bake", "taste"],
    "sea": ["wave", "ship", "salt", "harbour", "sail", "fish", "tide"],
    "music": ["song", "drum", "violin", "tune", "choir", "melody", "chord"],
    "money": ["bank", "coin", "price", "loan", "market", "tax", "debt"],
}
SMALL = ["the", "a", "of", "and", "is", "was", "it", "in", "some", "my", "your", "very"]
#: learnware -> (subjects, length, model of so many words)
DONORS: Mapping[str, tuple[tuple[str, ...], int, Callable[[int], nn.Module]]] = {
    "cnn": (
        ("food", "sea"),
        12,
        lambda n: text_cnn(2, n_words=n, width=12, filters=10, spans=(2, 3)),
    ),
    "gru": (("music", "money"), 9, lambda n: recurrent(2, "gru", n_words=n, width=12, hidden=16)),
}
QUICK = {"engines": ["slicepack"]}


def draw(classes: Sequence[str], count: int, seed: int) -> TextSamples:
    """`count` texts of 4 to 9 words of each subject."""
    rng, texts = random.Random(seed), []
    for cls in classes:
        for _ in range(count):
            said = [
                rng.choice(SUBJECTS[cls] if rng.random() < 0.4 else SMALL) for _ in range(rng.randint(4, 9))
            ]
            said[rng.randrange(len(said))] = rng.choice(SUBJECTS[cls])
            texts.append(" ".join(said))
    return TextSamples(tuple(texts), np.repeat(np.arange(len(classes)), count), tuple(classes))


def vocabulary_of(name: str) -> Vocabulary:
    """The words of a donor's subjects in an order of its own, after two marks."""
    known = sorted({*SMALL, *(word for cls in DONORS[name][0] for word in SUBJECTS[cls])})
    random.Random(name).shuffle(known)
    return Vocabulary(("<pad>", "<unk>", *known))


def trained(name: str) -> tuple[nn.Module, Intake]:
    """A donor after a second of training."""
    classes, length, make = DONORS[name]
    vocabulary = vocabulary_of(name)
    intake = Intake(described_by({"kind": "text", "length": length}, vocabulary), vocabulary)
    samples = draw(classes, 60, 1)
    inputs, labels = intake.tensor(samples), torch.from_numpy(samples.labels.copy())
    model = make(vocabulary.size).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(25):
        chosen = torch.randint(len(labels), (32,))
        optimiser.zero_grad()
        F.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimiser.step()
    return model.eval(), intake


def write_table(path: Path, samples: TextSamples) -> Path:
    lines = (f"{samples.classes[c]}\t{text}\n" for text, c in zip(samples.texts, samples.labels, strict=True))
    path.write_text("label\ttext\n" + "".join(lines))
    return path


@dataclass(frozen=True)
class Library:
    """A market of text models.

    Attributes:
        models: the trained networks, each with what it reads.
        heldout: a table of texts that chose nothing.
    """

    market: Market
    models: Mapping[str, tuple[nn.Module, Intake]]
    heldout: Path
    folder: Path


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("library")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {name: trained(name) for name in DONORS}
    with Market.create(folder / "market") as market:
        for name, (model, intake) in models.items():
            market.add(
                model,
                name=name,
                classes=DONORS[name][0],
                preprocessing=intake.preprocessing,
                vocabulary=intake.vocabulary,
                samples=draw(DONORS[name][0], 8, 7),
            )
        held = write_table(folder / "held.tsv", draw(("food", "music", "money"), 20, 99))
        yield Library(market, models, held, folder)


@pytest.fixture(scope="session")
def made(library: Library) -> Artifact:
    """A model of three subjects of two donors with other words and other lengths."""
    request = Request.parse(
        {
            "task": {"classes": ["food", "music", "money"]},
            "heldout": str(library.heldout),
            "budget": {"params": 2_000},
        }
    )
    return library.market.make(request, library.folder / "made")


def test_texts_that_decide_the_order_are_no_heldout_texts_and_unused_ones_are_noted(
    library: Library, tmp_path: Path
) -> None:
    store, wanted = library.market.store, {"task": {"classes": ["food", "music"]}}
    stocked = store.samples("cnn").only(["food"]).take(3)
    assert isinstance(stocked, TextSamples)
    mixed = write_table(tmp_path / "mixed.tsv", stocked.concat(draw(("music",), 5, 98)))
    with pytest.raises(
        RequestError, match=r"heldout: .*mixed.tsv: 3 of 8 held-out texts equal texts that the"
    ):
        check_order(Request.parse({**wanted, "heldout": str(mixed)}), store)
    other = str(write_table(tmp_path / "other.tsv", draw(("food", "music"), 2, 97)))
    order = check_order(Request.parse({**wanted, "samples": str(library.heldout), "heldout": other}), store)
    assert order.heldout is not None and len(order.heldout) == 4
    (note,) = order.requirement.notes
    assert note.startswith("samples of money in ") and note.endswith("the order is for food, music")


def test_new_subjects_get_a_new_head_on_donors_of_texts(library: Library, tmp_path: Path) -> None:
    drawn = draw(("food", "sea"), 8, 51)
    path = write_table(tmp_path / "own.tsv", TextSamples(drawn.texts, drawn.labels, ("breakfast", "boats")))
    task = {"classes": ["breakfast", "boats"]}
    request = Request.parse({"task": task, "samples": str(path), "engines": ["baselines"], "baselines": []})
    artifact = library.market.make(request, library.folder / "new")
    found = artifact.requirement
    assert found is not None and found.new == ("breakfast", "boats") and len(found.donors) == 2
    assert all(check.ok for check in artifact.report.checks)
    assert (artifact.report.pick.accuracy_loto or 0) > 0.6
    assert {row.name for row in artifact.report.rows} >= {"probe on gru", "ensemble of the whole donors"}


def test_a_market_of_texts_is_sound_and_gives_back_what_went_in(library: Library) -> None:
    store = library.market.store
    assert library.market.verify() == []
    assert store.samples("cnn") == draw(("food", "sea"), 8, 7)
    assert store.vocabulary("gru") == vocabulary_of("gru")
    assert (
        library.market.get("gru").skill is not None
        and min((library.market.get("gru").skill or {}).values()) > 0.6
    )
    assert library.market.get("cnn").input_shape == (12,)


def test_the_vocabulary_travels_inside_an_exported_file(made: Artifact, tmp_path: Path) -> None:
    kept = (made.folder / "vocabulary.json").read_text(encoding="utf-8")
    for path in (export_artifact(made, tmp_path / "m.onnx", to="onnx").path, made.folder / "model.onnx"):
        told = ort.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert told["vocabulary"] == kept and json.loads(told["classes"]) == list(made.classes)


def test_every_check_of_a_text_model_holds(made: Artifact) -> None:
    report = made.report
    assert [check.name for check in report.checks if not check.ok] == []
    assert [check.name for check in verify_artifact(made.folder) if not check.ok] == []
    assert report.reads == "text" and report.measured.params <= 2_000
    assert made.damage() == [] and "vocabulary.json" in made.manifest.files
    plan_nodes = {node.op for node in made.plan.nodes.values()}
    assert "slice" in plan_nodes
    assert (report.pick.accuracy_heldout or 0) > 0.75


def test_a_trivial_classifier_of_words_stands_beside(made: Artifact) -> None:
    rows = {row.name: row for row in made.report.rows if row.role == "trivial"}
    assert set(rows) == {"majority class", "bag of words ridge", "nearest class mean"}
    assert (rows["bag of words ridge"].accuracy_heldout or 0) > 1 / 3


def test_page_and_card_speak_of_texts(made: Artifact) -> None:
    card, page = ((made.folder / name).read_text() for name in ("README.md", "report.html"))
    for text in (card, page, "\n".join(made.report.sentences)):
        assert "image" not in text.replace('role="img"', "").replace("image/", ""), text[:200]
        assert "text" in text
    assert 'model("some words")' in card and "FLOPs a text" in page


def test_a_loaded_model_is_called_with_words(made: Artifact, library: Library) -> None:
    model = sarto.load(made.folder)
    found = model(["bread and cheese and soup", "the debt and tax of my bank", "a tune on your violin"])
    assert [prediction.label for prediction in found] == ["food", "money", "music"]
    assert model("bread and cheese and soup")[0].probabilities == pytest.approx(
        found[0].probabilities, abs=1e-5
    )
    assert model(("Bread  and CHEESE\nand soup",))[0].label == "food"
    session = ort.InferenceSession(str(made.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    held = draw(made.classes, 6, 5)
    (logits,) = session.run(None, {session.get_inputs()[0].name: model.intake.tensor(held).numpy()})
    wanted = [max(p.probabilities, key=p.probabilities.__getitem__) for p in model(list(held.texts))]
    assert [made.classes[place] for place in np.asarray(logits).argmax(1)] == wanted
    for wrong, message in (
        ("", "is empty"),
        ([], "reads texts: give a text or a list of texts"),
        (np.zeros((4, 4, 3), np.uint8), "reads texts"),
        ([3], "reads texts"),
    ):
        with pytest.raises(RequestError, match=message):
            model(wrong)  # type: ignore[arg-type]


def test_the_whole_donors_side_by_side_say_in_a_pack_what_they_say_alone(library: Library) -> None:
    from sarto.pipeline.adapting import adapt
    from sarto.pipeline.builder import Builder
    from sarto.types import Plan

    store = library.market.store
    ids = {name: library.market.get(name).id for name in DONORS}
    nodes: dict[str, Any] = {f"{name}_donor": {"op": "source", "of": id_} for name, id_ in ids.items()}
    nodes |= {name: {"op": "block", "of": f"{name}_donor"} for name in ids}
    plan = Plan.parse({"nodes": {**nodes, "all": {"op": "branch", "of": list(ids)}}, "out": "all"})
    builder, samples = Builder(store, {}), draw(tuple(SUBJECTS), 3, 17)
    packed = builder.features(plan, "all", samples)
    alone = []
    for name, (_, intake) in library.models.items():
        single = Plan.parse({"nodes": {key: nodes[key] for key in (f"{name}_donor", name)}, "out": name})
        assert builder.intake(single) == intake
        alone.append(builder.features(single, name, samples))
    assert torch.equal(packed, torch.cat(alone, 1))
    assert adapt(store.graph("cnn"), builder.intake(plan), builder.intake(plan)).inputs[0].shape[1:] == (12,)


def test_a_vocabulary_that_was_changed_is_found(made: Artifact, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "vocabulary.json"
    path.write_text(path.read_text().replace("bread", "board"))
    assert Artifact.read(tmp_path / "copy").damage() == [
        "vocabulary.json was changed: its hash is not the manifest's"
    ]
    with pytest.raises(StoreError, match="not the vocabulary of the manifest"):
        sarto.load(tmp_path / "copy")


def test_own_texts_may_come_with_the_order(library: Library, tmp_path: Path) -> None:
    own = write_table(tmp_path / "own.tsv", draw(("sea", "money"), 6, 3))
    request = {"task": {"classes": ["sea", "money"]}, "samples": str(own), **QUICK}
    plans = library.market.plan(Request.parse(request))
    assert plans.order.samples.counts == {"sea": 6, "money": 6}
    pictures = tmp_path / "x.npz"
    np.savez(pictures, images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 1], classes=["sea", "money"])
    with pytest.raises(RequestError, match="holds images, the donors read texts"):
        library.market.plan(Request.parse({**request, "samples": str(pictures)}))


class Net(nn.Module):
    """A small convolutional classifier of two classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.two(F.max_pool2d(F.relu(self.one(x)), 2)))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


def shades(classes: Sequence[str], shape: tuple[int, int, int], count: int) -> Samples:
    """Noise that is brighter in one half: at the top for the first class, at the left for the second."""
    rng = np.random.default_rng(len(shape))
    images = rng.integers(0, 100, (2 * count, *shape), dtype=np.uint8)
    images[:count, : shape[0] // 2] += 120
    images[count:, :, : shape[1] // 2] += 120
    return Samples(images, np.repeat([0, 1], count), tuple(classes))


def add_images(
    market: Market, name: str, classes: Sequence[str], shape: tuple[int, int, int], resize: str
) -> None:
    height, width, channels = shape
    torch.manual_seed(0)
    market.add(
        Net(channels),
        name=name,
        classes=classes,
        preprocessing={
            "size": [height, width],
            "channels": channels,
            "mean": [0.3] * channels,
            "std": [0.2] * channels,
            "resize": resize,
        },
        samples=shades(classes, shape, 5),
    )


def test_a_grey_and_a_coloured_donor_of_other_sizes_are_packed(tmp_path: Path) -> None:
    with Market.create(tmp_path / "market") as market:
        add_images(market, "grey", ("top", "left"), (12, 14, 1), "bilinear")
        add_images(market, "colour", ("above", "beside"), (20, 16, 3), "bilinear")
        order = Request.parse({"task": {"classes": ["top", "above", "beside"]}, **QUICK})
        artifact = market.make(order, tmp_path / "out")
    assert [check.name for check in artifact.report.checks if not check.ok] == []
    assert (artifact.preprocessing.size, artifact.preprocessing.channels) == ((20, 16), 3)  # type: ignore[union-attr]
    # Eleven pixels a side were never seen: the model resizes what it is given.
    given = np.random.default_rng(0).integers(0, 256, (2, 11, 11, 3), dtype=np.uint8)
    assert {found.label for found in sarto.load(artifact.folder)(given)} <= {"top", "above", "beside"}


def test_donors_of_other_sizes_or_kinds_need_a_word(library: Library, tmp_path: Path) -> None:
    with Market.create(tmp_path / "market") as market:
        add_images(market, "small", ("top", "left"), (12, 14, 3), "refuse")
        add_images(market, "large", ("above", "beside"), (20, 16, 3), "bilinear")
        model, intake = library.models["cnn"]
        market.add(
            model,
            name="words",
            classes=("food", "sea"),
            preprocessing=intake.preprocessing,
            vocabulary=intake.vocabulary,
            samples=draw(("food", "sea"), 3, 7),
        )
        with pytest.raises(RequestError, match=r"small may not be given resized images .* --resize bilinear"):
            market.plan(Request.parse({"task": {"classes": ["top", "above"]}}))
        with pytest.raises(
            RequestError, match=r"large reads images, words reads texts.*one model reads one kind"
        ):
            market.plan(Request.parse({"task": {"classes": ["above", "food"]}}))


# --- what can't be stocked --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "tokens", "message"),
    [
        ({"kind": "text", "length": 12}, None, "needs a vocabulary"),
        (
            {"mean": [0.0] * 3, "std": [1.0] * 3, "size": [4, 4]},
            None,
            r"\(int64, \[12\]\), preprocessing is that of images: give a vocabulary",
        ),
        ({"kind": "text", "length": 12}, 9, "the vocabulary has 9 tokens, the embedding .* has 27 rows"),
        ({"kind": "text", "length": 12}, 40, "the vocabulary has 40 tokens, the embedding .* has 27 rows"),
        ({"kind": "text", "length": 11}, 27, "length 11, the model reads 12 tokens"),
        ({"kind": "text"}, 27, "length: is missing"),
        ({"kind": "text", "length": 12, "pad_id": 27}, 27, "pad_id: is 27, the vocabulary has ids 0 to 26"),
        ({"kind": "sound"}, 27, "kind must be 'image' or 'text', got 'sound'"),
    ],
)
def test_text_models_whose_parts_do_not_fit_are_refused(
    said: dict[str, Any], tokens: int | None, message: str, library: Library
) -> None:
    graph = library.market.store.graph("cnn")
    vocabulary = Vocabulary(tuple(f"w{place}" for place in range(tokens))) if tokens is not None else None
    with pytest.raises(RequestError, match=message):
        library.market.add(
            graph, name="new", classes=("food", "sea"), preprocessing=said, vocabulary=vocabulary
        )


def test_samples_of_the_other_kind_are_refused(library: Library) -> None:
    with pytest.raises(RequestError, match="samples are images, preprocessing is that of texts"):
        library.market.add(
            library.market.store.graph("cnn"),
            name="new",
            classes=("food", "sea"),
            preprocessing=library.models["cnn"][1].preprocessing,
            vocabulary=vocabulary_of("cnn"),
            samples=shades(("food", "sea"), (4, 4, 3), 2),
        )


# --- on the command line ----------------------------------------------------------------------------------------


def run(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(words))
    return found.exit_code, found.output


def test_a_text_model_is_added_on_the_command_line(library: Library, tmp_path: Path) -> None:
    write_graph(library.market.store.graph("cnn"), tmp_path / "graph")
    market, vocabulary = str(tmp_path / "market"), tmp_path / "words.txt"
    vocabulary.write_text("\n".join(vocabulary_of("cnn").tokens))
    table = str(write_table(tmp_path / "few.tsv", draw(("food", "sea"), 4, 7)))
    assert run("market", "init", market)[0] == 0
    given = ("add", str(tmp_path / "graph"), "--name", "mine", "--classes", "food,sea", "-m", market)
    texts = (*given, "--vocabulary", str(vocabulary), "--pad", "<pad>", "--unknown", "<unk>")
    code, said = run(*texts, "--samples", table)
    assert code == 0 and "FLOPs a text" in said and "recall on its samples" in said
    with Market.open(market) as opened:
        found = opened.get("mine").preprocessing
    assert found == library.models["cnn"][1].preprocessing
    for more, message in (
        (given, "token ids and no images: give the tokens"),
        ((*given, "--length", "12"), "--length go with a model of texts"),
        ((*texts[:-1], "<none>"), "no such token"),
        ((*texts, "--pad-side", "left"), "write end or start"),
        ((*texts, "--length", "11"), "was captured with"),
    ):
        code, said = run(*more)
        assert code != 0 and message in " ".join(said.split()), said
