"""What a device must download when its task or its budget changes: the numbers that it does not hold yet."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sarto.errors import GraphError, StoreError
from sarto.graph import ModelGraph, Selection, TensorRef, features, graph_hash
from sarto.graph.encoding import MAX_GRAPH_BYTES, decode, encode
from sarto.graph.expressions import kept_positions

_FORMAT = "sarto.delta/1"
_STRUCTURE = "structure"
_INDEX = "index."
#: Places of an axis that both subnets have: where they lie in the old one, and where in the new one.
Places = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Held:
    """A subnet as a device has it.

    Attributes:
        graph: as delivered.
        selection: units of the backbone.
        rows: outputs of the backbone's classifier, in the subnet's order; None: all.
    """

    graph: ModelGraph
    selection: Selection
    rows: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class Delta:
    """From one subnet to another of the same backbone.

    Attributes:
        added: group -> units that are new.
        dropped: group -> units that go.
        download_bytes: numbers of the new subnet that the old one does not hold.
        whole_bytes: all numbers of the new subnet.
        tensors: these numbers, in slices; index lists; the new subnet's structure. What `write_delta` writes.
        recipe: how tensors are put together from them.
    """

    added: Mapping[str, tuple[int, ...]]
    dropped: Mapping[str, tuple[int, ...]]
    download_bytes: int
    whole_bytes: int
    tensors: Mapping[str, Tensor]
    recipe: Mapping[str, Any]


def delta(backbone: ModelGraph, old: Held, new: Held) -> Delta:
    """What changes from one subnet of a backbone to another.

    Of each tensor the device keeps the numbers of units (and outputs) that both subnets have; the others come in
    slices, one for each axis along which something is new. What is no slice of the backbone (a skipped block's
    constant) comes whole, unless both have the same.
    """
    names = {*old.selection.kept, *new.selection.kept}
    units = {name: range(backbone.analysis.group(name).size) for name in names}
    before, after = (
        {name: set(held.selection.kept.get(name, units[name])) for name in sorted(names)}
        for held in (old, new)
    )
    slices: dict[str, Tensor] = {}
    lists: dict[tuple[int, ...], str] = {}
    table: dict[str, Any] = {}
    whole = 0
    for name, tensor in new.graph.tensors.items():
        whole += tensor.numel() * tensor.element_size()
        axes = _shared(backbone, old, new, name)
        if axes is None:
            slices[f"{name}/whole"] = tensor.clone(memory_format=torch.contiguous_format)
            table[name] = None
            continue
        slices |= {f"{name}/{axis}": part for axis, part in _missing(tensor, axes)}
        # Axes that both have whole need no list.
        named = [
            None
            if both is None
            else [lists.setdefault(tuple(at.tolist()), f"{_INDEX}{len(lists)}") for at in both]
            for both in axes
        ]
        table[name] = {"shape": list(tensor.shape), "axes": named}
    download = sum(part.numel() * part.element_size() for part in slices.values())
    structure = torch.frombuffer(bytearray(zlib.compress(encode(new.graph))), dtype=torch.uint8)
    indices = {name: torch.tensor(places, dtype=torch.int32) for places, name in lists.items()}
    return Delta(
        {name: tuple(sorted(more)) for name in before if (more := after[name] - before[name])},
        {name: tuple(sorted(less)) for name in before if (less := before[name] - after[name])},
        download,
        whole,
        {**slices, **indices, _STRUCTURE: structure},
        {"from": graph_hash(old.graph), "to": graph_hash(new.graph), "tensors": table},
    )


def write_delta(found: Delta, path: Path) -> int:
    """Write a delta as a safetensors file; its bytes."""
    temporary = path.with_name(f".{path.name}.new")
    save_file(
        dict(found.tensors), temporary, metadata={"format": _FORMAT, "recipe": json.dumps(found.recipe)}
    )
    os.replace(temporary, path)
    return path.stat().st_size


def apply_delta(old: ModelGraph, path: Path) -> ModelGraph:
    """The new subnet, from the old one as it was delivered and the file of a delta; the source is unchanged.

    Raises:
        StoreError: the file is damaged or no delta, or begins at another subnet than this one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        recipe = json.loads(about["recipe"]) if about.get("format") == _FORMAT else None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"no delta can be read: {error}; fetch the file again", where=str(path)) from error
    if recipe is None:
        raise StoreError(
            f"this is no {_FORMAT} file; `sarto factory delta --out` writes one", where=str(path)
        )
    if recipe["from"] != (mine := graph_hash(old)):
        raise StoreError(
            f"this delta begins at the subnet {recipe['from'][:19]}, the one that is here is {mine[:19]}; ask for the "
            "delta from this one",
            where=str(path),
        )
    try:
        tensors = {name: _joined(name, how, old.tensors, given) for name, how in recipe["tensors"].items()}
        unpacked = zlib.decompressobj().decompress(given[_STRUCTURE].numpy().tobytes(), MAX_GRAPH_BYTES)
        made = decode(unpacked, tensors)
    except (GraphError, KeyError, IndexError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        raise StoreError(f"this delta is damaged: {error}; fetch the file again", where=str(path)) from error
    if graph_hash(made) != recipe["to"]:
        raise StoreError(
            "this delta is damaged: it gives another subnet than it says; fetch it again", where=str(path)
        )
    return made


def _shared(backbone: ModelGraph, old: Held, new: Held, name: str) -> list[Places | None] | None:
    """Of each axis of a tensor what both subnets have, None: all; None where the tensor comes whole."""
    tensor, held = new.graph.tensors[name], old.graph.tensors.get(name)
    if held is None or held.dtype != tensor.dtype:
        return None
    axes: list[Places | None] = [None] * tensor.ndim
    if name in backbone.analysis.tensor_axes:
        before, after = (_positions(backbone, one, name) for one in (old, new))
        if [len(at) for at in before] == list(held.shape) and [len(at) for at in after] == list(tensor.shape):
            axes = [_both(was, now) for was, now in zip(before, after, strict=True)]
    parts = dict(_missing(tensor, axes))
    # Only what gives the new tensor, bit for bit, is taken from the old one.
    fits = all(both is not None or held.shape[axis] == tensor.shape[axis] for axis, both in enumerate(axes))
    return (
        axes
        if fits and held.ndim == tensor.ndim and _same(_put(held, tensor.shape, axes, parts), tensor)
        else None
    )


def _positions(backbone: ModelGraph, held: Held, name: str) -> list[np.ndarray]:
    """Places of the backbone's tensor that lie along each axis of the subnet's."""
    found = [kept_positions(axis, held.selection.kept) for axis in backbone.analysis.tensor_axes[name]]
    if held.rows is not None:
        node = backbone.node(features(backbone).classifier)
        if TensorRef(name) in (node.args["weight"], node.args["bias"]):
            found[0] = np.asarray(held.rows)
    return found


def _both(before: np.ndarray, after: np.ndarray) -> Places | None:
    if np.array_equal(before, after):
        return None
    _, was, now = np.intersect1d(before, after, return_indices=True)
    return torch.from_numpy(was), torch.from_numpy(now)


def _missing(tensor: Tensor, axes: Sequence[Places | None]) -> Iterator[tuple[int, Tensor]]:
    """What is new along each axis: of the axes before it what both have, of those after it all."""
    left = tensor
    for axis, both in enumerate(axes):
        if both is None:
            continue
        part = left.index_select(axis, _others(both[1], tensor.shape[axis]))
        if part.numel():
            yield axis, part
        left = left.index_select(axis, both[1])


def _put(
    held: Tensor, shape: Sequence[int], axes: Sequence[Places | None], parts: Mapping[int, Tensor]
) -> Tensor:
    """A tensor from what the old one holds of it and from what is new along each axis."""
    made = held
    for axis, both in enumerate(axes):
        if both is not None:
            made = made.index_select(axis, both[0])
    # From the last axis on: what is there is the shared part of all axes before, and all of those after.
    for axis in reversed(range(len(axes))):
        both = axes[axis]
        if both is None:
            continue
        sizes = list(made.shape)
        sizes[axis] = shape[axis]
        wider = made.new_empty(sizes)
        wider.index_copy_(axis, both[1], made)
        if axis in parts:
            wider.index_copy_(axis, _others(both[1], shape[axis]), parts[axis])
        made = wider
    return made


def _others(places: Tensor, size: int) -> Tensor:
    """Places of an axis that are none of these."""
    free = torch.ones(size, dtype=torch.bool)
    free[places] = False
    return torch.nonzero(free).flatten()


def _joined(name: str, how: Any, held: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Tensor:
    if how is None:
        return given[f"{name}/whole"]
    axes = [None if both is None else (given[both[0]].long(), given[both[1]].long()) for both in how["axes"]]
    parts = {axis: given[key] for axis in range(len(axes)) if (key := f"{name}/{axis}") in given}
    return _put(held[name], how["shape"], axes, parts)


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same bits: also not-a-numbers, and zeros of one sign."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return torch.equal(
        one.contiguous().flatten().view(torch.uint8), two.contiguous().flatten().view(torch.uint8)
    )
