"""What `sarto add` is told about a model of texts: its vocabulary, and how texts become token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sarto.errors import RequestError, suggest

if TYPE_CHECKING:
    from sarto.graph import ModelGraph
    from sarto.market import Vocabulary
    from sarto.types import TextPreprocessing


def text_options(
    vocabulary: str | None, length: int | None, pad: str, unknown: str, side: str, cased: bool
) -> dict[str, Any]:
    """The parts of the preprocessing of texts that were given as options; empty without any.

    Raises:
        RequestError: options of texts without a vocabulary, or a value that is none.
    """
    said = {
        "--length": length is not None,
        "--pad": pad,
        "--unknown": unknown,
        "--pad-side": side,
        "--cased": cased,
    }
    named = [option for option, there in said.items() if there]
    if vocabulary is None:
        if named:
            raise RequestError(
                f"{', '.join(named)} go with a model of texts: give its tokens with --vocabulary FILE"
            )
        return {}
    if length is not None and length < 1:
        raise RequestError(f"--length must be at least 1, got {length}")
    if side and side not in ("end", "start"):
        raise RequestError(f"--pad-side {side!r}: write end or start")
    found: dict[str, Any] = {"kind": "text"}
    if length is not None:
        found["length"] = length
    if side:
        found["side"] = side
    if cased:
        found["lower"] = False
    return found | {key: token for key, token in (("pad", pad), ("unknown", unknown)) if token}


def known_words(path: str | None, said: dict[str, Any]) -> Vocabulary | None:
    """The vocabulary in a file; ids of the padding and unknown tokens take the place of their names in `said`.

    Raises:
        RequestError: the file can't be read, or a token is not in it.
    """
    if path is None:
        return None
    from sarto.market import read_vocabulary

    found = read_vocabulary(path)
    for option, key in (("pad", "pad_id"), ("unknown", "unknown_id")):
        token = said.pop(option, None)
        if token is None:
            continue
        place = _id_of(found, token)
        if place is None:
            raise RequestError(f"--{option} {token!r}: no such token in {path}{suggest(token, found.tokens)}")
        said[key] = place
    return found


def whole_text(graph: ModelGraph, said: Mapping[str, Any], vocabulary: Vocabulary) -> TextPreprocessing:
    """What was said, above the length that the model reads and what the vocabulary says.

    Raises:
        RequestError: the model reads something else than token ids.
    """
    from sarto.types import TextPreprocessing

    shape = graph.inputs[0].shape
    if len(shape) != 2:
        raise RequestError(
            f"--vocabulary goes with a model of texts; this one reads {list(shape[1:])} (without batch)"
        )
    own = {
        "kind": "text",
        "length": shape[1],
        "vocabulary": vocabulary.digest,
        "n_tokens": vocabulary.size,
        "rule": vocabulary.rule,
    }
    return TextPreprocessing.parse({**own, **said})


def _id_of(vocabulary: Vocabulary, token: str) -> int | None:
    if vocabulary.tokenizer is None:
        return vocabulary.ids.get(token)
    found = vocabulary.library().token_to_id(token)
    return None if found is None else int(found)
