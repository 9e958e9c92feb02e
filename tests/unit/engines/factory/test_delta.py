"""What a device downloads: counted by another road, and put together with what it has to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sarto import zoo
from sarto.engines.factory.assembler import Assembler
from sarto.engines.factory.delta import Held, apply_delta, delta, write_delta
from sarto.engines.factory.skips import skippable
from sarto.engines.factory.subnets import cut
from sarto.engines.factory.supernet import Supernet, as_placed, placed
from sarto.errors import StoreError
from sarto.graph import ModelGraph, Selection, capture, gate_layout, graph_hash, normalise, slice
from sarto.types import AssemblerSettings, TaskSpace

SPACE = TaskSpace.parse(
    {
        "name": "few",
        "groups": {"class": ["oak", "ray", "shark", "elm"]},
        "choose": {"class": 2},
        "function": "none:none",
        "answers": ["oak", "ray", "shark", "elm"],
        "outputs_of": {name: [name] for name in ("oak", "ray", "shark", "elm")},
    }
)


def supernet(name: str) -> Supernet:
    torch.manual_seed(0)
    if name == "vit":
        net, images = zoo.vit(4, side=12, patch=4, width=16, depth=2, heads=2), torch.rand(2, 3, 12, 12)
    elif name == "mobilenet":
        net, images = zoo.mobilenet_v2(4, 8, ((1, 8, 1, 1), (4, 8, 2, 2)), 16), torch.rand(2, 3, 16, 16)
    else:
        net, images = zoo.resnet(4, 3, (1, 1), 8, False, "cifar"), torch.rand(2, 3, 12, 12)
    graph = as_placed(capture(net.eval(), images, prove=False), "wide")
    groups = placed(graph, "wide")
    shape = AssemblerSettings(hidden=8, gaters=2)
    skips = skippable(graph, groups)
    made = Assembler(len(SPACE.properties), gate_layout(graph, groups), shape, skips).eval()
    return Supernet(graph, SPACE, groups, made)


def held(net: Supernet, share: float, rows: list[int], seed: int, skipped: str = "") -> Held:
    """A subnet of random units, as it is delivered."""
    generator = torch.Generator().manual_seed(seed)
    gates = (torch.rand(net.assembler.units, generator=generator) < share).float()
    for group, (start, stop) in net.layout.items():
        gates[start] = 1.0
        if skipped and group == skipped:
            gates[start:stop] = 0.0
    graph = normalise(cut(net, gates, rows=rows), [0.5] * 3, [0.25] * 3)
    return Held(graph, net.selection(gates), rows)


def same(one: ModelGraph, two: ModelGraph) -> bool:
    return graph_hash(one) == graph_hash(two) and all(
        torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items()
    )


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_old_and_delta_are_new_bit_for_bit(name: str, tmp_path: Path) -> None:
    net = supernet(name)
    sub = {
        share: held(net, share, rows, seed)
        for seed, (share, rows) in enumerate([(0.3, [0, 1]), (0.6, [1, 3])])
    }
    for old, new in ((sub[0.3], sub[0.6]), (sub[0.6], sub[0.3])):
        found = delta(net.graph, old, new)
        assert 0 < found.download_bytes < found.whole_bytes
        path = tmp_path / "delta.safetensors"
        assert write_delta(found, path) == path.stat().st_size > found.download_bytes
        before = {name: tensor.clone() for name, tensor in old.graph.tensors.items()}
        assert same(apply_delta(old.graph, path), new.graph)
        assert all(torch.equal(tensor, old.graph.tensors[name]) for name, tensor in before.items())
    whole = sum(tensor.numel() * tensor.element_size() for tensor in sub[0.3].graph.tensors.values())
    assert found.whole_bytes == whole, "all that is shipped, and nothing else"
    nothing = delta(net.graph, new, new)
    assert nothing.download_bytes == 0 and not nothing.added and not nothing.dropped


def test_rows_and_constants_that_a_device_lacks_are_counted(tmp_path: Path) -> None:
    net = supernet("resnet")
    old, other = held(net, 0.5, [0, 1], 0), held(net, 0.5, [1, 3], 0)
    found = delta(net.graph, old, other)
    head = [t for t in other.graph.tensors.values() if t.shape[:1] == (2,)]
    # One of two rows of the classifier, weight and bias.
    assert found.download_bytes == sum(t.numel() * t.element_size() for t in head) // 2 > 0
    assert not found.added and not found.dropped
    skipped = next(group for group in net.groups if group in net.assembler.skips)
    less = held(net, 0.5, [0, 1], 0, skipped)
    found = delta(net.graph, old, less)
    constants = [t for name, t in less.graph.tensors.items() if name not in old.graph.tensors]
    assert constants and found.download_bytes == sum(t.numel() * t.element_size() for t in constants)
    write_delta(found, tmp_path / "delta.safetensors")
    assert same(apply_delta(old.graph, tmp_path / "delta.safetensors"), less.graph)


def test_the_count_is_what_the_other_lacks_by_another_road() -> None:
    graph = supernet("resnet").graph
    group = next(group.id for group in graph.analysis.sliceable if group.kind == "stream")
    size = graph.analysis.group(group).size
    old, new = Selection({group: tuple(range(size // 2))}), Selection({group: tuple(range(1, size))})
    found = delta(graph, Held(slice(graph, old), old), Held(slice(graph, new), new))
    assert found.added == {group: tuple(range(size // 2, size))} and found.dropped == {group: (0,)}
    # Mark the numbers that each subnet holds of every tensor.
    missing = whole = 0
    for name, tensor in graph.tensors.items():
        places = [axis for at, axis in graph.analysis.group(group).places if at == name]
        held_by = []
        for units in (new.kept[group], old.kept[group]):
            mask = torch.ones(tensor.shape, dtype=torch.bool)
            for axis in places:
                on = torch.zeros(tensor.shape[axis], dtype=torch.bool)
                on[list(units)] = True
                mask &= on.view(*(-1 if i == axis else 1 for i in range(tensor.ndim)))
            held_by.append(mask)
        whole += int(held_by[0].sum()) * tensor.element_size()
        missing += int((held_by[0] & ~held_by[1]).sum()) * tensor.element_size()
    assert (found.download_bytes, found.whole_bytes) == (missing, whole)


def test_a_delta_of_another_subnet_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    net = supernet("resnet")
    old, new = held(net, 0.3, [0, 1], 0), held(net, 0.6, [0, 1], 1)
    path = tmp_path / "delta.safetensors"
    found = delta(net.graph, old, new)
    write_delta(found, path)
    with pytest.raises(StoreError, match="begins at the subnet sha256:"):
        apply_delta(new.graph, path)
    part = next(name for name in found.tensors if "/" in name and found.tensors[name].is_floating_point())
    recipe = {"format": "sarto.delta/1", "recipe": json.dumps(found.recipe)}
    save_file({**load_file(path), part: found.tensors[part] + 1}, path, metadata=recipe)
    with pytest.raises(StoreError, match="gives another subnet than it says"):
        apply_delta(old.graph, path)
    save_file({name: t for name, t in found.tensors.items() if name != part}, path, metadata=recipe)
    with pytest.raises(StoreError, match="is damaged"):
        apply_delta(old.graph, path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(StoreError, match=r"no sarto.delta/1 file"):
        apply_delta(old.graph, path)
    path.write_bytes(b"nothing")
    with pytest.raises(StoreError, match="no delta can be read"):
        apply_delta(old.graph, path)
