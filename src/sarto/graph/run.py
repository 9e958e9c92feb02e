"""Running a graph: as an ordinary `GraphModule`, or node by node with a look at (or an edit of) what flows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError
from sarto.graph.model import Arg, BatchDim, Constant, ModelGraph, Node, Ref, TensorRef
from sarto.graph.operators import GETITEM, overload, signature, thaw_constant

#: Changes an argument of a node just before the node runs: (node, argument name, value) -> value. An entry of a list
#: is named by its place: `params.3`.
Edit = Callable[[Node, str, Tensor], Tensor]

#: Which argument switches an operator between evaluation and training.
TRAINING_FLAGS: Mapping[str, str] = {
    "aten.batch_norm.default": "training",
    "aten.instance_norm.default": "use_input_stats",
    "aten.dropout.default": "train",
    "aten.feature_dropout.default": "train",
    "aten.alpha_dropout.default": "train",
}


def build_module(graph: ModelGraph, *, train: bool = False) -> torch.fx.GraphModule:
    """A runnable module of a graph; parameters and buffers carry the graph's tensor names.

    Args:
        train: batch norm and dropout in training mode, parameters that require gradients.
    """
    root = nn.Module()
    for name, tensor in graph.tensors.items():
        trainable = name in graph.parameters and tensor.is_floating_point()
        _attach(
            root,
            name,
            nn.Parameter(tensor, requires_grad=train and trainable) if trainable else tensor,
        )
    fx = torch.fx.Graph()
    env: dict[str, torch.fx.Node] = {}
    for entry in graph.inputs:
        env[entry.name] = fx.placeholder(_identifier(entry.name))
    attributes: dict[str, torch.fx.Node] = {}
    batch: list[torch.fx.Node] = []

    def value(arg: Arg) -> Any:
        if isinstance(arg, Ref):
            return env[arg.name]
        if isinstance(arg, TensorRef):
            if arg.name not in attributes:
                attributes[arg.name] = fx.get_attr(arg.name)
            return attributes[arg.name]
        if isinstance(arg, BatchDim):
            if not batch:
                batch.append(fx.call_function(torch.ops.aten.sym_size.int, (env[graph.inputs[0].name], 0)))
            return batch[0] if arg.times == 1 else fx.call_function(operator.mul, (batch[0], arg.times))
        if isinstance(arg, Constant):
            return thaw_constant(arg)
        if isinstance(arg, tuple):
            return [value(inner) for inner in arg]
        return arg

    for node in graph.nodes:
        if node.op == GETITEM:
            env[node.name] = fx.call_function(
                operator.getitem, (value(node.args["source"]), value(node.args["index"]))
            )
            continue
        args = dict(node.args)
        flag = TRAINING_FLAGS.get(node.op)
        if train and flag is not None:
            args[flag] = True
        names = signature(node.op)
        positional = tuple(value(args[name]) for name in names.positional)
        keyword = {name: value(args[name]) for name in names.keyword if args.get(name) is not None}
        env[node.name] = fx.call_function(overload(node.op), positional, keyword)
    results = tuple(env[name] for name in graph.outputs)
    fx.output(results[0] if len(results) == 1 else results)
    return torch.fx.GraphModule(root, fx)


@torch.no_grad()
def evaluate(
    graph: ModelGraph,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    watch: Collection[str] = (),
    edit: Edit | None = None,
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs and the watched values of one pass, node by node; values are dropped after their last reader.

    Args:
        inputs: one tensor per graph input, axis 0 is the batch.
        watch: names of the values (nodes or inputs) to keep.
        edit: may replace a tensor argument (stored tensors too) just before a node reads it.

    Raises:
        ShapeError: the number of inputs or a shape differs from what the graph takes.
        GraphError: a watched name does not exist.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    check_inputs(graph, given)
    unknown = set(watch) - set(graph.index) - {entry.name for entry in graph.inputs}
    if unknown:
        raise GraphError(f"no value named {sorted(unknown)} in this graph")
    env: dict[str, Any] = {entry.name: tensor for entry, tensor in zip(graph.inputs, given, strict=True)}
    last_reader = {name: readers[-1] for name, readers in graph.readers.items()}
    batch = given[0].shape[0]
    kept: dict[str, Tensor] = {name: env[name] for name in watch if name in env}
    for node in graph.nodes:
        env[node.name] = run_node(graph, node, env, batch, edit)
        if node.name in watch:
            kept[node.name] = env[node.name]
        for name in [
            name for name in env if last_reader.get(name) == node.name and name not in graph.outputs
        ]:
            del env[name]
    return tuple(env[name] for name in graph.outputs), kept


def run_node(
    graph: ModelGraph,
    node: Node,
    env: Mapping[str, Any],
    batch: int,
    edit: Edit | None = None,
) -> Any:
    """Value of one node, given the values of what it reads."""

    def value(arg: Arg, name: str) -> Any:
        if isinstance(arg, Ref | TensorRef):
            found = env[arg.name] if isinstance(arg, Ref) else graph.tensors[arg.name]
            return edit(node, name, found) if edit is not None and isinstance(found, Tensor) else found
        if isinstance(arg, BatchDim):
            return arg.times * batch
        if isinstance(arg, Constant):
            return thaw_constant(arg)
        if isinstance(arg, tuple):
            return [value(inner, f"{name}.{place}") for place, inner in enumerate(arg)]
        return arg

    if node.op == GETITEM:
        return value(node.args["source"], "source")[node.args["index"]]
    names = signature(node.op)
    positional = [value(node.args[name], name) for name in names.positional]
    keyword = {
        name: value(node.args[name], name) for name in names.keyword if node.args.get(name) is not None
    }
    return overload(node.op)(*positional, **keyword)


def check_inputs(graph: ModelGraph, given: tuple[Tensor, ...]) -> None:
    """Refuse inputs whose number or shape the graph does not take.

    Raises:
        ShapeError: says what was given and what is taken.
    """
    if len(given) != len(graph.inputs):
        raise ShapeError(f"this graph takes {len(graph.inputs)} inputs, {len(given)} were given")
    for entry, tensor in zip(graph.inputs, given, strict=True):
        want = ["batch" if isinstance(dim, BatchDim) else dim for dim in entry.shape]
        have = list(tensor.shape)
        if len(have) != len(want) or any(w not in ("batch", h) for w, h in zip(want, have, strict=True)):
            raise ShapeError(
                f"input {entry.name!r} must have shape {want}, got {have}",
                where=entry.name,
            )


def _attach(root: nn.Module, name: str, tensor: Tensor | nn.Parameter) -> None:
    """Put a tensor at a dotted path below a bare module."""
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)


def _identifier(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name)
