"""From what is stored to what a model reads: pixels of an image, or token ids of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sarto.errors import RequestError
from sarto.types.fields import AboveZero, Flag, Number, Positive, Several, Sha, Whole
from sarto.types.value import Value


class Preprocessing(Value):
    """From stored pixels to what a model reads: uint8 HWC -> float [0, 1] CHW -> (x - mean) / std.

    Images are the kind of preprocessing that a mapping without `kind` means.

    Attributes:
        size: (height, width) that the model reads; None: any.
        channels: of the image.
        mean: one for each channel.
        std: one for each channel.
        resize: what happens to images of another size.
    """

    #: How a union of kinds calls this one.
    TAG: ClassVar[str] = "image"

    size: tuple[Positive, Positive] | None = None
    channels: Annotated[Positive, Field(le=1024)] = 3
    mean: Several[Number]
    std: Several[AboveZero]
    resize: Literal["refuse", "bilinear"] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _without_kind(cls, data: Any) -> Any:
        # Written down without its kind, as before there was another one.
        if isinstance(data, Mapping) and data.get("kind") == cls.TAG:
            return {key: value for key, value in data.items() if key != "kind"}
        return data

    @model_validator(mode="after")
    def _check_channels(self) -> Preprocessing:
        wrong = [
            f".{name}: has {len(values)} numbers, one for each of the {self.channels} channels was expected"
            for name, values in (("mean", self.mean), ("std", self.std))
            if len(values) != self.channels
        ]
        if wrong:
            raise RequestError(wrong[0], problems=wrong)
        return self


class TextPreprocessing(Value):
    """From a text to what a model reads: the ids of its tokens, int64, as many for each text.

    Attributes:
        kind: says that this is no image.
        length: number of ids that the model reads.
        vocabulary: content hash of the list of tokens.
        n_tokens: number of tokens in it; ids are 0 to n_tokens - 1.
        rule: how a text is parted: "words" (words and punctuation marks), or "tokenizers" (the file of the library of
            that name, which then is the vocabulary).
        lower: whether letters are made small first; only for "words".
        pad_id: what fills up a text that is too short.
        unknown_id: what stands for a token that is not in the vocabulary.
        side: where a text is filled up, and where one that is too long is cut.
    """

    TAG: ClassVar[str] = "text"

    kind: Literal["text"] = "text"
    length: Annotated[Positive, Field(le=65_536)]
    vocabulary: Sha
    n_tokens: Positive
    rule: Literal["words", "tokenizers"] = "words"
    lower: Flag = True
    pad_id: Whole = 0
    unknown_id: Whole = 1
    side: Literal["end", "start"] = "end"

    @model_validator(mode="after")
    def _check_ids(self) -> TextPreprocessing:
        wrong = [
            f".{name}: is {value}, the vocabulary has ids 0 to {self.n_tokens - 1}"
            for name, value in (("pad_id", self.pad_id), ("unknown_id", self.unknown_id))
            if value >= self.n_tokens
        ]
        if wrong:
            raise RequestError(wrong[0], problems=wrong)
        return self


def _kind(data: Any) -> str | None:
    found = data.get("kind", "image") if isinstance(data, Mapping) else getattr(data, "TAG", None)
    return found if isinstance(found, str) else None


#: Preprocessing of either kind, as a field of a value.
AnyPreprocessing = Annotated[
    Annotated[Preprocessing, Tag("image")] | Annotated[TextPreprocessing, Tag("text")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="must have the kind 'image' (also where nothing is said) or 'text'",
    ),
]


def parse_preprocessing(data: Mapping[str, Any]) -> Preprocessing | TextPreprocessing:
    """The preprocessing that a mapping describes; without `kind` it is that of images.

    Raises:
        RequestError: it describes none; every problem is named.
    """
    kind = data.get("kind", "image")
    if kind == "text":
        return TextPreprocessing.parse(data)
    if kind == "image":
        return Preprocessing.parse(data)
    raise RequestError(f"preprocessing: kind must be 'image' or 'text', got {kind!r}", where="preprocessing")
