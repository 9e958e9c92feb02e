"""Training a built chain: stitches alone, the paper's frozen protocol, everything, or without labels.

Reference:
    Deep Model Reassembly, NeurIPS 2022, section 4.1: frozen blocks (stem, stitches and head are trained) and full
    fine-tuning. Matching of the receiver's last features: Revisiting Model Stitching in the Foundation-Model Era, 2026.
    Differs: stitches begin at their closed form and the stem is a donor's, so that frozen training begins near its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.errors import GraphError, RequestError
from sarto.graph import ModelGraph, features, graph_hash, with_state
from sarto.training import LoopResult, LoopSettings, draw_weights, draws, train_loop

#: What is trained: the stitches; the stitches, the first block's stem and the classifier; everything.
Scope = Literal["stitches", "frozen", "full"]


@dataclass(frozen=True)
class Tuning:
    """How a chain is trained.

    Attributes:
        scope: which of its tensors change.
        steps, batch, rate, decay: of AdamW with warm-up and cosine.
        smoothing: of labels.
        keep_statistics: batch norms keep their running statistics; the paper lets those of frozen blocks move.
        fresh: all weights but the classifier's are drawn anew, and statistics move: a student of the chain's size.
        seed: of the batches and of what is drawn.
    """

    scope: Scope = "stitches"
    steps: int = 200
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.05
    smoothing: float = 0.1
    keep_statistics: bool = True
    fresh: bool = False
    seed: int = 0


def trained_names(graph: ModelGraph, scope: Scope) -> frozenset[str]:
    """Tensors of a built chain that a scope trains.

    Raises:
        RequestError: the graph has no stitches to train.
    """
    if scope == "full":
        return graph.parameters
    stitches = frozenset(name for name in graph.parameters if _is_stitch(name))
    if not stitches:
        raise RequestError(
            "the model has no stitches of its own to train: none was needed, or all were folded"
        )
    if scope == "stitches":
        return stitches
    return stitches | _classifier(graph) | _stem(graph)


def tune_chain(
    graph: ModelGraph,
    inputs: Tensor,
    how: Tuning | None = None,
    *,
    labels: Tensor | None = None,
    wanted: Tensor | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    folder: Path | None = None,
) -> tuple[ModelGraph, LoopResult]:
    """A built chain after training; goes on after an interruption where checkpoints are kept.

    Args:
        graph: as `Assembler.graph` gives it.
        inputs: images as it reads them, shape (n, ...).
        labels: classes (n,); trained on cross entropy.
        wanted: what the classifier should read on these images, shape (n, width), the tail donor's own; trained on the
            mean squared difference. One of the two is given.
        augment: changes a batch of images; with `wanted` it must be None.
        folder: where checkpoints lie.

    Raises:
        RequestError: neither labels nor wanted features, or both; features of another width; or there is nothing to
            train.
        GraphError: the chain does not end in a linear classifier.
    """
    how = how or Tuning()
    if (labels is None) == (wanted is None) or (wanted is not None and augment is not None):
        raise RequestError(
            "a chain is trained on labels, or on the features that its classifier should read; give one"
        )
    chosen = trained_names(graph, how.scope)
    found = features(graph)
    read = found.value
    if wanted is not None and wanted.shape[1] != found.width:
        raise RequestError(
            f"the classifier reads {found.width} features, the teacher gives {wanted.shape[1]}: train towards labels"
        )
    shown = ModelGraph(
        graph.inputs, graph.nodes, (graph.outputs[0], read), graph.tensors, graph.parameters, graph.refused
    )
    module = shown.module(train=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    if how.fresh:
        _redraw(module, _classifier(graph), how.seed)
    elif how.keep_statistics:
        module.eval()

    def loss_of(step: int) -> Tensor:
        generator = draws(how.seed, step)
        index = torch.randint(len(inputs), (min(how.batch, len(inputs)),), generator=generator)
        images = inputs[index]
        if augment is not None:
            images = augment(images, generator)
        logits, made = module(images)
        if labels is not None:
            return F.cross_entropy(logits, labels[index], label_smoothing=how.smoothing)
        if wanted is None:
            raise GraphError("there is nothing to train towards")
        return F.mse_loss(made, wanted[index]) / wanted.var().clamp(min=1e-12)

    settings = LoopSettings(
        how.steps, {"chain": how.rate}, {"chain": how.decay}, save_every=max(1, how.steps // 4)
    )
    parts: Mapping[str, nn.Module] = {"chain": module}
    identity: dict[str, Any] = {
        "graph": graph_hash(graph),
        "scope": how.scope,
        "seed": how.seed,
        "batch": how.batch,
        "n": len(inputs),
        "towards": "labels" if labels is not None else "features",
        "fresh": how.fresh,
    }
    result = train_loop(parts, loss_of, settings, folder=folder, identity=identity)
    return with_state(graph, module), result


def _redraw(module: nn.Module, kept: frozenset[str], seed: int) -> None:
    """Draw weights anew, in place; the kept ones stay as they are."""
    before = {name: p.detach().clone() for name, p in module.named_parameters() if name in kept}
    draw_weights(module, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in before:
                parameter.copy_(before[name])


def _classifier(graph: ModelGraph) -> frozenset[str]:
    """Parameters of the last linear layer."""
    classifier = graph.node(features(graph).classifier)
    names = {getattr(classifier.args.get(name), "name", "") for name in ("weight", "bias")}
    return frozenset(names & graph.parameters)


def _is_stitch(name: str) -> bool:
    part = name.partition(".")[0]
    return part[:1] == "s" and part[1:].isdigit()


def _stem(graph: ModelGraph) -> frozenset[str]:
    """Parameters of the first convolution or linear layer of the chain."""
    for node in graph.nodes:
        weight = node.args.get("weight")
        if weight is not None and not node.op.startswith("aten.batch_norm"):
            names = {getattr(node.args.get(key), "name", "") for key in ("weight", "bias")}
            return frozenset(names & graph.parameters)
    return frozenset()
