"""The images that the examples ship are what their sheets say: none that reports was trained on or chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.cifar import Split, read_split, train_and_pool
from sarto.market import Samples, read_samples

pytestmark = pytest.mark.data


def pixels(found: Split | Samples) -> dict[str, set[bytes]]:
    """The images of each class, as bytes."""
    labels = np.asarray(found.labels)
    return {
        name: {image.tobytes() for image in found.images[labels == label]}
        for label, name in enumerate(found.classes)
    }


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "examples" / "images"


def test_samples_come_from_the_pool_that_no_donor_was_trained_on(shipped: Path, data_folder: Path) -> None:
    trained, pool = (pixels(part) for part in train_and_pool(read_split(data_folder / "cifar10", "train")))
    samples = pixels(read_samples(shipped / "samples"))
    assert set(samples) == set(pool) and all(len(images) == 20 for images in samples.values())
    assert all(images <= pool[name] for name, images in samples.items())
    every_trained = set().union(*trained.values())
    assert not [name for name, images in samples.items() if images & every_trained]


def test_heldout_images_come_from_the_test_split_and_none_is_a_sample(
    shipped: Path, data_folder: Path
) -> None:
    test = pixels(read_split(data_folder / "cifar10", "test"))
    heldout = pixels(read_samples(shipped / "heldout"))
    samples = pixels(read_samples(shipped / "samples"))
    assert set(heldout) == set(test) and all(len(images) == 200 for images in heldout.values())
    assert all(images <= test[name] for name, images in heldout.items())
    assert not set().union(*heldout.values()) & set().union(*samples.values())
