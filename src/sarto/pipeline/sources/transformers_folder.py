"""A model folder of `transformers`: config.json and safetensors. Nothing in it is executed, nothing is fetched."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sarto.errors import RequestError, suggest
from sarto.graph import ModelGraph
from sarto.pipeline.sources.architecture import architecture, check_folder
from sarto.pipeline.sources.calling import capture_called, check_names
from sarto.pipeline.sources.inputs import BATCH, InputSpec
from sarto.pipeline.sources.model_inputs import inputs_of
from sarto.pipeline.sources.processing import ImageReading, read_image_processor, read_json
from sarto.pipeline.sources.source import Source

#: What a folder takes as arguments, beside its inputs.
ARGUMENTS = ("architecture", "output")
#: Parts of an answer that can be the model's output; the first line that is there in full wins.
_FIELDS = (
    ("logits", "pred_boxes"),
    ("start_logits", "end_logits"),
    ("logits",),
    ("prediction_logits",),
    ("logits_per_image",),
    ("predicted_depth",),
    ("image_embeds",),
    ("text_embeds",),
    ("embeddings",),
    ("last_hidden_state",),
    ("feature_maps",),
)


def load_transformers(
    folder: Path,
    *,
    arguments: Mapping[str, Any],
    shape: Sequence[int] | None = None,
    inputs: Sequence[InputSpec] = (),
) -> Source:
    """The model of a folder that `save_pretrained` wrote, captured as a function of its main inputs.

    The class is the one that the config names, from `transformers` itself; images, token ids with their mask, or
    audio features are made from the config where no inputs are given.

    Args:
        arguments: `architecture`: another class of transformers than the config's; `output`: the part (or parts,
            with commas) of the model's answer that becomes the output.
        shape: of the main input of one sample.
        inputs: every input, by the names that the model's `forward` has.

    Raises:
        RequestError: the folder holds pickles, code or quantised weights in place of a plain model, tensors are
            missing, or transformers is not installed.
        GraphError: the model can't be captured.
    """
    unknown = [f"a model folder takes no argument {name!r}{suggest(name, ARGUMENTS)}" for name in arguments
               if name not in ARGUMENTS]  # fmt: skip
    if unknown:
        raise RequestError(unknown[0], problems=unknown)
    config = read_json(folder / "config.json")
    check_folder(folder, config)
    cls = architecture(folder, config, str(arguments.get("architecture", "")))
    model, found = _load(folder, cls)
    reading = read_image_processor(folder, channels=_channels(model))
    used = tuple(inputs) or inputs_of(model, shape=shape, size=reading.size if reading else None)
    if not all(entry.name for entry in used):
        raise RequestError(
            f"inputs {', '.join(map(str, used))}: name them as the model does, for instance "
            f"{getattr(model, 'main_input_name', 'input_ids')}=..."
        )
    check_names(model, used)
    example = tuple(_example(entry) for entry in used)
    names = [entry.name for entry in used]
    fields = _fields(model, names, example, str(arguments.get("output", "")))
    graph = capture_called(model, names, example, fields=fields)
    _check_weights(folder, cls, graph, found)
    classes, renamed = _classes(model, fields)
    origin = f"transformers folder {folder.resolve().name}: {cls.__name__}"
    return Source(
        graph, origin, _described(reading), classes, (*_unused(cls, found), *_said(reading), *renamed)
    )


def _load(folder: Path, cls: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model in float32 and evaluation mode, and which tensors the folder did not have or had beside it."""
    fused = bool(getattr(cls, "_supports_sdpa", False))
    with _quiet():
        try:
            try:
                model, found = _read(folder, cls, "sdpa" if fused else "eager")
            except ValueError:
                if not fused:
                    raise
                # A model inside this one has no fused attention.
                model, found = _read(folder, cls, "eager")
        except Exception as error:
            # What a damaged or foreign folder raises is up to a library that is not ours.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RequestError(
                f"transformers can't load {folder.name}: {reason}", where=str(folder)
            ) from error
    model.eval()
    return model, found


