"""An ONNX file as a graph, by way of a converter, compared with ONNX Runtime before it counts."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from sarto.devices import OnnxModel
from sarto.devices import load_onnx as load_session
from sarto.errors import RequestError, VerifyError, suggest
from sarto.graph import ModelGraph, capture, relative_difference
from sarto.pipeline.sources.inputs import InputSpec
from sarto.pipeline.sources.onnx_shapes import settle
from sarto.pipeline.sources.source import Source
from sarto.types import Preprocessing

#: Batch sizes at which the graph is compared with ONNX Runtime.
BATCHES = (2, 5)
#: Largest relative difference that counts as equal.
LIMIT = 1e-5


def load_onnx(path: Path, *, shape: Sequence[int] | None = None, inputs: Sequence[InputSpec] = ()) -> Source:
    """The graph of an ONNX file: converted, captured, and equal to what ONNX Runtime computes.

    Args:
        shape: of the only input of one sample, where the file leaves sizes other than the batch free.
        inputs: every input, by the file's names or by place.

    Raises:
        RequestError: the file can't be read, no converter is installed, or it does not know an operator.
        GraphError: what the converter made can't be captured.
        VerifyError: the graph does not compute what ONNX Runtime computes.
    """
    converter = _import()
    data = path.read_bytes()
    session = load_session(data)
    specs = _specs(session, shape, inputs, path)
    small, large = ([entry.example(size).numpy() for entry in specs] for size in BATCHES)
    _check_batch(session, large, path)
    settled = settle(onnx.load_from_string(data), small, large)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _constant_reshapes(converter.convert(settled).eval())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"the converter onnx2torch can't read {path.name}: {reason}; export the model again with an older opset "
            "(13 to 17), or give its module",
            where=str(path),
        ) from error
    graph = capture(module, tuple(entry.example() for entry in specs))
    _compare(graph, session, specs, path)
    preprocessing, classes = _metadata(session)
    return Source(graph, f"ONNX file {path.name}", preprocessing, classes)


def _import() -> Any:
    try:
        return importlib.import_module("onnx2torch")
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"an ONNX file needs the converter onnx2torch, which can't be imported ({reason}): pip install "
            "'sarto[onnx-import]'; the converter brings torchvision, which must be built for the torch that is "
            "installed. Where the model's own code is at hand, give package.module:factory instead"
        ) from None


def _constant_reshapes(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The converted module with the sizes of its reshapes as numbers, where they are stored tensors."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        sizes = node.args[1] if len(node.args) == 2 else None
        if (
            node.op != "call_module"
            or type(modules[node.target]).__name__ != "OnnxReshape"
            or not isinstance(sizes, torch.fx.Node)
            or sizes.op != "get_attr"
        ):
            continue
        owner, _, leaf = str(sizes.target).rpartition(".")
        numbers = getattr(module.get_submodule(owner), leaf).tolist()
        # A size 0 copies one of the input, which the converter's own module does.
        if 0 not in numbers:
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.call_function(torch.reshape, (node.args[0], numbers)))
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _specs(
    session: OnnxModel, shape: Sequence[int] | None, inputs: Sequence[InputSpec], path: Path
) -> tuple[InputSpec, ...]:
    """The inputs of the file, in its order."""
    if inputs:
        if not any(entry.name for entry in inputs):
            named = {name: entry for name, entry in zip(session.names, inputs, strict=False)}
        else:
            named = {entry.name: entry for entry in inputs}
        unknown = [
            f"no input {name!r}{suggest(name, session.names)}" for name in named if name not in session.names
        ]
        if unknown or len(named) != len(session.names):
            raise RequestError(
                f"{path.name} reads {', '.join(session.names)}; {len(inputs)} inputs were given",
                problems=unknown,
            )
        return tuple(named[name] for name in session.names)
    found, problems = [], []
    for name, sizes, dtype in zip(session.names, session.shapes, session.dtypes, strict=True):
        own = tuple(shape) if shape is not None and len(session.names) == 1 else sizes[1:]
        if not sizes or any(isinstance(size, str) for size in own):
            problems.append(f"the shape of input {name!r} is free ({', '.join(map(str, sizes))})")
        found.append(
            InputSpec(tuple(int(s) for s in own if not isinstance(s, str)), np.dtype(dtype).name, name)
        )
    if problems:
        example = f"--input {session.names[0]}=3,224,224"
        raise RequestError(
            f"{path.name}: {problems[0]}; give every input without its batch, {example}", problems=problems
        )
    return tuple(found)


def _check_batch(session: OnnxModel, large: list[np.ndarray], path: Path) -> None:
    fixed = [
        f"input {name!r} has a batch of {sizes[0]}"
        for name, sizes in zip(session.names, session.shapes, strict=True)
        if sizes and isinstance(sizes[0], int)
    ]
    if fixed:
        raise RequestError(
            f"{path.name} has a fixed batch: {fixed[0]}; export it again with a free one (dynamic axis 0)",
            problems=fixed,
            where=str(path),
        )
    session.check(tuple(large))


def _compare(graph: ModelGraph, session: OnnxModel, specs: Sequence[InputSpec], path: Path) -> None:
    for size in BATCHES:
        given = tuple(entry.example(size) for entry in specs)
        want, have = session(*(tensor.numpy() for tensor in given)), graph(*given)
        wanted = [torch.from_numpy(part) for part in (want if isinstance(want, tuple) else (want,))]
        gap = relative_difference([have] if isinstance(have, Tensor) else list(have), wanted)
        if not gap <= LIMIT:
            raise VerifyError(
                f"the graph of {path.name} differs from ONNX Runtime by {gap:.1e} (relative) at a batch of {size}, "
                f"more than {LIMIT:.0e}; it is not used"
            )


def _metadata(session: OnnxModel) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """Preprocessing and class names where sarto itself wrote the file."""
    preprocessing, classes = session.metadata.get("preprocessing"), session.metadata.get("classes")
    if preprocessing is None or classes is None:
        return None, ()
    try:
        names = json.loads(classes)
        described = Preprocessing.parse(preprocessing)
    except ValueError:
        # Another program uses the same keys for something else.
        return None, ()
    return described, tuple(map(str, names)) if isinstance(names, list) else ()
