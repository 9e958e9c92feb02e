from __future__ import annotations

import copy
import json
import pickle

import pytest

from sarto.errors import (
    GraphError,
    InfeasibleError,
    RequestError,
    SartoError,
    ShapeError,
    StoreError,
    VerifyError,
    suggest,
)

KINDS = [RequestError, InfeasibleError, GraphError, ShapeError, StoreError, VerifyError]


def test_one_problem_reads_as_its_detail() -> None:
    error = RequestError("asked 3; found 2; give 1", problems=["asked 3; found 2; give 1"])
    assert str(error) == "asked 3; found 2; give 1"


def test_several_problems_are_counted_and_listed() -> None:
    assert str(RequestError("a", problems=["a", "b", "c"])) == "3 problems: a; b; c"


def test_a_detail_of_its_own_stands_before_the_problems() -> None:
    assert str(GraphError("the model can't be sliced", problems=["a", "b"])) == (
        "the model can't be sliced: 2 problems: a; b"
    )
    assert str(GraphError("the model can't be sliced", problems=["x"])) == "the model can't be sliced: x"


def test_the_place_is_named_once() -> None:
    assert str(GraphError("mixes units", where="conv2")) == "conv2: mixes units"
    assert str(GraphError("'conv2' mixes units", where="conv2")) == "'conv2' mixes units"


def test_many_problems_are_cut_in_the_text_and_kept_in_the_value() -> None:
    error = RequestError("p0", problems=[f"p{place}" for place in range(1_000)])
    assert str(error).startswith("1,000 problems: p0; p1;")
    assert str(error).endswith("p19; and 980 more")
    assert len(error.to_json()["problems"]) == 1_000


def test_json_holds_type_detail_where_and_problems() -> None:
    error = StoreError("no such learnware", where="market.db", problems=["no such learnware"])
    assert json.loads(json.dumps(error.to_json())) == {
        "type": "StoreError",
        "detail": "no such learnware",
        "where": "market.db",
        "problems": ["no such learnware"],
    }


def test_infeasible_names_floor_and_nearest() -> None:
    error = InfeasibleError(
        "no plan fits", floor={"params": 10}, nearest={"params": 20, "engine": "slicepack"}
    )
    assert error.to_json()["floor"] == {"params": 10}
    assert error.to_json()["nearest"]["engine"] == "slicepack"
    assert InfeasibleError("no plan fits").to_json()["floor"] is None


@pytest.mark.parametrize("kind", [RequestError, ShapeError])
def test_bad_values_are_value_errors_too(kind: type[SartoError]) -> None:
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(
    "kind", [RequestError, InfeasibleError, GraphError, ShapeError, StoreError, VerifyError]
)
def test_errors_cross_process_borders(kind: type[SartoError]) -> None:
    error = kind("asked; found; do", where="here", problems=["x", "y"])
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(twin) == str(error)
        assert twin.to_json() == error.to_json()


def test_suggest_finds_the_near_word_whatever_its_case() -> None:
    assert suggest("Zebr", ["zebra", "lion"]) == " (did you mean 'zebra'?)"
    assert suggest("LION", ["zebra", "Lion"]) == " (did you mean 'Lion'?)"


def test_suggest_lists_what_is_known_when_nothing_is_near() -> None:
    assert suggest("xyz", {"b", "c", "a"}) == " (known: a, b, c)"
    assert suggest("xyz", (f"name{place:03}" for place in range(15))).endswith("name011, and 3 more)")
    assert suggest("xyz", []) == ""


def test_suggest_takes_words_of_any_length() -> None:
    assert suggest("z" * 10**6, ["zebra"]) == " (known: zebra)"
