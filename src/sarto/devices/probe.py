"""Small built-in graphs, to learn how fast a machine is: convolution, batch norm and ReLU a few times over."""

from __future__ import annotations

import numpy as np
import torch

from sarto.graph import BatchDim, Input, ModelGraph, Node, Ref, TensorRef
from sarto.graph.model import Arg, Shape
from sarto.graph.operators import default_args, signature

#: Outputs of a built-in graph.
CLASSES = 10
_SCALE = 1 / (1 + 1e-5) ** 0.5


def probe(layers: int, channels: int, size: int, groups: int = 1) -> ModelGraph:
    """A graph of convolutions on (batch, channels, size, size), a mean over the image, and a linear layer."""
    tensors = _tensors(layers, channels, groups)
    image: Shape = (BatchDim(), channels, size, size)
    nodes, last = [], "x"
    for layer in range(layers):
        nodes += [
            _node(
                f"conv{layer}",
                "aten.conv2d.default",
                image,
                input=Ref(last),
                weight=TensorRef(f"w{layer}"),
                padding=(1, 1),
                groups=groups,
            ),
            _node(
                f"norm{layer}",
                "aten.batch_norm.default",
                image,
                input=Ref(f"conv{layer}"),
                weight=TensorRef("one"),
                bias=TensorRef("zero"),
                running_mean=TensorRef("zero"),
                running_var=TensorRef("one"),
                training=False,
                momentum=0.1,
                eps=1e-5,
                cudnn_enabled=False,
            ),
            _node(f"relu{layer}", "aten.relu.default", image, self=Ref(f"norm{layer}")),
        ]
        last = f"relu{layer}"
    nodes += [
        _node("mean", "aten.mean.dim", (BatchDim(), channels), self=Ref(last), dim=(2, 3)),
        _node(
            "logits",
            "aten.linear.default",
            (BatchDim(), CLASSES),
            input=Ref("mean"),
            weight=TensorRef("head"),
        ),
    ]
    inputs = (Input("x", image, "float32"),)
    return ModelGraph(inputs, tuple(nodes), ("logits",), tensors, frozenset(tensors) - {"one", "zero"})


def probe_onnx(layers: int, channels: int, size: int, groups: int = 1) -> bytes:
    """The same graph as an ONNX file, with the batch norms folded in, as the exporter does it."""
    from onnx import TensorProto, helper, numpy_helper

    tensors = _tensors(layers, channels, groups)
    weights = {f"w{layer}": _SCALE * tensors[f"w{layer}"] for layer in range(layers)} | {
        "head": tensors["head"]
    }
    nodes, last = [], "x"
    for layer in range(layers):
        nodes.append(
            helper.make_node("Conv", [last, f"w{layer}"], [f"conv{layer}"], pads=[1, 1, 1, 1], group=groups)
        )
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        last = f"relu{layer}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["mean"]),
        helper.make_node("Gemm", ["mean", "head"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.asarray(tensor), name) for name, tensor in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def _tensors(layers: int, channels: int, groups: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (channels, channels // groups, 3, 3)
    scale = (9 * shape[1]) ** -0.5
    tensors = {f"w{layer}": scale * torch.randn(shape, generator=generator) for layer in range(layers)}
    head = torch.randn(CLASSES, channels, generator=generator)
    return {**tensors, "head": head, "one": torch.ones(channels), "zero": torch.zeros(channels)}


def _node(name: str, op: str, shape: Shape, **args: Arg) -> Node:
    names = signature(op)
    filled = {**default_args(op), **args}
    return Node(
        name, op, {arg: filled[arg] for arg in (*names.positional, *names.keyword)}, (shape,), ("float32",)
    )
