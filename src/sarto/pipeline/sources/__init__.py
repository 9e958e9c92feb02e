"""Where models come from: factories, model folders, names in model libraries, graph and exported files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sarto.graph.file import read_graph
from sarto.graph.proof import proven
from sarto.pipeline.sources.factory import capture_module, load_factory, load_weights
from sarto.pipeline.sources.inputs import InputSpec, check_captured, given_inputs, read_input
from sarto.pipeline.sources.named import load_named
from sarto.pipeline.sources.onnx_file import load_onnx
from sarto.pipeline.sources.source import Source
from sarto.pipeline.sources.transformers_folder import load_transformers
from sarto.types.sources import KINDS, check_source, refuse_pickle, source_kind

#: What a factory is captured with where nobody says more.
SHAPE = (3, 32, 32)


def load_source(
    spec: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    inputs: Sequence[InputSpec] = (),
) -> Source:
    """A captured model from any of the places that models come from.

    Args:
        spec: `package.module:factory` (called with `arguments`); `timm:NAME` or `torchvision:NAME`; a folder with a
            graph file; a `transformers` folder (config.json and safetensors); a `.pt2` or an `.onnx` file.
        arguments: keywords of the factory or of the library's model; for a `transformers` folder `architecture` and
            `output`.
        weights: a safetensors file with the names of the module's state; half precision is widened to single.
        input_shape: of one sample, without the batch axis; where nothing says it, a factory gets 3,32,32.
        inputs: every input in full, in place of `input_shape`; one without a name is a model folder's main input,
            whose companions (masks) follow it. A graph or exported program is refused other
            inputs than its own.

    Raises:
        RequestError: the model or its weights can't be found or don't fit, or a file is a pickle.
        GraphError: the model can't be captured.
    """
    options = dict(arguments or {})
    check_source(spec, arguments=options, weights=weights)
    kind, path, state = source_kind(spec), Path(spec), Path(weights) if weights is not None else None
    if kind == "named":
        library, _, name = spec.partition(":")
        return load_named(library, name, arguments=options, weights=state, shape=input_shape, inputs=inputs)
    if kind == "factory":
        wanted = given_inputs(input_shape, inputs, SHAPE)
        guessed = input_shape is None and not inputs
        return load_factory(spec, arguments=options, weights=state, inputs=wanted, guessed=guessed)
    if kind == "transformers":
        if len(inputs) == 1 and not inputs[0].name:
            input_shape, inputs = inputs[0].shape, ()
        return load_transformers(path, arguments=options, shape=input_shape, inputs=inputs)
    if kind == "onnx":
        return load_onnx(path, shape=input_shape, inputs=inputs)
    given = inputs or (() if input_shape is None else given_inputs(input_shape, (), SHAPE))
    if kind == "graph":
        graph, origin = read_graph(path), f"graph folder {path.name}"
    else:
        from sarto.graph.pt2 import read_pt2

        graph, origin = read_pt2(path), f"exported program {path.name}"
    check_captured(graph, given, f"{path.name}")
    return Source(proven(graph), origin)


__all__ = [
    "KINDS",
    "InputSpec",
    "Source",
    "capture_module",
    "check_captured",
    "load_source",
    "load_weights",
    "read_input",
    "refuse_pickle",
]
