"""How a head of a plan is made: fitted on features of samples and put on a graph, or cut out of a donor's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.graph import ModelGraph, restrict, with_head
from sarto.market import Samples
from sarto.pipeline.papering import EncodedHead, fit_encoded, put_encoded
from sarto.training import FittedHead, fit_head
from sarto.types import HeadNode, Learnware


def fit_node(node: HeadNode, blocks: Sequence[Tensor], samples: Samples) -> FittedHead:
    """The head of a node, fitted on the features of samples; each member of a branch gets one scale.

    Args:
        blocks: features (n, width) of the samples for each member of the branch below.
        samples: of exactly the node's classes, in their order.
    """
    labels = torch.from_numpy(samples.labels.copy())
    if node.kind == "paper":
        return fit_encoded(node, blocks, labels)
    return fit_head(
        torch.cat(list(blocks), 1),
        labels,
        len(node.classes),
        kind="ridge" if node.kind == "ridge" else "logistic",
        lam=node.lam,
        blocks=tuple(part.shape[1] for part in blocks),
    )


def put_head(below: ModelGraph, fitted: FittedHead) -> ModelGraph:
    """The graph of features with a fitted head on it: calibrated logits."""
    head = fitted.head
    if isinstance(head, EncodedHead):
        return put_encoded(below, head)
    scale = 1.0 / head.temperature
    return with_head(below, (head.weight * scale).float(), (head.bias * scale).float())


def restrict_head(below: ModelGraph, node: HeadNode, learnware: Learnware) -> ModelGraph:
    """A donor with only the wanted outputs of its own classifier.

    Raises:
        RequestError: the donor does not know a class.
    """
    missing = [cls for cls in node.classes if cls not in learnware.classes]
    if missing:
        raise RequestError(f"learnware {learnware.name!r} does not know {', '.join(missing)}")
    return restrict(below, [learnware.classes.index(cls) for cls in node.classes])