def _check_weights(folder: Path, cls: Any, graph: ModelGraph, found: Mapping[str, Any]) -> None:
    """Refuse a graph that reads tensors which the folder does not have and transformers has made up."""
    problems = [f"{name}: is missing" for name in _names(found["missing_keys"]) if name in graph.tensors]
    problems += [
        f"{name}: has another shape" for name in _names(found["mismatched_keys"]) if name in graph.tensors
    ]
    if problems:
        raise RequestError(
            f"the weights of {folder.name} don't fit {cls.__name__}", problems=problems, where=str(folder)
        )


def _unused(cls: Any, found: Mapping[str, Any]) -> tuple[str, ...]:
    left = _names(found["unexpected_keys"])
    shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    return (f"{len(left)} tensors of the folder are not used by {cls.__name__}: {shown}",) if left else ()


def _read(folder: Path, cls: Any, attention: str) -> tuple[Any, Mapping[str, Any]]:
    config = cls.config_class.from_pretrained(folder, local_files_only=True)
    _offline(config)
    model, found = cls.from_pretrained(
        folder,
        config=config,
        attn_implementation=attention,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return model, found


def _names(keys: Any) -> list[str]:
    return sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in keys)


def _offline(config: Any) -> None:
    """Switch off what would fetch weights, keep a cache or hide names, in the config and the configs inside it."""
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "model_type"))):
        if hasattr(part, "use_pretrained_backbone"):
            part.use_pretrained_backbone = False
        if hasattr(part, "use_cache"):
            part.use_cache = False
        part.return_dict = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal."""
    logging = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _channels(model: Any) -> int:
    config = model.config
    for part in (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)):
        found = getattr(part, "num_channels", None)
        if isinstance(found, int):
            return found
    return 3


def _example(entry: InputSpec) -> Tensor:
    """Example of an input; a mask hides the end of its first row, so that the proof sees it work."""
    if "mask" not in entry.name:
        return entry.example()
    example = torch.ones((BATCH, *entry.shape), dtype=getattr(torch, entry.dtype))
    if len(entry.shape) == 1 and entry.shape[0] > 3:
        example[0, -(entry.shape[0] // 4) :] = 0
    return example


def _fields(model: Any, names: Sequence[str], example: tuple[Tensor, ...], asked: str) -> tuple[str, ...]:
    """Names of the parts of the answer that become outputs."""
    try:
        with torch.no_grad():
            answer = model(**dict(zip(names, example, strict=True)))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(names, example, strict=True))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"{type(model).__name__} does not run on {shapes}: {reason}; give its inputs with the sizes that "
            f"it takes, by name (--input {names[0]}=...)"
        ) from error
    if not isinstance(answer, Mapping):
        raise RequestError(
            f"{type(model).__name__} answers with a {type(answer).__name__}, not with named parts"
        )
    present = [name for name, value in answer.items() if isinstance(value, Tensor)]
    if asked:
        wanted = tuple(part.strip() for part in asked.split(",") if part.strip())
        missing = [name for name in wanted if name not in present]
        if missing:
            raise RequestError(
                f"{type(model).__name__} gives no {missing[0]!r}{suggest(missing[0], present)}"
            )
        return wanted
    for fields in _FIELDS:
        if all(name in present for name in fields):
            return fields
    raise RequestError(
        f"{type(model).__name__} gives {', '.join(present) or 'no tensors'}: say which of it is the output, with the "
        "argument output"
    )


def _classes(model: Any, fields: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Names of the outputs from the config, made different where two are the same."""
    table = getattr(model.config, "id2label", None)
    if fields[0] != "logits" or "Classification" not in type(model).__name__ or not isinstance(table, dict):
        return (), []
    labels = [str(table[key]) for key in sorted(table)]
    twice = {label for label in labels if labels.count(label) > 1}
    if not twice:
        return tuple(labels), []
    unique = tuple(f"{label} ({i})" if label in twice else label for i, label in enumerate(labels))
    return unique, [f"classes of the same name got their number: {', '.join(sorted(twice)[:5])}"]


def _described(reading: ImageReading | None) -> Any:
    return reading.preprocessing if reading else None


def _said(reading: ImageReading | None) -> tuple[str, ...]:
    return reading.notes if reading else ()
