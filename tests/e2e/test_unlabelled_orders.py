"""Orders with images that carry no labels: the donors' decisions are their labels, and the report says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sarto import RequestError, Samples, StoreError
from sarto.cli.app import app
from sarto.pipeline import verify_artifact
from sarto.pipeline.exporting import export_artifact
from sarto.pipeline.indexing import index_zoo
from sarto.pipeline.kept_samples import own_samples
from sarto.pipeline.locking import read_lock
from sarto.pipeline.order import check_order
from sarto.pipeline.rebuilding import rebuild
from tests.e2e.conftest import Shop, batch_of, draw

DISCS = ("red disc", "green disc", "blue disc")
CROSSES = ("red cross", "green cross", "blue cross")
CHAINS = {"engines": ["reassembly", "baselines"], "baselines": []}


def flat(samples: Samples, folder: Path, seed: int = 0) -> Path:
    """The images side by side in one folder, in random order: nothing tells their classes."""
    folder.mkdir(parents=True)
    for number, place in enumerate(np.random.default_rng(seed).permutation(len(samples))):
        Image.fromarray(samples.images[place]).save(folder / f"{number:03}.png")
    return folder


def softmax_of(shop: Shop, name: str, images: np.ndarray) -> np.ndarray:
    """What a donor's own module says of images, with its own normalisation."""
    inputs, _ = batch_of(Samples(images, np.zeros(len(images), np.int64), ("any",)))
    with torch.no_grad():
        return shop.models[name](inputs).softmax(1).numpy()


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def test_a_donor_s_decisions_are_the_labels_of_images_without_any(shop: Shop, tmp_path: Path) -> None:
    folder = flat(draw(DISCS, 12, 5), tmp_path / "own")
    order = check_order(shop.order("blue disc", "red disc", samples=str(folder)), shop.market.store)
    images = pictures(folder)
    said = softmax_of(shop, "discs", images).argmax(1)
    # Greens belong to neither wanted class: the donor says so, and they are left out.
    expected = np.concatenate([images[said == DISCS.index(cls)] for cls in ("blue disc", "red disc")])
    assert order.samples.classes == ("blue disc", "red disc")
    assert (order.samples.images == expected).all()
    left = int((said == 1).sum())
    assert left > 6, "the drawing of green discs"
    assert order.requirement.labelled_by == "donors"
    assert any(
        f"carry no labels: each has the class that its donors decide; {left} that are taken for none" in note
        for note in order.requirement.notes
    )


def test_of_several_donors_the_surest_whose_own_decision_is_wanted_labels_an_image(
    shop: Shop, tmp_path: Path
) -> None:
    folder = flat(draw(DISCS, 8, 6).concat(draw(CROSSES, 8, 7)), tmp_path / "own")
    wanted = ("red disc", "green cross", "blue disc", "red cross")
    order = check_order(shop.order(*wanted, samples=str(folder)), shop.market.store)
    images = pictures(folder)
    discs, crosses = softmax_of(shop, "discs", images), softmax_of(shop, "crosses", images)
    labels = []
    for ours, theirs in zip(discs, crosses, strict=True):
        offered = [
            (share.max(), names[share.argmax()])
            for share, names in ((ours, DISCS), (theirs, CROSSES))
            if names[share.argmax()] in wanted
        ]
        labels.append(max(offered)[1] if offered else "")
    for cls in wanted:
        own = order.samples.images[order.samples.labels == wanted.index(cls)]
        assert (own == images[[label == cls for label in labels]]).all(), cls


