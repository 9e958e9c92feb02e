"""Stored tensors that are read when they are used: a safetensors file, mapped into memory."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sarto.errors import StoreError
from sarto.graph.arguments import MAX_DIM
from sarto.graph.bounded import parse_json, shown
from sarto.graph.validity import MAX_ELEMENTS, MAX_RANK, MAX_TENSORS

#: Bytes of JSON at the head of a weights file.
MAX_HEADER_BYTES: Final = 64 * 2**20

#: Name of a type in a safetensors header -> type.
CODES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

#: Rows shorter than this share pages with their neighbours.
_PAGE_BYTES: Final = 4096
_CURE = "fetch the file again, or build it again from its source"


class LazyTensors(Mapping[str, Tensor]):
    """Name -> stored tensor of a weights file.

    Names, shapes and types come from the head of the file. A tensor is a view into the mapped file: its bytes
    are read from disk when they are used, page by page, and writing into it does not change the file. The
    file must not be changed in place while it is mapped; replacing or deleting it is harmless.

    Attributes:
        path: the file.
        shapes: name -> (shape, type) of every tensor, known without reading data.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the head of the file and map the rest.

        Raises:
            StoreError: no such file, no weights file, a type that is not allowed, or sizes that don't add up.
                A file that is only cut short still tells its shapes; reading a tensor then fails.
        """
        self.path = Path(path)
        head = _read_head(self.path)
        self.shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = head.shapes
        self._starts = head.starts
        self._identity = head.identity
        self._read: dict[str, Tensor] = {}
        self._file: Any = None
        self._damage: str | None = None
        if head.found_bytes < head.needed_bytes:
            self._damage = f"it is cut short ({head.found_bytes:,} of {head.needed_bytes:,} bytes)"
        else:
            with _wrapped(self.path):
                self._file = safe_open(self.path, framework="pt", device="cpu")

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, as a view into the mapped file.

        Raises:
            KeyError: there is no tensor of that name.
            StoreError: the file is damaged.
        """
        tensor = self._read.get(name)
        if tensor is None:
            shape, dtype = self.shapes[name]
            if self._damage is not None:
                raise StoreError(
                    f"tensor {name!r} can't be read from {str(self.path)!r}: {self._damage}; {_CURE}",
                    where=str(self.path),
                )
            with _wrapped(self.path):
                tensor = self._file.get_tensor(name)
            if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
                raise StoreError(
                    f"tensor {name!r} of {str(self.path)!r} is {tuple(tensor.shape)} {tensor.dtype}, the "
                    f"head of the file says {shape} {dtype}; {_CURE}",
                    where=str(self.path),
                )
            self._read[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __repr__(self) -> str:
        return f"LazyTensors({str(self.path)!r}, {len(self)} tensors, {len(self._read)} read)"

    def select(self, name: str, axis: int, positions: Tensor | Sequence[int]) -> Tensor:
        """The tensor with only some positions of one axis, shape (..., len(positions), ...).

        Neighbours on axis 0 are a view, which reads nothing yet. Scattered rows of a page or more are read from the
        file one by one, without what the system would read around them. Else the mapped pages that hold the
        positions are used.

        Args:
            positions: indices along the axis, in the wanted order.
        """
        tensor = self[name]
        wanted = torch.as_tensor(positions, dtype=torch.int64)
        if axis == 0 and wanted.numel() and int(wanted.min()) >= 0 and int(wanted.max()) < tensor.shape[0]:
            if bool((wanted.diff() == 1).all()):
                return tensor.narrow(0, int(wanted[0]), wanted.numel())
            rows = self._rows(name, wanted)
            if rows is not None:
                return rows
        return tensor.index_select(axis, wanted)

    def _rows(self, name: str, wanted: Tensor) -> Tensor | None:
        """Rows read from the file by themselves; None where that saves nothing, or the name holds another file now."""
        shape, dtype = self.shapes[name]
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if row_bytes < _PAGE_BYTES or not hasattr(os, "preadv"):
            return None
        made = torch.empty((wanted.numel(), *shape[1:]), dtype=dtype)
        target = memoryview(made.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        index = wanted.numpy()
        firsts = np.flatnonzero(np.diff(index, prepend=index[0] - 2) != 1)
        try:
            with self.path.open("rb", buffering=0) as file:
                if _identity(file) != self._identity:
                    return None
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for first, last in zip(firsts, [*firsts[1:], index.size], strict=True):
                    at = self._starts[name] + int(index[first]) * row_bytes
                    rest = target[first * row_bytes : last * row_bytes]
                    while rest:
                        count = os.preadv(file.fileno(), [rest], at)
                        if count == 0:
                            return None
                        rest, at = rest[count:], at + count
        except OSError:
            return None
        return made


def open_plain(path: Path) -> BufferedReader:
    """A file opened for reading, after it was found to be an ordinary one (no pipe, no device).

    Raises:
        StoreError: there is no such file, it is none, or it can't be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise StoreError(f"{str(path)!r} can't be opened: {why(error)}", where=str(path)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise StoreError(f"{str(path)!r} is no ordinary file; {_CURE}", where=str(path))
    return open(handle, "rb")


def why(error: Exception) -> str:
    """What the system says of a path, without its number and the path: "no such file or directory"."""
    told = error.strerror if isinstance(error, OSError) else None
    return told[0].lower() + told[1:] if told else str(error)


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    """What tells a file from another one that got its name later."""
    found = os.fstat(file.fileno())
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class _Head:
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
    starts: dict[str, int]
    identity: tuple[int, ...]
    needed_bytes: int
    found_bytes: int


def _read_head(path: Path) -> _Head:
    """Names, shapes and types of a weights file, and how long it has to be."""
    with open_plain(path) as file:
        identity = _identity(file)
        found = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if found < 8 or length > min(MAX_HEADER_BYTES, found - 8):
            raise StoreError(
                f"{str(path)!r} is no safetensors file: it has {found:,} bytes and claims a head of "
                f"{length:,} (limit {MAX_HEADER_BYTES:,}); {_CURE}",
                where=str(path),
            )
        text = file.read(length)
    try:
        table = parse_json(text, max_bytes=MAX_HEADER_BYTES, error=StoreError)
        if type(table) is not dict or len(table) > MAX_TENSORS + 1:
            raise StoreError(f"it must be an object of at most {MAX_TENSORS:,} tensors")
        table.pop("__metadata__", None)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        starts: dict[str, int] = {}
        end = 0
        for name, entry in table.items():
            shape, dtype, stop = _read_entry(name, entry)
            shapes[name] = (shape, dtype)
            starts[name] = 8 + length + stop - math.prod(shape) * dtype.itemsize
            end = max(end, stop)
    except StoreError as error:
        raise StoreError(
            f"the head of {str(path)!r} is no safetensors head: {error.detail}; {_CURE}", where=str(path)
        ) from error
    return _Head(shapes, starts, identity, 8 + length + end, found)


def _read_entry(name: str, entry: object) -> tuple[tuple[int, ...], torch.dtype, int]:
    """Shape, type and end of one tensor; the library checks that tensors neither overlap nor leave gaps."""
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise StoreError(f"tensor {shown(name)} must have dtype, shape and data_offsets, got {shown(entry)}")
    dtype = CODES.get(entry["dtype"]) if type(entry["dtype"]) is str else None
    if dtype is None:
        raise StoreError(
            f"tensor {shown(name)} has the type {shown(entry['dtype'])}; allowed are {', '.join(CODES)}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if type(shape) is not list or len(shape) > MAX_RANK or not _are_sizes(shape, MAX_DIM):
        raise StoreError(
            f"tensor {shown(name)} must have at most {MAX_RANK} sizes of 0 to {MAX_DIM:,}, got {shown(shape)}"
        )
    if type(offsets) is not list or len(offsets) != 2 or not _are_sizes(offsets, 2**62):
        raise StoreError(f"tensor {shown(name)} must lie between two offsets, got {shown(offsets)}")
    count = math.prod(shape)
    if count > MAX_ELEMENTS or offsets[1] - offsets[0] != count * dtype.itemsize:
        raise StoreError(
            f"tensor {shown(name)} of shape {shown(shape)} and type {entry['dtype']} can't lie at "
            f"{shown(offsets)}: it takes {count * dtype.itemsize:,} bytes (limit {MAX_ELEMENTS:,} elements)"
        )
    return tuple(shape), dtype, offsets[1]


def _are_sizes(values: list[Any], limit: int) -> bool:
    return all(type(value) is int and 0 <= value <= limit for value in values)


class _wrapped:
    """Turns what the library says about a damaged file into a StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError | OSError | RuntimeError | ValueError):
            raise StoreError(
                f"{str(self.path)!r} is no sound safetensors file ({error}); {_CURE}", where=str(self.path)
            ) from error
