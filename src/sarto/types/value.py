"""The base of all values: frozen, JSON and YAML in and out, all problems of an input in one error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sarto.errors import RequestError
from sarto.types.problems import problems_of, show
from sarto.types.text import read_file, read_text, to_json_text, to_yaml_text, write_atomically


class Value(BaseModel):
    """Something that can be written down: it can't change, and equal content means equal values."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _refusal(error, type(self)) from None

    # Values inside values are checked by pydantic itself, so that their problems keep their path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def parse(cls, data: Mapping[str, Any] | str | bytes) -> Self:
        """The value that a mapping, or JSON or YAML text, describes.

        Raises:
            RequestError: it does not describe one; every problem is named with its path.
        """
        found = read_text(data) if isinstance(data, (str, bytes)) else data
        if not isinstance(found, Mapping):
            raise RequestError(f"a {cls.__name__} is a mapping of keys to values, got {show(found)}")
        odd = [key for key in found if not isinstance(key, str)]
        if odd:
            raise RequestError(f"keys of a {cls.__name__} must be text, got {show(odd[0])}")
        try:
            return cls.model_validate(dict(found))
        except ValidationError as error:
            raise _refusal(error, cls) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """The value in a JSON or YAML file.

        Raises:
            RequestError: no such file, or it does not describe one.
        """
        content = read_file(path)
        try:
            return cls.parse(content)
        except RequestError as error:
            raise RequestError(error.detail, where=str(path), problems=error.problems) from None

    def to_json(self, *, pretty: bool = False) -> str:
        """Canonical JSON text: every field, keys sorted; equal values give equal text."""
        return to_json_text(self.model_dump(mode="json"), pretty=pretty)

    def to_yaml(self) -> str:
        """YAML text for people: fields in their order, what is not set left out."""
        return to_yaml_text(self.model_dump(mode="json", exclude_none=True))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the value at once and whole: YAML where the name ends in .yaml or .yml, otherwise JSON.

        Raises:
            RequestError: the folder is missing or can't be written.
        """
        is_yaml = Path(path).suffix.lower() in (".yaml", ".yml")
        write_atomically(path, self.to_yaml() if is_yaml else self.to_json(pretty=True) + "\n")

    def replace(self, **changes: Any) -> Self:
        """The same value with some fields changed, checked again.

        Raises:
            RequestError: the changed value is not valid.
        """
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same value with some fields changed, checked again; see `replace`."""
        return self.replace(**update) if update else self


def _refusal(error: ValidationError, model: type[BaseModel]) -> RequestError:
    problems = problems_of(error, model)
    return RequestError(problems[0], problems=problems)
