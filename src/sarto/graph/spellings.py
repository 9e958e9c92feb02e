"""Other spellings: operators of torch that say in one word what the normal form says in a few.

Before an exported program is read, each of them is written out. How, is in one of three tables: torch's own
composition, a few words of torch, or another operator with the same arguments.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sarto.graph import sizes
from sarto.graph.model import BatchDim


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten.{name if '.' in name else name + '.default'}" for name in text.split())


#: Written out as torch composes them: of views, products and arithmetic that the normal form has.
COMPOSED = _names(
    # axes
    "narrow movedim.int movedim.intlist moveaxis.int moveaxis.intlist swapdims swapaxes adjoint mH matrix_H "
    "tile broadcast_to broadcast_tensors ravel atleast_1d atleast_2d atleast_3d fliplr flipud "
    "take_along_dim "
    # parts and wholes
    "tensor_split.sections tensor_split.indices hsplit.int hsplit.array vsplit.int vsplit.array dsplit.int "
    "dsplit.array hstack vstack dstack column_stack row_stack concatenate "
    # arithmetic
    "positive negative absolute clip clip.Tensor fix subtract.Tensor subtract.Scalar multiply.Tensor "
    "multiply.Scalar divide.Tensor divide.Scalar divide.Tensor_mode true_divide.Tensor true_divide.Scalar "
    "greater.Tensor greater.Scalar greater_equal.Tensor greater_equal.Scalar less.Tensor less.Scalar "
    "less_equal.Tensor less_equal.Scalar not_equal.Tensor not_equal.Scalar "
    "special_softmax special_log_softmax special_logsumexp special_erf special_exp2 special_expm1 special_log1p "
    # products and norms
    "tensordot inner outer ger linalg_vecdot linalg_matmul linalg_multi_dot chain_matmul linalg_norm "
    "linalg_matrix_norm.str_ord frobenius_norm.dim"
)
#: What would make as many parts as a number says: read from a live module only, never from a file.
_COUNTED = frozenset(["aten.tensor_split.sections", "aten.tensor_split.indices"])


def _norm(x: Tensor, p: float, dim: int, keepdim: bool) -> Tensor:
    made: Tensor = torch.linalg.vector_norm(x, p, dim=dim, keepdim=keepdim)
    return made


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    if x1.shape != x2.shape:
        shape = torch.broadcast_shapes(x1.shape, x2.shape)  # type: ignore[no-untyped-call]
        x1, x2 = x1.expand(shape), x2.expand(shape)
    one, two = (_norm(x, 2.0, dim, True).clamp_min(eps) for x in (x1, x2))
    return ((x1 / one) * (x2 / two)).sum(dim)


def _pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    return _norm(x1 - x2 + eps, p, -1, keepdim)


def _channel_shuffle(self: Tensor, groups: int) -> Tensor:
    batch, channels, *space = self.shape
    parted = self.reshape(batch, groups, channels // groups, *space)
    return parted.transpose(1, 2).reshape(batch, channels, *space)


def _rot90(self: Tensor, k: int = 1, dims: tuple[int, int] = (0, 1)) -> Tensor:
    one, two = dims
    turned = {0: self.clone, 1: lambda: self.flip(two).transpose(one, two)}
    turned |= {2: lambda: self.flip((one, two)), 3: lambda: self.flip(one).transpose(one, two)}
    return turned[k % 4]()


def _slice_scatter(
    self: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    size = self.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    if step != 1 or not isinstance(size, int):
        raise _OtherwiseSpelled
    before, after = self.narrow(dim, 0, first), self.narrow(dim, last, size - last)
    return torch.cat([part for part in (before, src, after) if part.shape[dim]], dim)


def _select_scatter(self: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    place = index % self.shape[dim]
    return _slice_scatter(self, src.unsqueeze(dim), dim, place, place + 1)


def _mean_with(moment: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(
        self: Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        over = list(range(self.ndim)) if dim is None or dim == [] else dim
        less = int(unbiased) if correction is None else correction
        return moment(self, over, correction=less, keepdim=keepdim), self.mean(over, keepdim)

    return both


def _aminmax(self: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    over = list(range(self.ndim)) if dim is None else [dim]
    return self.amin(over, keepdim), self.amax(over, keepdim)


def _logit(self: Tensor, eps: float | None = None) -> Tensor:
    share = self if eps is None else self.clamp(eps, 1 - eps)
    return (share / (1 - share)).log()


def _logaddexp(self: Tensor, other: Tensor) -> Tensor:
    return torch.maximum(self, other) + (-(self - other).abs()).exp().log1p()


def _mv(self: Tensor, vec: Tensor) -> Tensor:
    return torch.mm(self, vec.unsqueeze(1)).squeeze(1)


#: Written out in a few words of torch. Where these differ from torch's own kernel, it is by rounding.
WRITTEN: Mapping[str, Callable[..., Any]] = {
    "aten.cosine_similarity.default": _cosine_similarity,
    "aten.pairwise_distance.default": _pairwise_distance,
    "aten.channel_shuffle.default": _channel_shuffle,
    "aten.rot90.default": _rot90,
    "aten.slice_scatter.default": _slice_scatter,
    "aten.select_scatter.default": _select_scatter,
    "aten.var_mean.dim": _mean_with(torch.var),
    "aten.var_mean.correction": _mean_with(torch.var),
    "aten.std_mean.dim": _mean_with(torch.std),
    "aten.std_mean.correction": _mean_with(torch.std),
    "aten.aminmax.default": _aminmax,
    "aten.logit.default": _logit,
    "aten.logaddexp.default": _logaddexp,
    "aten.mv.default": _mv,
    "aten.log10.default": lambda self: self.log() * (1 / math.log(10)),
    "aten.deg2rad.default": lambda self: self * (math.pi / 180),
    "aten.rad2deg.default": lambda self: self * (180 / math.pi),
    "aten.hypot.default": lambda self, other: (self.square() + other.square()).sqrt(),
    "aten.xlogy.Tensor": lambda self, other: (self * other.log()).masked_fill(self == 0, 0.0),
}
#: Operators with a second output: the same without it, where nothing reads it.
FIRST_ONLY: Mapping[str, Any] = {
    "aten.max_pool1d_with_indices.default": torch.ops.aten.max_pool1d.default,
    "aten.max_pool2d_with_indices.default": torch.ops.aten.max_pool2d.default,
    "aten.max_pool3d_with_indices.default": torch.ops.aten.max_pool3d.default,
}
#: Every operator that is written out.
SPELLED: frozenset[str] = COMPOSED | WRITTEN.keys() | FIRST_ONLY.keys()
#: Those that a foreign file may name.
SPELLED_IN_FILES: frozenset[str] = SPELLED - _COUNTED


class _OtherwiseSpelled(Exception):
    """This use of an operator has no other spelling; it is refused by its own name."""


def write_out(graph: torch.fx.Graph) -> None:
    """Replace every other spelling in an exported graph by what it stands for; what can't be stays as it is."""
    shadows = FakeTensorMode(shape_env=_symbols(graph))
    for node in [node for node in graph.nodes if node.op == "call_function"]:
        op = _functional(str(node.target))
        if op not in SPELLED:
            continue
        try:
            with graph.inserting_before(node):
                _replace(graph, node, op, shadows)
        except (_OtherwiseSpelled, sizes.OtherSize, RuntimeError, TypeError, ValueError, IndexError):
            continue


