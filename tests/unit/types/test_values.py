from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from sarto.errors import RequestError
from sarto.types import Budget, ClassOffer, Cost, Device, Request, Requirement, Task

SHA = "sha256:" + "a" * 64


def request(**changes: Any) -> dict[str, Any]:
    return {"task": {"classes": ["cat", "dog"]}, **changes}


def requirement() -> Requirement:
    offers = tuple(ClassOffer(cls=cls, learnware=SHA, label=at) for at, cls in enumerate(("cat", "dog")))
    return Requirement(
        request=Request.parse(request()), offers=offers, n_samples={"cat": 5, "dog": 5}, samples_digest=SHA
    )


def problems(cls: type[Any], data: Any) -> tuple[str, ...]:
    with pytest.raises(RequestError) as caught:
        cls.parse(data)
    return caught.value.problems or (caught.value.detail,)


def test_all_problems_are_told_at_once_with_their_path() -> None:
    found = problems(
        Request,
        {
            "task": {"classes": ["cat", 5, ""]},
            "budget": {"latency": 3, "flops": -1, "latency_ms": "fast"},
            "devic": {},
            "seed": True,
            "engines": "slicepack",
        },
    )
    assert set(found) == {
        "task.classes[1]: must be text, got 5",
        "task.classes[2]: must be a name without spaces around it, got ''",
        "budget.latency: unknown key, did you mean 'latency_ms'?",
        "budget.flops: must be >= 1, got -1",
        "budget.latency_ms: must be a number, got 'fast'",
        "devic: unknown key, did you mean 'device'?",
        "seed: must be a whole number, got true",
        "engines: must be a list, got 'slicepack'; write [slicepack]",
    }


def test_an_unknown_key_that_is_near_nothing_lists_the_known_ones() -> None:
    assert problems(Device, {"xyzzy": 1}) == (
        "xyzzy: unknown key (known: agent, batch, precision, profile, runtime, threads)",
    )


