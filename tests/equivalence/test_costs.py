"""Costs by another road: PyTorch's own FLOP counter, and a run that watches which storages are really alive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sarto import zoo
from sarto.devices import count, flops_by_node, params_by_tensor, peak_bytes, timeline
from sarto.graph import (
    ModelGraph,
    block,
    branch,
    capture,
    features,
    leading,
    slice,
    uniform_counts,
    with_head,
)
from sarto.graph.model import Ref, leaves
from sarto.graph.run import run_node
from sarto.testing.pico import PICO, pico

ZOO = {
    "vgg": lambda: zoo.vgg(4, widths=(8, "M", 16, "M", 16)),
    "resnet": lambda: zoo.cifar_resnet(3, depth=8, width=8),
    "mobilenet": lambda: zoo.mobilenet_v2(3, stem=8, stages=((2, 8, 2, 2), (2, 16, 1, 2)), last=24),
}


def graphs() -> dict[str, ModelGraph]:
    found = {name: capture(*pico(name), prove=False) for name in PICO}
    for name, make in ZOO.items():
        found[name] = capture(make(), torch.zeros(2, 3, 32, 32), prove=False)
    for name in ("residual", "mobile", "resnet", "mobilenet"):
        found[f"{name} sliced"] = slice(found[name], leading(uniform_counts(found[name], 0.5)))
    one, two = (block(found[name], end=features(found[name]).value) for name in ("resnet", "mobilenet"))
    width = features(found["resnet"]).width + features(found["mobilenet"]).width
    found["pack"] = with_head(branch([one, two]), torch.zeros(3, width), torch.zeros(3))
    return found


GRAPHS = graphs()


def inputs_of(graph: ModelGraph, batch: int = 1) -> torch.Tensor:
    entry = graph.inputs[0]
    return torch.zeros((batch, *entry.shape[1:]), dtype=getattr(torch, entry.dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GRAPHS)
def test_flops_and_params_equal_torch(name: str) -> None:
    graph = GRAPHS[name]
    module = graph.module()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs_of(graph))
    cost = count(graph)
    assert cost.flops == counter.get_total_flops() > 0
    assert cost.params == sum(parameter.numel() for parameter in module.parameters())
    assert cost.size_bytes == sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert sum(flops_by_node(graph).values()) == cost.flops
    assert sum(params_by_tensor(graph).values()) == cost.params


@pytest.mark.parametrize("name", GRAPHS)
def test_costs_need_no_weights(name: str) -> None:
    assert count(GRAPHS[name].sketch()) == count(GRAPHS[name])


def peak_of_a_run(graph: ModelGraph, batch: int) -> int:
    """Run node by node; storages that activations hold are counted right after each node, before anything is let go."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in graph.tensors.values()}
    env: dict[str, Any] = {graph.inputs[0].name: inputs_of(graph, batch)}
    last = {name: readers[-1] for name, readers in graph.readers.items()}
    peak = 0
    for node in graph.nodes:
        env[node.name] = run_node(graph, node, env, batch)
        storages = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in env.values()
            if value.untyped_storage().data_ptr() not in weights
        }
        peak = max(peak, sum(storages.values()))
        read = {arg.name for arg in leaves(node.args) if isinstance(arg, Ref)}
        for name in [n for n in read | {node.name} if last.get(n) == node.name and n not in graph.outputs]:
            del env[name]
    return peak


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", GRAPHS)
def test_peak_memory_equals_a_run_that_counts_storages(name: str, batch: int) -> None:
    graph = GRAPHS[name]
    with torch.no_grad():
        assert peak_bytes(graph, batch=batch) == peak_of_a_run(graph, batch)


def test_the_timeline_peaks_where_the_peak_is() -> None:
    graph = GRAPHS["resnet"]
    moments = timeline(graph)
    assert [moment.node for moment in moments] == [node.name for node in graph.nodes]
    assert max(moment.live_bytes for moment in moments) == count(graph).memory_bytes


@pytest.mark.parametrize("name", ["residual", "mobile", "resnet", "mobilenet"])
def test_costs_fall_with_every_unit(name: str) -> None:
    graph = GRAPHS[name].sketch()
    before = None
    for ratio in (1.0, 0.75, 0.5, 0.25):
        cost = count(slice(graph, leading(uniform_counts(graph, ratio))))
        if before is not None:
            assert cost.params < before.params and cost.flops < before.flops
            assert cost.size_bytes < before.size_bytes and cost.memory_bytes <= before.memory_bytes
        before = cost
