"""A graph on disk: `graph.json` says what to compute, `weights.safetensors` beside it holds the tensors.

Nothing that is read can run code. Both files are canonical: the same graph always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from sarto.errors import SPELT_OUT, GraphError, StoreError
from sarto.graph.encoding import MAX_GRAPH_BYTES, decode, encode
from sarto.graph.lazy import CODES, LazyTensors, open_plain, why
from sarto.graph.model import ModelGraph, shapes_of
from sarto.graph.validity import check_shapes, not_numbers

GRAPH_NAME: Final = "graph.json"
WEIGHTS_NAME: Final = "weights.safetensors"

_CODE_OF: Final[Mapping[torch.dtype, str]] = {dtype: code for code, dtype in CODES.items()}
_CURE = "fetch both files again, or build the model again from its source"


@dataclass(frozen=True)
class GraphFile:
    """Where a graph was written, and the hashes of its two files ("sha256:<64 hex>").

    Attributes:
        graph_hash: of `graph.json`: the structure, without the weights.
        weights_hash: of `weights.safetensors`.
        size_bytes: of both files together.
    """

    graph_hash: str
    weights_hash: str
    graph_path: Path
    weights_path: Path
    size_bytes: int


def write_graph(graph: ModelGraph, folder: str | os.PathLike[str]) -> GraphFile:
    """Write a graph into a folder, which is made where it is missing.

    Both files are complete and safe on disk under temporary names before either gets its own name. Tensors
    are written one by one, so that the weights are not held in memory twice.

    Raises:
        GraphError: the graph breaks a rule of the format, or a tensor has no data; nothing was written.
        StoreError: the folder can't be made, or holds folders of the names of the two files; nothing was written.
        OSError: the folder can't be written, or the disk is full; no temporary file stays behind.
    """
    text, head = encode(graph), weights_head(graph.tensors)
    home = _folder(folder)
    weights_path, graph_path = home / WEIGHTS_NAME, home / GRAPH_NAME
    mark = uuid.uuid4().hex
    new_weights, new_graph = home / f".{WEIGHTS_NAME}.{mark}", home / f".{GRAPH_NAME}.{mark}"
    try:
        with new_weights.open("xb") as file:
            weights_hash = write_weights(graph.tensors, file, head)
            _sync(file)
            size_bytes = file.tell() + len(text)
        with new_graph.open("xb") as file:
            file.write(text)
            _sync(file)
        os.replace(new_weights, weights_path)
        os.replace(new_graph, graph_path)
    finally:
        new_weights.unlink(missing_ok=True)
        new_graph.unlink(missing_ok=True)
    _sync_folder(home)
    return GraphFile(hash_of(text), weights_hash, graph_path, weights_path, size_bytes)


def read_graph(
    folder: str | os.PathLike[str],
    *,
    graph_hash: str | None = None,
    weights_hash: str | None = None,
    verify: bool = False,
) -> ModelGraph:
    """The graph in a folder; its tensors are read when they are used.

    Only `graph.json` and `weights.safetensors` are opened, and links that lead out of the folder are refused.

    Args:
        graph_hash: refuse the graph if its file has another hash.
        weights_hash: refuse the weights if their file has another hash; this reads all of it.
        verify: also read every tensor and refuse NaN (and infinity in parameters), and check the recorded shapes
            against what the graph computes.

    Raises:
        StoreError: a file is missing, damaged, a link out of the folder, of another hash or a newer version.
        GraphError: what the files describe is no sound graph.
    """
    home = Path(folder)
    return read_graph_files(
        _inside(home, GRAPH_NAME),
        _inside(home, WEIGHTS_NAME),
        graph_hash=graph_hash,
        weights_hash=weights_hash,
        verify=verify,
    )


def read_graph_files(
    graph_path: str | os.PathLike[str],
    weights_path: str | os.PathLike[str],
    *,
    graph_hash: str | None = None,
    weights_hash: str | None = None,
    verify: bool = False,
) -> ModelGraph:
    """The graph in two files of any name; otherwise as `read_graph`.

    Raises:
        StoreError: a file is missing, damaged, has another hash or is of a newer version.
        GraphError: what the files describe is no sound graph.
    """
    with open_plain(Path(graph_path)) as file:
        text = file.read(MAX_GRAPH_BYTES + 1)
    _check_hash(Path(graph_path), hash_of(text), graph_hash)
    if weights_hash is not None:
        with open_plain(Path(weights_path)) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        _check_hash(Path(weights_path), f"sha256:{found}", weights_hash)
    tensors = LazyTensors(weights_path)
    with _told(Path(graph_path)):
        graph = decode(text, tensors)
        if verify:
            check_shapes(graph)
    if verify:
        _check_numbers(graph, tensors.path)
    return graph


def write_weights(tensors: Mapping[str, Tensor], file: BinaryIO, head: bytes | None = None) -> str:
    """The hash ("sha256:<64 hex>") of the safetensors bytes that are written, one tensor after the other.

    Order: widest type first, then by name, so that every tensor lies at a multiple of its item size and can
    be used where it is mapped. Tensors that share storage are each written in full.

    Args:
        head: what `weights_head` gives for these tensors, where it is known.

    Raises:
        GraphError: a tensor has no data, or a type or layout that can't be stored.
    """
    head = weights_head(tensors) if head is None else head
    digest = hashlib.sha256(head)
    file.write(head)
    for name in _order(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        data = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
        digest.update(data)
        file.write(data)
    return f"sha256:{digest.hexdigest()}"


def weights_head(tensors: Mapping[str, Tensor]) -> bytes:
    """The first bytes of a weights file: length and JSON of names, types, shapes and offsets. Reads no data.

    Raises:
        GraphError: a tensor has no data, or a type or layout that can't be stored.
    """
    shapes = shapes_of(tensors)
    problems: list[str] = []
    table: dict[str, object] = {}
    start = 0
    for name in _order(tensors):
        shape, dtype = shapes[name]
        if not isinstance(tensors, LazyTensors):
            tensor = tensors[name]
            if tensor.is_meta:
                problems.append(f"tensor {name!r} has no data (the graph is a sketch)")
            elif tensor.layout is not torch.strided:
                problems.append(f"tensor {name!r} is stored as {tensor.layout}; make it dense first")
        if dtype not in _CODE_OF:
            problems.append(f"tensor {name!r} has the type {dtype}, which can't be stored")
            continue
        end = start + dtype.itemsize * torch.Size(shape).numel()
        table[name] = {"dtype": _CODE_OF[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    if problems:
        raise GraphError("the tensors can't be written", problems=problems)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def graph_hash(graph: ModelGraph, *, weights: bool = True) -> str:
    """What a graph is, in one line: "sha256:<64 hex>"; equal graphs have equal hashes in every process.

    Args:
        weights: False gives the hash of the structure alone, that of `graph.json`; no weight is read then.

    Raises:
        GraphError: the graph breaks a rule of the format, or a tensor has no data.
    """
    text = hash_of(encode(graph))
    if not weights:
        return text
    with open(os.devnull, "wb") as nowhere:
        return hash_of(f"{text}\n{write_weights(graph.tensors, nowhere)}\n".encode())


def hash_of(data: bytes) -> str:
    """The hash of bytes as stores write it: "sha256:<64 hex>"."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    shapes = shapes_of(tensors)
    return sorted(shapes, key=lambda name: (-shapes[name][1].itemsize, name))


