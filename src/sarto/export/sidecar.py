"""The sidecar of an exported file: what it takes and gives, its classes and preprocessing, and how it was proven."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sarto.export.targets import Target
from sarto.graph import ModelGraph
from sarto.graph.model import Shape
from sarto.types.text import write_atomically

#: Texts of the metadata that are JSON themselves.
_PARSED = ("classes", "preprocessing", "vocabulary")


def sidecar_of(path: Path) -> Path:
    """The sidecar of a file: its name and .json."""
    return path.with_name(f"{path.name}.json")


def write_sidecar(
    folder: Path,
    path: Path,
    checked: Mapping[str, Any],
    graph: ModelGraph,
    kind: Target,
    metadata: Mapping[str, str],
    files: Sequence[Path],
) -> Path:
    """Write the sidecar of a file into a folder; sizes of None are free."""
    batch = checked["batch"]
    index = {entry.name: (entry.shape, entry.dtype) for entry in graph.inputs}
    index |= {node.name: (node.shape, node.dtypes[0]) for node in graph.nodes}
    own = {name: json.loads(text) if name in _PARSED else text for name, text in metadata.items()}
    left_out = ("path", "sidecar", "to", "precision", "dynamic_batch", "max_batch", "batch", "seconds")
    found = {
        "sarto_export": 1,
        "format": checked["to"],
        "runtime": kind.runtime,
        "precision": checked["precision"],
        "batch": {"free": checked["dynamic_batch"], "fixed": batch, "largest": checked["max_batch"]},
        "inputs": [
            {"name": entry.name, "shape": _sizes(entry.shape, batch), "dtype": entry.dtype}
            for entry in graph.inputs
        ],
        "outputs": [
            {"shape": _sizes(index[name][0], batch), "dtype": index[name][1]} for name in graph.outputs
        ],
        **own,
        "checked": {name: value for name, value in checked.items() if name not in left_out},
        "files": {file.name: f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files},
    }
    place = folder / sidecar_of(path).name
    write_atomically(place, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return place


def _sizes(shape: Shape, batch: int | None) -> list[int | None]:
    return [
        size if isinstance(size, int) else None if batch is None else batch * size.times for size in shape
    ]
