"""Joining and finishing graphs: `branch`, heads, the classifier's features, and input normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.errors import GraphError, ShapeError
from sarto.graph.merge import Merger
from sarto.graph.model import Arg, BatchDim, ModelGraph, Node, Ref, TensorRef, shape_text, shapes_of
from sarto.graph.operators import default_args


@dataclass(frozen=True)
class Features:
    """Where a classifier reads its features.

    Attributes:
        value: the value that the last linear layer reads, shape (batch, width).
        classifier: the name of that layer's node.
        width: number of features.
        n_outputs: number of rows of the classifier.
    """

    value: str
    classifier: str
    width: int
    n_outputs: int


def features(graph: ModelGraph) -> Features:
    """The input of the linear layer that makes the graph's output.

    Raises:
        GraphError: the output is not made by a linear layer on a vector.
    """
    if len(graph.outputs) != 1:
        raise GraphError(f"a classifier has one output, this graph has {len(graph.outputs)}")
    node = graph.index.get(graph.outputs[0])
    if node is None or node.op != "aten.linear.default" or len(node.shape) != 2:
        made = node.op if node is not None else "an input"
        raise GraphError(
            f"the output is made by {made}, not by a linear layer on (batch, features): give a classifier whose last "
            "layer is nn.Linear",
            where=graph.outputs[0],
        )
    source, weight = node.args["input"], node.args["weight"]
    if not isinstance(source, Ref) or not isinstance(weight, TensorRef):
        raise GraphError("the classifier reads no computed value", where=node.name)
    n_outputs, width = shapes_of(graph.tensors)[weight.name][0]
    return Features(source.name, node.name, width, n_outputs)


def restrict(graph: ModelGraph, rows: Sequence[int]) -> ModelGraph:
    """The classifier with only these outputs, in this order.

    Raises:
        GraphError: the graph is no classifier, or a row does not exist.
    """
    found = features(graph)
    outside = [row for row in rows if not 0 <= row < found.n_outputs]
    if outside or not rows:
        raise GraphError(f"the classifier has outputs 0..{found.n_outputs - 1}, asked for {list(rows)}")
    node = graph.node(found.classifier)
    tensors = dict(graph.tensors.items())
    for name in ("weight", "bias"):
        arg = node.args[name]
        if isinstance(arg, TensorRef):
            index = torch.as_tensor(list(rows), device=tensors[arg.name].device)
            tensors[arg.name] = tensors[arg.name].index_select(0, index)
    nodes = tuple(
        replace(node, shapes=((BatchDim(1), len(rows)),)) if other.name == node.name else other
        for other in graph.nodes
    )
    return replace(graph, nodes=nodes, tensors=tensors)


def branch(graphs: Sequence[ModelGraph], join: str = "concat") -> ModelGraph:
    """Several graphs on one input, joined; calls that are equal in several of them run once.

    Args:
        graphs: each with the same inputs and one output of shape (batch, width).
        join: `concat` lays the outputs side by side in the given order; `mean` averages them (equal widths).

    Raises:
        GraphError: nothing to join, an unknown join, or a graph with several outputs.
        ShapeError: inputs differ, or outputs can't be joined.
    """
    if not graphs:
        raise GraphError("a branch needs at least one graph")
    if join not in ("concat", "mean"):
        raise GraphError(f"join must be 'concat' or 'mean', got {join!r}")
    first = graphs[0]
    merger = Merger(first.inputs, share=True)
    made: list[str] = []
    for place, graph in enumerate(graphs):
        if len(graph.outputs) != 1:
            raise GraphError(f"graph {place} of the branch has {len(graph.outputs)} outputs, must have one")
        if [(e.shape, e.dtype) for e in graph.inputs] != [(e.shape, e.dtype) for e in first.inputs]:
            raise ShapeError(
                f"graph {place} of the branch reads {_inputs_text(graph)} where the first one reads "
                f"{_inputs_text(first)}"
            )
        values = {mine.name: theirs.name for mine, theirs in zip(graph.inputs, first.inputs, strict=True)}
        made.append(merger.add(graph, values)[graph.outputs[0]])
    shapes = [merger.nodes[name].shape for name in made]
    dtype = merger.nodes[made[0]].dtypes[0]
    if any(len(shape) != 2 for shape in shapes) or (join == "mean" and len(set(shapes)) > 1):
        made_shapes = ", ".join(shape_text(shape) for shape in shapes)
        raise ShapeError(
            f"outputs of shapes {made_shapes} can't be joined by {join!r}: each must be (batch, width)"
            + (", of one width" if join == "mean" else "")
        )
    if len(made) == 1:
        return merger.graph(made)
    if join == "concat":
        width = sum(shape[1] for shape in shapes if isinstance(shape[1], int))
        args = {
            **default_args("aten.cat.default"),
            "tensors": tuple(Ref(name) for name in made),
            "dim": 1,
        }
        return merger.graph(
            [
                merger.call(
                    Node(
                        "join",
                        "aten.cat.default",
                        args,
                        ((BatchDim(1), width),),
                        (dtype,),
                    )
                )
            ]
        )
    total = made[0]
    for name in made[1:]:
        args = {
            "self": Ref(total),
            "other": Ref(name),
            **default_args("aten.add.Tensor"),
        }
        total = merger.call(Node("join", "aten.add.Tensor", args, (shapes[0],), (dtype,)))
    args = {"self": Ref(total), "other": 1.0 / len(made)}
    return merger.graph([merger.call(Node("join", "aten.mul.Scalar", args, (shapes[0],), (dtype,)))])


def with_head(graph: ModelGraph, weight: Tensor, bias: Tensor | None = None) -> ModelGraph:
    """The graph with a linear layer on its output.

    Args:
        weight: shape (n_outputs, width of the graph's output).
        bias: shape (n_outputs,), or None.

    Raises:
        ShapeError: the weight does not fit the output.
    """
    return with_layer(graph, "head", weight, bias)


def with_layer(
    graph: ModelGraph, name: str, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False
) -> ModelGraph:
    """The graph with one more linear layer on its output, and ReLU after it where asked for.

    Args:
        name: of the layer; its tensors are `name.weight` and `name.bias`.
        weight: shape (n_outputs, width of the graph's output).
        bias: shape (n_outputs,), or None.

    Raises:
        ShapeError: the weight does not fit the output.
    """
    node = graph.index.get(graph.outputs[0])
    if len(graph.outputs) != 1 or node is None or len(node.shape) != 2 or node.shape[1] != weight.shape[1]:
        have = shape_text(node.shape) if node is not None else "an input"
        raise ShapeError(f"a {name} of shape {tuple(weight.shape)} can't read an output of shape {have}")
    merger = Merger(graph.inputs)
    values = merger.add(graph, {entry.name: entry.name for entry in graph.inputs})
    args: dict[str, Arg] = {
        "input": Ref(values[node.name]),
        "weight": TensorRef(merger.store(f"{name}.weight", weight, parameter=True)),
        "bias": TensorRef(merger.store(f"{name}.bias", bias, parameter=True)) if bias is not None else None,
    }
    shape = (BatchDim(1), int(weight.shape[0]))
    made = merger.call(Node(name, "aten.linear.default", args, (shape,), node.dtypes))
    if relu:
        made = merger.call(
            Node(f"{name}_relu", "aten.relu.default", {"self": Ref(made)}, (shape,), node.dtypes)
        )
    return merger.graph([made])


def normalise(graph: ModelGraph, mean: Sequence[float], std: Sequence[float]) -> ModelGraph:
    """The graph with (x - mean) / std in front, channel by channel of axis 1.

    Raises:
        ShapeError: the number of channels differs, or a std is not positive.
    """
    entry = graph.inputs[0]
    channels = entry.shape[1] if len(entry.shape) > 1 else None
    if len(mean) != channels or len(std) != channels or any(not value > 0 for value in std):
        raise ShapeError(
            f"normalisation with {len(mean)} means and {len(std)} stds (all > 0) needs as many channels; "
            f"the input has shape {shape_text(entry.shape)}"
        )
    if not any(mean) and all(value == 1.0 for value in std):
        return graph
    view = (1, -1, *[1] * (len(entry.shape) - 2))
    dtype = getattr(torch, entry.dtype)
    merger = Merger(graph.inputs)
    shift = merger.store("normalise.mean", torch.tensor(mean, dtype=dtype).reshape(view), parameter=False)
    scale = merger.store("normalise.std", torch.tensor(std, dtype=dtype).reshape(view), parameter=False)
    sub = {
        "self": Ref(entry.name),
        "other": TensorRef(shift),
        **default_args("aten.sub.Tensor"),
    }
    name = merger.call(Node("normalise_sub", "aten.sub.Tensor", sub, (entry.shape,), (entry.dtype,)))
    div: dict[str, Arg] = {"self": Ref(name), "other": TensorRef(scale)}
    name = merger.call(Node("normalise_div", "aten.div.Tensor", div, (entry.shape,), (entry.dtype,)))
    values = merger.add(
        graph,
        {entry.name: name, **{other.name: other.name for other in graph.inputs[1:]}},
    )
    return merger.graph([values[output] for output in graph.outputs])


def _inputs_text(graph: ModelGraph) -> str:
    return ", ".join(f"{shape_text(entry.shape)} {entry.dtype}" for entry in graph.inputs)
