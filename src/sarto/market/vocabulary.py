"""Vocabularies: which id stands for which token, and how a text becomes ids."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sarto.errors import RequestError
from sarto.types import TextPreprocessing
from sarto.types.text import to_json_text

#: Written into encoded vocabularies; a reader refuses another one.
FORMAT = "sarto.vocabulary/1"
#: Largest file of a vocabulary in bytes.
MAX_BYTES = 64 * 2**20
#: A word with its apostrophes, or one character that is neither a letter, a digit, an underscore nor a space.
WORD = re.compile("\\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\\w+)*|[^\\w\\s]")
#: The first tokens of a vocabulary that sarto makes.
PAD, UNKNOWN = "<pad>", "<unk>"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows; the place of a token is its id.

    Attributes:
        tokens: unique, for texts that are parted into words; empty where there is a `tokenizer`.
        tokenizer: canonical JSON of a file of the `tokenizers` library, which parts texts itself; None for words.

    Raises:
        RequestError: names every problem: no tokens, a token that is empty or given twice.
    """

    tokens: tuple[str, ...]
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        problems = _problems(self.tokens) if self.tokenizer is None else []
        if problems:
            raise RequestError("vocabulary", problems=problems)

    @cached_property
    def size(self) -> int:
        """Number of ids."""
        return len(self.tokens) if self.tokenizer is None else int(self.library().get_vocab_size())

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token -> id, of a vocabulary of words."""
        return {token: place for place, token in enumerate(self.tokens)}

    @cached_property
    def digest(self) -> str:
        """Content hash "sha256:<64 hex>"."""
        return "sha256:" + hashlib.sha256(self.encoded()).hexdigest()

    @property
    def rule(self) -> str:
        """How texts are parted: "words" or "tokenizers"."""
        return "words" if self.tokenizer is None else "tokenizers"

    def encoded(self) -> bytes:
        """The vocabulary as a JSON file; equal vocabularies give equal bytes."""
        if self.tokenizer is None:
            return to_json_text({"format": FORMAT, "tokens": list(self.tokens)}).encode()
        return to_json_text({"format": FORMAT, "tokenizer": json.loads(self.tokenizer)}).encode()

    def library(self) -> Any:
        """The tokeniser of the `tokenizers` library, without padding and truncation.

        Raises:
            RequestError: the library is not installed, or can't read the file.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise RequestError(
                "this vocabulary is a file of the library 'tokenizers', which is not installed: "
                "pip install 'sarto[text]'"
            ) from error
        try:
            found = Tokenizer.from_str(self.tokenizer or "")
        except Exception as error:
            # The library raises plain Exception.
            raise RequestError(f"the library 'tokenizers' can't read this vocabulary: {error}") from error
        found.no_padding()
        found.no_truncation()
        return found


def words(text: str, *, lower: bool = True) -> list[str]:
    """The words and punctuation marks of a text, in order.

    Unicode is composed (NFC) and letters are made small first. A word is a run of letters, digits and underscores,
    with apostrophes inside; every other character that is no space is a token of its own.
    """
    plain = unicodedata.normalize("NFC", text)
    return WORD.findall(plain.lower() if lower else plain)


def text_ids(
    texts: Sequence[str], preprocessing: TextPreprocessing, vocabulary: Vocabulary
) -> list[list[int]]:
    """Ids of the tokens of each text, filled up or cut to `preprocessing.length`.

    Raises:
        RequestError: texts without a character, or the library that a vocabulary needs is missing.
    """
    empty = [place for place, text in enumerate(texts) if not text.strip()]
    if empty:
        raise RequestError(
            "texts",
            problems=[f"text {place} (counted from 0) is empty: leave it out" for place in empty],
        )
    if vocabulary.tokenizer is not None:
        return _by_library(texts, preprocessing, vocabulary)
    known, unknown = vocabulary.ids, preprocessing.unknown_id
    return [
        _fitted([known.get(word, unknown) for word in words(text, lower=preprocessing.lower)], preprocessing)
        for text in texts
    ]


