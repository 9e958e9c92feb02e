"""What only training shows: how much attention drops, and the weights that a trained module brings back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sarto.errors import GraphError
from sarto.graph.export_words import quiet_export
from sarto.graph.model import ModelGraph, Node, shapes_of, size_at

_ATTENTION = "aten.scaled_dot_product_attention.default"


def with_training_values(graph: ModelGraph, model: nn.Module, inputs: tuple[Tensor, ...]) -> ModelGraph:
    """The graph with the attention dropout that its source module has in training.

    A module in evaluation mode calls attention with no dropout at all, so its graph does not tell. Where the module
    drops anything, it is exported once more in training mode, and its attentions are matched with the graph's in
    order. Where the two don't match (the export fails, or training has other attentions) the graph stays as it is and
    trains without attention dropout. Other dropout and recurrent layers hold their share in either mode.

    Args:
        model: the module that the graph was captured from; it is left as it was.
        inputs: what the graph was captured with, axis 0 the batch.
    """
    attentions = [node for node in graph.nodes if node.op == _ATTENTION]
    if not attentions or not _drops(model):
        return graph
    found = _in_training(model, inputs)
    batch = inputs[0].shape[0]
    if [shape for shape, _ in found] != [size_at(node.shape, batch) for node in attentions]:
        return graph
    shares = {node.name: share for node, (_, share) in zip(attentions, found, strict=True)}

    def told(node: Node) -> Node:
        return node.with_args(dropout_p=shares[node.name]) if shares.get(node.name) else node

    return replace(graph, nodes=tuple(told(node) for node in graph.nodes))


def with_state(graph: ModelGraph, module: nn.Module) -> ModelGraph:
    """The graph with a copy of the parameters and buffers of a module that was built from it, as after training.

    Tensors stay on the module's device and come back in the graph's precision.

    Raises:
        GraphError: a tensor of the graph is missing in the module, or has another shape there.
    """
    known = shapes_of(graph.tensors)
    state: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    problems = []
    for name, (shape, _) in known.items():
        if name not in state:
            problems.append(f"the module has no tensor {name!r}")
        elif tuple(state[name].shape) != shape:
            have = list(state[name].shape)
            problems.append(f"{name!r} has shape {list(shape)} in the graph and {have} in the module")
    if problems:
        raise GraphError("give a module that was built from this graph", problems=problems)
    copies: dict[int, Tensor] = {}
    for name, (_, dtype) in known.items():
        if id(state[name]) not in copies:
            own = state[name].detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
            copies[id(state[name])] = own
    return replace(graph, tensors={name: copies[id(state[name])] for name in known})


def _in_training(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[tuple[int, ...], float]]:
    """Output shape and dropout of each attention of a module in training mode; nothing where export fails."""
    modes = {name: module.training for name, module in model.named_modules()}
    model.train()
    try:
        with torch.no_grad(), warnings.catch_warnings(), quiet_export():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, inputs)
    except Exception:
        # Export fails in as many ways as there are models. The graph is whole without this: it drops less in training.
        return []
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
    return [
        (tuple(node.meta["val"].shape), _share(node))
        for node in program.graph.nodes
        if str(node.target) == _ATTENTION
    ]


def _share(node: torch.fx.Node) -> float:
    given = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return float(given) if isinstance(given, int | float) else 0.0


def _drops(model: nn.Module) -> bool:
    """Whether a module drops anything: a dropout layer, or a positive number that has `drop` in its name.

    The number may be the module's own or that of an object that the module holds, such as a configuration.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return True
        held = [value for value in vars(module).values() if hasattr(value, "__dict__")]
        if any(_names_a_share(vars(owner)) for owner in (module, *held) if not isinstance(owner, type)):
            return True
    return False


def _names_a_share(table: Mapping[str, Any]) -> bool:
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in table.items())
