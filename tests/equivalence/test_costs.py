"""Costs by another road: PyTorch's own FLOP counter, and a run that watches which storages are really alive."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sarto import zoo
from sarto.devices import count, flops_by_node, params_by_tensor, peak_bytes, timeline
from sarto.graph import (
    ModelGraph,
    Ref,
    block,
    branch,
    capture,
    features,
    leading,
    read_graph,
    slice,
    uniform_counts,
    with_head,
    write_graph,
)
from sarto.graph.model import leaves
from sarto.graph.run import run_node
from sarto.testing.pico import PICO, pico


class Play(nn.Module):
    """A function of an input and of some layers."""

    def __init__(self, play: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.play, self.layers = play, nn.ModuleList(layers)
        self.token = nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.play(x, *self.layers, token=self.token)


def heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, 2, 4).transpose(1, 2)


def attention(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module, out: nn.Module, token: Tensor) -> Tensor:
    x = torch.cat([token.expand(x.shape[0], -1, -1), x], 1)
    y = F.scaled_dot_product_attention(heads(q(x)), heads(k(x)), heads(v(x)))
    return out(x + y.transpose(1, 2).reshape(x.shape[0], -1, 8))


def products(x: Tensor, q: nn.Module, k: nn.Module, token: Tensor) -> Tensor:
    scores = (heads(q(x)) @ heads(k(x)).transpose(-2, -1)).softmax(-1)
    return (scores @ heads(x)).transpose(1, 2).flatten(2) @ q.weight


def shuffle(x: Tensor, conv: nn.Module, token: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return conv(x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def channels_last(x: Tensor, conv: nn.Module, norm: nn.Module, token: Tensor) -> Tensor:
    y = F.max_pool2d(F.gelu(norm(conv(x.permute(0, 3, 1, 2)))), 2)
    return y.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def einsums(x: Tensor, layer: nn.Module, token: Tensor) -> Tensor:
    y = torch.einsum("btc,bsc,bsd->btd", x, layer(x), x)
    return torch.einsum("...td,ed->...et", y, layer.weight).sum(1)


#: name -> (model, shape of one input)
ODD: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "attention": (Play(attention, *(nn.Linear(8, 8) for _ in range(4))), (5, 8)),
    "products": (Play(products, nn.Linear(8, 8), nn.Linear(8, 8)), (5, 8)),
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "shuffle": (Play(shuffle, nn.Conv2d(8, 4, 3)), (8, 4, 4)),
    "channels last": (Play(channels_last, nn.Conv2d(8, 8, 3, padding="same"), nn.BatchNorm2d(8)), (4, 4, 8)),
    "einsum": (Play(einsums, nn.Linear(8, 8)), (5, 8)),
    "windows": (
        Play(lambda x, layer, token: layer(x.unfold(1, 2, 1).flatten(2)).amax(1), nn.Linear(16, 3)),
        (5, 8),
    ),
    "several outputs": (
        Play(lambda x, layer, token: layer(x.max(1)[0]) + x.max(1)[1], nn.Linear(8, 8)),
        (5, 8),
    ),
    "same type": (Play(lambda x, layer, token: layer(x.to(torch.float64)).relu(), nn.Linear(8, 8)), (5, 8)),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(8, 6, 3, 2, groups=2, output_padding=1), nn.Conv2d(6, 4, 3, groups=2)
        ),
        (8, 4, 4),
    ),
    "transposed 1d": (nn.ConvTranspose1d(8, 6, 3, stride=2, groups=2), (8, 5)),
    "volume": (nn.Conv3d(8, 6, 3, stride=2, groups=2, padding=1), (8, 4, 4, 4)),
    "gru": (Play(lambda x, layer, token: layer(x)[0][:, -1], nn.GRU(8, 4, 2, batch_first=True)), (5, 8)),
    "lstm": (
        Play(
            lambda x, layer, token: layer(x)[0].mean(1), nn.LSTM(8, 4, bidirectional=True, batch_first=True)
        ),
        (5, 8),
    ),
    "projected lstm": (
        Play(lambda x, layer, token: layer(x)[0], nn.LSTM(8, 6, proj_size=4, batch_first=True)),
        (5, 8),
    ),
}
ZOO: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: zoo.vgg(4, widths=(8, "M", 16, "M", 16)),
    "resnet": lambda: zoo.cifar_resnet(3, depth=8, width=8),
    "mobilenet": lambda: zoo.mobilenet_v2(3, stem=8, stages=((2, 8, 2, 2), (2, 16, 1, 2)), last=24),
}
SLICED = ("residual", "mobile", "dense", "grouped", "text", "resnet", "mobilenet")
NAMES = (*PICO, *ZOO, *ODD, *(f"{name}, half" for name in SLICED), "pack")


@cache
def graph_of(name: str) -> ModelGraph:
    if name in PICO:
        return capture(*pico(name), prove=False)
    if name in ZOO:
        return capture(ZOO[name](), torch.zeros(2, 3, 32, 32), prove=False)
    if name in ODD:
        model, shape = ODD[name]
        return capture(model.double().eval(), torch.zeros(2, *shape, dtype=torch.float64), prove=False)
    if name == "pack":
        parts = [graph_of("resnet"), graph_of("mobilenet")]
        blocks = [block(part, end=features(part).value) for part in parts]
        width = sum(features(part).width for part in parts)
        return with_head(branch(blocks), torch.zeros(3, width), torch.zeros(3))
    whole = graph_of(name.removesuffix(", half"))
    return slice(whole, leading(uniform_counts(whole, 0.5)))


def inputs_of(graph: ModelGraph, batch: int = 1) -> Tensor:
    entry = graph.inputs[0]
    return torch.zeros((batch, *entry.shape[1:]), dtype=getattr(torch, entry.dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_flops_and_params_equal_torch(name: str) -> None:
    graph = graph_of(name)
    module = graph.module()
    # A fused attention kernel would hide its products from the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs_of(graph))
    cost = count(graph)
    assert cost.flops == counter.get_total_flops() > 0
    assert cost.params == sum(parameter.numel() for parameter in module.parameters())
    assert cost.size_bytes == sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert sum(flops_by_node(graph).values()) == cost.flops
    assert sum(params_by_tensor(graph).values()) == cost.params


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_a_batch_equal_torch(name: str) -> None:
    graph = graph_of(name)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        graph.module()(inputs_of(graph, 3))
    assert sum(flops_by_node(graph, batch=3).values()) == counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_costs_need_no_weights(name: str) -> None:
    graph = graph_of(name)
    bare = graph.sketch()
    assert count(bare) == count(graph)
    assert timeline(bare) == timeline(graph)


def live_bytes_of_a_run(graph: ModelGraph, batch: int) -> list[int]:
    """Run node by node; storages that values hold are counted right after each node, before anything is let go."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in graph.tensors.values()}
    env: dict[str, Any] = {graph.inputs[0].name: inputs_of(graph, batch)}
    last = {name: readers[-1] for name, readers in graph.readers.items()}
    live = []
    for node in graph.nodes:
        env[node.name] = run_node(graph, node, env, batch)
        held = [
            tensor for value in env.values() for tensor in (value if isinstance(value, tuple) else (value,))
        ]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        live.append(sum(size for place, size in storages.items() if place not in weights))
        read = {arg.name for arg in leaves(node.args) if isinstance(arg, Ref)}
        for name in [n for n in read | {node.name} if last.get(n) == node.name and n not in graph.outputs]:
            del env[name]
        del held
    return live


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_live_bytes_equal_a_run_that_counts_storages(name: str, batch: int) -> None:
    graph = graph_of(name)
    with torch.no_grad():
        run = live_bytes_of_a_run(graph, batch)
    moments = timeline(graph, batch=batch)
    assert [moment.node for moment in moments] == [node.name for node in graph.nodes]
    assert [moment.live_bytes for moment in moments] == run
    assert peak_bytes(graph, batch=batch) == max(run)
    if batch == 1:
        assert count(graph).memory_bytes == max(run)


@pytest.mark.parametrize("name", ["vgg", "mobilenet", "attention"])
def test_memory_halves_with_half_the_precision(name: str) -> None:
    graph = graph_of(name)
    assert graph.inputs[0].dtype in ("float32", "float64")
    single, half = graph.to(torch.float32), graph.to(torch.float16)
    assert count(single).memory_bytes == 2 * count(half).memory_bytes
    assert count(single).flops == count(half).flops == count(graph).flops


def test_costs_of_a_graph_on_disk_read_no_weights(tmp_path: Any) -> None:
    graph = graph_of("resnet")
    write_graph(graph, tmp_path)
    stored = read_graph(tmp_path)
    assert count(stored) == count(graph)
    assert "0 read" in repr(stored.tensors)
