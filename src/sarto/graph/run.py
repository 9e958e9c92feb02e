"""Running a graph: as an ordinary `GraphModule`, or node by node with a look at (or an edit of) what flows."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError
from sarto.graph.model import Arg, BatchDim, Constant, ModelGraph, Node, Ref, TensorRef, shape_text, shapes_of
from sarto.graph.operators import GETITEM, overload, signature, thaw_constant

#: Changes an argument of a node just before the node runs: (node, argument name, value) -> value. An entry of a list
#: is named by its place: `params.3`.
Edit = Callable[[Node, str, Tensor], Tensor]

#: The argument that makes an operator train or evaluate: the only place where the two differ. A node stores what
#: training needs to know (how much attention drops); which of the two is meant is said when the graph runs.
SWITCHES: Mapping[str, str] = {
    "aten.batch_norm.default": "training",
    "aten.instance_norm.default": "use_input_stats",
    "aten.dropout.default": "train",
    "aten.feature_dropout.default": "train",
    "aten.alpha_dropout.default": "train",
    "aten.scaled_dot_product_attention.default": "dropout_p",
    "aten.lstm.input": "train",
    "aten.gru.input": "train",
    "aten.rnn_tanh.input": "train",
    "aten.rnn_relu.input": "train",
}
#: Value of a dtype or device `Constant`: the model's own, wherever and in whatever precision it runs.
MODEL = "model"
#: Names that a generated `forward` gives a meaning of its own.
_TAKEN = frozenset(["self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"])


def build_module(graph: ModelGraph, *, train: bool = False) -> torch.fx.GraphModule:
    """A runnable module of a graph; parameters and buffers carry the graph's tensor names.

    The module obeys `.train()` and `.eval()` as any other: norms, dropout, attention and recurrent layers look at its
    `training` when they run. It moves with `.to()`: what it makes while it runs is made where its first input is, in
    its own precision. What a source module does in training alone (stochastic depth, auxiliary outputs) is not in a
    graph. Batches are not counted, so a batch norm with `momentum=None` keeps the running statistics that it has.

    Args:
        train: in training mode, with parameters that require gradients, on a copy of the tensors. Otherwise the
            module shares the graph's tensors and its parameters require no gradient, also after `.train()`.
    """
    root = _attached(graph, train)
    fx = torch.fx.Graph()
    builder = _Builder(graph, fx)
    for node in graph.nodes:
        builder.add(node)
    results = tuple(builder.env[name] for name in graph.outputs)
    fx.output(results[0] if len(results) == 1 else results)
    module = torch.fx.GraphModule(root, fx)
    module.train(train)
    return module


def evaluation_value(node: Node) -> Arg:
    """The switch of a node when its graph evaluates. Norms without running statistics use the batch's then too."""
    name = SWITCHES[node.op]
    if name == "dropout_p":
        return 0.0
    return name != "train" and node.args.get("running_mean") is None


