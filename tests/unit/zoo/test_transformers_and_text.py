"""ViT, Swin, text CNN and recurrent classifiers: sizes, shapes, and the same numbers by plain loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from sarto.zoo.recurrent import CELLS, POOLS, recurrent
from sarto.zoo.swin import WindowAttention, swin, swin_cifar, swin_t
from sarto.zoo.text_cnn import text_cnn
from sarto.zoo.vit import Attention, vit, vit_cifar, vit_imagenet

SIDE, TOKENS, WORDS = 32, 9, 40

PICO: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: vit_cifar(5, width=12, depth=2, heads=3),
    "swin": lambda: swin_cifar(5, width=6, depths=(1, 2), heads=(2, 3)),
    "text cnn": lambda: text_cnn(5, WORDS, 6, 4),
    **{
        f"{cell} {ways} {pool}": lambda cell=cell, ways=ways, pool=pool: recurrent(  # type: ignore[misc]
            5, cell, WORDS, 6, 4, layers=2, bidirectional=ways == 2, pool=pool
        )
        for cell, ways, pool in product(CELLS, (1, 2), POOLS)
    },
}


def sample(name: str, batch: int) -> Tensor:
    if name in ("vit", "swin"):
        return torch.randn(batch, 3, SIDE, SIDE)
    return torch.randint(0, WORDS, (batch, TOKENS))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", PICO)
def test_gives_one_row_of_logits_per_sample(name: str, batch: int) -> None:
    assert PICO[name]().eval()(sample(name, batch)).shape == (batch, 5)


@pytest.mark.parametrize("name", PICO)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    model, x = PICO[name]().double().eval(), sample(name, 3)
    x = x.double() if x.is_floating_point() else x
    torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]))


@pytest.mark.parametrize("name", ["vit", "swin", "text cnn", "gru 2 last", "lstm 1 mean"])
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = PICO[name]().eval()
    with warnings.catch_warnings():
        # Recurrent modules set an attribute of their own while they are exported.
        warnings.filterwarnings("ignore", message="The tensor attributes self", category=UserWarning)
        batch = {0: torch.export.Dim.DYNAMIC}
        program = torch.export.export(model, (sample(name, 2),), dynamic_shapes=(batch,))
    x = sample(name, 5)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(
    ("name", "count"), [("ti", 5_717_416), ("s", 22_050_664), ("b", 86_567_656)], ids=["ti", "s", "b"]
)
def test_vit_has_the_published_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        assert size(vit_imagenet(size=name)) == count


def test_swin_t_has_the_published_number_of_parameters() -> None:
    assert size(swin_t()) == 28_288_354


def test_small_forms_have_the_sizes_that_they_say() -> None:
    assert size(vit_cifar()) == pytest.approx(1.8e6, rel=0.05)
    assert size(swin_cifar()) == pytest.approx(1.3e6, rel=0.05)


@pytest.mark.parametrize("spans", [(3, 4, 5), (2,)])
def test_text_cnn_parameters_follow_the_formula(spans: tuple[int, ...]) -> None:
    filters = sum(7 * 11 * span + 11 for span in spans)
    assert size(text_cnn(2, 50, 7, 11, spans)) == 50 * 7 + filters + (11 * len(spans) + 1) * 2


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_recurrent_parameters_follow_the_formula(cell: str, gates: int, ways: int) -> None:
    first = ways * gates * (5 * 7 + 5 * 5 + 2 * 5)
    second = ways * gates * (5 * 5 * ways + 5 * 5 + 2 * 5)
    count = size(recurrent(3, cell, 20, 7, 5, layers=2, bidirectional=ways == 2))
    assert count == 20 * 7 + first + second + (5 * ways + 1) * 3


def test_vit_attention_is_a_weighted_mean_of_values() -> None:
    layer = Attention(6, 2, 0.0).double()
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    q, k, v = layer.qkv(x[0]).split(6, dim=1)
    rows = torch.zeros(5, 6, dtype=torch.float64)
    for head in (slice(0, 3), slice(3, 6)):
        for token in range(5):
            weights = torch.stack([q[token, head] @ k[other, head] / 3**0.5 for other in range(5)]).softmax(0)
            rows[token, head] = sum(weights[other] * v[other, head] for other in range(5))
    torch.testing.assert_close(layer(x)[0], layer.proj(rows))


def attend_by_position(layer: WindowAttention, image: Tensor) -> Tensor:
    """What a window attention gives for one image (side, side, width), position by position.

    Windows are counted on the image itself, starting `shift` positions in; what lies before is a window of its own.
    """
    side, window, heads = layer.side, layer.window, layer.heads
    wide = image.shape[-1] // heads
    q, k, v = layer.qkv(image).reshape(side, side, 3, heads, wide).unbind(2)
    places = list(product(range(side), repeat=2))

    def home(place: tuple[int, int]) -> tuple[int, int]:
        return (place[0] - layer.shift) // window, (place[1] - layer.shift) // window

    mixed = torch.zeros(side, side, heads, wide, dtype=image.dtype)
    for here in places:
        seen = [there for there in places if home(there) == home(here)]
        for head in range(heads):
            scores = []
            for there in seen:
                row = (here[0] - there[0] + window - 1) * (2 * window - 1) + here[1] - there[1] + window - 1
                bias = layer.relative_position_bias_table[row, head]
                scores.append((q[here][head] * k[there][head]).sum() / wide**0.5 + bias)
            weights = torch.stack(scores).softmax(0)
            mixed[here][head] = sum(w * v[there][head] for w, there in zip(weights, seen, strict=True))
    return layer.proj(mixed.flatten(2))


@pytest.mark.parametrize(("side", "window", "shift"), [(4, 2, 0), (4, 2, 1), (6, 3, 1), (4, 4, 0)])
def test_swin_attention_equals_a_loop_over_positions(side: int, window: int, shift: int) -> None:
    layer = WindowAttention(4, 2, side, window, shift).double()
    nn.init.normal_(layer.relative_position_bias_table)
    images = torch.randn(2, side, side, 4, dtype=torch.float64)
    with torch.no_grad():
        want = torch.stack([attend_by_position(layer, image) for image in images])
        torch.testing.assert_close(layer(images), want)


def test_swin_shifts_every_second_block_unless_one_window_holds_all() -> None:
    blocks = [part.attn for part in swin(2, 32, 4, 4, (2, 3), (1, 2), 4).stages if hasattr(part, "attn")]
    assert [(part.side, part.window, part.shift) for part in blocks] == [
        *[(8, 4, 0), (8, 4, 2)],
        *[(4, 4, 0)] * 3,
    ]


def test_text_cnn_keeps_the_largest_answer_of_each_filter() -> None:
    model = text_cnn(3, WORDS, 5, 4).double().eval()
    tokens = torch.randint(0, WORDS, (2, TOKENS))
    words = model.embedding(tokens)
    rows = []
    for sentence in words:
        peaks = []
        for conv, span in zip(model.convs, (3, 4, 5), strict=True):
            windows = [sentence[i : i + span].T for i in range(TOKENS - span + 1)]
            answers = torch.stack([(conv.weight * window).sum((1, 2)) + conv.bias for window in windows])
            peaks.append(answers.amax(0).clamp(min=0))
        rows.append(torch.cat(peaks))
    torch.testing.assert_close(model(tokens), model.classifier(torch.stack(rows)))


@pytest.mark.parametrize("cell", CELLS)
def test_the_last_state_of_the_backward_reader_is_at_the_first_word(cell: str) -> None:
    model = recurrent(3, cell, WORDS, 5, 4, layers=2, bidirectional=True).double().eval()
    tokens = torch.randint(0, WORDS, (2, TOKENS))
    states, _ = model.recurrent(model.embedding(tokens))
    ends = torch.cat([states[:, -1, :4], states[:, 0, 4:]], dim=1)
    torch.testing.assert_close(model(tokens), model.classifier(ends))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: vit(2, 30, 4, 8, 1, 2), "side is 30: give a multiple of patch, 4"),
        (lambda: vit(2, 32, 4, 9, 1, 2), "width is 9: give a multiple of heads, 2"),
        (lambda: vit(2, 32, 4, 4, 1, 2, 0.1), "mlp_ratio is 0.1: give at least 0.25"),
        (
            lambda: vit(0, 32, 4, 8, 0, 2, dropout=1.0),
            "n_classes is 0.*; depth is 0.*; dropout is 1.0: give 0 <= p < 1",
        ),
        (lambda: vit_imagenet(2, "xl"), "size is 'xl': give 'ti', 's' or 'b'"),
        (lambda: swin_t(0), "n_classes is 0: give at least 1"),
        (lambda: swin(2, 30, 4, 8, (1, 1), (1, 1), 2), "side is 30: give a multiple of 8"),
        (lambda: swin(2, 24, 4, 8, (1,), (1,), 4), "stage 0 has 6 positions an edge"),
        (lambda: swin(2, 32, 4, 8, (1, 1), (1, 3), 4), "stage 1 has width 16: .* not 3 heads"),
        (lambda: swin(2, 32, 4, 8, (), (1,), 4), r"depths is \[\].*; depths has 0 stages and heads has 1"),
        (lambda: swin(2, 32, 4, 4, (1,), (1,), 4, 0.1), "mlp_ratio is 0.1: give at least 0.25"),
        (lambda: text_cnn(2, spans=()), r"spans is \[\]: give at least one"),
        (lambda: text_cnn(0, 5, dropout=-1, padding=5), "n_classes is 0.*; dropout is -1.*; padding is 5"),
        (lambda: recurrent(2, "sru"), "cell is 'sru': give 'rnn', 'gru' or 'lstm'"),
        (lambda: recurrent(2, pool="max", hidden=0), "hidden is 0.*; pool is 'max': give 'last' or 'mean'"),
        (lambda: recurrent(2, dropout=2, padding=-1), "dropout is 2: .*; padding is -1: give a token id"),
    ],
)
def test_refuses_what_it_cannot_build(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


def test_a_grey_vit_is_a_coloured_one_that_reads_the_same_three_times() -> None:
    torch.manual_seed(0)
    coloured = vit(5, 8, 4, 12, 1, 3).double().eval()
    grey = vit(5, 8, 4, 12, 1, 3, in_channels=1).double().eval()
    state = coloured.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    grey.load_state_dict(state)
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(grey(images), coloured(images.expand(-1, 3, -1, -1)), atol=1e-12)