def test_a_missing_key_is_named() -> None:
    assert problems(Request, {}) == ("task: is missing; give it",)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("params", True, "must be a whole number, got true"),
        ("params", 2.5, "must be a whole number, got 2.5"),
        ("params", "5", "must be a whole number, got '5'"),
        ("params", 0, "must be >= 1, got 0"),
        ("params", 10**30, "must be <= 9223372036854775807"),
        pytest.param("params", 10**5000, "got a number of about 5,000 digits", id="5000 digits"),
        ("params", [1], "must be a whole number, got a list of 1"),
        ("latency_ms", True, "must be a number, got true"),
        ("latency_ms", 0, "must be > 0"),
        ("latency_ms", float("nan"), "must be finite, got nan"),
        ("latency_ms", float("inf"), "must be finite, got inf"),
        ("latency_ms", {"a": 1}, "must be a number, got a mapping of 1 keys"),
    ],
)
def test_numbers_are_strict(field: str, value: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Budget.parse({field: value})
    with pytest.raises(RequestError, match=words):
        Budget(**{field: value})  # type: ignore[arg-type]


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    assert Budget.parse("params: 2e5").params == 200_000
    assert type(Budget.parse('{"params": 2e5}').params) is int


def test_values_made_in_python_are_checked_the_same_way() -> None:
    with pytest.raises(
        RequestError, match=r"task\.classes: name the classes to tell apart, or under \.properties"
    ):
        Request(task={"classes": []})  # type: ignore[arg-type]


def test_a_word_that_is_not_a_choice_gets_a_suggestion() -> None:
    assert problems(Device, {"runtime": "onxruntime"}) == (
        "runtime: must be 'torch', 'compile', 'aotinductor', 'onnxruntime', 'litert', 'executorch' or 'openvino', got "
        "'onxruntime' (did you mean 'onnxruntime'?)",
    )


@pytest.mark.parametrize("data", ["5", "just words", "[1, 2]", "null", "", {1: 2}, {("a",): 1}])
def test_what_is_no_mapping_of_words_is_refused(data: Any) -> None:
    with pytest.raises(RequestError, match=r"a Budget is a mapping|keys of a Budget must be text"):
        Budget.parse(data)


def test_sets_are_refused_where_order_counts() -> None:
    assert problems(Task, {"classes": {"cat", "dog"}}) == ("classes: must be a list (it has an order)",)


@pytest.mark.parametrize("name", ["a\x00b", "a\ud800", "a\nb", " a", "a" * 201])
def test_names_are_one_clean_line(name: str) -> None:
    with pytest.raises(RequestError, match=r"^classes\[0\]: (has the characters|must (be|have))"):
        Task(classes=(name,))


def test_classes_are_named_once_and_in_full() -> None:
    found = problems(Request, request(task={"classes": ["cat", "dog", "cat", ":cow"]}))
    assert found == (
        "task.classes: 'cat' is named twice; name it once",
        "task.classes[3]: ':cow' is half a name; write class or learnware:class",
    )


def test_a_class_may_say_whose_it_is() -> None:
    task = Task(classes=("cat", f"{SHA}:cat", "resnet:van"))
    assert task.wanted == ((None, "cat"), (SHA, "cat"), ("resnet", "van"))


def test_text_gives_the_same_value_back() -> None:
    order = Request.parse(
        request(budget={"params": 2e5, "latency_ms": 3}, heldout=Path("a/b.npz"), name="no")
    )
    assert order.heldout == "a/b.npz"
    for text in (order.to_json(), order.to_json(pretty=True), order.to_yaml(), order.to_yaml().encode()):
        assert Request.parse(text) == order
    assert Requirement.parse(requirement().to_yaml()) == requirement()


def test_equal_values_give_equal_text() -> None:
    one = Budget.parse('{"params": 5, "latency_ms": 2}')
    other = Budget(latency_ms=2.0, params=5)
    assert one.to_json() == other.to_json()
    assert hash(one) == hash(other)


@pytest.mark.parametrize("name", ["order.json", "order.yaml", "order.yml"])
def test_files_give_the_same_value_back(tmp_path: Path, name: str) -> None:
    order = Request.parse(request(budget={"params": 5}))
    order.write(tmp_path / name)
    assert Request.read(tmp_path / name) == order
    assert (tmp_path / name).read_text().startswith("{") == (name == "order.json")


def test_a_problem_in_a_file_names_the_file(tmp_path: Path) -> None:
    place = tmp_path / "order.yaml"
    place.write_text("task: {classes: [cat]}\nsede: 3\n")
    with pytest.raises(RequestError, match=r"order\.yaml: sede: unknown key, did you mean 'seed'\?"):
        Request.read(place)
    with pytest.raises(RequestError, match=r"missing\.json' does not exist"):
        Request.read(tmp_path / "missing.json")
    with pytest.raises(RequestError, match="is a folder"):
        Request.read(tmp_path)


def test_values_do_not_change() -> None:
    value = requirement()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        value.samples_digest = SHA  # type: ignore[misc]
    for change in (
        lambda found: found.update(cat=9),
        lambda found: found.pop("cat"),
        lambda found: found.__setitem__("cat", 9),
        lambda found: found.__ior__({"cat": 9}),
    ):
        with pytest.raises(TypeError, match="can't be changed"):
            change(value.n_samples)
    assert value == requirement()


def test_values_do_not_share_what_the_caller_may_change() -> None:
    counts = {"cat": 5, "dog": 5}
    value = requirement().replace(n_samples=counts)
    counts["cat"] = 0
    assert value.n_samples == {"cat": 5, "dog": 5}


def test_values_copy_hash_and_cross_process_borders() -> None:
    value = requirement()
    assert pickle.loads(pickle.dumps(value)) == value
    assert copy.deepcopy(value) == value
    assert len({value, requirement()}) == 1


def test_replace_checks_again() -> None:
    budget = Budget(params=5)
    assert budget.replace(flops=7) == Budget(params=5, flops=7)
    assert budget.model_copy(update={"flops": 7}) == Budget(params=5, flops=7)
    for change in (budget.replace, lambda **changes: budget.model_copy(update=changes)):
        with pytest.raises(RequestError, match="flops: must be >= 1"):
            change(flops=-7)
        with pytest.raises(RequestError, match="flop: unknown key, did you mean 'flops'"):
            change(flop=7)


def cost(**changes: Any) -> Cost:
    return Cost(
        **({"params": 10, "flops": 10, "memory_bytes": 10, "size_bytes": 10, "basis": "measured"} | changes)
    )


def test_cost_names_the_limits_that_it_breaks() -> None:
    budget = Budget(params=9, flops=10, size_bytes=1, latency_ms=2.0)
    assert cost().over(budget) == ("params", "size_bytes")
    assert cost(latency_ms=2.5).over(budget) == ("params", "size_bytes", "latency_ms")
    assert cost().over(Budget()) == ()
    assert budget.limits() == {"params": 9, "flops": 10, "size_bytes": 1, "latency_ms": 2.0}


def test_a_latency_lies_in_its_interval() -> None:
    assert cost(latency_low_ms=1, latency_ms=2, latency_high_ms=3).latency_ms == 2.0
    with pytest.raises(RequestError, match=r"latency_low_ms <= latency_ms <= latency_high_ms was expected"):
        cost(latency_ms=2, latency_high_ms=1)


def test_a_requirement_has_an_offer_or_a_new_head_for_each_class() -> None:
    cat, dog = requirement().offers
    mixed = requirement().replace(offers=(dog,), new=("cat",), donors=(SHA,))
    assert mixed.classes == ("cat", "dog") and Requirement.parse(mixed.to_yaml()) == mixed
    with pytest.raises(RequestError, match=r"offers: .*expected \(dog\); got cat, dog"):
        mixed.replace(offers=(cat, dog))
    found = problems(Requirement, requirement().model_dump() | {"new": ["cow"]})
    assert any("'cow' is not wanted" in text for text in found)
    assert any("new classes need donors" in text for text in found)


def test_a_requirement_offers_each_class_in_order() -> None:
    offers = requirement().offers
    with pytest.raises(RequestError, match=r"offers: one for each .*\(cat, dog\); got dog, cat"):
        requirement().replace(offers=offers[::-1])
    assert problems(
        Requirement, requirement().model_dump() | {"offers": [{"cls": "cat", "learnwar": SHA}]}
    ) == (
        "offers[0].learnware: is missing; give it",
        "offers[0].label: is missing; give it",
        "offers[0].learnwar: unknown key, did you mean 'learnware'?",
    )


def test_types_and_errors_import_no_torch_and_no_numpy() -> None:
    code = (
        "import sys, sarto.types, sarto.errors; print({'torch', 'numpy', 'scipy', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
