"""Where models come from: factories, model folders, names in model libraries, graph and exported files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sarto.errors import RequestError
from sarto.graph.file import read_graph
from sarto.graph.proof import proven
from sarto.pipeline.sources.factory import capture_module, load_factory, load_weights, refuse_pickle
from sarto.pipeline.sources.inputs import InputSpec, given_inputs, read_input
from sarto.pipeline.sources.named import LIBRARIES, load_named
from sarto.pipeline.sources.onnx_file import load_onnx
from sarto.pipeline.sources.source import Source
from sarto.pipeline.sources.transformers_folder import load_transformers

#: What a factory is captured with where nobody says more.
SHAPE = (3, 32, 32)
KINDS = (
    "package.module:factory, timm:NAME, torchvision:NAME, a folder with graph.json or a transformers folder with "
    "config.json, a .pt2 file or an .onnx file"
)


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
            whose companions (masks) follow it.

    Raises:
        RequestError: the model or its weights can't be found or don't fit, or a file is a pickle.
        GraphError: the model can't be captured.
    """
    path, options = Path(spec), dict(arguments or {})
    state = Path(weights) if weights is not None else None
    if ":" in spec and not path.exists():
        library, _, name = spec.partition(":")
        if library in LIBRARIES:
            return load_named(
                library, name, arguments=options, weights=state, shape=input_shape, inputs=inputs
            )
        wanted = given_inputs(input_shape, inputs, SHAPE)
        return load_factory(spec, arguments=options, weights=state, inputs=wanted)
    is_graph = (path / "graph.json").is_file()
    is_transformers = not is_graph and (path / "config.json").is_file()
    whole = is_graph or is_transformers or (path.is_file() and path.suffix in (".pt2", ".onnx"))
    if whole and state is not None:
        raise RequestError(f"{path.name} brings its own weights: leave out weights {state.name}")
    if whole and options and not is_transformers:
        raise RequestError(f"{path.name} is no factory: leave out the arguments {', '.join(options)}")
    if is_graph:
        return Source(proven(read_graph(path)), f"graph folder {path.name}")
    if is_transformers:
        if len(inputs) == 1 and not inputs[0].name:
            input_shape, inputs = inputs[0].shape, ()
        return load_transformers(path, arguments=options, shape=input_shape, inputs=inputs)
    if whole and path.suffix == ".pt2":
        from sarto.graph.pt2 import read_pt2

        return Source(proven(read_pt2(path)), f"exported program {path.name}")
    if whole:
        return load_onnx(path, shape=input_shape, inputs=inputs)
    refuse_pickle(path)
    raise RequestError(f"{spec!r} is no model: give {KINDS}")


__all__ = [
    "KINDS",
    "InputSpec",
    "Source",
    "capture_module",
    "load_source",
    "load_weights",
    "read_input",
    "refuse_pickle",
]