def joint_vocabulary(vocabularies: Iterable[Vocabulary]) -> Vocabulary:
    """One vocabulary with the tokens of several, sorted, after a padding and an unknown token.

    Tokens called as these two are left out: no text is parted into them.
    """
    found = {token for vocabulary in vocabularies for token in vocabulary.tokens}
    return Vocabulary((PAD, UNKNOWN, *sorted(found - {PAD, UNKNOWN})))


def read_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary in a file.

    Args:
        path: text with one token a line, in the order of the ids; or JSON: a list of tokens, a mapping token -> id, or
            a file of the `tokenizers` library (tokenizer.json).

    Raises:
        RequestError: no such file, not UTF-8, too large, ids that are not 0, 1, 2, ..., or what `Vocabulary` refuses.
    """
    place = Path(path)
    try:
        if place.stat().st_size > MAX_BYTES:
            raise RequestError(
                f"vocabulary {str(place)!r} is larger than {MAX_BYTES:,} bytes", where=str(place)
            )
        text = place.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(
            f"can't read the vocabulary {str(place)!r}: {error.strerror or error}", where=str(place)
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"vocabulary {str(place)!r} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8",
            where=str(place),
        ) from error
    try:
        return _parsed(text) if place.suffix.lower() == ".json" else Vocabulary(_lines(text))
    except RequestError as error:
        raise RequestError(
            f"vocabulary {str(place)!r}", where=str(place), problems=error.problems or (error.detail,)
        ) from error


def decode_vocabulary(data: bytes) -> Vocabulary:
    """The vocabulary that `Vocabulary.encoded` wrote.

    Raises:
        RequestError: these bytes are something else.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not a readable vocabulary ({error})") from error
    if (
        not isinstance(found, dict)
        or found.get("format") != FORMAT
        or not {"tokens", "tokenizer"} & set(found)
    ):
        raise RequestError(f"not a vocabulary of the format {FORMAT!r}")
    return _parsed(data.decode()) if "tokens" not in found else Vocabulary(_listed(found["tokens"]))


def _parsed(text: str) -> Vocabulary:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not readable as JSON ({error})") from error
    if isinstance(found, list):
        return Vocabulary(_listed(found))
    if isinstance(found, dict) and found.get("format") == FORMAT:
        found = found.get("tokenizer", found.get("tokens"))
        if isinstance(found, list):
            return Vocabulary(_listed(found))
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        return Vocabulary((), to_json_text(found))
    if isinstance(found, dict) and all(type(place) is int for place in found.values()):
        if sorted(found.values()) != list(range(len(found))):
            raise RequestError(f"the ids of its {len(found)} tokens must be 0 to {len(found) - 1}, each once")
        return Vocabulary(tuple(sorted(found, key=found.__getitem__)))
    raise RequestError("JSON of a vocabulary is a list of tokens, a mapping token -> id, or a tokenizer.json")


def _lines(text: str) -> tuple[str, ...]:
    """One token a line; other marks that end lines are part of tokens."""
    return tuple(text.replace("\r\n", "\n").removesuffix("\n").split("\n"))


def _listed(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(token, str) for token in found):
        raise RequestError("tokens must be a list of texts")
    return tuple(found)


def _by_library(
    texts: Sequence[str], preprocessing: TextPreprocessing, vocabulary: Vocabulary
) -> list[list[int]]:
    library = vocabulary.library()
    # Cut by the library, which keeps the marks that it puts at the ends.
    direction = "right" if preprocessing.side == "end" else "left"
    library.enable_truncation(preprocessing.length, direction=direction)
    return [_fitted(list(found.ids), preprocessing) for found in library.encode_batch(list(texts))]


def _fitted(ids: list[int], preprocessing: TextPreprocessing) -> list[int]:
    filling = [preprocessing.pad_id] * (preprocessing.length - len(ids))
    if preprocessing.side == "end":
        return ids[: preprocessing.length] + filling
    return filling + ids[-preprocessing.length :]


def _problems(tokens: Sequence[str]) -> list[str]:
    if not tokens:
        return ["there are no tokens: give at least one"]
    problems = [f"token {place} is empty (counted from 0)" for place, token in enumerate(tokens) if not token]
    seen: dict[str, int] = {}
    for place, token in enumerate(tokens):
        if token and token in seen:
            problems.append(f"token {token!r} is there twice, as {seen[token]} and as {place}")
        seen.setdefault(token, place)
    return problems
