"""Slicing against the source module: zeros in the weights of the `nn.Module` itself, with no graph in between.

A graph whose stored tensors hold the numbers of their own elements is sliced first: what is left of each tensor says
which inputs a layer no longer reads. Those columns become zero in the module, and the module runs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sarto.graph import ModelGraph, Selection, capture, relative_difference, slice
from sarto.testing.random_nets import MOVES, random_net
from sarto.testing.tolerances import EXACT

recipes = st.tuples(
    st.lists(st.sampled_from(MOVES), min_size=1, max_size=4), st.integers(0, 2**16), st.booleans()
)


def left(graph: ModelGraph, selection: Selection) -> dict[str, Tensor]:
    """Tensor name -> which of its elements, in its own shape, a slice keeps."""
    numbered = {
        name: torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        for name, tensor in graph.tensors.items()
    }
    found = slice(replace(graph, tensors=numbered), selection).tensors
    kept = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in graph.tensors.items()}
    for name, numbers in found.items():
        kept[name].view(-1)[numbers.reshape(-1).long()] = True
    return kept


def hide(model: nn.Module, kept: dict[str, Tensor]) -> int:
    """Zero what a kept unit no longer reads, and the queries of dropped query-key pairs; the number of zeros."""
    transposed = {
        f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.ConvTranspose2d)
    }
    zeros = 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name not in kept:
                continue
            here = kept[name]
            rest = tuple(range(1, here.ndim))
            if ".q." in name:
                # A pair adds query times key to a score, which no weight reads: without the query it adds nothing.
                # Also input columns that are no longer read: all that is not kept.
                gone = ~here
            elif here.ndim < 2:
                continue
            elif name in transposed:
                gone = ~here.any(dim=rest, keepdim=True).expand_as(here)
            else:
                gone = here.any(dim=rest, keepdim=True) & ~here
            weight[gone] = 0
            zeros += int(gone.sum())
    return zeros


def check_against_source(recipe: tuple[list[str], int, bool]) -> None:
    moves, seed, flatten = recipe
    model, x = random_net(moves, seed, flatten=flatten)
    graph = capture(model, x, prove=False)
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.analysis.sliceable:
        count = int(torch.randint(1, group.size, (1,), generator=generator))
        kept[group.id] = tuple(torch.randperm(group.size, generator=generator)[:count].tolist())
    selection = Selection(kept)
    # The graph must not share what becomes zero.
    graph = replace(graph, tensors={name: tensor.clone() for name, tensor in graph.tensors.items()})
    small = slice(graph, selection)
    with torch.no_grad():
        before = model(x)
        zeros = hide(model, left(graph, selection))
        want = model(x)
        assert relative_difference((small(x),), (want,)) <= EXACT[torch.float64]
    assert bool(zeros) == bool(kept)
    # The mean of a normalised map is its bias, whatever the map.
    if kept and "instance_norm" not in moves:
        assert not torch.allclose(before, want, rtol=1e-9, atol=0), "the zeros say something"


@settings(max_examples=5)
@given(recipes)
def test_a_slice_is_the_module_with_zeros(recipe: tuple[list[str], int, bool]) -> None:
    check_against_source(recipe)


@pytest.mark.slow
@settings(max_examples=200)
@given(recipes)
def test_a_slice_is_the_module_with_zeros_for_many_nets(recipe: tuple[list[str], int, bool]) -> None:
    check_against_source(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("move", MOVES)
def test_every_structure_is_checked_against_its_module(move: str) -> None:
    for seed in range(3):
        check_against_source(([move, "conv", move], seed, bool(seed % 2)))
