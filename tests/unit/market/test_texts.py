"""Labelled texts and vocabularies: what they hold, how they are read from files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.errors import RequestError
from sarto.market import (
    Intake,
    TextSamples,
    Vocabulary,
    joint_vocabulary,
    read_samples,
    read_vocabulary,
    words,
)
from sarto.market.texts import decode_texts
from sarto.market.vocabulary import decode_vocabulary, text_ids
from sarto.types import Preprocessing, TextPreprocessing

LINES = [
    ("sea", "a ship on the wave"),
    ("food", "bread, soup & cheese"),
    ("sea", "sail"),
    ("food", "it's salt"),
]
WORDS = Vocabulary(("<pad>", "<unk>", "ship", "wave", "a", "bread", ","))


def texts() -> TextSamples:
    return TextSamples(
        tuple(text for _, text in LINES),
        np.array([1 if label == "sea" else 0 for label, _ in LINES]),
        ("food", "sea"),
    )


def reading(vocabulary: Vocabulary = WORDS, **said: object) -> TextPreprocessing:
    known = {"vocabulary": vocabulary.digest, "n_tokens": vocabulary.size, "length": 5}
    return TextPreprocessing.parse({**known, **said})


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- samples ----------------------------------------------------------------------------------------------------


def test_texts_are_chosen_joined_and_hashed_as_images_are() -> None:
    found = texts()
    assert found.counts == {"food": 2, "sea": 2} and len(found) == 4
    assert found.only(["sea"]).texts == ("a ship on the wave", "sail")
    assert found.take(1).texts == ("bread, soup & cheese", "a ship on the wave")
    turned = TextSamples(found.texts, 1 - found.labels, ("sea", "food"))
    assert turned == found and turned.digest == found.digest
    assert found.only(["sea"]).concat(found.only(["food"])) == found
    assert found.only(["sea"]) != found
    assert decode_texts(found.encoded()) == found


@given(st.lists(st.tuples(st.sampled_from("ab"), st.text(min_size=1, max_size=9)), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_any_unicode_survives_the_file(pairs: list[tuple[str, str]]) -> None:
    kept = [
        (label, text)
        for label, text in pairs
        if text.strip() and not any("\ud800" <= character <= "\udfff" for character in text)
    ]
    if not kept:
        return
    classes = tuple(sorted({label for label, _ in kept}))
    labels = np.array([classes.index(label) for label, _ in kept])
    found = TextSamples(tuple(text for _, text in kept), labels, classes)
    again = decode_texts(found.encoded())
    assert again == found and again.encoded() == found.encoded()
    assert sorted(again.texts) == sorted(text.strip() for _, text in kept)


@pytest.mark.parametrize(
    ("given_texts", "labels", "classes", "message"),
    [
        (("a", "  "), [0, 0], ("x",), "text 1 is empty: leave it out"),
        ((), [], ("x",), "no texts"),
        (("a",), [0, 0], ("x",), "2 labels for 1 texts: give one label a text"),
        (("a",), [0], ("x", "y"), "no text of class 'y': add texts, or leave the class out"),
        ((3,), [0], ("x",), "text 0 is no text but a int"),
        (("a\ud800",), [0], ("x",), "half of a character"),
        (("a" * 100_001,), [0], ("x",), "100,001 characters, the limit is 100,000"),
    ],
)
def test_texts_that_are_none_are_refused(
    given_texts: tuple[str, ...], labels: list[int], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        TextSamples(given_texts, np.array(labels, dtype=np.int64), classes)


# --- files ------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_samples(tmp_path: Path) -> None:
    plain = "\n".join(f"{label}\t{text}" for label, text in LINES)
    kinds = [
        write(tmp_path / "plain.tsv", plain),
        write(tmp_path / "named.tsv", "label\ttext\r\n" + plain.replace("\n", "\r\n")),
        write(
            tmp_path / "turned.tsv", "text\tlabel\n" + "\n".join(f"{text}\t{label}" for label, text in LINES)
        ),
        write(tmp_path / "x.csv", "label,text\n" + "\n".join(f'{label},"{text}"' for label, text in LINES)),
        write(
            tmp_path / "x.jsonl",
            "\n\n".join(json.dumps({"text": text, "label": label}) for label, text in LINES),
        ),
        write(tmp_path / "bom.tsv", b"\xef\xbb\xbf" + plain.encode()),
    ]
    for place, (label, text) in enumerate(LINES):
        write(tmp_path / "folder" / label / f"{place}.txt", text + "\n")
    for path in (*kinds, tmp_path / "folder"):
        assert read_samples(path) == texts(), path.name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "label\ttext\tmood\na\tb\tc", r"line 1: unknown column 'mood' \(known: label, text\)"),
        ("x.csv", "labels,text\na,b", r"unknown column 'labels' \(did you mean 'label'\?\)"),
        ("x.tsv", "text\nwords", "line 1: column 'label' is missing"),
        ("x.tsv", "a\tb\nno tab here", "line 2: 1 columns, label and text were expected, parted by one tab"),
        ("x.csv", 'a,"b', "unexpected end of data"),
        ("x.tsv", "a\t \n\tb", r"line 2: the label is empty"),
        ("x.tsv", "a\t ", "line 1: the text is empty"),
        ("x.tsv", "", "no text in it"),
        ("x.jsonl", '{"label": "a", "text": "b", "mood": 1}', "line 1: unknown column 'mood'"),
        ("x.jsonl", '{"label": "a", "text": "b"}\n{"label": 1, "text": "b"}', "line 2: label must be text"),
        ("x.jsonl", '{"label": "a"', "line 1: not readable as JSON"),
        ("x.jsonl", "[1]", "line 1: {"),
        ("x.tsv", b"a\tcaf\xe9", r"not UTF-8 .* at byte 5\): save it as UTF-8"),
        ("a/x.txt", b"\xff\xfe", r"a/x.txt: not UTF-8"),
        ("a/x.txt", "  ", r"a/x.txt: the text is empty"),
    ],
)
def test_files_that_hold_no_labelled_texts_are_refused(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    written = write(tmp_path / "place" / name, content)
    place = tmp_path / "place" if "/" in name else written
    with pytest.raises(RequestError, match=message):
        read_samples(place)


def test_all_problems_of_a_table_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        read_samples(write(tmp_path / "x.tsv", "a\tb\nc\n\td\ne\t"))
    assert len(refused.value.problems) == 3


# --- vocabularies -----------------------------------------------------------------------------------------------


def test_a_text_is_parted_into_words_and_marks() -> None:
    assert words("It's  a SHIP, isn\N{RIGHT SINGLE QUOTATION MARK}t it?") == [
        *("it's", "a", "ship", ",", "isn\N{RIGHT SINGLE QUOTATION MARK}t", "it", "?")
    ]
    assert words("It's", lower=False) == ["It's"]
    # One way to write an accent: composed.
    assert words("cafe\N{COMBINING ACUTE ACCENT}") == ["caf\N{LATIN SMALL LETTER E WITH ACUTE}"]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, [4, 2, 6, 1, 1]),
        ({"length": 3}, [4, 2, 6]),
        ({"length": 3, "side": "start"}, [6, 1, 1]),
        ({"length": 7}, [4, 2, 6, 1, 1, 0, 0]),
        ({"length": 7, "side": "start"}, [0, 0, 4, 2, 6, 1, 1]),
        ({"lower": False}, [1, 2, 6, 1, 1]),
        ({"pad_id": 3, "unknown_id": 0, "length": 6}, [4, 2, 6, 0, 0, 3]),
    ],
)
def test_ids_are_filled_up_and_cut_where_the_preprocessing_says(
    said: dict[str, object], wanted: list[int]
) -> None:
    assert text_ids(["A ship, big sail"], reading(**said), WORDS) == [wanted]


def test_a_vocabulary_is_read_from_lines_a_list_and_a_mapping(tmp_path: Path) -> None:
    tokens = list(WORDS.tokens)
    turned = {token: place for place, token in reversed(list(enumerate(tokens)))}
    for path in (
        write(tmp_path / "v.txt", "\n".join(tokens) + "\n"),
        write(tmp_path / "v.json", json.dumps(tokens)),
        write(tmp_path / "m.json", json.dumps(turned)),
        write(tmp_path / "s.json", WORDS.encoded()),
    ):
        assert read_vocabulary(path) == WORDS
    assert decode_vocabulary(WORDS.encoded()) == WORDS and WORDS.rule == "words"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", b"a\ncaf\xe9", "is not UTF-8"),
        ("v.txt", "a\n\nb", r"token 1 is empty \(counted from 0\)"),
        ("v.txt", "a\nb\na", "token 'a' is there twice, as 0 and as 2"),
        ("v.json", '{"a": 0, "b": 2}', "must be 0 to 1, each once"),
        ("v.json", '["a", 3]', "must be a list of texts"),
        ("v.json", "{", "not readable as JSON"),
        ("v.json", '"a"', "a list of tokens, a mapping"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_vocabularies_that_are_none_are_refused(
    name: str, content: str | bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(RequestError, match=message):
        read_vocabulary(tmp_path / name)


def test_the_joint_vocabulary_does_not_depend_on_the_order() -> None:
    other = Vocabulary(("<unk>", "zebra", "ship"))
    joint = joint_vocabulary([WORDS, other])
    assert joint == joint_vocabulary([other, WORDS])
    assert joint.tokens == ("<pad>", "<unk>", ",", "a", "bread", "ship", "wave", "zebra")


def test_a_file_of_the_tokenizers_library_parts_texts_itself(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "ship": 2, "wave": 3}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    found = read_vocabulary(tmp_path / "tokenizer.json")
    assert (found.rule, found.size) == ("tokenizers", 4)
    said = reading(found, rule="tokenizers")
    assert text_ids(["ship sail wave", "wave " * 9], said, found) == [[2, 1, 3, 0, 0], [3] * 5]
    assert decode_vocabulary(found.encoded()) == found


def test_an_intake_refuses_what_does_not_belong_to_it() -> None:
    pixels = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(RequestError, match=r"names the vocabulary sha256:.*, got no vocabulary"):
        Intake(reading())
    with pytest.raises(RequestError, match="goes with the preprocessing of texts"):
        Intake(pixels, WORDS)
    with pytest.raises(RequestError, match="the model reads images, the samples are texts"):
        Intake(pixels).tensor(texts())
    with pytest.raises(RequestError, match=r"text 1 \(counted from 0\) is empty"):
        Intake(reading(), WORDS).ids(["ship", " "])
    assert Intake(reading(), WORDS).tensor(texts()).shape == (4, 5)
