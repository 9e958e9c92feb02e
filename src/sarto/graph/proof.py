"""Every capture proves itself: same outputs as the source, and slicing equals zeroing what the readers read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sarto.errors import GraphError
from sarto.graph.analysis import ChannelGroup
from sarto.graph.cuts import chain, cut_points, dissect
from sarto.graph.expressions import kept_positions
from sarto.graph.model import ModelGraph, Node, TensorRef, is_floating, leaves, size_at
from sarto.graph.run import evaluate
from sarto.graph.selection import Selection, settled
from sarto.graph.slice import slice

#: Largest relative difference that counts as equal, by precision (design promise 1).
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
#: A check in which slicing moved the output by less than this (relative) proves nothing.
MOVED = 1e-9


@dataclass(frozen=True)
class Proof:
    """What was checked on a random twin of a graph, in float64.

    Attributes:
        groups: number of channel groups that were sliced.
        difference: largest relative difference between slicing and zeroing, over the groups that passed.
        moved: how far slicing all of them moved the output, relative; near zero would make the check vacuous.
        cuts: number of cut points at which the graph was parted and chained back.
        refused: group id -> why it failed and is pinned.
    """

    groups: int
    difference: float
    moved: float
    cuts: int
    refused: tuple[tuple[str, str], ...]


def prove(graph: ModelGraph, *, seed: int = 0, batch: int = 3) -> Proof:
    """Slice half of every sliceable group of a random twin, compare with the oracle; bisect where they differ.

    The inputs are drawn too: for each input of the graph a tensor of its shape, with `batch` samples on axis 0.

    Args:
        seed: of the twin's weights, the inputs and the units that are kept.
        batch: number of samples.

    Raises:
        GraphError: cutting the graph at its cut points and chaining it back does not give the same bits.
    """
    generator = torch.Generator().manual_seed(seed)
    twin = random_twin(graph, generator)
    inputs = random_inputs(twin, batch, generator)
    groups = list(twin.analysis.sliceable)
    refused: dict[str, str] = {}
    whole, _ = evaluate(twin, inputs)
    difference, moved = _compare(twin, groups, inputs, whole, generator) if groups else (0.0, 0.0)
    if groups and not _passes(difference, moved):
        difference, passed = 0.0, list[ChannelGroup]()
        for group in groups:
            alone, shift = _compare(twin, [group], inputs, whole, generator)
            together, _ = _compare(twin, [*passed, group], inputs, whole, generator)
            if not _passes(alone, shift):
                refused[group.id] = _why(alone, shift)
            elif together > EXACT[torch.float64]:
                refused[group.id] = f"with other groups, {_why(together, 1.0)}"
            else:
                passed.append(group)
                difference = max(difference, alone, together)
        moved = _compare(twin, passed, inputs, whole, generator)[1] if passed else 0.0
    cuts = _prove_cuts(twin, inputs, whole)
    return Proof(len(groups), difference, moved, cuts, tuple(sorted(refused.items())))


def prove_capture(graph: ModelGraph, model: nn.Module, inputs: tuple[Tensor, ...]) -> ModelGraph:
    """The graph with every group pinned that failed its proof.

    Raises:
        GraphError: the graph does not compute what the model computes, at this batch size or at another one.
    """
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        for given in (
            inputs,
            tuple(torch.cat([tensor, tensor[:1]]) for tensor in inputs),
        ):
            with torch.no_grad():
                want = model(*given)
            have, _ = evaluate(graph, given)
            _refuse_difference(
                graph, have, tuple(leaf for leaf in tree_leaves(want) if isinstance(leaf, Tensor))
            )
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    return proven(graph)


def proven(graph: ModelGraph) -> ModelGraph:
    """The graph with every group pinned that fails its proof; for graphs whose source module is not at hand.

    Raises:
        GraphError: cutting the graph at its cut points and chaining it back does not give the same bits.
    """
    refused = dict(prove(graph).refused)
    return replace(graph, refused={**graph.refused, **refused}) if refused else graph


def zeroed(graph: ModelGraph, selection: Selection, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The oracle: outputs of the whole graph when every linear reader reads zero for the dropped units.

    Args:
        inputs: one tensor per input of the graph, each of the shape (batch, ...) that its `inputs` say.

    Returns:
        As many tensors as the graph has outputs, of their shapes (batch, ...): what `slice(graph, selection)` gives.

    Raises:
        GraphError: as `slice` does for the selection.
    """
    selection = settled(graph, selection)
    masks: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
    for consumption in graph.analysis.consumptions:
        positions = torch.from_numpy(kept_positions(consumption.expr, selection.kept))
        full = kept_positions(consumption.expr, {}).size
        if len(positions) < full:
            mask = torch.zeros(full, dtype=torch.bool)
            mask[positions] = True
            masks.setdefault((consumption.node, consumption.arg), []).append((consumption.axis, mask))

    def edit(node: Node, arg: str, value: Tensor) -> Tensor:
        for axis, mask in masks.get((node.name, arg), ()):
            shape = [1] * value.ndim
            shape[axis] = -1
            value = value * mask.to(value.device).reshape(shape)
        return value

    outputs, _ = evaluate(graph, inputs, edit=edit)
    return outputs


