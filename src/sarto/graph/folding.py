"""Constants of a model, computed once at capture: position grids, rotary tables, causal masks, relative indices."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from sarto.graph.operators import FOLDABLE

#: Results with more elements than this are left to be computed when the model runs (a mask of 2048 x 2048 just fits).
MAX_ELEMENTS = 1 << 22
#: Elements that may be computed in all; what comes after is left to be computed when the model runs.
MAX_WORK = 1 << 26


class Folder:
    """Runs the part of an exported program that depends on no input, no parameter and not on the batch.

    In-place operators act on copies, so the source module keeps its buffers. A value is copied when it is read from
    outside, so later in-place changes do not reach it.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.work = 0

    def hold(self, name: str, tensor: Tensor) -> None:
        """Take a buffer or a lifted constant as known."""
        self.values[name] = tensor

    def knows(self, node: object) -> bool:
        """Whether the value of an argument is known here."""
        return isinstance(node, torch.fx.Node) and node.name in self.values

    def tensor(self, name: str) -> Tensor:
        """A copy of a computed value."""
        found = self.values[name]
        if not isinstance(found, Tensor):
            raise TypeError(f"{name} is a {type(found).__name__}, not a tensor")
        return found.detach().clone().contiguous()

    def take(self, node: torch.fx.Node) -> bool:
        """Compute a node if all that it reads is known; whether it was."""
        if not self._can(node):
            return False
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            self._own(node.args[0])
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda read: self.values[read.name])
        with torch.no_grad():
            self.values[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
        return True

    def _can(self, node: torch.fx.Node) -> bool:
        if any(read.name not in self.values for read in node.all_input_nodes):
            return False
        if node.target is operator.getitem:
            return bool(node.all_input_nodes)
        if str(node.target) not in FOLDABLE:
            return False
        made = node.meta.get("val")
        tensors = [v for v in (made if isinstance(made, list | tuple) else [made]) if isinstance(v, Tensor)]
        sizes = [size for tensor in tensors for size in tensor.shape]
        if not tensors or not all(isinstance(size, int) for size in sizes):
            return False
        made_here = [math.prod(tensor.shape) for tensor in tensors]
        self.work += sum(made_here)
        return max(made_here) <= MAX_ELEMENTS and self.work <= MAX_WORK

    def _own(self, target: object) -> None:
        """Give every known value storage of its own before the first in-place change.

        Views of one storage stay views of one copy: all values that share it are made again from that copy.
        """
        if not isinstance(target, torch.fx.Node):
            return
        source = self.values[target.name].untyped_storage()
        copy = source.clone()
        for name, value in self.values.items():
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() == source.data_ptr():
                fresh = torch.empty(0, dtype=value.dtype, device=value.device)
                fresh.set_(copy, value.storage_offset(), value.shape, value.stride())
                self.values[name] = fresh
