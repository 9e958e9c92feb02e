"""The words for one input of a model: its shape without the batch, its dtype, its name."""

from __future__ import annotations

from sarto.errors import RequestError, suggest

DTYPES = ("float32", "float64", "int64", "int32", "bool")
_HOW = "write a shape without the batch (3,32,32), a dtype before it (int64:32), a name before that (ids=int64:32)"


def input_parts(text: str) -> tuple[tuple[int, ...], str, str]:
    """Shape, dtype and name from `[name=][dtype:]sizes`: '3,32,32', 'int64:32', 'input_ids=int64:32'.

    Raises:
        RequestError: the text is something else.
    """
    name, named, rest = text.rpartition("=")
    dtype, typed, sizes = rest.rpartition(":")
    name, dtype = name.strip(), dtype.strip() or "float32"
    if named and not name.isidentifier():
        raise RequestError(f"--input {text!r}: {name!r} can't be the name of an argument; {_HOW}")
    if dtype not in DTYPES or (typed and not rest.partition(":")[0].strip()):
        raise RequestError(f"--input {text!r}: no dtype {dtype!r}{suggest(dtype, DTYPES)}; {_HOW}")
    parts = [part.strip() for part in sizes.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or not (parts or typed):
        raise RequestError(f"--input {text!r}: {sizes!r} is no list of sizes above 0; {_HOW}")
    return tuple(int(part) for part in parts), dtype, name
