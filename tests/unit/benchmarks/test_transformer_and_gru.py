"""A pack of a model's own classes says what its fragments say, and nothing is lost where nothing is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.slicepack.transformer_and_gru import (
    CUTS,
    HEADS,
    METHODS,
    Subject,
    compare,
    cut_pack,
    own_head,
)
from sarto import zoo
from sarto.engines.slicepack import read_donor
from sarto.graph import branch, capture, with_head

CLASSES = ("a", "b", "c")


def _images(k: int, draw: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw)
    return {cls: torch.randn(k, 3, 16, 16, generator=generator) + n for n, cls in enumerate(CLASSES)}


def _texts(k: int, draw: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw)
    return {
        cls: torch.randint(4 * n, 4 * n + 6, (k, 5), generator=generator) for n, cls in enumerate(CLASSES)
    }


def _subject(name: str) -> Subject:
    torch.manual_seed(0)
    if name == "vit":
        module, example = zoo.vit(3, 16, 8, 12, 1, 2).eval(), torch.rand(2, 3, 16, 16)
        return Subject(
            name, CLASSES, capture(module, example), ("hidden units",), _images, _images(20, 9), {}
        )
    gru = zoo.recurrent(3, "gru", 16, 6, 8, bidirectional=True, pool="mean").eval()
    graph = capture(gru, torch.zeros(2, 5, dtype=torch.int64))
    return Subject(name, CLASSES, graph, ("recurrent units",), _texts, _texts(20, 9), {})


@pytest.mark.parametrize("name", ["vit", "gru"])
@pytest.mark.parametrize("method", ["ours", "ours_together"])
def test_under_the_donors_head_each_class_has_the_score_that_its_fragment_gives_it(
    name: str, method: str
) -> None:
    subject = _subject(name)
    inputs = torch.cat(list(subject.samples(4, 0).values()))
    readings = read_donor(subject.graph, inputs, torch.arange(3).repeat_interleave(4), 3)
    pack = cut_pack(method, subject, readings, 0.5, 0)
    packed = with_head(branch(pack.extractors), *own_head(pack))
    expected = torch.stack(
        [pack.graphs[speaker](inputs)[:, label] for label, speaker in enumerate(pack.speakers)], 1
    )
    assert len(pack.graphs) == (3 if CUTS[method][0] else 1)
    torch.testing.assert_close(packed(inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "gru"])
def test_where_nothing_is_cut_nothing_is_lost(name: str) -> None:
    found = compare(_subject(name), [3], 1, 1.0, 0)
    assert {(row["method"], row["head"]) for row in found["rows"]} == {(m, h) for m in METHODS for h in HEADS}
    for method in CUTS:
        assert found[f"points_under_donor_{method}_own_head_k3"] == 0
    for cost in ("params", "flops"):
        assert found[f"{cost}_ours_together"] == found[f"{cost}_donor"]


def test_points_are_against_the_whole_model_with_its_own_head() -> None:
    found = compare(_subject("vit"), [2, 3], 2, 0.5, 0)
    for k in (2, 3):
        at = {
            (row["method"], row["head"], row["n_draw"]): row["accuracy_tested"]
            for row in found["rows"]
            if row["n_samples_per_class"] == k
        }
        under = [100 * (at["donor", "own_head", draw] - at["ours", "new_head", draw]) for draw in (0, 1)]
        assert found[f"points_under_donor_ours_new_head_k{k}"] == pytest.approx(sum(under) / 2)
        assert found[f"points_under_donor_worst_ours_new_head_k{k}"] == pytest.approx(max(under))
