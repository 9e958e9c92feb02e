"""Which model a `transformers` folder holds, and whether it is one that can be read without running code."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sarto.errors import RequestError, suggest
from sarto.pipeline.sources.processing import read_json
from sarto.types.sources import refuse_pickle

_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose weights are pickled, quantised, elsewhere or only an adapter.

    Raises:
        RequestError: all problems at once.
    """
    problems = []
    if config.get("quantization_config"):
        problems.append(
            "its weights are quantised, which sarto does not read: save it in float32 or bfloat16"
        )
    if (folder / "adapter_config.json").is_file():
        problems.append("it holds an adapter, not a whole model: merge the adapter and save the model")
    safe = [folder / "model.safetensors", folder / _INDEX]
    if not any(path.is_file() for path in safe):
        for path in sorted(folder.iterdir()):
            refuse_pickle(path)
        problems.append(f"it has no weights: neither {safe[0].name} nor {_INDEX}")
    elif not safe[0].is_file():
        shards = read_json(safe[1]).get("weight_map")
        named = set(shards.values()) if isinstance(shards, dict) else {""}
        # A shard is a file of this folder, nothing else.
        problems += [
            f"{_INDEX} names {str(name)!r}, which is no safetensors file in the folder"
            for name in sorted(named, key=str)
            if not isinstance(name, str)
            or Path(name).name != name
            or Path(name).suffix != ".safetensors"
            or not (folder / name).is_file()
        ]
    if problems:
        raise RequestError(
            f"can't read the model folder {folder.name}: {problems[0]}", problems=problems, where=str(folder)
        )


def architecture(folder: Path, config: Mapping[str, Any], asked: str) -> Any:
    """The class to load: one of transformers' own that reads this kind of config, never one from the folder.

    Args:
        asked: name of the class; empty: the one that the config names, else the base model of its type.

    Raises:
        RequestError: transformers has no such model type or class, or is not installed.
    """
    transformers = _import()
    known = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    kinds = {str(config.get("model_type"))} | {
        str(part.get("model_type")) for part in config.values() if isinstance(part, dict)
    }
    kind = str(config.get("model_type"))
    own_code = (
        f"; its code is in the folder ({', '.join(sorted(map(str, config['auto_map'].values())))}), and sarto does "
        "not run code that comes with a model"
        if isinstance(config.get("auto_map"), dict)
        else ""
    )
    if kind not in known:
        raise RequestError(
            f"{folder.name}: transformers {transformers.__version__} has no model type {kind!r}"
            f"{own_code or suggest(kind, known)}",
            where=str(folder / "config.json"),
        )
    listed = config.get("architectures")
    name = asked or (str(listed[0]) if isinstance(listed, list) and listed else "")
    cls: Any = _base_model(transformers, kind)
    if name:
        cls = getattr(transformers, name, None) if name.isidentifier() else None
    if name and not _is_model(transformers, cls):
        raise RequestError(
            f"{folder.name}: transformers {transformers.__version__} has no model class {name!r}{own_code}",
            where=str(folder / "config.json"),
        )
    if not _is_model(transformers, cls):
        raise RequestError(
            f"{folder.name}: the config names no architecture, and {kind!r} has no base model: name a class with the "
            "argument architecture",
            where=str(folder / "config.json"),
        )
    if cls.config_class.model_type not in kinds:
        raise RequestError(
            f"{folder.name}: {cls.__name__} reads configs of type {cls.config_class.model_type!r}, this one is "
            f"{kind!r}",
            where=str(folder / "config.json"),
        )
    return cls


def _base_model(transformers: Any, kind: str) -> Any:
    name = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_MAPPING_NAMES.get(kind)
    return getattr(transformers, name, None) if isinstance(name, str) else None


def _is_model(transformers: Any, cls: object) -> bool:
    return (
        isinstance(cls, type)
        and issubclass(cls, transformers.PreTrainedModel)
        and getattr(cls, "config_class", None) is not None
    )


def _import() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise RequestError(
            f"a model folder with config.json needs transformers ({error}): pip install 'sarto[transformers]'"
        ) from None
