from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.errors import RequestError
from sarto.types.text import MAX_YAML_BYTES, read_text, to_json_text, to_yaml_text, write_atomically

TRAPS = "no ~ 1e-3 1E5 .5 08 0x1 1_000 1:30 2024-01-01 = << &a *a !t - ? {a [b #c %d @e 'f \"g a: Infinity"
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
words |= st.sampled_from(["", " ", "- x", "a: b", "a #b", *TRAPS.split()])
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(words, plain, max_size=4))
def test_what_is_written_is_read_back(data: dict[str, Any]) -> None:
    assert read_text(to_json_text(data)) == data
    assert read_text(to_json_text(data, pretty=True)) == data
    assert read_text(to_yaml_text(data)) == data
    assert json.loads(to_json_text(data, pretty=True)) == data


def test_json_text_is_canonical() -> None:
    one, other = {"b": [1, 0.50], "a": "é"}, {"a": "é", "b": [1, 0.5]}
    assert to_json_text(one) == to_json_text(other) == '{"a":"é","b":[1,0.5]}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("1e-3", 0.001),
        ("2E5", 200000.0),
        ("08", "08"),
        ("12", 12),
        ("-0.5", -0.5),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("'5'", "5"),
    ],
)
def test_yaml_follows_the_core_rules_of_1_2(text: str, value: object) -> None:
    found = read_text(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "keys given twice in one mapping: 'a'"),
        ("a: 1\na: 2", "keys given twice in one mapping: 'a'"),
        ('{"a": NaN}', "NaN is not allowed"),
        ('{"a": -Infinity}', "numbers must be finite"),
        ('{"a": ' + "9" * 5000 + "}", "a number in the JSON is too long"),
        ('{"a": 1,\n "b" 2}', "not readable as JSON: Expecting ':' delimiter at line 2"),
        ("a: [1, 2", "not readable as YAML: .* at line 1"),
        ("a: &x [1]\nb: *x", "YAML aliases"),
        ("? [1, 2]\n: 3", "a key of a mapping must be a word"),
        ("a: !!python/object/apply:os.system [ls]", "not readable as YAML"),
        ("a: !!python/name:os.system ''", "not readable as YAML"),
        ("a: " + "9" * 5000, "a number in the YAML can't be read"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("a: 1\n---\nb: 2", "not readable as YAML"),
        ("a: \x00", "not readable as YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("a: " + "x" * MAX_YAML_BYTES, "write it as JSON"),
    ],
)
def test_hostile_text_is_refused_in_words(text: str | bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_text(text)


def test_a_byte_order_mark_is_skipped() -> None:
    assert read_text(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "value.json"
    write_atomically(place, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RequestError, match=r"can't write .*No space left"):
        write_atomically(place, "new")
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_writing_into_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"can't write .*No such file"):
        write_atomically(tmp_path / "missing" / "value.json", "x")
