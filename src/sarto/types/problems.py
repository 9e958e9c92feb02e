"""What pydantic found, told as sarto tells it: a dotted path, what was found there, what to do."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sarto.errors import SartoError, closest

_WANTED = {
    "string_type": "must be text",
    "string_unicode": "must be whole characters",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "finite_number": "must be finite",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "none_required": "must be null",
}
_COMPARED = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem: "budget.latency: unknown key, did you mean 'latency_ms'?".

    A value's own checks raise a SartoError; problems that start with "." or "[" go on with the path.
    """
    lines: list[str] = []
    for found in error.errors(include_url=False):
        path, parent = _locate(model, found["loc"])
        for text in _texts(found, parent):
            goes_on = text.startswith((".", "["))
            line = f"{path}{text}" if goes_on else f"{path}: {text}"
            lines.append(line if path else text.removeprefix("."))
    return lines


def show(value: object) -> str:
    """A value as a message shows it: short, and safe for values of any size or depth."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) is int:
        bits = value.bit_length()
        return str(value) if bits <= 128 else f"a number of about {bits * 0.30103:,.0f} digits"
    if type(value) is float:
        return repr(value)
    if isinstance(value, str):
        return ascii(value) if len(value) <= 60 and not value.isprintable() else _quoted(value)
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, Mapping):
        return f"a mapping of {len(value):,} keys"
    if isinstance(value, Sequence):
        return f"a list of {len(value):,}"
    return f"a value of type {type(value).__name__}"


def _quoted(value: str) -> str:
    return repr(value) if len(value) <= 60 else f"{value[:57]!r}... ({len(value):,} characters)"


def _texts(found: ErrorDetails, parent: type[BaseModel] | None) -> list[str]:
    kind, value, context = found["type"], found.get("input"), found.get("ctx", {})
    if kind == "extra_forbidden":
        return [_unknown(str(found["loc"][-1]), parent)]
    if kind == "missing":
        return ["is missing; give it"]
    if kind == "sarto":
        return [str(context["text"])]
    if kind == "value_error":
        cause = context.get("error")
        if isinstance(cause, SartoError):
            return list(cause.problems) or [cause.detail]
        return [str(cause)]
    if kind in _COMPARED:
        limit = next(context[name] for name in ("gt", "ge", "lt", "le") if name in context)
        limit = int(limit) if limit == int(limit) else limit
        return [f"must be {_COMPARED[kind]} {limit}, got {show(value)}"]
    if kind == "literal_error":
        near = closest(value, str(context["expected"]).split("'")[1::2]) if isinstance(value, str) else None
        hint = f" (did you mean {near!r}?)" if near else ""
        return [f"must be {context['expected']}, got {show(value)}{hint}"]
    if kind in ("too_short", "too_long"):
        limit, actual = (context.get(name) for name in ("min_length", "actual_length"))
        if kind == "too_short":
            return [f"must have at least {limit} entries, got {actual}"]
        return [f"must have at most {context['max_length']:,} entries, got {actual or 'more'}"]
    if kind == "string_too_long":
        return [f"must have at most {context['max_length']:,} characters, got {show(value)}"]
    if kind == "string_pattern_mismatch":
        return [_pattern(str(context["pattern"]), value)]
    if kind in _WANTED:
        wrap = kind == "tuple_type" and isinstance(value, str) and len(value) < 40
        hint = f"; write [{value}]" if wrap else ""
        return [f"{_WANTED[kind]}, got {show(value)}{hint}"]
    return [f"{found['msg']}, got {show(value)}"]


def _pattern(pattern: str, value: object) -> str:
    wanted = "'sha256:' and 64 hex digits" if pattern.startswith("^sha256") else f"text like {pattern}"
    return f"must be {wanted}, got {show(value)}"


def _unknown(key: str, parent: type[BaseModel] | None) -> str:
    known = sorted(parent.model_fields) if parent is not None else []
    near = closest(key, known)
    if near is not None:
        return f"unknown key, did you mean {near!r}?"
    return f"unknown key (known: {', '.join(known)})" if known else "unknown key"


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    # The path as a reader writes it (tags of unions left out), and the model that holds the last step.
    path, here, parent = "", _plain(model), None
    for step in loc:
        if step == "[key]":
            continue
        fields = _model(here)
        members = [_plain(member) for member in get_args(here)] if _is_union(here) else []
        tagged = [member for member in members if _tag(member) == step]
        if tagged:
            here = tagged[0]
            continue
        parent = fields
        if fields is not None:
            info = fields.model_fields.get(str(step))
            here = _plain(info.annotation) if info is not None else None
        else:
            here = _entry(here)
        path += f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" if path else _shown(step)
    return path, parent


def _shown(step: str) -> str:
    return step if len(step) <= 80 and step.isprintable() else ascii(step[:60])


def _plain(annotation: Any) -> Any:
    # Without Annotated and without "or None".
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
            continue
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if not _is_union(annotation) or len(rest) > 1:
            return annotation
        annotation = rest[0]


def _entry(annotation: Any) -> Any:
    # What a list or mapping holds.
    args = [arg for arg in get_args(annotation) if arg is not Ellipsis]
    return _plain(args[-1]) if args and not _is_union(annotation) else None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _model(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _tag(annotation: Any) -> object:
    model = _model(annotation)
    info = model.model_fields.get("op") if model is not None else None
    return info.default if info is not None else getattr(model, "TAG", None)
