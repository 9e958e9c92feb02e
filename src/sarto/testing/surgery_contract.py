"""What slicing must keep for any model: the checks that every rule of the core is tested with.

Use it for a rule of your own: write the smallest module that needs it, and say which channel groups it must give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sarto.graph import (
    ChannelGroup,
    ModelGraph,
    Selection,
    capture,
    evaluate,
    relative_difference,
    slice,
    zeroed,
)
from sarto.graph.proof import random_inputs, random_twin
from sarto.testing.tolerances import EXACT

#: Shares of every group's units that are kept.
RATIOS = (0.25, 0.5, 0.75)


def check_slicing(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    sliceable: Mapping[str, int],
    *,
    prepare: Callable[[ModelGraph], ModelGraph] | None = None,
) -> ModelGraph:
    """Capture a model and hold it to the laws of slicing; the captured graph.

    The sliceable groups are those that were said, by kind. On a random twin in float64, slicing every group alone and
    all together equals zeroing what their readers read, moves the output, and runs at batch sizes 1, 2 and 7; the
    source's tensors stay as they were.

    Args:
        sliceable: kind -> number of sliceable groups of that kind.
        prepare: another operation to apply to the graph first.

    Raises:
        AssertionError: names the law that does not hold.
    """
    graph = capture(model, example, prove=False)
    graph = prepare(graph) if prepare else graph
    found = Counter(group.kind for group in graph.analysis.sliceable)
    assert dict(found) == dict(sliceable), f"sliceable groups are {dict(found)}, expected {dict(sliceable)}"
    generator = torch.Generator().manual_seed(0)
    twin = random_twin(graph, generator)
    inputs = random_inputs(twin, 3, generator)
    before = {name: tensor.clone() for name, tensor in twin.tensors.items()}
    groups = list(twin.analysis.sliceable)
    cases = [[group] for group in groups] + ([groups] if groups else [])
    for case in cases:
        for ratio in RATIOS:
            _check(twin, case, ratio, inputs, generator)
    changed = [name for name, tensor in twin.tensors.items() if not torch.equal(tensor, before[name])]
    assert not changed, f"slicing changed the source's tensors {changed}"
    return graph


def _check(
    twin: ModelGraph,
    groups: list[ChannelGroup],
    ratio: float,
    inputs: tuple[Tensor, ...],
    generator: torch.Generator,
) -> None:
    selection = Selection({group.id: _some(group.size, ratio, generator) for group in groups})
    names = ", ".join(group.id for group in groups)
    small = slice(twin, selection)
    have, _ = evaluate(small, inputs)
    gap = relative_difference(have, zeroed(twin, selection, inputs))
    assert gap <= EXACT[torch.float64], f"slicing {names} differs from zeroing its readers by {gap:.1e}"
    whole, _ = evaluate(twin, inputs)
    moved = relative_difference(have, whole)
    assert moved > 1e-9, f"slicing {names} moved the output by {moved:.1e} only: the check says nothing"
    for batch in (1, 2, 7):
        one = tuple(tensor[:1] for tensor in inputs)
        many = tuple(tensor[:1].expand(batch, *tensor.shape[1:]).contiguous() for tensor in inputs)
        few, _ = evaluate(small, one)
        wide, _ = evaluate(small, many)
        for a, b in zip(few, wide, strict=True):
            torch.testing.assert_close(b, a.expand(batch, *a.shape[1:]), rtol=1e-9, atol=1e-9)


def _some(size: int, ratio: float, generator: torch.Generator) -> tuple[int, ...]:
    count = min(max(1, round(ratio * size)), size - 1)
    return tuple(torch.randperm(size, generator=generator)[:count].tolist())
