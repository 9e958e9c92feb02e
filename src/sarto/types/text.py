"""JSON and YAML text to plain data and back: strict, bounded, without surprises.

YAML is read by the core rules of YAML 1.2, so `no` is a word, `1e-3` is a number and `08` is a word.
Aliases are refused.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sarto.errors import RequestError

if TYPE_CHECKING:
    import yaml

MAX_JSON_BYTES = 64 * 2**20
MAX_YAML_BYTES = 2 * 2**20

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def read_text(text: str | bytes) -> Any:
    """Plain data from JSON or YAML text.

    Raises:
        RequestError: not UTF-8, too long, too deep, not JSON or YAML, a key given twice, or not finite.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RequestError(f"the text is not UTF-8 ({error.reason} at byte {error.start})") from error
    if len(text) > MAX_JSON_BYTES:
        raise RequestError(f"the text has {len(text):,} characters, the limit is {MAX_JSON_BYTES:,}")
    if text.lstrip()[:1] not in ("{", "["):
        return _read_yaml(text, None)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RequestError("the JSON is nested too deeply") from error
    except json.JSONDecodeError as error:
        return _read_yaml(text, error)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"a number in the JSON is too long ({error})") from error


def to_json_text(data: Any, *, pretty: bool = False) -> str:
    """Canonical JSON: keys sorted, shortest floats, no spaces; `pretty` puts one key or row on a line."""
    if pretty:
        return _pretty(data, "")
    return json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_yaml_text(data: Any) -> str:
    """YAML that `read_text` reads back to the same data."""
    import yaml

    return yaml.dump(
        data, Dumper=_dumper(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write text so that the file is either the old one or the whole new one, also after a crash.

    Raises:
        RequestError: the folder is missing or can't be written.
    """
    place = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{place.name[:50]}.", dir=place.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _failed("write", place, error) from error


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Bytes of a file of at most `MAX_JSON_BYTES`.

    Raises:
        RequestError: missing, no file, unreadable, or too long.
    """
    place = Path(path)
    try:
        if not place.is_file():
            found = "is a folder" if place.is_dir() else "does not exist"
            raise RequestError(f"{str(place)!r} {found}; give a JSON or YAML file", where=str(place))
        with place.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise _failed("read", place, error) from error
    if len(content) > MAX_JSON_BYTES:
        raise RequestError(f"{str(place)!r} is longer than {MAX_JSON_BYTES:,} bytes", where=str(place))
    return content


def _failed(verb: str, place: Path, error: OSError) -> RequestError:
    return RequestError(f"can't {verb} {str(place)!r}: {error.strerror or error}", where=str(place))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise RequestError(_twice(key for key, _ in pairs))
    return data


def _twice(keys: Iterable[Any]) -> str:
    seen: set[Any] = set()
    double = {key for key in keys if key in seen or seen.add(key)}  # type: ignore[func-returns-value]
    shown = ", ".join(sorted(repr(str(key)[:80]) for key in double)[:5])
    return f"keys given twice in one mapping: {shown}; keep one of each"


def _refuse_constant(name: str) -> Any:
    raise RequestError(f"{name} is not allowed: numbers must be finite")


def _read_yaml(text: str, json_error: json.JSONDecodeError | None) -> Any:
    said = ""
    if json_error is not None:
        place = f"line {json_error.lineno}, column {json_error.colno}"
        said = f"not readable as JSON: {json_error.msg} at {place}"
    if len(text) > MAX_YAML_BYTES:
        if said:
            raise RequestError(said) from json_error
        raise RequestError(
            f"YAML of {len(text):,} characters was given, the limit is {MAX_YAML_BYTES:,}; write it as JSON"
        )
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except RecursionError as error:
        raise RequestError("the text is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        yaml_said = f"not readable as YAML: {reason}{place}"
        raise RequestError(said or yaml_said) from error
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"a number in the YAML can't be read ({error})") from error


@cache
def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader with the core rules of YAML 1.2, without aliases, and with unique keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise RequestError(f"YAML aliases (*name) are not read; write it out (line {mark.line + 1})")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if any(not isinstance(key, (str, int, float, bool, type(None))) for key in keys):
                raise RequestError(f"a key of a mapping must be a word (line {node.start_mark.line + 1})")
            if len(set(keys)) < len(keys):
                raise RequestError(f"{_twice(keys)} (line {node.start_mark.line + 1})")
            return super().construct_mapping(node, deep=deep)

    Loader.yaml_implicit_resolvers = {}
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    return Loader


@cache
def _dumper() -> type[yaml.SafeDumper]:
    import yaml

    class Dumper(yaml.SafeDumper):
        """The safe dumper that quotes what any version of YAML takes for something other than a word."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    Dumper.add_representer(float, _represent_float)
    return Dumper


def _represent_float(dumper: yaml.SafeDumper, value: float) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


def _pretty(data: Any, margin: str) -> str:
    inner = margin + "  "
    if isinstance(data, dict) and data:
        rows = [f"{to_json_text(key)}: {_pretty(data[key], inner)}" for key in sorted(data)]
        return "{\n" + ",\n".join(inner + row for row in rows) + f"\n{margin}}}"
    if isinstance(data, list) and any(isinstance(entry, (dict, list)) for entry in data):
        return "[\n" + ",\n".join(inner + _pretty(entry, inner) for entry in data) + f"\n{margin}]"
    if isinstance(data, list):
        return "[" + ", ".join(to_json_text(entry) for entry in data) + "]"
    return to_json_text(data)
