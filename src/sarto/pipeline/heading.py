"""How a head of a plan is made: fitted on features of samples and put on a graph, or cut out of a donor's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.graph import ModelGraph, restrict, with_head
from sarto.market import Labelled
from sarto.pipeline.papering import EncodedHead, fit_encoded, put_encoded
from sarto.training import FittedHead, PackState, fit_head
from sarto.types import HeadNode, Learnware, StockedSupernet


def fit_node(node: HeadNode, blocks: Sequence[Tensor], samples: Labelled) -> FittedHead:
    """The head of a node, fitted on the features of samples; each member of a branch gets one scale.

    The strength of a ridge head that names none is chosen by leaving one of each class out; a logistic one takes its
    default, which did better than choosing.

    Args:
        blocks: features (n, width) of the samples for each member of the branch below.
        samples: of exactly the node's classes, in their order.
    """
    labels = torch.from_numpy(samples.labels.copy())
    if node.kind == "paper":
        return fit_encoded(node, blocks, labels)
    if node.kind == "ridge":
        return pack_state(node, blocks, samples).head(lam=node.lam)
    return fit_head(
        torch.cat(list(blocks), 1),
        labels,
        len(node.classes),
        lam=node.lam,
        blocks=tuple(part.shape[1] for part in blocks),
        classes=node.classes,
    )


def pack_state(node: HeadNode, blocks: Sequence[Tensor], samples: Labelled) -> PackState:
    """The samples as the members of a pack see them, from which a ridge head is solved; members are numbered."""
    labels = torch.from_numpy(samples.labels.copy())
    return PackState.of({str(place): part for place, part in enumerate(blocks)}, labels, node.classes)


def put_head(below: ModelGraph, fitted: FittedHead) -> ModelGraph:
    """The graph of features with a fitted head on it: calibrated logits."""
    head = fitted.head
    if isinstance(head, EncodedHead):
        return put_encoded(below, head)
    scale = 1.0 / head.temperature
    return with_head(below, (head.weight * scale).float(), (head.bias * scale).float())


def restrict_head(below: ModelGraph, node: HeadNode, learnware: Learnware | StockedSupernet) -> ModelGraph:
    """A donor with only the wanted outputs of its own classifier.

    Raises:
        RequestError: the donor does not know a class.
    """
    missing = [cls for cls in node.classes if cls not in learnware.classes]
    if missing:
        what = "supernet" if isinstance(learnware, StockedSupernet) else "learnware"
        raise RequestError(f"{what} {learnware.name!r} does not know {', '.join(missing)}")
    return restrict(below, [learnware.classes.index(cls) for cls in node.classes])
