from __future__ import annotations

import io
import json

import numpy as np
import pytest
from safetensors.numpy import load

from sarto.errors import RequestError
from sarto.market import Samples, encode_samples
from sarto.testing.store_contract import pixels


def test_every_problem_is_named_at_once() -> None:
    images = np.full((3, 4, 4), 0.5, dtype=np.float32)
    images[0, 0, 0] = np.nan
    with pytest.raises(RequestError) as refused:
        Samples(images, np.array([0, 1, 5, 1]), ("ant", "ant", "bee"))  # type: ignore[arg-type]
    text = str(refused.value)
    assert len(refused.value.problems) == 7
    for words in (
        "1 values of images are NaN",
        "images must be uint8, got float32",
        r"(n, height, width, channels), got (3, 4, 4)",
        "class 'ant' is named 2 times",
        "4 labels for 3 images",
        "labels go from 0 to 5, but 3 classes allow 0 to 2",
        "no image of class 'bee'",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        (np.array([0.0, 1.0]), ("a", "b"), "labels must be whole numbers"),
        (np.array([[0, 1]]), ("a", "b"), r"labels must have shape \(n,\), got \(1, 2\)"),
        (np.array([0, 0]), (), "there are no classes"),
        (np.array([0, 1]), ("a", " "), "printable text without spaces around it, got ' '"),
        (np.array([0, 1]), ("a", "\ud800"), "printable text"),
        (np.array([0, -1]), ("a", "b"), "labels go from -1 to 0"),
    ],
)
def test_labels_and_classes_are_checked(labels: np.ndarray, classes: tuple[str, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Samples(np.zeros((2, 3, 3, 1), np.uint8), labels, classes)


def test_images_must_not_be_empty() -> None:
    with pytest.raises(RequestError, match="images are empty"):
        Samples(np.zeros((2, 0, 3, 1), np.uint8), np.array([0, 0]), ("a",))


def test_arrays_can_not_be_changed_from_outside() -> None:
    images, labels = np.zeros((2, 3, 3, 1), np.uint8), np.array([0, 1], dtype=np.int32)
    samples = Samples(images, labels, ("a", "b"))
    digest = samples.digest
    images[:] = 7
    labels[:] = 0
    assert samples.images.max() == 0
    assert samples.labels.tolist() == [0, 1]
    assert samples.labels.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        samples.images[0] = 1
    assert Samples(samples.images, samples.labels, samples.classes).digest == digest


def test_only_picks_by_name_in_the_order_asked_for() -> None:
    samples = pixels(("ant", "bee", "cat"), per_class=3)
    found = samples.only(["cat", "ant"])
    assert found.classes == ("cat", "ant")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(found.images[:3], samples.images[samples.labels == 2])
    assert np.array_equal(found.images[3:], samples.images[samples.labels == 0])


def test_only_refuses_unknown_and_repeated_classes() -> None:
    with pytest.raises(
        RequestError, match=r"no samples of class 'bea' \(did you mean 'bee'\?\).*'ant' is asked for 2"
    ):
        pixels().only(["bea", "ant", "ant"])
    with pytest.raises(RequestError, match="no class is asked for"):
        pixels().only([])


def test_take_gives_the_first_of_each_class() -> None:
    samples = pixels(("ant", "bee"), per_class=5)
    assert samples.take(2).counts == {"ant": 2, "bee": 2}
    assert np.array_equal(samples.take(2).only(["bee"]).images, samples.images[samples.labels == 1][:2])
    assert samples.take(99) == samples
    with pytest.raises(RequestError, match="at least 1, got 0"):
        samples.take(0)


def test_a_draw_depends_on_seed_and_class_only_and_grows() -> None:
    samples = pixels(("ant", "bee", "cat"), per_class=20)
    assert samples.take(4, seed=1) == samples.take(4, seed=1)
    assert samples.take(4, seed=1) != samples.take(4, seed=2)
    assert samples.take(4, seed=1) != samples.take(4)
    assert samples.take(4, seed=1).only(["bee"]) == samples.only(["bee"]).take(4, seed=1)
    small = {image.tobytes() for image in samples.take(4, seed=1).images}
    large = {image.tobytes() for image in samples.take(9, seed=1).images}
    assert small < large


def test_concat_joins_by_name() -> None:
    one, two = pixels(("ant", "bee"), seed=1), pixels(("cat", "bee"), seed=2)
    joined = one.concat(two)
    assert joined.classes == ("ant", "bee", "cat")
    assert joined.counts == {"ant": 2, "bee": 4, "cat": 2}
    for image, label in zip(two.images, two.labels, strict=True):
        same = (joined.images == image).all(axis=(1, 2, 3))
        assert [joined.classes[found] for found in joined.labels[same]] == [two.classes[label]]
    assert one.concat() == one
    with pytest.raises(RequestError, match=r"\(4, 4, 3\), \(5, 4, 3\); resize"):
        one.concat(Samples(np.zeros((1, 5, 4, 3), np.uint8), np.array([0]), ("dog",)))


def test_the_digest_ignores_storage_but_not_content() -> None:
    samples = pixels(("ant", "bee"), per_class=3)
    same = [
        Samples(np.asfortranarray(samples.images), samples.labels.astype(">i2"), samples.classes),
        samples.only(["bee", "ant"]),
        Samples(samples.images, 1 - samples.labels, ("bee", "ant")),
    ]
    assert {found.digest for found in same} == {samples.digest}
    changed = samples.images.copy()
    changed[0, 0, 0, 0] ^= 1
    different = [
        Samples(changed, samples.labels, samples.classes),
        Samples(samples.images, 1 - samples.labels, samples.classes),
        Samples(samples.images, samples.labels, ("ant", "wasp")),
        Samples(samples.images[::-1], samples.labels[::-1], samples.classes),
        Samples(samples.images.reshape(6, 2, 8, 3), samples.labels, samples.classes),
        samples.take(2),
    ]
    assert len({found.digest for found in [samples, *different]}) == 7
    assert samples == same[1] and hash(samples) == hash(same[1])
    assert samples != different[0] and samples != "text"


def test_samples_are_shown_without_their_pixels() -> None:
    assert repr(pixels()) == "<Samples: 4 images 4x4x3; ant 2, bee 2>"


def test_the_bytes_are_a_safetensors_file() -> None:
    samples = pixels(("bee", "ant"), per_class=3)
    data = encode_samples(samples)
    found = load(data)
    ordered = samples.only(["ant", "bee"])
    assert np.array_equal(found["images"], ordered.images)
    assert np.array_equal(found["labels"], ordered.labels)
    size = int.from_bytes(io.BytesIO(data).read(8), "little")
    assert size % 8 == 0
    about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["sarto"])
    assert about == {"classes": ["ant", "bee"], "format": "sarto.samples/1"}
