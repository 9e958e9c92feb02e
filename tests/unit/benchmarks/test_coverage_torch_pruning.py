"""How a model that Torch-Pruning has cut is compared with the zeroed one: read off tags, whatever its groups were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmarks.coverage_torch_pruning import _kept, _reading_axis, _silence, prune_half


def cut_by_hand(model: nn.Sequential, kept: list[int]) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """The model with some hidden units left out, and the tags of what is left."""
    first, last = copy.deepcopy(model[0]), copy.deepcopy(model[2])
    tags = {
        f"{place}.{name}": torch.arange(parameter.numel()).reshape(parameter.shape)
        for place in (0, 2)
        for name, parameter in model[place].named_parameters()
    }
    for layer, prefix in ((first, "0"), (last, "2")):
        for name, axis in (("weight", 0), ("bias", 0)) if prefix == "0" else (("weight", 1),):
            whole = getattr(layer, name)
            setattr(layer, name, nn.Parameter(whole.detach().index_select(axis, torch.tensor(kept))))
            tags[f"{prefix}.{name}"] = tags[f"{prefix}.{name}"].index_select(axis, torch.tensor(kept))
    return nn.Sequential(first, model[1], last), tags


def test_tags_say_which_positions_are_left() -> None:
    tags = torch.arange(60).reshape(3, 4, 5)[[0, 2]][:, [1]]
    shape = torch.Size([3, 4, 5])
    assert _kept(tags, shape, 0).tolist() == [True, False, True]
    assert _kept(tags, shape, 1).tolist() == [False, True, False, False]
    assert _kept(tags, shape, 2).all()


def test_silencing_the_readers_equals_cutting_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    cut, tags = cut_by_hand(model, [0, 3, 4])
    whole = model(x)
    assert len(_silence(model, tags)) == 3
    torch.testing.assert_close(model(x), cut(x))
    assert not torch.allclose(model(x), whole)


@pytest.mark.parametrize(
    ("module", "key", "axis"),
    [
        (nn.Linear(2, 3), "weight", 1),
        (nn.Linear(2, 3), "bias", None),
        (nn.Conv2d(4, 6, 3), "weight", 1),
        (nn.ConvTranspose2d(4, 6, 3), "weight", 0),
        (nn.Conv2d(4, 4, 3, groups=4), "weight", None),
        (nn.LSTM(4, 5), "weight_ih_l0", 1),
        (nn.BatchNorm2d(4), "weight", None),
    ],
)
def test_readers_read_along_the_right_axis(module: nn.Module, key: str, axis: int | None) -> None:
    assert _reading_axis(module, key) == axis


def test_it_agrees_with_the_zeroed_model_on_a_plain_network() -> None:
    pytest.importorskip("torch_pruning")
    found = prune_half("zoo-cifar-resnet20", "default", 0)
    assert found["outcome"] == "works" and found["difference"] < 1e-12
    assert 0.2 < found["params_share"] < 0.3
    assert prune_half("zoo-cifar-resnet20", "heads", 0) == {"outcome": "no attention"}
