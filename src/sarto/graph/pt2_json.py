"""Values of a `.pt2` file's JSON: fields of known types, enumerations by number, sizes without symbol code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import torch

from sarto.errors import GraphError
from sarto.graph.arguments import MAX_DIM
from sarto.graph.bounded import shown
from sarto.graph.model import BatchDim

T = TypeVar("T")

#: Numbers of torch's file format -> types that a graph may hold.
TYPES: Final[Mapping[int, torch.dtype]] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
MEMORY_FORMATS: Final[Mapping[int, torch.memory_format]] = {
    1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format
}  # fmt: skip
#: The number of the only layout that is read.
STRIDED: Final = 7

_INTEGER = r"(?:Integer\(-?\d{1,19}\)|-?\d{1,19})"
_SYMBOL = r"(?:Symbol\('s\d{1,9}'(?:, [a-z_]{1,32}=(?:True|False)){0,8}\)|s\d{1,9})"
_FACTOR = rf"(?:{_INTEGER}|{_SYMBOL})"
#: A whole number, a symbol, or a product of such ones. Longer texts are no products.
_PRODUCT = re.compile(rf"{_FACTOR}(?:\*{_FACTOR}){{0,8}}|Mul\({_FACTOR}(?:, {_FACTOR}){{0,8}}\)", re.ASCII)
_FACTORS = re.compile(rf"(?P<symbol>{_SYMBOL})|{_INTEGER}", re.ASCII)
_NUMBER = re.compile(r"-?\d+", re.ASCII)


def field(value: object, name: str, kind: type[T], what: str) -> T:
    """The value of a key of a JSON object.

    Raises:
        GraphError: there is no such object, key or kind of value.
    """
    if type(value) is not dict:
        raise GraphError(f"{what} must be an object, got {shown(value)}")
    if name not in value:
        raise GraphError(f"{what} has no {name!r}")
    found = value[name]
    if type(found) is not kind:
        raise GraphError(f"{name!r} of {what} must be {kind.__name__}, got {shown(found)}")
    return found


def only(value: object, what: str) -> tuple[str, Any]:
    """Key and value of an object that holds exactly one, the form of a union.

    Raises:
        GraphError: it is no such object.
    """
    if type(value) is not dict or len(value) != 1:
        raise GraphError(f"{what} must be an object with one key, got {shown(value)}")
    return next(iter(value.items()))


def type_of(number: object) -> torch.dtype:
    """The type of a number of the format.

    Raises:
        GraphError: it is not one that a graph may hold.
    """
    found = TYPES.get(number) if type(number) is int else None
    if found is None:
        known = ", ".join(f"{key} ({str(dtype).removeprefix('torch.')})" for key, dtype in TYPES.items())
        raise GraphError(f"type number {shown(number)} is not allowed (allowed: {known})")
    return found


def size_of(value: object) -> int:
    """A size, stride or offset of a stored tensor: a whole number, not negative.

    Raises:
        GraphError: it is something else, or depends on a symbol.
    """
    form, size = only(value, "a size")
    if form != "as_int" or type(size) is not int or not 0 <= size < 2**62:
        raise GraphError(f"a stored tensor has whole sizes, strides and offset, got {shown(value)}")
    return size


def dim_of(value: object) -> tuple[int | BatchDim, str]:
    """A size that may be a multiple of a symbol, and the name of that symbol ("" where there is none).

    The text of an expression is matched, never evaluated: whole numbers, symbols `s<number>` and their products.

    Raises:
        GraphError: the expression is another one, or beyond the limits.
    """
    form, content = only(value, "a size")
    if form == "as_int" and type(content) is int:
        return content, ""
    if form != "as_expr":
        raise GraphError(f"a size is as_int or as_expr, got {shown(value)}")
    text = field(content, "expr_str", str, "a symbol expression")
    if not _PRODUCT.fullmatch(text):
        raise GraphError(
            f"the size {shown(text)} can't be read: only whole numbers, symbols like s12 and their products are; "
            "other sizes would have to depend on the batch in a way that a graph can't hold"
        )
    symbols: list[str] = []
    times = 1
    for match in _FACTORS.finditer(text):
        number = int(_NUMBER.findall(match.group())[0])
        if match["symbol"]:
            symbols.append(f"s{number}")
        else:
            times *= number
    if not symbols:
        return times, ""
    if len(symbols) > 1:
        raise GraphError(f"the size {shown(text)} multiplies symbols; only multiples of the batch are read")
    if not 1 <= times <= MAX_DIM:
        raise GraphError(f"the size {shown(text)} is no multiple of the batch between 1 and {MAX_DIM:,}")
    return BatchDim(times), symbols[0]
