"""Peak activation memory of a graph, by liveness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sarto.graph import ModelGraph, Node, Ref
from sarto.graph.model import Shape, leaves, size_at
from sarto.graph.operators import GETITEM
from sarto.graph.run import run_node

#: Operators that can hand on memory, or whose result can have its axes in another order, when all that they read is
#: contiguous.
_RUN = frozenset(
    [
        GETITEM,
        "aten.alpha_dropout.default",
        "aten.contiguous.default",
        "aten.dropout.default",
        "aten.einsum.default",
        "aten.expand.default",
        "aten.feature_dropout.default",
        "aten.index.Tensor",
        "aten.matmul.default",
        "aten.permute.default",
        "aten.reshape.default",
        "aten.select.int",
        "aten.slice.Tensor",
        "aten.t.default",
        "aten.to.dtype",
        "aten.transpose.int",
        "aten.unfold.default",
    ]
)


@dataclass(frozen=True)
class Moment:
    """Bytes of activations that are alive while a node runs: what it reads, what it makes, and what is still needed."""

    node: str
    live_bytes: int


def timeline(graph: ModelGraph, *, batch: int = 1) -> tuple[Moment, ...]:
    """Live activation bytes at every node, in order.

    A value lives from its node to its last reader; inputs from the start, outputs to the end; while a node runs, what
    it reads and what it makes are both alive. Views share the memory of what they view, and views of weights take
    none. What a kernel needs for itself while it runs is not known and does not count.
    """
    return tuple(
        Moment(node.name, live) for node, live in zip(graph.nodes, _live(graph, batch)[1:], strict=True)
    )


def peak_bytes(graph: ModelGraph, *, batch: int = 1) -> int:
    """The most activation bytes that are alive at once, the inputs among them."""
    return max(_live(graph, batch))


@dataclass(frozen=True)
class Storage:
    """Memory that one or more values share.

    Attributes:
        value: the first that holds it: a node or an input, and which of its outputs.
        first: place of the first node that it is alive at, counted from 1; 0 is before all nodes.
        last: place of the last one.
        size_bytes: its size.
    """

    value: tuple[str, int]
    first: int
    last: int
    size_bytes: int


def storages(graph: ModelGraph, *, batch: int = 1) -> tuple[Storage, ...]:
    """Everything that a run of a graph keeps in memory, weights left out, and how long; see `timeline`."""
    held, sizes = _storages(graph, batch)
    first = {storage: (0, (entry.name, 0)) for entry in graph.inputs for storage in held[entry.name]}
    last: dict[int, int] = {}
    for slot, node in enumerate(graph.nodes, 1):
        for output, storage in enumerate(held[node.name]):
            first.setdefault(storage, (slot, (node.name, output)))
        for name in (node.name, *_read(node)):
            last.update(dict.fromkeys(held[name], slot))
    for name in graph.outputs:
        last.update(dict.fromkeys(held[name], len(graph.nodes)))
    return tuple(
        Storage(first[storage][1], first[storage][0], end, sizes[storage]) for storage, end in last.items()
    )


def _live(graph: ModelGraph, batch: int) -> list[int]:
    """Bytes alive before the first node, and while each node runs."""
    change = [0] * (len(graph.nodes) + 2)
    for storage in storages(graph, batch=batch):
        change[storage.first] += storage.size_bytes
        change[storage.last + 1] -= storage.size_bytes
    return list(accumulate(change))[:-1]


def _storages(graph: ModelGraph, batch: int) -> tuple[dict[str, tuple[int, ...]], dict[int, int]]:
    """Value -> the storages that it holds, and storage -> bytes.

    Most values are new and contiguous, which the recorded shape tells. Where a value may be a view, or its strides may
    be others, the operator itself runs on tensors without data: torch decides.
    """
    bare = graph.sketch()
    weights = {_storage(tensor) for tensor in bare.tensors.values()}
    env: dict[str, Any] = {entry.name: _empty(entry.shape, entry.dtype, batch) for entry in graph.inputs}
    for node in graph.nodes:
        env[node.name] = _value(bare, node, env, batch)
    held = {
        name: tuple(_storage(tensor) for tensor in _tensors(value) if _storage(tensor) not in weights)
        for name, value in env.items()
    }
    sizes = {
        _storage(tensor): tensor.untyped_storage().nbytes()
        for value in env.values()
        for tensor in _tensors(value)
    }
    return held, sizes


def _value(graph: ModelGraph, node: Node, env: Mapping[str, Any], batch: int) -> Any:
    """The value of a node as one or more tensors without data, with the strides and the storage that it has."""
    read = [tensor for name in _read(node) for tensor in _tensors(env[name])]
    layout = _LAYOUTS.get(node.op)
    if layout is not None:
        return layout(node, env, _fresh(node, batch))
    if node.op not in _RUN and all(tensor.is_contiguous() for tensor in read):
        fresh = _fresh(node, batch)
        return fresh[0] if len(fresh) == 1 else fresh
    with torch.no_grad():
        return run_node(graph, node, env, batch)


def _read(node: Node) -> Iterator[str]:
    return (arg.name for arg in leaves(node.args) if isinstance(arg, Ref))


def _fresh(node: Node, batch: int) -> tuple[Tensor, ...]:
    return tuple(_empty(*spec, batch) for spec in zip(node.shapes, node.dtypes, strict=True))


def _empty(shape: Shape, dtype: str, batch: int) -> Tensor:
    return torch.empty(size_at(shape, batch), dtype=getattr(torch, dtype), device="meta")


def _tensors(value: Any) -> Sequence[Tensor]:
    return value if isinstance(value, tuple | list) else (value,)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _attention(node: Node, env: Mapping[str, Any], fresh: tuple[Tensor, ...]) -> Tensor:
    """The fused kernel lays its result out like the query; it takes no values of another width than the query's."""
    query = _given(node, "query", env)
    if query is None or query.shape != fresh[0].shape:
        return fresh[0]
    return torch.empty_like(query)


