"""Convolutions of small maps as matrix products, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.slicepack.convolving import Convolution, fold, quicken, unfold
from sarto import zoo


def test_fold_is_the_transpose_of_unfold():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 2, generator=generator)
    patches = torch.randn(2 * 4 * 2, 9 * 3, generator=generator)
    folded = fold(patches.view(2, 4, 2, 3, 3, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close((unfold(maps) * patches).sum(), (maps * folded).sum())


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 2), (1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_conv2d(height, width, bias):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 5, 3, padding=1, bias=bias)
    quick = quicken(nn.Sequential(nn.Conv2d(6, 5, 3, padding=1, bias=bias)))
    quick[0].load_state_dict(plain.state_dict())
    maps = torch.randn(3, 6, height, width)
    results = []
    for model in (plain, quick):
        given = maps.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=model is quick):
            out = model(given)
        (out.float() ** 2).sum().backward()
        results.append([out.float(), given.grad, *(value.grad for value in model.parameters())])
    assert "SmallMaps" in repr(out.grad_fn) or bias
    for expected, found in zip(*results, strict=True):
        # bfloat16 has eight bits: the largest error of sums stays near 1 % of the largest value.
        assert (found - expected).abs().max() <= 0.02 * expected.abs().max()


def test_only_plain_convolutions_are_quickened_and_evaluation_stays_exact():
    model = zoo.resnet34(4, stem="cifar")
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    before, names = model(images), list(model.state_dict())
    quicken(model)
    assert torch.equal(model(images), before)
    assert list(model.state_dict()) == names
    for module in model.modules():
        if isinstance(module, Convolution):
            assert module.stride == (1, 1)
            assert module.kernel_size == (3, 3)
    assert sum(isinstance(module, Convolution) for module in model.modules()) == 30