def random_twin(graph: ModelGraph, generator: torch.Generator) -> ModelGraph:
    """The graph in float64 with weights redrawn so that signals keep their size: no check on it is vacuous."""
    twin = graph.to(torch.float64)
    tensors = dict(twin.tensors.items())
    for node in graph.nodes:
        for arg, value in node.args.items():
            for leaf in leaves(value):
                if isinstance(leaf, TensorRef) and leaf.name in graph.parameters | _statistics(node):
                    tensors[leaf.name] = _redrawn(node, arg, tensors[leaf.name], generator)
    return replace(twin, tensors=tensors)


def _statistics(node: Node) -> frozenset[str]:
    """Buffers that are redrawn with the weights: running statistics."""
    found = (node.args.get(name) for name in ("running_mean", "running_var"))
    return frozenset(arg.name for arg in found if isinstance(arg, TensorRef))


def random_inputs(graph: ModelGraph, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Standard normal inputs (zeros and ones for integers) of a batch size."""
    made = []
    for entry in graph.inputs:
        shape = size_at(entry.shape, batch)
        if is_floating(entry.dtype):
            made.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(_torch(entry.dtype)))
        else:
            made.append(torch.randint(0, 2, shape, generator=generator).to(_torch(entry.dtype)))
    return tuple(made)


def relative_difference(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Largest |one - two| over all outputs, divided by the largest |two|; infinite where shapes differ or NaN appears.

    Args:
        one: tensors of any shapes.
        two: as many, each of the same shape as its fellow in `one`.
    """
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not b.numel():
            continue
        scale = float(b.detach().abs().max().clamp_min(torch.finfo(torch.float32).tiny))
        gap = float((a.detach() - b.detach()).abs().max())
        worst = max(worst, gap / scale if gap == gap else float("inf"))
    return worst


def _compare(
    graph: ModelGraph,
    groups: Iterable[ChannelGroup],
    inputs: tuple[Tensor, ...],
    whole: tuple[Tensor, ...],
    generator: torch.Generator,
) -> tuple[float, float]:
    selection = Selection({group.id: _half(group.size, generator) for group in groups})
    try:
        have, _ = evaluate(slice(graph, selection), inputs)
    except RuntimeError:
        # An operator refused the new sizes: a rule is wrong here, so these groups are refused, not the model.
        return float("inf"), 0.0
    return relative_difference(have, zeroed(graph, selection, inputs)), relative_difference(have, whole)


def _half(size: int, generator: torch.Generator) -> tuple[int, ...]:
    order = torch.randperm(size, generator=generator)
    return tuple(order[: max(1, size // 2)].tolist())


def _passes(difference: float, moved: float) -> bool:
    return difference <= EXACT[torch.float64] and moved > MOVED


def _why(difference: float, moved: float) -> str:
    if difference == float("inf"):
        return "the sliced model does not run, or gives other shapes or NaN"
    if difference > EXACT[torch.float64]:
        return f"slicing differs from zeroing its readers by {difference:.1e} (relative)"
    return f"slicing it moved the output by only {moved:.1e} (relative), so the check proves nothing"


def _prove_cuts(graph: ModelGraph, inputs: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> int:
    cuts = cut_points(graph)
    if not cuts:
        return 0
    have, _ = evaluate(chain(dissect(graph, [cut.value for cut in cuts])), inputs)
    if not all(torch.equal(a, b) for a, b in zip(have, whole, strict=True)):
        raise GraphError(
            f"parting the graph at its {len(cuts)} cut points and chaining it back changes the output"
        )
    return len(cuts)


def _refuse_difference(graph: ModelGraph, have: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    if len(have) != len(want):
        raise GraphError(f"the model gives {len(want)} tensors and its graph {len(have)}")
    dtype = want[0].dtype
    gap = relative_difference(have, want)
    if gap > EXACT.get(dtype, 1e-2):
        raise GraphError(
            f"the captured graph differs from the model by {gap:.1e} (relative, {dtype}); "
            "the model may depend on state or on Python control flow that capture can't see"
        )


def _redrawn(node: Node, arg: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    def normal(scale: float) -> Tensor:
        return scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)

    if node.op == "aten.batch_norm.default":
        return between(0.5, 1.5) if arg in ("weight", "running_var") else normal(0.2)
    if not tensor.is_floating_point():
        return tensor
    if arg in ("weight", "params", "mat2", "other") and tensor.ndim > 1:
        fan_in = tensor[0].numel()
        return normal((2.0 / max(1, fan_in)) ** 0.5)
    return tensor + normal(0.1)


def _torch(dtype: str) -> torch.dtype:
    return getattr(torch, dtype)  # type: ignore[no-any-return]


__all__ = [
    "EXACT",
    "Proof",
    "prove",
    "prove_capture",
    "proven",
    "random_inputs",
    "random_twin",
    "relative_difference",
    "zeroed",
]