def _symbols(graph: torch.fx.Graph) -> ShapeEnv:
    """Where the sizes of a graph that are no constants live."""
    for node in graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt):
                return size.node.shape_env
    return ShapeEnv()


def _functional(op: str) -> str:
    """The functional form of an in-place spelling (`clip_` -> `clip`)."""
    name, _, variant = op.removeprefix("aten.").partition(".")
    functional = f"aten.{name.removesuffix('_')}.{variant}"
    return functional if functional in SPELLED else op


def _replace(graph: torch.fx.Graph, node: torch.fx.Node, op: str, shadows: FakeTensorMode) -> None:
    picks = [user for user in node.users if user.target is operator.getitem]
    if op in FIRST_ONLY:
        if any(pick.args[1] != 0 and pick.users for pick in picks) or len(picks) < len(node.users):
            raise _OtherwiseSpelled
        name = f"{node.name}_values"
        made = graph.create_node("call_function", FIRST_ONLY[op], node.args, node.kwargs, name=name)
        made.meta = {**node.meta, "val": node.meta["val"][0]}
        results: Any = [made]
    else:
        results = _Writer(graph, node, shadows).write(op)
    if isinstance(results, torch.fx.Node):
        node.replace_all_uses_with(results)
    else:
        for pick in picks:
            if pick.users:
                pick.replace_all_uses_with(results[pick.args[1]])
            graph.erase_node(pick)
    graph.erase_node(node)


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a spelling on tensors without data, and writes every operator that torch comes to into the graph."""

    def __init__(self, graph: torch.fx.Graph, node: torch.fx.Node, shadows: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        self.node = node
        self.shadows = shadows
        self.added = 0
        self.known: dict[int, torch.fx.Node] = {}
        self.kept: list[Tensor] = []

    def write(self, op: str) -> Any:
        """The node, or the list of nodes, that give what the operator gives."""
        packet, variant = op.removeprefix("aten.").split(".")
        run = WRITTEN.get(op) or getattr(getattr(torch.ops.aten, packet), variant)
        node = self.node
        with torch.no_grad():
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._value)
            with self:
                made = run(*args, **kwargs)
        return (
            [self._writer(value) for value in made] if isinstance(made, list | tuple) else self._writer(made)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            raise _OtherwiseSpelled
        made = func(*args, **(kwargs or {}))
        if func.namespace != "aten":
            return made
        read, named = tree_map(self._writer, (tuple(args), dict(kwargs or {})))
        name = func._schema.name.removeprefix("aten::")
        node = self._add(name, func, read, made, named)
        if isinstance(made, list | tuple):
            for place, part in enumerate(made):
                self._know(part, self._add("part", operator.getitem, (node, place), part))
        else:
            self._know(made, node)
        return made

    def _add(
        self, name: str, target: Any, args: Any, value: Any, kwargs: dict[str, Any] | None = None
    ) -> torch.fx.Node:
        """A call, named after the spelling: names of a file's own are not all known to its graph."""
        self.added += 1
        name = f"{self.node.name}_{name}_{self.added}"
        node = self.graph.create_node("call_function", target, args, kwargs or {}, name=name)
        node.meta = {**self.node.meta, "val": value}
        return node

    def _value(self, node: torch.fx.Node) -> Any:
        """The tensor without data, or the size, that a node stands for; a tensor of its own for each."""
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return value
        with self.shadows:
            alone = torch.empty(value.shape, dtype=value.dtype)
        self._know(alone, node)
        return alone

    def _know(self, value: Tensor, node: torch.fx.Node) -> None:
        self.known[id(value)] = node
        self.kept.append(value)

    def _size(self, value: torch.SymInt) -> torch.fx.Node | int:
        """A size as a node: so many times the batch axis of a tensor at hand."""
        size = sizes.dim(value)
        if isinstance(size, int):
            return size
        for tensor in self.kept:
            for axis, batch in enumerate(tensor.shape):
                if isinstance(batch, torch.SymInt) and sizes.dim(batch) == BatchDim(1):
                    read = (self._writer(tensor), axis)
                    node = self._add("batch", torch.ops.aten.sym_size.int, read, batch)
                    if size.times > 1:
                        node = self._add("size", operator.mul, (node, size.times), value)
                    return node
        raise _OtherwiseSpelled

    def _writer(self, value: Any) -> Any:
        """The node that makes a tensor or a size; anything else as it is."""
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.known:
            raise _OtherwiseSpelled
        return self.known[id(value)]
