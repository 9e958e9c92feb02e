"""CIFAR ResNets: shapes, parameters by the closed formula, both shortcuts."""

from __future__ import annotations

import pytest
import torch

from sarto.zoo import cifar_resnet
from sarto.zoo.resnet import PadShortcut

SIDE = 32


def formula(n_classes: int, depth: int, width: int, shortcut: str) -> int:
    """The stem, three stages of n blocks with two 3x3 convolutions each, shortcuts, the linear layer."""
    n = (depth - 2) // 6
    total = 27 * width + 2 * width
    given = width
    for made in (width, 2 * width, 4 * width):
        total += 9 * made * given + 9 * made * made + 4 * made
        total += (n - 1) * (18 * made * made + 4 * made)
        if made != given and shortcut == "conv":
            total += made * given + 2 * made
        given = made
    return total + (given + 1) * n_classes


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_gives_one_row_of_logits_per_image(batch: int, shortcut: str) -> None:
    model = cifar_resnet(5, 8, 4, shortcut).eval()
    assert model(torch.randn(batch, 3, SIDE, SIDE)).shape == (batch, 5)


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
@pytest.mark.parametrize(("depth", "width"), [(8, 3), (14, 4), (20, 16)])
def test_parameters_follow_the_formula(depth: int, width: int, shortcut: str) -> None:
    model = cifar_resnet(3, depth, width, shortcut)
    assert sum(p.numel() for p in model.parameters()) == formula(3, depth, width, shortcut)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_the_papers_networks_have_the_papers_sizes(depth: int, millions: float) -> None:
    """He et al. 2016, table 6, which is with option A and ten classes."""
    assert formula(10, depth, 16, "pad") / 1e6 == pytest.approx(millions, abs=0.05 if depth > 100 else 0.006)


def test_depth_counts_the_layers_with_weights_on_the_main_road() -> None:
    model = cifar_resnet(2, 20, 4, "pad")
    assert sum(isinstance(part, torch.nn.Conv2d | torch.nn.Linear) for part in model.modules()) == 20


@pytest.mark.parametrize(("given", "made"), [(4, 8), (5, 10), (3, 4)])
def test_pad_shortcut_keeps_every_second_pixel_between_zeros(given: int, made: int) -> None:
    x = torch.randn(2, given, 6, 6, dtype=torch.float64)
    y = PadShortcut(given, made)(x)
    before = (made - given) // 2
    assert y.shape == (2, made, 3, 3)
    for channel in range(made):
        if before <= channel < before + given:
            for row in range(3):
                for column in range(3):
                    assert torch.equal(
                        y[:, channel, row, column], x[:, channel - before, 2 * row, 2 * column]
                    )
        else:
            assert not y[:, channel].any()


def test_an_odd_width_works_with_the_pad_shortcut() -> None:
    assert cifar_resnet(2, 8, 5, "pad").eval()(torch.randn(1, 3, SIDE, SIDE)).shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_classes": 0}, "n_classes is 0: give at least 1"),
        ({"n_classes": 2, "depth": 18}, r"depth is 18: give 6n \+ 2"),
        ({"n_classes": 2, "depth": 2}, r"depth is 2: give 6n \+ 2"),
        ({"n_classes": 2, "width": 0}, "width is 0: give at least 1"),
        ({"n_classes": 2, "shortcut": "none"}, "shortcut is 'none': give 'conv' or 'pad'"),
        (
            {"n_classes": -1, "depth": 9, "width": 0, "shortcut": "A"},
            "n_classes.*; depth.*; width.*; shortcut",
        ),
    ],
)
def test_refuses_what_it_cannot_build(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cifar_resnet(**arguments)  # type: ignore[arg-type]
