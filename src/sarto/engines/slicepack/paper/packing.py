"""Packing as the paper trains it: an encoder over the fragments' features, a decoder for each, and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sarto.engines.slicepack.paper.losses import packing_loss
from sarto.engines.slicepack.paper.task import Learned, Progress, descend, silent
from sarto.errors import RequestError, ShapeError
from sarto.types import PaperSettings

#: Weight and bias of a linear layer.
Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class PaperPack:
    """A trained pack. The decoders taught the encoder and are not part of the model.

    Attributes:
        encoder: weight (q, features of all fragments) and bias (q,).
        classifier: H^K: weight (classes, q) and bias (classes,).
        decoders: of each fragment: weight (d, q) and bias (d,).
        relu: whether the encoder ends in ReLU.
        decoder_relu: whether each decoder does.
    """

    encoder: Linear
    classifier: Linear
    decoders: tuple[Linear, ...]
    relu: bool
    decoder_relu: tuple[bool, ...]

    def codes(self, features: Tensor) -> Tensor:
        """F(x), shape (n, q), of the fragments' features side by side, equation (11)."""
        found = functional.linear(features, *self.encoder)
        return functional.relu(found) if self.relu else found

    def scores(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of the fragments' features side by side."""
        return functional.linear(self.codes(features), *self.classifier)

    def decoded(self, fragment: int, codes: Tensor) -> Tensor:
        """What a decoder makes of codes (n, q): features (n, d) of its fragment."""
        found = functional.linear(codes, *self.decoders[fragment])
        return functional.relu(found) if self.decoder_relu[fragment] else found


def paper_pack(
    features: Sequence[Tensor],
    labels: Tensor,
    n_classes: int,
    settings: PaperSettings | None = None,
    progress: Progress = silent,
    *,
    owners: Sequence[int] | None = None,
) -> PaperPack:
    """Enc, Dec_c and H^K trained on the fragments' features; the fragments themselves do not change.

    Args:
        features: of each fragment, shape (n, d_c), in the order of the pack.
        labels: 0..n_classes-1, shape (n,).
        settings: None takes every default.
        owners: class -> its fragment; None: one fragment a class, in order.

    Raises:
        ShapeError: features and labels do not fit together.
        RequestError: a class without samples or without a fragment, or a loss that is not finite.

    Reference:
        Slice-and-Pack, equations (11) and (12). Our reading: Enc is linear with ReLU, H^K is linear (its activation
        is the softmax of the cross entropy), a decoder sees the samples of its own classes alone.
    """
    settings = settings or PaperSettings()
    owner = list(range(len(features))) if owners is None else list(owners)
    _check(features, labels, n_classes, owner)
    joined = torch.cat(list(features), 1)
    widths = [part.shape[1] for part in features]
    width = settings.enc_width or max(widths)
    generator = torch.Generator().manual_seed(settings.seed * 16 + 3)
    relu = settings.enc_activation == "relu"
    pack = PaperPack(
        _start(width, sum(widths), joined, generator),
        _start(n_classes, width, joined, generator),
        tuple(_start(d, width, joined, generator) for d in widths),
        relu,
        tuple(_ends_in_relu(part, settings) for part in features),
    )
    learned = [*pack.encoder, *pack.classifier, *(part for decoder in pack.decoders for part in decoder)]

    def loss(rows: Tensor) -> Tensor:
        return pack_loss(pack, features, labels, owner, settings.delta, rows)

    descend(
        "packing",
        [Learned(learned, settings.pack_lr)],
        loss,
        settings.pack_steps,
        len(labels),
        settings,
        generator,
        progress,
    )
    for part in learned:
        part.requires_grad_(False)
    return pack


def pack_loss(
    pack: PaperPack,
    features: Sequence[Tensor],
    labels: Tensor,
    owners: Sequence[int],
    delta: float,
    rows: Tensor,
) -> Tensor:
    """The loss (12) of a batch."""
    codes = pack.codes(torch.cat([part[rows] for part in features], 1))
    given = labels[rows]
    own = {cls: torch.nonzero(given == cls).flatten() for cls in given.unique().tolist()}
    return packing_loss(
        functional.linear(codes, *pack.classifier),
        given,
        {cls: pack.decoded(owners[cls], codes[at]) for cls, at in own.items()},
        {cls: features[owners[cls]][rows[at]] for cls, at in own.items()},
        delta,
    )


def _start(out: int, given: int, like: Tensor, generator: torch.Generator) -> Linear:
    """Uniform numbers as a linear layer usually starts with."""
    bound = given**-0.5
    weight = (torch.rand(out, given, generator=generator) * 2 - 1) * bound
    bias = (torch.rand(out, generator=generator) * 2 - 1) * bound
    return weight.to(like.dtype).requires_grad_(), bias.to(like.dtype).requires_grad_()


def _ends_in_relu(features: Tensor, settings: PaperSettings) -> bool:
    if settings.dec_activation == "range":
        return bool((features >= 0).all())
    return settings.dec_activation == "relu"


def _check(features: Sequence[Tensor], labels: Tensor, n_classes: int, owner: Sequence[int]) -> None:
    shapes = [tuple(part.shape) for part in features]
    if not features or any(len(shape) != 2 or shape[0] != len(labels) for shape in shapes):
        raise ShapeError(
            f"features (n, d) of each fragment for {len(labels)} labels were asked for, got {shapes}"
        )
    problems = []
    counts = torch.bincount(labels, minlength=n_classes)
    empty = [cls for cls in range(n_classes) if int(counts[cls]) == 0]
    if empty or len(counts) > n_classes:
        problems.append(
            f"labels lie in 0..{n_classes - 1} and each class has samples; classes {empty} have none"
        )
    if len(owner) != n_classes or any(not 0 <= place < len(features) for place in owner):
        problems.append(
            f"each of the {n_classes} classes needs one of the {len(features)} fragments, got owners {list(owner)}"
        )
    if problems:
        raise RequestError(problems[0], problems=problems)
