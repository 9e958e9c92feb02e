"""The members of a `.pt2` file: found by name, checked and mapped; never extracted, decompressed or unpickled."""

from __future__ import annotations

import math
import mmap
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from sarto.errors import SPELT_OUT, SartoError, StoreError
from sarto.graph.arguments import MAX_DIM
from sarto.graph.bounded import parse_json, shown
from sarto.graph.encoding import MAX_GRAPH_BYTES
from sarto.graph.lazy import open_plain
from sarto.graph.pt2_json import STRIDED, field, size_of, type_of
from sarto.graph.validity import MAX_ELEMENTS, MAX_RANK, MAX_TENSORS

#: Bytes of the table of contents at the end of the file.
MAX_TABLE_BYTES: Final = 64 * 2**20

#: Members that are read; the name of the model stands where `{}` does.
MODEL: Final = "models/{}.json"
WEIGHTS: Final = "data/weights/"
CONSTANTS: Final = "data/constants/"
_READ = re.compile(
    r"archive_format|byteorder|models/[\w.-]+\.json"
    r"|data/weights/(?:[\w.-]+_weights_config\.json|weight_\d+)"
    r"|data/constants/(?:[\w.-]+_constants_config\.json|tensor_\d+)",
    re.ASCII,
)
#: Members that are known and never opened. Sample inputs are pickles, and maybe somebody's data.
_IGNORED = re.compile(
    r"archive_version|\.data/(?:version|serialization_id)|\.format_version|\.storage_alignment"
    r"|data/sample_inputs/[\w.-]+\.pt|extra/[\w-][\w.-]*",
    re.ASCII,
)
_PICKLED = re.compile(
    r"data/(?:constants/(?:custom|opaque)_obj_\d+|(?:weights|constants)/[\w.-]+\.pt)", re.ASCII
)

_LOCAL_HEADER_BYTES = 30
_CURE = "save the program again with torch.export.save of torch 2.11 or later"


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member lie in the file."""

    start: int
    size: int
    crc: int


class Archive:
    """A `.pt2` file that was found to hold only known, uncompressed members; its bytes are mapped.

    Attributes:
        path: the file.
        model: name of the one program in it.
        members: name -> place of what may be read.
    """

    def __init__(self, path: Path) -> None:
        """Read the table of contents.

        Raises:
            StoreError: no such file, no whole zip file, another format, a compressed, encrypted, overlapping or
                doubled member, or one that is not on the list.
        """
        self.path = path
        self._sound: set[str] = set()
        with open_plain(path) as file:
            self._map = _mapped(file)
            self.members = _members(file, self._map)
        if self.text("archive_format") != b"pt2":
            raise StoreError(f"its format is {shown(self.text('archive_format'))}, not 'pt2'")
        if self.text("byteorder") != b"little":
            raise StoreError(f"its byte order is {shown(self.text('byteorder'))}; only little is read")
        models = [name for name in self.members if name.startswith("models/")]
        if len(models) != 1:
            raise StoreError(f"it holds {len(models)} programs; a file with exactly one is read")
        self.model = models[0].removeprefix("models/").removesuffix(".json")

    def text(self, name: str, max_bytes: int = 64) -> bytes:
        """The bytes of a small member.

        Raises:
            StoreError: it is missing, too long, or damaged.
        """
        member = self._member(name)
        if member.size > max_bytes:
            raise StoreError(f"member {name!r} has {member.size:,} bytes, the limit is {max_bytes:,}")
        return bytes(self._map[member.start : member.start + member.size])

    def json(self, name: str) -> Any:
        """The plain data of a JSON member.

        Raises:
            StoreError: it is missing, beyond the limits, or no JSON.
        """
        return parse_json(self.text(name, MAX_GRAPH_BYTES), max_bytes=MAX_GRAPH_BYTES, error=StoreError)

    def tensors(self, config_name: str, folder: str) -> dict[str, Tensor]:
        """Name -> tensor of a table of weights or constants, as views into the mapped file.

        Raises:
            StoreError: a tensor is pickled or an object, or its type, sizes, strides or place don't fit its bytes.
        """
        config = field(self.json(config_name), "config", dict, config_name)
        if len(config) > MAX_TENSORS:
            raise StoreError(f"{config_name!r} lists {len(config):,} tensors, the limit is {MAX_TENSORS:,}")
        problems: list[str] = []
        made: dict[str, Tensor] = {}
        for name, entry in config.items():
            try:
                made[name] = self._tensor(entry, folder)
            except SartoError as error:
                problems.append(f"{shown(name)}: {error.detail}")
                if len(problems) >= SPELT_OUT:
                    break
        if problems:
            raise StoreError(f"the tensors of {config_name!r} can't be read", problems=problems)
        return made

    def _tensor(self, entry: object, folder: str) -> Tensor:
        if field(entry, "use_pickle", bool, "the tensor"):
            raise StoreError("it is stored as a pickle, which can run code; only raw tensors are read")
        path_name = field(entry, "path_name", str, "the tensor")
        meta = field(entry, "tensor_meta", dict, "the tensor")
        dtype = type_of(field(meta, "dtype", int, "the tensor"))
        sizes = [size_of(size) for size in field(meta, "sizes", list, "the tensor")]
        strides = [size_of(stride) for stride in field(meta, "strides", list, "the tensor")]
        offset = size_of(field(meta, "storage_offset", dict, "the tensor"))
        if field(meta, "layout", int, "the tensor") != STRIDED:
            raise StoreError(f"its layout is number {meta['layout']}; only strided tensors are read")
        if len(sizes) != len(strides) or len(sizes) > MAX_RANK:
            raise StoreError(f"it has {len(sizes)} sizes and {len(strides)} strides (at most {MAX_RANK})")
        member = self._member(folder + path_name)
        stored = member.size // dtype.itemsize
        count = math.prod(sizes)
        if count > MAX_ELEMENTS or any(dim > MAX_DIM for dim in sizes):
            raise StoreError(f"its shape {shown(sizes)} is beyond the limits")
        if count == 0:
            return torch.empty(sizes, dtype=dtype)
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if member.size % dtype.itemsize or last >= stored or count > stored:
            raise StoreError(
                f"shape {shown(sizes)}, strides {shown(strides)} and offset {offset:,} of {dtype} don't fit the "
                f"{member.size:,} bytes of {path_name!r}"
            )
        flat = self._flat(member, dtype, stored)
        return flat.as_strided(sizes, strides, offset)

    def _flat(self, member: Member, dtype: torch.dtype, count: int) -> Tensor:
        if member.start % dtype.itemsize:
            data = bytearray(self._map[member.start : member.start + member.size])
            return torch.frombuffer(data, dtype=dtype, count=count)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=member.start)

    def _member(self, name: str) -> Member:
        member = self.members.get(name)
        if member is None:
            raise StoreError(f"there is no member {shown(name)}; {_CURE}")
        if name not in self._sound:
            with memoryview(self._map) as whole, whole[member.start : member.start + member.size] as data:
                found = zlib.crc32(data)
            if found != member.crc:
                raise StoreError(f"member {name!r} is damaged: its checksum differs; copy the file again")
            self._sound.add(name)
        return member


def _mapped(file: BinaryIO) -> mmap.mmap:
    """The file in memory: read page by page when used; writing into it does not change the file."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise StoreError(f"it can't be mapped into memory ({error})") from error