def _convolution(node: Node, env: Mapping[str, Any], fresh: tuple[Tensor, ...]) -> Tensor:
    """Channels are innermost where they are in the input."""
    given, result = _given(node, "input", env), fresh[0]
    innermost = _INNERMOST.get(result.ndim)
    if given is None or innermost is None or given.is_contiguous():
        return result
    return result.contiguous(memory_format=innermost) if _is(given, innermost) else result


def _recurrent(node: Node, env: Mapping[str, Any], fresh: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Steps are outermost in memory, whichever axis is first."""
    result, *states = fresh
    if node.args.get("batch_first") and result.ndim == 3:
        result = result.new_empty([result.shape[axis] for axis in (1, 0, 2)]).transpose(0, 1)
    return (result, *states)


def _is(tensor: Tensor, order: torch.memory_format) -> bool:
    return torch.empty_like(tensor).is_contiguous(memory_format=order)


def _given(node: Node, name: str, env: Mapping[str, Any]) -> Tensor | None:
    arg = node.args[name]
    value = env[arg.name] if isinstance(arg, Ref) else None
    return value if isinstance(value, Tensor) else None


#: Number of axes -> the order of axes in which channels are innermost.
_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}

#: Operators whose tensors without data are laid out in another way than those that a processor makes.
_LAYOUTS: Mapping[str, Callable[[Node, Mapping[str, Any], tuple[Tensor, ...]], Any]] = {
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.conv1d.default": _convolution,
    "aten.conv1d.padding": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.conv3d.default": _convolution,
    "aten.conv_transpose1d.default": _convolution,
    "aten.conv_transpose2d.input": _convolution,
    "aten.gru.input": _recurrent,
    "aten.lstm.input": _recurrent,
    "aten.rnn_relu.input": _recurrent,
    "aten.rnn_tanh.input": _recurrent,
}
