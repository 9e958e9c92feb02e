"""The paper's method where plans are built: fragments that are trained, and its encoder with classifier as a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sarto.engines.slicepack.paper import PaperPack, PaperSettings, paper_fragment, paper_pack
from sarto.errors import RequestError
from sarto.graph import ModelGraph, Selection, with_head, with_layer
from sarto.pipeline.progress import Progress
from sarto.training import (
    FittedHead,
    Head,
    expected_calibration_error,
    fit_temperature,
    not_counted,
    one_of_each,
)
from sarto.training.score import LotoScore, summarise
from sarto.types import HeadNode, SliceNode


@dataclass(frozen=True, eq=False)
class EncodedHead(Head):
    """A classifier on encoded features: scores = activation(x E^T + e) weight^T + bias.

    encoder: E (width, d) and e (width,); relu: whether the activation is ReLU or none.
    """

    encoder: tuple[Tensor, Tensor] = (torch.empty(0, 0), torch.empty(0))
    relu: bool = True

    def scores(self, features: Tensor) -> Tensor:
        """Scores (n, q) of features (n, d)."""
        codes = functional.linear(features.to(self.weight.dtype), *self.encoder)
        return super().scores(functional.relu(codes) if self.relu else codes)


def train_fragment(
    node: SliceNode,
    graph: ModelGraph,
    inputs: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    keep: Mapping[str, int | tuple[int, ...]],
    progress: Progress,
    *,
    own_outputs: bool,
) -> tuple[ModelGraph, Selection]:
    """The fragment of a node with `paper` settings, and what it keeps.

    Args:
        classes: what the labels stand for; keep: units of each channel group.
        own_outputs: whether these are the donor's outputs, in order; else H does not start from its classifier.

    Raises:
        RequestError: the node names units one by one, which the paper's method chooses itself; or a loss diverged.
    """
    settings = node.paper or PaperSettings()
    if not own_outputs:
        settings = settings.replace(head_start="zero")
    counts = {group: amount for group, amount in keep.items() if isinstance(amount, int)}
    if len(counts) < len(keep):
        raise RequestError(
            "the paper's method chooses units itself; give counts or a ratio, no lists of units"
        )
    found = paper_fragment(
        graph,
        inputs,
        labels,
        len(classes),
        [classes.index(cls) for cls in node.classes],
        settings,
        progress,
        keep=counts if settings.select == "rate" else None,
    )
    return found.graph, found.selection


def fit_encoded(node: HeadNode, blocks: Sequence[Tensor], labels: Tensor) -> FittedHead:
    """Encoder and classifier of (11)-(12), scored by training them anew without one of each class at a time.

    Raises:
        RequestError: there is not one fragment for each class.
    """
    settings, n_classes = node.paper or PaperSettings(), len(node.classes)
    if len(blocks) != n_classes:
        raise RequestError(
            f"the paper packs one fragment a class; this plan has {len(blocks)} parts for {n_classes} classes"
        )
    loto = _left_out(blocks, labels, n_classes, settings)
    pack = paper_pack(blocks, labels, n_classes, settings)
    head: Head = _head(pack)
    notes = ["trained by the paper's method: encoder, decoders and classifier"]
    notes += [text] if (text := not_counted(loto, node.classes)) else []
    temperature = fit_temperature(loto.scores, labels)
    error = None
    if temperature is None:
        notes.append("too few samples to calibrate probabilities")
    else:
        head = head.with_temperature(temperature)
        error = expected_calibration_error(torch.softmax(loto.scores / temperature, 1), labels)
    return FittedHead(head, loto, error, tuple(notes))


def put_encoded(below: ModelGraph, head: EncodedHead) -> ModelGraph:
    """The graph of features with encoder and classifier on it: calibrated logits. The decoders stay out."""
    scale = 1.0 / head.temperature
    weight, bias = head.encoder
    whole = with_layer(below, "encoder", weight.float(), bias.float(), relu=head.relu)
    return with_head(whole, (head.weight * scale).float(), (head.bias * scale).float())


def _head(pack: PaperPack) -> EncodedHead:
    return EncodedHead(*pack.classifier, encoder=pack.encoder, relu=pack.relu)


def _left_out(blocks: Sequence[Tensor], labels: Tensor, n_classes: int, settings: PaperSettings) -> LotoScore:
    folds = one_of_each(labels, n_classes, pairings=1, seed=settings.seed)
    scores = torch.zeros(*folds.left_out.shape, n_classes, dtype=torch.float64)
    losses = torch.zeros(folds.left_out.shape, dtype=torch.float64)
    for fold, stays in enumerate(folds.training_mask(len(labels))):
        pack = paper_pack([block[stays] for block in blocks], labels[stays], n_classes, settings)
        out = folds.left_out[fold]
        said = pack.scores(torch.cat([block[out] for block in blocks], 1)).to(torch.float64)
        scores[fold] = said
        losses[fold] = functional.cross_entropy(said, labels[out], reduction="none")
    basis = "trained anew in every fold, one pairing"
    return summarise(scores, losses, folds, labels, n_classes, lam=None, basis=basis)
