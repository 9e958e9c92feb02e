"""Parts of the convolutional families, and what comes after a detector: the same numbers by plain loops."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sarto.zoo import decode, detect, overlaps, rename_published_efficientnet, suppress
from sarto.zoo._checks import divisible
from sarto.zoo.convnext import Block, ChannelNorm
from sarto.zoo.densenet import DenseLayer
from sarto.zoo.efficientnet import ConvNorm, Excitation
from sarto.zoo.efficientnet import efficientnet as build_efficientnet
from sarto.zoo.resnet import Bottleneck
from sarto.zoo.shufflenet import ShuffleBlock
from sarto.zoo.unet import unet

WIDE = torch.float64


@given(st.integers(3, 13), st.integers(3, 13), st.sampled_from([1, 2, 3]), st.sampled_from([1, 3, 5]))
def test_padding_is_that_of_same_convolutions(height: int, width: int, stride: int, kernel: int) -> None:
    layer = ConvNorm(1, 1, kernel, stride, 1, nn.Identity()).to(WIDE).eval()
    nn.init.normal_(layer.conv.weight)
    image = torch.randn(height, width, dtype=WIDE)
    made = layer.conv(layer.pad(image[None, None]))[0, 0]
    rows, columns = -(-height // stride), -(-width // stride)
    assert made.shape == (rows, columns)
    top = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    weight = layer.conv.weight[0, 0]
    for row, column in product(range(rows), range(columns)):
        total = torch.zeros((), dtype=WIDE)
        for i, j in product(range(kernel), range(kernel)):
            y, x = row * stride + i - top, column * stride + j - left
            if 0 <= y < height and 0 <= x < width:
                total = total + weight[i, j] * image[y, x]
        torch.testing.assert_close(made[row, column], total)


@pytest.mark.parametrize(
    ("width", "rounded"), [(1, 8), (11, 16), (12, 16), (16, 16), (17.6, 16), (18, 24), (4.2, 8), (88.0, 88)]
)
def test_widths_are_rounded_to_multiples_of_eight_and_lose_no_tenth(width: float, rounded: int) -> None:
    assert divisible(width) == rounded
    assert rounded >= 0.9 * width


def test_excitation_scales_each_channel_by_one_number() -> None:
    layer = Excitation(4, 2).to(WIDE)
    x = torch.randn(2, 4, 3, 3, dtype=WIDE)
    ratios = (layer(x) / x).flatten(2)
    torch.testing.assert_close(ratios, ratios[..., :1].expand_as(ratios))
    squeezed = F.silu(x.mean((2, 3)) @ layer.reduce.weight[:, :, 0, 0].T + layer.reduce.bias)
    want = (squeezed @ layer.expand.weight[:, :, 0, 0].T + layer.expand.bias).sigmoid()
    torch.testing.assert_close(ratios[..., 0], want)


def test_a_bottleneck_of_zero_filters_is_its_shortcut() -> None:
    block = Bottleneck(8, 4, 8, 1, 2).to(WIDE).eval()
    nn.init.zeros_(block.conv3.weight)
    x = torch.randn(1, 8, 5, 5, dtype=WIDE)
    torch.testing.assert_close(block(x), F.relu(x))


def test_groups_of_a_bottleneck_do_not_see_each_other() -> None:
    block = Bottleneck(8, 6, 8, 1, 3)
    assert block.conv2.weight.shape == (6, 2, 3, 3)


def test_a_dense_layer_passes_its_input_on() -> None:
    layer = DenseLayer(5, 3, 2).to(WIDE).eval()
    x = torch.randn(2, 5, 4, 4, dtype=WIDE)
    made = layer(x)
    assert made.shape == (2, 8, 4, 4)
    torch.testing.assert_close(made[:, :5], x)


def test_a_shuffle_block_passes_even_channels_and_works_on_odd_ones() -> None:
    block = ShuffleBlock(6, 6, 1).to(WIDE).eval()
    x = torch.randn(1, 6, 4, 4, dtype=WIDE)
    made = block(x)
    torch.testing.assert_close(made[:, :3], x[:, [0, 2, 4]])
    torch.testing.assert_close(made[:, 3:], block.branch_main(x[:, [1, 3, 5]]))


def test_two_shuffle_blocks_let_every_channel_be_worked_on() -> None:
    first, second = (ShuffleBlock(8, 8, 1).to(WIDE).eval() for _ in range(2))
    x = torch.randn(1, 8, 4, 4, dtype=WIDE)
    passed = set(range(0, 8, 2))
    worked = {
        channel for channel in passed if not (second(first(x)) == x[:, channel, None]).all((2, 3)).any()
    }
    assert len(worked) == 2


def test_channel_norm_is_layer_norm_of_each_pixel() -> None:
    norm = ChannelNorm(5).to(WIDE)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4, dtype=WIDE)
    made = norm(x)
    for image, row, column in product(range(2), range(3), range(4)):
        pixel = x[image, :, row, column]
        scaled = (pixel - pixel.mean()) / (pixel.var(correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(made[image, :, row, column], scaled * norm.weight + norm.bias)


def test_a_convnext_block_of_scale_zero_changes_nothing() -> None:
    x = torch.randn(1, 6, 5, 5, dtype=WIDE)
    torch.testing.assert_close(Block(6, 0.0).to(WIDE)(x), x)
    assert not torch.allclose(Block(6, 1.0).to(WIDE)(x), x)


def test_a_u_net_joins_the_map_of_the_same_size() -> None:
    model = unet(2, 1, 3, 2).to(WIDE).eval()
    seen: list[tuple[Tensor, Tensor]] = []
    kept: list[Tensor] = []
    model.enter.register_forward_hook(lambda part, given, made: kept.append(made))
    model.down[0].register_forward_hook(lambda part, given, made: kept.append(made))
    for grow, join in zip(model.up, model.join, strict=True):
        grow.register_forward_hook(lambda part, given, made: seen.append(made))
        join.register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    model(torch.randn(1, 1, 8, 12, dtype=WIDE))
    torch.testing.assert_close(seen[1], torch.cat([kept[1], seen[0]], dim=1))
    torch.testing.assert_close(seen[3], torch.cat([kept[0], seen[2]], dim=1))


def test_published_names_of_efficientnets_that_are_none_are_refused() -> None:
    weights = {"_fc.bias": torch.zeros(1), **{f"head.{n}": torch.zeros(1) for n in range(4)}}
    with pytest.raises(ValueError, match=r"4 of 5 tensors .* not published ones: 'head.0', .*, \.\.\.; give"):
        rename_published_efficientnet(weights)


@pytest.mark.parametrize("lite", [False, True])
def test_published_names_of_efficientnets_cover_every_tensor(lite: bool) -> None:
    """Builds the published names from ours, by words instead of patterns, and asks for ours again."""
    ours = build_efficientnet(3, stages=((1, 4, 1, 1, 3), (6, 8, 2, 2, 5)), lite=lite).state_dict()
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2", "stem": "_bn0", "last": "_bn1"}
    convs = {"stem": "_conv_stem", "last": "_conv_head"}
    published = {}
    for name, value in ours.items():
        *place, part, kind, tensor = name.rjust(len(name) + 2, ".").split(".")
        if part == "excite":
            word = f"_se_{kind}"
        elif kind == "classifier":
            part, word = "", "_fc"
        else:
            word = norms[part] if kind == "norm" else convs.get(part, f"_{part}_conv")
        block = f"_blocks.{place[-1]}." if "blocks" in place else ""
        published[f"{block}{word}.{tensor}"] = value
    renamed = rename_published_efficientnet(published)
    assert set(renamed) == set(ours)
    assert all(renamed[name] is value for name, value in ours.items())


def boxes_of(numbers: list[list[int]]) -> Tensor:
    corners = [[min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1] for a, b, c, d in numbers]
    return torch.tensor(corners, dtype=WIDE).reshape(-1, 4)


BOXES = st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), max_size=8)


def cells_of(box: Tensor) -> set[tuple[int, int]]:
    left, top, right, bottom = (int(number) for number in box)
    return set(product(range(left, right), range(top, bottom)))


@given(BOXES, BOXES)
def test_overlap_is_shared_cells_over_covered_cells(ones: list[list[int]], others: list[list[int]]) -> None:
    first, second = boxes_of(ones), boxes_of(others)
    found = overlaps(first, second)
    assert found.shape == (len(ones), len(others))
    for i, j in product(range(len(ones)), range(len(others))):
        a, b = cells_of(first[i]), cells_of(second[j])
        assert found[i, j].item() == pytest.approx(len(a & b) / len(a | b))


def test_boxes_without_area_overlap_nothing() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert overlaps(point, point).item() == 0


@given(BOXES, st.randoms(use_true_random=False), st.sampled_from([0.0, 0.3, 0.45, 1.0]))
def test_suppression_keeps_what_no_better_kept_box_covers(
    numbers: list[list[int]], random: object, overlap: float
) -> None:
    boxes = boxes_of(numbers)
    scores = torch.tensor([random.randint(0, 4) / 4 for _ in numbers], dtype=WIDE)  # type: ignore[attr-defined]
    kept: list[int] = []
    for place in sorted(range(len(numbers)), key=lambda place: (-scores[place].item(), place)):
        here = cells_of(boxes[place])
        rivals = [cells_of(boxes[other]) for other in kept]
        if all(len(here & there) / len(here | there) <= overlap for there in rivals):
            kept.append(place)
    assert suppress(boxes, scores, overlap).tolist() == kept


def test_decoding_reads_each_cell_for_itself() -> None:
    cells = torch.randn(2, 8, 3, 4, dtype=WIDE)
    cells[:, 5:] = cells[:, 5:].softmax(1)
    cells[:, 0] = cells[:, 0].sigmoid()
    boxes, scores, labels = decode(cells)
    sure = decode(cells, weighted=False)[1]
    assert (boxes.shape, scores.shape, labels.shape) == ((2, 12, 4), (2, 12), (2, 12))
    for image, row, column in product(range(2), range(3), range(4)):
        numbers = cells[image, :, row, column]
        x, y = (numbers[1].tanh() + column) / 4, (numbers[2].tanh() + row) / 3
        w, h = numbers[3].sigmoid(), numbers[4].sigmoid()
        place = (image, row * 4 + column)
        want = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        torch.testing.assert_close(boxes[place], want)
        torch.testing.assert_close(scores[place], numbers[0] * numbers[5:].max())
        torch.testing.assert_close(sure[place], numbers[0])
        assert labels[place] == numbers[5:].argmax()


def test_detections_are_best_first_and_boxes_of_other_classes_stay() -> None:
    """Three cells give nearly one box: two of class 0, the worse of which goes, and one of class 1."""
    cells = torch.zeros(2, 7, 1, 3, dtype=WIDE)
    cells[:, 1] = torch.tensor([20.0, 0.0, -20.0])  # All middles at a third of the width.
    cells[:, 3:5] = 3.0
    cells[0, 0, 0] = torch.tensor([0.8, 0.9, 0.7])
    cells[:, 5, 0] = torch.tensor([1.0, 1.0, 0.0])
    cells[:, 6] = 1 - cells[:, 5]
    first, second = detect(cells, 0.6)
    assert first.labels.tolist() == [0, 1]
    torch.testing.assert_close(first.scores, torch.tensor([0.9, 0.7], dtype=WIDE))
    assert first.boxes.shape == (2, 4)
    assert (second.boxes.shape, second.scores.shape, second.labels.shape) == ((0, 4), (0,), (0,))
    assert detect(cells, 0.75)[0].labels.tolist() == [0]
    assert len(detect(cells, 0.6, overlap=1.0)[0].labels) == 3