def _members(file: BinaryIO, data: mmap.mmap) -> dict[str, Member]:
    """Name without the leading folder -> place, of the members that may be read."""
    _check_end(data)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise StoreError(f"it is no whole zip file ({error}); {_CURE}") from error
    problems: list[str] = []
    found: dict[str, Member] = {}
    seen: set[str] = set()
    spans: list[tuple[int, int, str]] = []
    folder = entries[0].filename.partition("/")[0] if entries else ""
    for entry in entries:
        root, _, name = entry.filename.partition("/")
        alone = root == folder and root not in ("", ".", "..")
        problem = _entry_problem(entry, name, in_folder=alone, double=entry.filename in seen)
        seen.add(entry.filename)
        if problem is None:
            start = _data_start(data, entry)
            if start is None:
                problem = "its place in the file is not the one that the table says"
            else:
                spans.append((entry.header_offset, start + entry.file_size, entry.filename))
                if _READ.fullmatch(name):
                    found[name] = Member(start, entry.file_size, entry.CRC)
        if problem is not None:
            problems.append(f"member {shown(entry.filename)}: {problem}")
            if len(problems) >= SPELT_OUT:
                break
    spans.sort()
    problems += [
        f"members {shown(first)} and {shown(second)} overlap"
        for (_, end, first), (start, _, second) in pairwise(spans)
        if start < end
    ][:SPELT_OUT]
    if problems:
        raise StoreError(
            "it holds what a program has no need of, or in a way that is refused", problems=problems
        )
    return found


def _check_end(data: mmap.mmap) -> None:
    """Refuse a file that does not end like a whole zip file, or with a table of contents beyond the limit."""
    end = data[-22:]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise StoreError(f"it is no zip file, or cut short ({len(data):,} bytes); {_CURE}")
    size = int.from_bytes(end[12:16], "little")
    if data[-42:-38] == b"PK\x06\x07":
        size = int.from_bytes(data[-58:-50], "little")
    if size > MAX_TABLE_BYTES:
        raise StoreError(f"its table of contents has {size:,} bytes, the limit is {MAX_TABLE_BYTES:,}")


def _entry_problem(entry: zipfile.ZipInfo, name: str, *, in_folder: bool, double: bool) -> str | None:
    if not in_folder or not name:
        return "all members lie in one folder"
    if _PICKLED.fullmatch(name):
        return "it is a pickle, which can run code"
    if not _READ.fullmatch(name) and not _IGNORED.fullmatch(name):
        return "the name is not on the list of allowed members"
    if double:
        return "it is there twice"
    if entry.flag_bits & 1:
        return "it is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return f"it is compressed ({entry.compress_size:,} bytes for {entry.file_size:,}); only plain ones are read"
    return None


def _data_start(data: mmap.mmap, entry: zipfile.ZipInfo) -> int | None:
    """Where the bytes of a member begin; None where its own header contradicts the table."""
    at = entry.header_offset
    header = data[at : at + _LOCAL_HEADER_BYTES] if at >= 0 else b""
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        return None
    name_length, extra_length = struct.unpack("<HH", header[26:])
    named = data[at + _LOCAL_HEADER_BYTES : at + _LOCAL_HEADER_BYTES + name_length]
    start = at + _LOCAL_HEADER_BYTES + name_length + extra_length
    coding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
    if named != entry.orig_filename.encode(coding, "replace") or start + entry.file_size > len(data):
        return None
    return int(start)