def test_a_model_is_made_from_images_without_labels_and_its_report_speaks_of_agreement(
    shop: Shop, tmp_path: Path
) -> None:
    folder = flat(draw(DISCS, 10, 8), tmp_path / "own")
    made = shop.make(shop.order(*DISCS, samples=str(folder), heldout=None), "plain")
    report = made.report
    assert report is not None and report.requirement.labelled_by == "donors"
    assert all(check.ok for check in verify_artifact(made.folder))
    kept = own_samples(made)
    assert kept is not None and len(kept) == 30, "what verify and export compare on"
    found = export_artifact(made, tmp_path / "m.onnx", to="onnx")
    assert (found.n_samples, found.accuracy) == (30, None)
    told = " ".join(report.sentences)
    assert "agreement with the donors on images like your" in report.sentences[0]
    assert "give labelled held-out images to see that" in told
    donor = next(row for row in report.rows if row.role == "donor")
    assert donor.accuracy_loto == 1.0, "a donor agrees with itself"
    page = (made.folder / "report.html").read_text()
    assert "agreement with the donors on your images" in page and "own images, donors&#39; labels" in page
    assert "on your samples," not in page
    card = (made.folder / "README.md").read_text()
    assert "own images, donors' labels" in card and "agreement with the donors on images like yours" in card

    truth = shop.make(shop.order(*DISCS, samples=str(folder)), "judged").report
    assert truth is not None and truth.pick.accuracy_heldout is not None
    assert "give labelled held-out images" not in " ".join(truth.sentences)


def test_what_images_without_labels_can_t_be_used_for_is_said(shop: Shop, tmp_path: Path) -> None:
    store = shop.market.store
    reds = str(flat(draw(("red disc",), 6, 9), tmp_path / "reds"))
    with pytest.raises(
        RequestError, match=r"6 images without labels, and discs takes none of them for blue disc"
    ):
        check_order(shop.order("red disc", "blue disc", samples=reds), store)
    with pytest.raises(RequestError, match=r"red rings.* need labelled samples"):
        check_order(shop.order("red disc", "red rings", samples=reds), store)
    # A donor that knows a wanted class decides for it, whoever the class is taken from.
    own = flat(draw(DISCS, 4, 12), tmp_path / "own")
    shop.add("more", ("red disc", "x", "y"), samples=draw(("red disc",), 4, 3))
    order = check_order(shop.order("more:red disc", "discs:green disc", samples=str(own)), store)
    images, same = pictures(own), softmax_of(shop, "discs", pictures(own))
    # Both are one network: what it calls red or green stays, whichever of the two is asked.
    kept = sum(1 for share in same if share.argmax() in (0, 1))
    assert len(order.samples) == kept and len(images) == 12
    mixed = flat(draw(DISCS, 4, 10), tmp_path / "mixed")
    (mixed / "note.txt").write_text("no image")
    with pytest.raises(RequestError, match=r"note\.txt: not an image"):
        check_order(shop.order(*DISCS, samples=str(mixed)), store)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("some words")
    with pytest.raises(RequestError, match="no sub-folder in it"):
        check_order(shop.order(*DISCS, samples=str(texts)), store)


def test_the_command_takes_a_folder_of_images_without_labels(shop: Shop, tmp_path: Path) -> None:
    folder = flat(draw(DISCS, 8, 11), tmp_path / "own")
    common = ["--market", str(shop.market.store.path), "--samples", str(folder)]
    done = CliRunner().invoke(
        app, ["make", "--classes", ",".join(DISCS), *common, "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "agreement with the donors on your images" in done.output
    assert "carry no labels" in done.output


def test_chains_from_images_without_labels_learn_features_and_are_made_again(
    shop: Shop, tmp_path: Path
) -> None:
    index_zoo(shop.market.store, "zoo", n_probes=32, batch=8)
    folder = flat(draw(("red disc", "green disc"), 10, 13), tmp_path / "own")
    asked = shop.order(
        "red disc", "green disc", samples=str(folder), train={"epochs": 1}, donors={"least": 2}, **CHAINS
    )
    made = shop.make(asked.replace(heldout=None), "chain")
    report = made.report
    assert report is not None and report.requirement.labelled_by == "donors"
    (after,) = [row for row in report.rows if row.name.endswith(", trained")]
    assert "towards the features of" in after.note, "nobody's labels are at hand"
    best = [text for text in report.sentences if text.startswith("The best single donor within the budget")]
    assert "agreement with the donors on your samples" in best[0]
    assert any("agrees most with the donors" in text for text in report.sentences)
    again = rebuild(shop.market.store, read_lock(made.folder), shop.folder / "again")
    assert again.plan.key() == made.plan.key()
    (folder / "000.png").unlink()
    with pytest.raises(StoreError, match=r"not those of the lock.*another processor may decide otherwise"):
        rebuild(shop.market.store, read_lock(made.folder), shop.folder / "other")
