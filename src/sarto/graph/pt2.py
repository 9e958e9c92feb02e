"""`.pt2` files, torch's own format for exported programs: read without trusting them, and written.

`torch.export.load` runs code that a file may carry: pickled weights and constants, pickled sample inputs, and
expressions of symbols, which are evaluated. Here only raw tensors and plain JSON are read, expressions are matched
and not evaluated, and whatever else a file holds is refused or never opened.
"""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sarto.errors import SPELT_OUT, GraphError, SartoError, StoreError, VerifyError
from sarto.graph.capture import from_program
from sarto.graph.model import Input, ModelGraph, is_floating, size_at
from sarto.graph.pt2_archive import CONSTANTS, MODEL, WEIGHTS, Archive
from sarto.graph.pt2_program import build_program
from sarto.graph.validity import DTYPES, check_graph, check_shapes, not_numbers


def read_pt2(path: str | os.PathLike[str]) -> ModelGraph:
    """The graph of a `.pt2` file, in the normal form of `capture`; no code of the file runs, whatever it holds.

    The weights are views into the mapped file: they are read when they are used, and the file must not be changed in
    place while the graph is. Sample inputs are never opened.

    Raises:
        StoreError: the file is missing, damaged, compressed, or holds pickles, objects or unknown members.
        GraphError: the program is no graph: an operator is not allowed, a size depends on more than the batch, the
            batch is fixed, what is recorded is not what is computed, or weights hold NaN or infinity.
    """
    place = Path(path)
    try:
        archive = Archive(place)
        weights = archive.tensors(f"{WEIGHTS}{archive.model}_weights_config.json", WEIGHTS)
        constants = archive.tensors(f"{CONSTANTS}{archive.model}_constants_config.json", CONSTANTS)
        program = build_program(archive.json(MODEL.format(archive.model)), weights, constants, _batch_size())
        try:
            graph = from_program(program)  # type: ignore[arg-type]
        except SartoError:
            raise
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise GraphError(f"the program can't be brought into the normal form ({reason})") from error
        check_graph(graph)
        check_shapes(graph)
        _refuse_bad_numbers(graph)
    except (GraphError, StoreError) as error:
        raise type(error)(error.detail, where=str(place), problems=error.problems) from error
    return graph


def write_pt2(
    graph: ModelGraph, path: str | os.PathLike[str], *, extra: Mapping[str, str] | None = None
) -> Path:
    """Write a graph as a `.pt2` file with a dynamic batch, and read it back: it computes the same, bit for bit.

    The sample inputs that the format asks for are zeros, and no paths or source lines are stored.

    Args:
        extra: texts that travel in the file, by name; `torch.export.load(..., extra_files=...)` gives them.

    Returns:
        The file; it is complete on disk before it gets its name.

    Raises:
        GraphError: torch.export can't capture the graph's module, or a tensor has no data.
        VerifyError: the file that was written does not give the same numbers; nothing is left behind.
    """
    place = Path(path)
    hollow = [name for name in graph.tensors if graph.tensors[name].is_meta]
    if hollow:
        raise GraphError(f"tensor {hollow[0]!r} has no data (the graph is a sketch)", where=hollow[0])
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.parent / f".{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        # The name of the file becomes the name of the folder inside it.
        made = draft / f"{place.stem}.pt2"
        torch.export.save(_program(graph), made, extra_files=dict(extra or {}))
        _compare(graph, read_pt2(made))
        os.replace(made, place)
    finally:
        shutil.rmtree(draft)
    return place


def _program(graph: ModelGraph) -> torch.export.ExportedProgram:
    """The graph as an exported program without traces of where it was made."""
    zeros = tuple(_example(entry, torch.zeros) for entry in graph.inputs)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in zeros)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = replace(graph, tensors=_whole(graph.tensors)).module()
            program = torch.export.export(module, zeros, dynamic_shapes=dynamic)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GraphError(f"torch.export could not capture the graph: {reason}") from error
    for node in program.graph.nodes:
        for key in ("stack_trace", "source_fn_stack", "from_node", "custom"):
            node.meta.pop(key, None)
    return program


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that are views of something larger as copies: torch would write the whole of it."""
    return {
        name: tensor
        if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
        else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _example(entry: Input, make: object) -> Tensor:
    return make(size_at(entry.shape, 2), dtype=DTYPES[entry.dtype])  # type: ignore[operator, no-any-return]


def _compare(graph: ModelGraph, again: ModelGraph) -> None:
    """Refuse a second graph that gives other numbers for seeded noise (zeros, where an input is of whole numbers)."""
    source = torch.Generator().manual_seed(0)
    for batch in (2, 3):
        inputs = tuple(
            torch.randn(size_at(entry.shape, batch), generator=source).to(DTYPES[entry.dtype])
            if is_floating(entry.dtype)
            else torch.zeros(size_at(entry.shape, batch), dtype=DTYPES[entry.dtype])
            for entry in graph.inputs
        )
        wanted, found = graph(*inputs), again(*inputs)
        pairs = zip(_several(wanted), _several(found), strict=True)
        if not all(a.dtype == b.dtype and torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in pairs):
            raise VerifyError("the .pt2 file that was written does not compute what the graph computes")


def _several(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _batch_size() -> torch.SymInt:
    """A symbol for the batch size, made by torch and not from any text."""
    # Half a second of torch's compiler, which no other reader of models needs.
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

    shapes = ShapeEnv()
    source = ConstantSource("batch")
    symbol = shapes.create_symbol(2, source=source, dynamic_dim=DimDynamic.DYNAMIC)
    return shapes.create_symintnode(symbol, hint=2, source=source)  # type: ignore[return-value]


def _refuse_bad_numbers(graph: ModelGraph) -> None:
    bad = not_numbers(graph)
    if bad:
        raise GraphError(
            f"{len(bad)} tensors hold NaN, or learned ones infinity: {', '.join(bad[:SPELT_OUT])}",
            where=bad[0],
        )
