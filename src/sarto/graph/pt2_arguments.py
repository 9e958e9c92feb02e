"""Arguments of the nodes of a `.pt2` file: each form that a graph may hold has a reader, others are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sarto.errors import GraphError
from sarto.graph.arguments import MAX_TEXT
from sarto.graph.bounded import is_text, shown
from sarto.graph.pt2_json import MEMORY_FORMATS, STRIDED, field, only, type_of

#: The value that a name of the file stands for.
Lookup = Callable[[object], Any]

_ENDLESS: Mapping[str, float] = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def read_argument(entry: object, lookup: Lookup) -> Any:
    """An argument as torch takes it; names of values are looked up.

    Raises:
        GraphError: it is malformed, or of a form that can't stand in a graph: an object, a nested graph, an operator,
            a complex number, a truth value computed from sizes.
    """
    form, content = only(entry, "an argument")
    read = _FORMS.get(form)
    if read is None:
        raise GraphError(f"an argument of the form {shown(form)} can't stand in a graph")
    return read(content, lookup)


def _number(content: object) -> float:
    if type(content) is str and content in _ENDLESS:
        return _ENDLESS[content]
    if type(content) is int or type(content) is float:
        return content
    raise GraphError(f"an argument must be a number, got {shown(content)}")


def _whole(content: object) -> int:
    if type(content) is not int or not -(2**63) <= content < 2**63:
        raise GraphError(f"an argument must be a whole number of 64 bits, got {shown(content)}")
    return content


def _truth(content: object) -> bool:
    if type(content) is not bool:
        raise GraphError(f"an argument must be true or false, got {shown(content)}")
    return content


def _text(content: object) -> str:
    if type(content) is not str or not is_text(content, MAX_TEXT):
        raise GraphError(f"an argument must be printable text, got {shown(content)}")
    return content


def _layout(content: object) -> torch.layout:
    if content != STRIDED:
        raise GraphError(f"layout number {shown(content)} is not allowed")
    return torch.strided


def _memory_format(content: object) -> torch.memory_format:
    found = MEMORY_FORMATS.get(content) if type(content) is int else None
    if found is None:
        raise GraphError(f"memory format number {shown(content)} is not allowed")
    return found


def _device(content: object) -> torch.device:
    kind = field(content, "type", str, "a device")
    if kind not in ("cpu", "cuda"):
        raise GraphError(f"device {shown(kind)} is not allowed")
    return torch.device(kind)


def _tensor(content: object, lookup: Lookup) -> Any:
    return lookup(field(content, "name", str, "a tensor argument"))


def _optional_tensor(content: object, lookup: Lookup) -> Any:
    form, inner = only(content, "an optional tensor")
    return None if form == "as_none" else _tensor(inner, lookup)


def _size(content: object, lookup: Lookup) -> Any:
    form, value = only(content, "a size")
    if form not in ("as_int", "as_name"):
        raise GraphError(f"a size is as_int or as_name, got {shown(content)}")
    return _whole(value) if form == "as_int" else lookup(value)


def _plain(read: Callable[[object], Any]) -> Callable[[object, Lookup], Any]:
    return lambda content, lookup: read(content)


def _list(read: Callable[[object, Lookup], Any]) -> Callable[[object, Lookup], list[Any]]:
    def entries(content: object, lookup: Lookup) -> list[Any]:
        if type(content) is not list:
            raise GraphError(f"an argument must be a list, got {shown(content)}")
        return [read(entry, lookup) for entry in content]

    return entries


#: Form of an argument in the file -> what reads it.
_FORMS: Mapping[str, Callable[[object, Lookup], Any]] = {
    "as_none": lambda content, lookup: None,
    "as_tensor": _tensor,
    "as_tensors": _list(_tensor),
    "as_optional_tensor": _optional_tensor,
    "as_optional_tensors": _list(_optional_tensor),
    "as_int": _plain(_whole),
    "as_ints": _list(_plain(_whole)),
    "as_float": _plain(_number),
    "as_floats": _list(_plain(_number)),
    "as_bool": _plain(_truth),
    "as_bools": _list(_plain(_truth)),
    "as_string": _plain(_text),
    "as_sym_int": _size,
    "as_sym_ints": _list(_size),
    "as_scalar_type": _plain(type_of),
    "as_memory_format": _plain(_memory_format),
    "as_layout": _plain(_layout),
    "as_device": _plain(_device),
}