class _Builder:
    """Writes graph nodes as calls of an fx graph; what several calls share is written once."""

    def __init__(self, graph: ModelGraph, fx: torch.fx.Graph) -> None:
        self.graph = graph
        self.fx = fx
        names = _parameter_names([entry.name for entry in graph.inputs])
        self.env = {entry.name: fx.placeholder(name) for entry, name in zip(graph.inputs, names, strict=True)}
        self.first = self.env[graph.inputs[0].name]
        self.shared: dict[str, torch.fx.Node] = {}

    def add(self, node: Node) -> None:
        args = {name: self.value(arg) for name, arg in node.args.items()}
        if node.op == GETITEM:
            self.env[node.name] = self.fx.call_function(operator.getitem, (args["source"], args["index"]))
            return
        names = signature(node.op)
        if node.op in SWITCHES:
            args[SWITCHES[node.op]] = self.switch(node)
        if _is_factory(node.op):
            args["device"] = self.device()
        positional = tuple(args[name] for name in names.positional)
        named = {name: args[name] for name in names.keyword if args.get(name) is not None}
        self.env[node.name] = self.fx.call_function(overload(node.op), positional, named)

    def value(self, arg: Arg) -> Any:
        if isinstance(arg, Ref):
            return self.env[arg.name]
        if isinstance(arg, TensorRef):
            return self.attribute(arg.name)
        if isinstance(arg, BatchDim):
            size = self.once("batch size", torch.ops.aten.sym_size.int, self.first, 0)
            many = f"{arg.times} batch sizes"
            return size if arg.times == 1 else self.once(many, operator.mul, size, arg.times)
        if isinstance(arg, Constant):
            if arg.kind == "device":
                return self.device()
            return self.dtype() if _is_own_dtype(self.graph, arg) else thaw_constant(arg)
        if isinstance(arg, tuple):
            return [self.value(inner) for inner in arg]
        return arg

    def switch(self, node: Node) -> Any:
        """The switch of a node, read off the module when it runs."""
        if SWITCHES[node.op] != "dropout_p":
            return evaluation_value(node) or self.attribute("training")
        p = node.args["dropout_p"]
        if not isinstance(p, int | float) or p == 0:
            return 0.0
        return self.fx.call_function(operator.mul, (p, self.attribute("training")))

    def device(self) -> torch.fx.Node:
        return self.once("its device", getattr, self.first, "device")

    def dtype(self) -> Any:
        """Precision of the tensor that gives the graph its own, after any `.to()`."""
        name = self.precision_tensor
        if name is None:
            return getattr(torch, self.graph.floating_dtype)
        return self.once("its dtype", getattr, self.attribute(name), "dtype")

    @cached_property
    def precision_tensor(self) -> str | None:
        """Name of a stored tensor that has the graph's own dtype: a parameter where there is one."""
        own = getattr(torch, self.graph.floating_dtype)
        found = [name for name, (_, dtype) in shapes_of(self.graph.tensors).items() if dtype == own]
        return next((name for name in found if name in self.graph.parameters), found[0] if found else None)

    def attribute(self, name: str) -> torch.fx.Node:
        if name not in self.shared:
            # `fx.get_attr` warns about what is no tensor, and `training` is none.
            self.shared[name] = self.fx.create_node("get_attr", name)
        return self.shared[name]

    def once(self, key: str, function: Callable[..., Any], *args: Any) -> torch.fx.Node:
        if key not in self.shared:
            self.shared[key] = self.fx.call_function(function, args)
        return self.shared[key]


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
        inputs: one tensor per graph input, each of the shape (batch, ...) that the graph's `inputs` say.
        watch: names of the values (nodes or inputs) to keep.
        edit: may replace a tensor argument (stored tensors too) just before a node reads it.

    Returns:
        The outputs, in the graph's order and of the shapes (batch, ...) of the nodes that make them; and the watched
        values by name, each of its node's recorded shape at this batch size.

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
    """Value of one node when its graph evaluates, given the values of what it reads."""

    def value(arg: Arg, name: str) -> Any:
        if isinstance(arg, Ref | TensorRef):
            found = env[arg.name] if isinstance(arg, Ref) else graph.tensors[arg.name]
            return edit(node, name, found) if edit is not None and isinstance(found, Tensor) else found
        if isinstance(arg, BatchDim):
            return arg.times * batch
        if isinstance(arg, Constant):
            if arg.kind == "device":
                return _device_of(env)
            own = _is_own_dtype(graph, arg)
            return getattr(torch, graph.floating_dtype) if own else thaw_constant(arg)
        if isinstance(arg, tuple):
            return [value(inner, f"{name}.{place}") for place, inner in enumerate(arg)]
        return arg

    if node.op == GETITEM:
        return value(node.args["source"], "source")[node.args["index"]]
    names = signature(node.op)
    args = dict(node.args)
    if node.op in SWITCHES:
        args[SWITCHES[node.op]] = evaluation_value(node)
    positional = [value(args[name], name) for name in names.positional]
    named = {name: value(args[name], name) for name in names.keyword if args.get(name) is not None}
    if _is_factory(node.op):
        named["device"] = _device_of(env)
    return overload(node.op)(*positional, **named)


def check_inputs(graph: ModelGraph, given: tuple[Tensor, ...]) -> None:
    """Refuse inputs whose number or shape the graph does not take.

    Raises:
        ShapeError: says what was given and what is taken.
    """
    if len(given) != len(graph.inputs):
        taken = ", ".join(f"{entry.name} {shape_text(entry.shape)}" for entry in graph.inputs)
        raise ShapeError(f"this graph takes {len(graph.inputs)} inputs ({taken}), {len(given)} were given")
    for entry, tensor in zip(graph.inputs, given, strict=True):
        if not isinstance(tensor, Tensor):
            raise ShapeError(
                f"input {entry.name!r} must be a tensor of shape {shape_text(entry.shape)}, found "
                f"{type(tensor).__name__}",
                where=entry.name,
            )
        want = ["batch" if isinstance(dim, BatchDim) else dim for dim in entry.shape]
        have = list(tensor.shape)
        if len(have) != len(want) or any(w not in ("batch", h) for w, h in zip(want, have, strict=True)):
            raise ShapeError(
                f"input {entry.name!r} must have shape {want}, got {have}",
                where=entry.name,
            )


@cache
def _is_factory(op: str) -> bool:
    """Whether an operator makes a tensor out of sizes alone, on a device that must be said."""
    if "device" not in signature(op).keyword:
        return False
    return not any(isinstance(argument.type, torch.TensorType) for argument in overload(op)._schema.arguments)


def _device_of(env: Mapping[str, Any]) -> torch.device:
    """Where the values of a running graph are."""
    return next((value.device for value in env.values() if isinstance(value, Tensor)), torch.device("cpu"))


def _is_own_dtype(graph: ModelGraph, constant: Constant) -> bool:
    return constant.kind == "dtype" and constant.value in (MODEL, graph.floating_dtype)


def _attached(graph: ModelGraph, train: bool) -> nn.Module:
    """A bare module with the graph's tensors. Names of one tensor stay names of one tensor."""
    root = nn.Module()
    made: dict[tuple[object, ...], Tensor] = {}
    tensors = dict(graph.tensors.items())
    for name, tensor in tensors.items():
        trainable = name in graph.parameters and tensor.is_floating_point()
        place = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype, trainable)
        if place not in made:
            own = tensor.detach().clone() if train else tensor
            made[place] = nn.Parameter(own, requires_grad=train) if trainable else own
        _attach(root, name, made[place])
    return root


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


def _parameter_names(names: Sequence[str]) -> list[str]:
    """Different names that the parameters of a generated `forward` may have, each like the one given."""
    words: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not word.isidentifier() or keyword.iskeyword(word) or word in _TAKEN:
            word = f"input_{word}"
        while word in words:
            word += "_"
        words.append(word)
    return words
