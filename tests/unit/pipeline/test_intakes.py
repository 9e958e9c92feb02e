"""What a pack reads where its donors read different things: each member gets exactly its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.devices import count
from sarto.errors import RequestError
from sarto.graph import ModelGraph, capture
from sarto.market import Intake, Samples, Vocabulary, to_tensor, with_channels
from sarto.pipeline.adapting import adapt, adapting_cost, resizing
from sarto.pipeline.builder import ready
from sarto.pipeline.intakes import conform, joint_intake, joint_problems
from sarto.pipeline.market import described_by
from sarto.types import Cost, Learnware, Preprocessing, TextPreprocessing
from sarto.zoo import recurrent, text_cnn

NONE = "sha256:" + "0" * 64
FREE = Cost(params=0, flops=0, memory_bytes=0, size_bytes=0, basis="measured")


class Net(nn.Module):
    """A convolution and a mean over space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2).flatten(1))


def image_donor(name: str, shape: tuple[int, int, int], **said: Any) -> tuple[Learnware, Intake]:
    channels, *size = shape
    known = {"size": size, "channels": channels, "mean": [0.3] * channels, "std": [0.2] * channels}
    return learnware(name, Preprocessing.parse({**known, "resize": "bilinear", **said}), shape)


def text_donor(name: str, tokens: tuple[str, ...], length: int, **said: Any) -> tuple[Learnware, Intake]:
    vocabulary = Vocabulary(tokens)
    found = described_by({"kind": "text", "length": length, **said}, vocabulary)
    return learnware(name, found, (length,), vocabulary)


