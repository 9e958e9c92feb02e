from __future__ import annotations

from typing import Any

import pytest

from sarto.errors import RequestError
from sarto.types import Cost, Learnware, Preprocessing, WidthCost

SHA = "sha256:" + "a" * 64


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "id": SHA,
        "name": "resnet20",
        "classes": ["cat", "dog"],
        "preprocessing": {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]},
        "graph_hash": SHA,
        "weights_hash": SHA,
        "licence": "MIT",
        "input_shape": [3, 32, 32],
        "n_samples": {"cat": 10},
        "cost": {"params": 1, "flops": 2, "memory_bytes": 3, "size_bytes": 4, "basis": "predicted"},
        "created": "2026-01-31T12:00:00+00:00",
        **changes,
    }


def test_a_manifest_is_read_and_written() -> None:
    widths = (WidthCost(ratio=0.5, params=1, flops=1, memory_bytes=1, output_bytes=1, size_bytes=1, width=2),)
    found = Learnware.parse(manifest(skill={"cat": 0.9}, skill_basis="held out")).replace(widths=widths)
    assert Learnware.parse(found.to_json()) == found == Learnware.parse(found.to_yaml())
    assert found.preprocessing.size == (32, 32)
    assert found.cost == Cost(params=1, flops=2, memory_bytes=3, size_bytes=4, basis="predicted")


def test_all_problems_of_a_manifest_are_told() -> None:
    with pytest.raises(RequestError) as caught:
        Learnware.parse(
            manifest(
                classes=["cat", "cat"],
                n_samples={"cow": 3},
                skill={"pig": 0.5},
                created="yesterday",
            )
        )
    assert caught.value.problems == (
        "classes: named twice: cat",
        "n_samples: names classes that the model does not have: cow",
        "skill: names classes that the model does not have: pig",
        "skill: goes with skill_basis; say how skill was measured",
        "created: must be a time in ISO 8601, got 'yesterday'",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "resnet"}, "id: must be 'sha256:' and 64 hex digits, got 'resnet'"),
        ({"id": "sha256:" + "A" * 64}, "id: must be 'sha256:' and 64 hex digits"),
        ({"skill": {"cat": 1.5}, "skill_basis": "x"}, "skill.cat: must be <= 1, got 1.5"),
        ({"n_samples": {"cat": -1}}, "n_samples.cat: must be >= 0, got -1"),
        ({"input_shape": []}, "input_shape: must have at least 1 entries"),
        ({"widths": [{"ratio": 0}]}, r"widths\[0\].ratio: must be > 0, got 0"),
        ({"preprocesing": {}}, "preprocesing: unknown key, did you mean 'preprocessing'"),
    ],
)
def test_bad_manifests_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Learnware.parse(manifest(**change))


def test_mean_and_std_fit_the_channels() -> None:
    with pytest.raises(RequestError) as caught:
        Preprocessing(channels=1, mean=(0, 0, 0), std=(1, 1))
    assert caught.value.problems == (
        "mean: has 3 numbers, one for each of the 1 channels was expected",
        "std: has 2 numbers, one for each of the 1 channels was expected",
    )
    with pytest.raises(RequestError, match=r"std\[0\]: must be > 0, got 0"):
        Preprocessing(channels=1, mean=(0,), std=(0,))