def _folder(folder: str | os.PathLike[str]) -> Path:
    """A folder to write a graph into, made where it is missing.

    Raises:
        StoreError: it is a file or can't be made, or a folder stands where one of the two files goes.
    """
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        said = "it is a file" if home.is_file() else why(error)
        raise StoreError(
            f"no graph can be written to {str(home)!r}: {said}; name a folder, or a path at which one can be made",
            where=str(home),
        ) from error
    taken = [name for name in (GRAPH_NAME, WEIGHTS_NAME) if (home / name).is_dir()]
    if taken:
        raise StoreError(
            f"no graph can be written to {str(home)!r}: {' and '.join(taken)} in it must be a file and is a folder; "
            "name another folder",
            where=str(home),
        )
    return home


def _inside(folder: Path, name: str) -> Path:
    """The real path of a file of a folder, after it was found not to lead out of it."""
    path = folder / name
    try:
        home, real = folder.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(
            f"no graph in {str(folder)!r}: {name} can't be opened ({why(error)}); name a folder with {GRAPH_NAME} "
            f"and {WEIGHTS_NAME}",
            where=str(path),
        ) from error
    if not real.is_relative_to(home):
        raise StoreError(
            f"{str(path)!r} is a link that leads out of its folder, to {str(real)!r}; put the file itself "
            "there",
            where=str(path),
        )
    return real


def _check_hash(path: Path, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise StoreError(
            f"{str(path)!r} is not the file that was asked for: it has the hash {found}, expected was "
            f"{expected}; {_CURE}",
            where=str(path),
        )


def _check_numbers(graph: ModelGraph, path: Path) -> None:
    bad = not_numbers(graph)
    if bad:
        raise StoreError(
            f"{len(bad)} tensors of {str(path)!r} hold NaN, or learned ones infinity: "
            f"{', '.join(bad[:SPELT_OUT])}; {_CURE}",
            where=str(path),
        )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except (GraphError, StoreError) as error:
        raise type(error)(error.detail, where=str(path), problems=error.problems) from error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