def learnware(
    name: str,
    preprocessing: Preprocessing | TextPreprocessing,
    shape: tuple[int, ...],
    vocabulary: Vocabulary | None = None,
) -> tuple[Learnware, Intake]:
    made = Learnware(
        id="sha256:" + name.encode().hex().ljust(64, "0")[:64],
        name=name,
        classes=("x",),
        preprocessing=preprocessing,
        graph_hash=NONE,
        weights_hash=NONE,
        input_shape=shape,
        cost=FREE,
        created="2026-01-01",
    )
    if isinstance(preprocessing, Preprocessing):
        preprocessing = preprocessing.replace(mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    return made, Intake(preprocessing, vocabulary)


def pixels(shape: tuple[int, int, int], n: int = 5, seed: int = 0) -> np.ndarray:
    channels, *size = shape
    return np.random.default_rng(seed).integers(0, 256, (n, *size, channels), dtype=np.uint8)


# --- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 9, 7), (1, 9, 7), (1, 16, 12), (3, 16, 5), (3, 20, 8)])
def test_resizing_in_the_graph_is_that_of_the_preprocessing(shape: tuple[int, int, int]) -> None:
    """Stated tolerance: 1e-6 of the largest output, on images of the joint size."""
    torch.manual_seed(0)
    donor, own = image_donor("small", shape)
    joint = joint_intake([(donor, own), image_donor("large", (3, 16, 12))])
    graph = ready(capture(Net(shape[0]), torch.randn(2, *shape)), donor.preprocessing)
    given = pixels((3, 16, 12))
    found = adapt(graph, own, joint)(to_tensor(given, joint.preprocessing))
    wanted = graph(to_tensor(with_channels(given, shape[0]), own.preprocessing))
    assert isinstance(found, Tensor) and isinstance(wanted, Tensor)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_the_matrix_of_a_resizing_is_a_mean_of_neighbours() -> None:
    for before, after in ((12, 5), (5, 12), (7, 7)):
        matrix = resizing(before, after)
        assert matrix.shape == (after, before) and (matrix >= 0).all()
        assert torch.allclose(matrix.sum(1), torch.ones(after))
    assert torch.equal(resizing(6, 6), torch.eye(6))
    assert torch.allclose(resizing(4, 2)[0], torch.tensor([3, 3, 1, 0.0]) / 7, atol=1e-6)


def test_the_joint_size_is_that_of_the_donor_with_the_most_pixels() -> None:
    donors = [image_donor("a", (1, 9, 9)), image_donor("b", (3, 8, 20)), image_donor("c", (3, 4, 30))]
    joint = joint_intake(donors).preprocessing
    assert isinstance(joint, Preprocessing)
    assert (joint.size, joint.channels, joint.mean) == ((8, 20), 3, (0.0, 0.0, 0.0))
    alone = joint_intake(donors[:1])
    assert alone == donors[0][1]


@pytest.mark.parametrize("shape", [(3, 9, 7), (1, 9, 7), (1, 16, 12), (3, 16, 5)])
def test_what_adapting_costs_is_what_is_counted(shape: tuple[int, int, int]) -> None:
    donor, own = image_donor("small", shape)
    joint = joint_intake([(donor, own), image_donor("large", (3, 16, 12))])
    graph = capture(Net(shape[0]), torch.randn(2, *shape))
    before, after = count(graph), count(adapt(graph, own, joint))
    flops, size_bytes, _ = adapting_cost(own, donor, joint)
    assert (after.flops - before.flops, after.size_bytes - before.size_bytes) == (flops, size_bytes)
    assert after.params == before.params


def test_grey_and_colour_go_into_each_other() -> None:
    grey = pixels((1, 4, 4))
    assert np.array_equal(with_channels(grey, 3)[..., 1], grey[..., 0])
    assert np.allclose(with_channels(with_channels(grey, 3), 1), grey / 255, atol=1e-6)
    coloured = np.zeros((1, 1, 1, 3), np.uint8)
    coloured[..., 1] = 255
    assert np.allclose(with_channels(coloured, 1), 0.587)
    assert with_channels(coloured, 4) is coloured


def test_samples_of_other_sizes_become_joint_ones() -> None:
    joint = joint_intake([image_donor("a", (1, 6, 5)), image_donor("b", (3, 8, 8))])
    given = Samples(pixels((1, 6, 5)), np.array([0, 1, 0, 1, 0]), ("x", "y"))
    found = conform(given, joint)
    assert isinstance(found, Samples) and found.images.shape == (5, 8, 8, 3) and found.counts == given.counts
    assert abs(float(found.images.mean()) - float(given.images.mean())) < 6
    assert conform(found, joint) is found


@pytest.mark.parametrize(
    ("donors", "message"),
    [
        (
            [image_donor("a", (3, 9, 9), resize="refuse"), image_donor("b", (3, 8, 8))],
            r"different sizes \(a reads 9x9, b reads 8x8\), and a may not be given resized images .*--resize bilinear",
        ),
        ([image_donor("a", (4, 8, 8)), image_donor("b", (3, 8, 8))], "only grey and colour images"),
        (
            [image_donor("a", (3, 8, 8)), text_donor("b", ("p", "u"), 4)],
            r"different kinds of samples \(a reads images, b reads texts\); one model reads one kind",
        ),
        (
            [text_donor("a", ("p", "u"), 4, side="start"), text_donor("b", ("p", "u", "v"), 4)],
            "part texts in different ways .*padded at the start",
        ),
        (
            [text_donor("a", ("p", "u"), 4, lower=False), text_donor("b", ("p", "u", "v"), 4)],
            "part texts in different ways",
        ),
    ],
)
def test_donors_that_cannot_be_read_for_together_are_refused(
    donors: list[tuple[Learnware, Intake]], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        joint_intake(donors)
    assert joint_problems([donor for donor, _ in donors])


# --- texts ------------------------------------------------------------------------------------------------------

ONE = ("<pad>", "<unk>", "ship", "sail", "the", "of")
TWO = ("zero", "the", "?", "salt", "soup", "ship", "pad", "!")
TEXTS = [
    "the ship",
    "Soup! of the pad",
    "nothing known here",
    "salt sail ship soup the of salt sail ship soup the of",
    "?",
]


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize(
    ("tokens", "length", "said"),
    [
        (ONE, 4, {}),
        (ONE, 9, {}),
        (TWO, 7, {"pad_id": 6, "unknown_id": 2}),
        (TWO, 9, {"pad_id": 0, "unknown_id": 0}),
    ],
)
def test_each_member_gets_the_ids_that_it_gets_alone(
    tokens: tuple[str, ...], length: int, said: Mapping[str, int], side: str
) -> None:
    torch.manual_seed(1)
    donors = [
        text_donor("own", tokens, length, side=side, **said),
        text_donor("b", ("a", *ONE), 9, side=side),
    ]
    own, joint = donors[0][1], joint_intake(donors)
    model = text_cnn(3, n_words=len(tokens), width=5, filters=4, spans=(2, 3), padding=None)
    graph = capture(model, torch.zeros(2, length, dtype=torch.int64), prove=False)
    found, wanted = adapt(graph, own, joint)(joint.ids(TEXTS)), graph(own.ids(TEXTS))
    assert isinstance(found, Tensor) and isinstance(wanted, Tensor)
    assert torch.equal(found, wanted)
    cost, adapted = count(graph), count(adapt(graph, own, joint))
    flops, size_bytes, _ = adapting_cost(own, donors[0][0], joint)
    assert (adapted.flops - cost.flops, adapted.size_bytes - cost.size_bytes) == (flops, size_bytes)


def test_donors_that_read_alike_need_no_table() -> None:
    donors = [text_donor("a", ONE, 4), text_donor("b", ONE, 6)]
    joint = joint_intake(donors)
    assert joint.vocabulary == Vocabulary(ONE) and joint.ids(TEXTS).shape == (5, 6)
    graph = token_graph(len(ONE), 4)
    cut = adapt(graph, donors[0][1], joint)
    assert cut.nodes[0].op == "aten.slice.Tensor" and cut.tensors.keys() == graph.tensors.keys()
    assert adapt(graph, donors[0][1], donors[0][1]) is graph


def token_graph(n_words: int, length: int) -> ModelGraph:
    model = recurrent(2, "gru", n_words=n_words, width=3, hidden=4, padding=None)
    return capture(model, torch.zeros(2, length, dtype=torch.int64), prove=False)
