"""A small model and images for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sarto.cli import app

FACTORY = ("sarto.zoo:vgg", "--arg", 'widths=[4,"M",6,"M"]', "--arg", "n_classes=3")
CLASSES = ("cat", "dog", "[red]ship")

Sarto = Callable[..., Result]


def run(*args: object) -> Result:
    """What `sarto ARGS` prints and its exit code."""
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="sarto")


def write_samples(path: Path, seed: int = 0) -> Path:
    """Six images of each class, 8x8, told apart by their colour."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 6)
    images = generator.integers(0, 90, size=(18, 8, 8, 3), dtype=np.uint8)
    images[np.arange(18), :, :, labels] += 150
    np.savez(path, images=images, labels=labels, classes=np.array(CLASSES))
    return path


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A market with one learnware, stocked by the command line."""
    home = tmp_path_factory.mktemp("cli")
    made = run("market", "init", home / "market")
    assert made.exit_code == 0, made.output
    samples = write_samples(home / "samples.npz")
    added = run(
        *("add", *FACTORY, "--name", "tiny", "--classes", ",".join(CLASSES), "--size", "8,8"),
        *("--samples", samples, "--licence", "MIT", "--market", home / "market"),
    )
    assert added.exit_code == 0, added.output
    return home / "market"
