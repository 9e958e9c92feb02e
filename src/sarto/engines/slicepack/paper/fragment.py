"""A fragment by the paper's method: pooling and adaption of each layer, combining, fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.engines.slicepack.paper.adaption import Adapted, adapt_layer
from sarto.engines.slicepack.paper.combining import combine
from sarto.engines.slicepack.paper.layers import Donor, MapKey, read_layers
from sarto.engines.slicepack.paper.mixing import Kept, read_through
from sarto.engines.slicepack.paper.network import repaired_tensors
from sarto.engines.slicepack.paper.pooling import pool_layer, scores_of, select_units
from sarto.engines.slicepack.paper.task import Front, Progress, fronts, make_task, silent
from sarto.errors import RequestError
from sarto.graph import ModelGraph, Selection, slice
from sarto.graph.expressions import units_in
from sarto.training import give_back_memory
from sarto.types import PaperSettings


@dataclass(frozen=True, eq=False)
class PaperFragment:
    """F^c.

    Attributes:
        graph: the donor without its dropped units, every l_i folded into what reads it; its classifier still gives
            all the donor's classes. The features that a pack reads are what this classifier reads.
        selection: U_i of every layer.
        detector: H on the fragment's own features: weight (2, features) and bias (2,), the second output for the class.
        trained: what the training gave, before fusion.
    """

    graph: ModelGraph
    selection: Selection
    detector: tuple[Tensor, Tensor]
    trained: Adapted


def paper_fragment(
    graph: ModelGraph,
    inputs: Tensor,
    labels: Tensor,
    n_classes: int,
    classes: int | Sequence[int],
    settings: PaperSettings | None = None,
    progress: Progress = silent,
    *,
    keep: Mapping[str, int] | None = None,
) -> PaperFragment:
    """One class (or a few as one) sliced out of a donor by training, as the paper does.

    The same seed gives the same fragment on the same machine.

    Args:
        graph: the whole donor with its classifier; what its inputs need (normalisation) in front.
        inputs: samples of all its classes, shape (n, ...); labels: 0..n_classes-1, shape (n,).
        classes: whose fragment it is; all others are "a single negative class".
        settings: None takes every default.
        progress: called with the stage, the steps done and the steps of the stage.
        keep: channel group -> units kept by rate; then these groups are the layers, and beta has no say.

    Raises:
        GraphError: the donor is no classifier or has no layer to slice.
        RequestError: the samples or classes do not fit the donor, or a loss is not finite.

    Reference:
        Slice-and-Pack, AAAI 2025, equations (2)-(10).
        Differs: see `PaperSettings`.
    """
    settings = settings or PaperSettings()
    wanted = (classes,) if isinstance(classes, int) else tuple(classes)
    donor = read_layers(graph, streams=settings.streams, groups=keep)
    counts = _counts(donor, keep, settings)
    task = make_task(donor, inputs, labels, n_classes, wanted, settings)
    adapted: list[Adapted] = []
    first: Front | None = None
    for place, (layer, front) in enumerate(fronts(task)):
        first = first or front
        pooled = pool_layer(task, place, front, progress)
        scores = scores_of(task, layer, front, pooled)
        units = select_units(scores, settings, counts.get(layer.group))
        adapted.append(adapt_layer(task, place, front, pooled, units, progress))
    if first is None:
        raise RequestError("the donor has no layers")
    trained = combine(task, adapted, first, progress)
    give_back_memory()
    return fuse(donor, trained)


def fuse(donor: Donor, trained: Adapted) -> PaperFragment:
    """The fragment with every l_i multiplied into the weights that read it: no extra operator, the same outputs.

    Reference:
        Slice-and-Pack, "we can fuse all l_i into the linear layer next to it". A map stands after activation and
        pooling and has no bias, where that is exact; the paper's own parameter counts suggest that the authors left
        the maps at max pools unfused.
    """
    selection = Selection(trained.kept)
    wide = _double({**donor.graph.tensors, **trained.tensors})
    folded = repaired_tensors(donor, wide, trained.kept, {key: m.double() for key, m in trained.maps.items()})
    sliced = slice(donor.graph, selection)
    tensors = {name: folded[name].to(tensor.dtype).contiguous() for name, tensor in sliced.tensors.items()}
    weight, bias = trained.head
    detector = _through_features(donor, weight.double(), trained.kept, trained.maps).to(weight.dtype)
    return PaperFragment(replace(sliced, tensors=tensors), selection, (detector, bias), trained)


def _through_features(donor: Donor, weight: Tensor, kept: Kept, maps: Mapping[MapKey, Tensor]) -> Tensor:
    """A weight on the features of all units as one on those of the kept units: the map of the last layer folded."""
    if not units_in(donor.axis) & kept.keys():
        return weight
    here = {
        p: m.to(weight.dtype) for (name, axis, p), m in maps.items() if (name, axis) == (donor.classifier, 1)
    }
    return read_through(weight, 1, donor.axis, kept, here)


def _double(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.to(torch.float64) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _counts(donor: Donor, keep: Mapping[str, int] | None, settings: PaperSettings) -> dict[str, int]:
    """Units by layer, checked against the donor."""
    if keep is None:
        return {}
    sizes = {layer.group: layer.size for layer in donor.layers}
    wanted = {donor.graph.analysis.group(name).id: count for name, count in keep.items()}
    problems = [
        f"{group!r} has {sizes[group]} units, {count} can't be kept"
        for group, count in wanted.items()
        if group in sizes and not 1 <= count <= sizes[group]
    ]
    if settings.select == "threshold":
        problems.append("a threshold decides by itself how many units are kept; leave the counts out")
    if problems:
        raise RequestError(problems[0], problems=problems)
    return wanted
