"""What kind of model a text names, and what is wrong with it as far as names and first bytes tell."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sarto.errors import RequestError

SourceKind = Literal["graph", "transformers", "pt2", "onnx", "named", "factory", "none"]

LIBRARIES = ("timm", "torchvision")
KINDS = (
    "package.module:factory, timm:NAME, torchvision:NAME, a folder with graph.json or a transformers folder with "
    "config.json, a .pt2 file or an .onnx file"
)
_PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_SAFE_WAY = (
    "it may hold code that runs when it is read. Where you trust it, convert it once: "
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('{path}', weights_only=True), 'weights.safetensors')\""
)
_LFS = b"version https://git-lfs"
#: Bytes of a file that tell what it is.
_HEAD = 64


def source_kind(spec: str) -> SourceKind:
    """Which kind of source a text names; what lies on disk goes before names."""
    path = Path(spec)
    if ":" in spec and not path.exists():
        return "named" if spec.partition(":")[0] in LIBRARIES else "factory"
    if (path / "graph.json").is_file():
        return "graph"
    if (path / "config.json").is_file():
        return "transformers"
    if path.is_file() and path.suffix == ".pt2":
        return "pt2"
    return "onnx" if path.is_file() and path.suffix == ".onnx" else "none"


def check_source(spec: str, *, arguments: Iterable[str] = (), weights: str | Path | None = None) -> None:
    """Refuse what can't be a model, and weights or arguments that it does not take. Reads first bytes only.

    Raises:
        RequestError: all problems at once.
    """
    kind, path, given = source_kind(spec), Path(spec), list(arguments)
    if kind == "none":
        raise RequestError(_no_model(spec, path))
    problems = list(_spec_problems(spec, kind))
    if kind in ("pt2", "onnx"):
        problems += _content_problems(path, kind)
    whole = kind in ("graph", "transformers", "pt2", "onnx")
    if whole and weights is not None:
        problems.append(f"{path.name} brings its own weights: leave out --weights {Path(weights).name}")
    elif weights is not None:
        problems += _weight_problems(Path(weights))
    if whole and given and kind != "transformers":
        problems.append(f"{path.name} is no factory: leave out --arg {', '.join(given)}")
    if problems:
        raise RequestError(problems[0], problems=problems)


def refuse_pickle(path: Path) -> None:
    """Refuse files that run code when they are read, by their name or by their first bytes.

    Raises:
        RequestError: says how to convert the file safely.
    """
    head = _head(path)
    zipped = head[:2] == b"PK" and path.suffix not in (".npz", ".whl")
    if path.suffix.lower() in _PICKLES or zipped or head[:1] == b"\x80":
        raise RequestError(f"{path.name} is not read: {_SAFE_WAY.format(path=path.name)}", where=str(path))


def _no_model(spec: str, path: Path) -> str:
    """Why what a text names is no model, and what to give instead."""
    if not path.exists():
        if path.suffix or "/" in spec:
            return f"there is no file or folder {spec!r}; a model is {KINDS}"
        return f"{spec!r} is no model: give {KINDS}"
    if path.is_file():
        refuse_pickle(path)
    why = ""
    if path.is_dir():
        models = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".pt2", ".onnx"))
        why = "the folder holds no graph.json and no config.json; "
        if models:
            why = f"{why}it holds {', '.join(models[:3])}: name that file, or "
    elif path.suffix == ".py":
        why = f"Python code is named as a module, {path.stem}:FACTORY; "
    elif path.suffix == ".safetensors":
        why = "it holds weights only: name what makes the model, and give it with --weights; "
    return f"{spec!r} is no model: {why}give {KINDS}"


def _spec_problems(spec: str, kind: SourceKind) -> Iterator[str]:
    """What a factory's name lacks; its package is looked for, not imported."""
    if kind != "factory":
        return
    module, _, factory = spec.partition(":")
    if module.endswith(".py") or "/" in module:
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        yield f"{spec!r}: a factory is named by its module, not by a path: write {dotted}:{factory or 'FACTORY'}"
    elif not all(part.isidentifier() for part in module.split(".")) or not factory.isidentifier():
        yield f"{spec!r} names no factory: write package.module:factory"
    elif not _can_be_found(module.partition(".")[0]):
        name = module.partition(".")[0]
        beside = Path(f"{name}.py").is_file() or Path(name).is_dir()
        cure = (
            "it lies in this folder: run with PYTHONPATH=."
            if beside
            else "install it, or run where Python finds it (PYTHONPATH)"
        )
        yield f"can't import {module!r}: Python finds no {name!r}; {cure}"


def _can_be_found(name: str) -> bool:
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _content_problems(path: Path, kind: str) -> Iterator[str]:
    head, what = _head(path), "exported program" if kind == "pt2" else "ONNX file"
    wrong = (kind == "pt2" and head[:2] != b"PK") or (kind == "onnx" and head[:1] != b"\x08")
    if wrong and (kind == "pt2" or _plain(head)):
        yield f"{path} is no {what}: {_content(head)}"


def _weight_problems(path: Path) -> Iterator[str]:
    if not path.is_file():
        refuse_pickle(path)
        found = "that is a folder" if path.is_dir() else "there is no such file"
        yield f"--weights {path}: {found}; give a .safetensors file"
        return
    refuse_pickle(path)
    head = _head(path)
    if head[8:9] != b"{":
        yield f"--weights {path} is no safetensors file: {_content(head)}"


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD)


def _plain(head: bytes) -> bool:
    """Whether bytes are text, or nothing."""
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)


def _content(head: bytes) -> str:
    """What a file's first bytes say it is, and what to do."""
    if not head:
        return "it is empty"
    if head.startswith(_LFS):
        return "it is the pointer of Git LFS; fetch the file itself with git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "it holds HTML or XML, such as the page of a failed download"
    if _plain(head):
        return f"it holds text, {head[:24].decode('ascii').splitlines()[0]!r}"
    return f"it begins with the bytes {head[:8].hex(' ')}"
