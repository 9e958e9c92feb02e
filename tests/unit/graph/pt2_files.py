"""`.pt2` files for tests: a saved program, and the same file with some of its parts changed by hand."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Net(nn.Module):
    """In-place ReLU, chunk, flatten, slice, unbind, fused attention, two results of one operator, a factory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.attn = nn.Linear(32, 4), nn.Linear(4, 12)
        self.register_buffer("shift", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)), inplace=True)
        a, b = F.adaptive_avg_pool2d(y, 4).chunk(2, 1)
        y = (a * torch.sigmoid(b)).flatten(1)[:, :32]
        y = self.fc(y) + self.shift
        q, k, v = self.attn(y).view(x.shape[0], 3, 2, 2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).reshape(x.size(0), -1)
        best, _ = y.topk(2, dim=1)
        return torch.cat([y, best, torch.zeros(x.shape[0], 1)], 1)


def export(model: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    """The exported program of a model in evaluation mode, axis 0 of every input dynamic."""
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about flat weights of recurrent layers
        return torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic)


def save(path: Path, model: nn.Module, *inputs: Tensor) -> Path:
    """A `.pt2` file as torch writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensors that share their storage
        torch.export.save(export(model, *inputs), path)
    return path


def parts(path: Path) -> dict[str, bytes]:
    """Name without the leading folder -> bytes of each member."""
    with zipfile.ZipFile(path) as file:
        return {entry.filename.partition("/")[2]: file.read(entry) for entry in file.infolist()}


def join(path: Path, members: Mapping[str, bytes], root: str = "archive/") -> Path:
    """A `.pt2` file of the given members, uncompressed."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(root + name), data)
    return path


def changed(members: Mapping[str, bytes], name: str, change: Callable[[Any], None]) -> dict[str, bytes]:
    """The members with the plain data of one JSON member changed in place by a function."""
    document = json.loads(members[name])
    change(document)
    return {**members, name: json.dumps(document).encode()}


def graph_of(document: Any) -> Any:
    """The part of `models/model.json` that holds inputs, nodes, outputs and recorded sizes."""
    return document["graph_module"]["graph"]


def node_of(document: Any, target: str) -> Any:
    """The first node of that operator in `models/model.json`."""
    return next(n for n in graph_of(document)["nodes"] if n["target"] == f"torch.ops.aten.{target}")
