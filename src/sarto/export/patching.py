"""ONNX files of a model's subnets, made from one export of the whole: only numbers and sizes differ."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from sarto.devices import load_onnx
from sarto.errors import GraphError
from sarto.export.joining import joined_onnx
from sarto.export.norms import fold_norms
from sarto.export.onnx import to_onnx
from sarto.graph import ModelGraph, Selection, relative_difference, slice
from sarto.graph.expressions import kept_size
from sarto.graph.model import size_at
from sarto.graph.selection import leading

#: Share of the units in the subnet that shows which numbers follow which units.
_SHOWN = 0.7
_LIMIT = 1e-4

#: Where a whole number stands: the node's place (None: a stored constant), the attribute or constant, the entry.
_Place = tuple[int | None, str, int]


@dataclass(frozen=True)
class OnnxTemplate:
    """An exported model whose subnets are exported in milliseconds; `onnx_template` makes and checks one.

    Attributes:
        graph: the model.
        model: its export.
        places: whole numbers that follow a size -> the size, by its place in the analysis.
    """

    graph: ModelGraph
    model: onnx.ModelProto
    places: Mapping[_Place, int]

    def subnet(self, counts: Mapping[str, int]) -> bytes:
        """The subnet that keeps the first so many units of each group, as an ONNX file; it is not run here.

        Raises:
            GraphError: a group is unknown or pinned, or a count is out of range.
        """
        return self.patched(leading(counts)).SerializeToString()

    def pack(self, parts: Sequence[Mapping[str, int]]) -> bytes:
        """Subnets up to their features, side by side under one small linear head, as an ONNX file; not run here.

        Raises:
            GraphError: the model does not end in a linear layer, a group is unknown or pinned, or a count out of range.
        """
        return joined_onnx([self.patched(leading(counts)) for counts in parts]).SerializeToString()

    def patched(self, selection: Selection) -> onnx.ModelProto:
        """The export with the numbers and sizes of a selection.

        Raises:
            GraphError: the graph can't keep it.
        """
        tensors = fold_norms(slice(self.graph, selection)).tensors
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.value_info[:]
        sizes = {
            place: kept_size(self.graph.analysis.places.exprs[entry], selection.counts)
            for place, entry in self.places.items()
        }
        for (where, name, entry), size in sizes.items():
            if where is None:
                continue
            attribute = next(found for found in model.graph.node[where].attribute if found.name == name)
            if entry < 0:
                attribute.i = size
            else:
                attribute.ints[entry] = size
        for stored in model.graph.initializer:
            if stored.name in tensors:
                _store(stored, tensors[stored.name].numpy())
                continue
            found = {
                entry: size
                for (where, name, entry), size in sizes.items()
                if (where, name) == (None, stored.name)
            }
            if found:
                array = numpy_helper.to_array(stored).copy()
                for entry, size in found.items():
                    array.flat[entry] = size
                _store(stored, array)
        return model


def onnx_template(graph: ModelGraph) -> OnnxTemplate:
    """A template of a model's subnets: exported whole and as one subnet, compared, and checked on a third.

    Raises:
        GraphError: the model can't be exported, the exporter writes its subnets in another way, a number follows no one
            size, or the checked subnet computes something else; export each subnet by itself then.
    """
    shown = leading(_shown_counts(graph))
    whole, part = to_onnx(graph), to_onnx(slice(graph, shown))
    ops = [[(node.op_type, list(node.input)) for node in model.graph.node] for model in (whole, part)]
    if ops[0] != ops[1] or _names(whole) != _names(part):
        raise GraphError(
            "the exporter writes this model and its subnets with other operators: no template fits both"
        )
    template = OnnxTemplate(graph, whole, _following(graph, shown, whole, part))
    _check(template)
    return template


def _names(model: onnx.ModelProto) -> list[str]:
    return [stored.name for stored in model.graph.initializer]


def _shown_counts(graph: ModelGraph) -> dict[str, int]:
    """Counts that differ from group to group wherever there are enough units."""
    taken: set[int] = set()
    counts = {}
    for group in graph.analysis.sliceable:
        first = max(1, math.floor(_SHOWN * group.size))
        choices = [*range(first, 0, -1), *range(first + 1, group.size)]
        count = next((count for count in choices if count not in taken), first)
        taken.add(count)
        counts[group.id] = count
    return counts


def _following(
    graph: ModelGraph, shown: Selection, whole: onnx.ModelProto, part: onnx.ModelProto
) -> dict[_Place, int]:
    """Numbers that differ between two exports, with the size that each follows."""
    exprs, places = graph.analysis.places.exprs, {}
    stored = fold_norms(graph).tensors
    have, other = dict(_whole_numbers(whole, stored)), dict(_whole_numbers(part, stored))
    for place, number in have.items():
        if other.get(place) == number:
            continue
        found = {
            expr: entry
            for entry, expr in enumerate(exprs)
            if (kept_size(expr, {}), kept_size(expr, shown.counts)) == (number, other.get(place))
        }
        if not found:
            raise GraphError(
                f"{place[1]!r} of the exported model is {number}, and {other.get(place)} in a subnet: it follows no "
                "size of the graph"
            )
        # Several sizes that agree in both exports are told apart by the check on a third subnet.
        places[place] = next(iter(found.values()))
    return places


def _whole_numbers(model: onnx.ModelProto, tensors: Container[str]) -> Iterator[tuple[_Place, int]]:
    for node_place, node in enumerate(model.graph.node):
        for attribute in node.attribute:
            yield from (((node_place, attribute.name, n), int(v)) for n, v in enumerate(attribute.ints))
            if attribute.type == onnx.AttributeProto.INT:
                yield (node_place, attribute.name, -1), int(attribute.i)
    for stored in model.graph.initializer:
        if stored.name not in tensors and stored.data_type in (
            onnx.TensorProto.INT64,
            onnx.TensorProto.INT32,
        ):
            array = numpy_helper.to_array(stored)
            yield from (((None, stored.name, n), int(v)) for n, v in enumerate(array.flat))


def _check(template: OnnxTemplate) -> None:
    """A random subnet computes in ONNX Runtime what it computes in eager."""
    rng = np.random.default_rng(0)
    counts = {group.id: int(rng.integers(1, group.size + 1)) for group in template.graph.analysis.sliceable}
    model = load_onnx(template.subnet(counts))
    sliced = slice(template.graph, leading(counts))
    inputs = [
        torch.rand(size_at(entry.shape, 2), generator=torch.Generator().manual_seed(0)).to(
            getattr(torch, entry.dtype)
        )
        for entry in sliced.inputs
    ]
    have, want = _tensors(model(*(tensor.numpy() for tensor in inputs))), _tensors(sliced(*inputs))
    difference = relative_difference(have, want)
    if not difference <= _LIMIT:
        raise GraphError(
            f"a subnet made from the template differs from eager by {difference:.1e}: no template fits"
        )


def _tensors(value: object) -> list[Tensor]:
    parts = value if isinstance(value, tuple) else (value,)
    return [torch.as_tensor(part).double() for part in parts]


def _store(stored: onnx.TensorProto, array: np.ndarray) -> None:
    name = stored.name
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
