"""Convolutional families: published sizes and costs, shapes, dynamic batches, and refusals."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sarto import zoo

TALL = 64
PICO_LITE = ((1, 4, 1, 1, 3), (6, 8, 2, 2, 5))

#: Model, side of its images, shape of what it gives for one image.
PICO: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "vgg16 head": (lambda: zoo.vgg(5, (4, "M", 6), hidden=(7, 8), pooled=2, bias=True), 16, (5,)),
    "cifar resnet": (lambda: zoo.cifar_resnet(5, 8, 4, "pad"), 16, (5,)),
    "resnet plain": (lambda: zoo.resnet18(5, width=4), TALL, (5,)),
    "resnet plain, cifar stem": (lambda: zoo.resnet34(5, width=3, stem="cifar"), 16, (5,)),
    "resnet bottleneck": (lambda: zoo.resnet(5, depths=(1, 2), width=4, bottleneck=True), TALL, (5,)),
    "resnext": (lambda: zoo.resnext(5, depths=(1, 2), groups=2, group_width=3, width=4), TALL, (5,)),
    "resnext cifar": (lambda: zoo.resnext_cifar(5, groups=2, group_width=3, width=4), 16, (5,)),
    "densenet": (lambda: zoo.densenet(5, depths=(2, 2), growth=4, first=6, bottleneck=2), TALL, (5,)),
    "densenet cifar": (lambda: zoo.densenet_cifar(5, depth=16, growth=4), 16, (5,)),
    "mobilenet v2": (lambda: zoo.mobilenet_v2_imagenet(5, width_ratio=0.1), TALL, (5,)),
    "mobilenet v3 small": (lambda: zoo.mobilenet_v3(5, size="small", width_ratio=0.1), TALL, (5,)),
    "mobilenet v3 large": (lambda: zoo.mobilenet_v3(5, size="large", width_ratio=0.1), TALL, (5,)),
    "mobilenet v3 cifar": (lambda: zoo.mobilenet_v3_cifar(5, width_ratio=0.1), 32, (5,)),
    "efficientnet": (lambda: zoo.efficientnet(5, width_ratio=0.1, stages=PICO_LITE), 18, (5,)),
    "efficientnet lite": (lambda: zoo.efficientnet(5, stages=PICO_LITE, lite=True), 15, (5,)),
    "efficientnet cifar": (lambda: zoo.efficientnet_cifar(5, width_ratio=0.1), 16, (5,)),
    "shufflenet": (lambda: zoo.shufflenet_v2(5, 3, (8, 12, 16), (2, 2, 1), 6, 16), TALL, (5,)),
    "shufflenet cifar": (lambda: zoo.shufflenet_v2(5, 3, (8, 12, 16), (1, 2, 1), 6, 16, "cifar"), 16, (5,)),
    "convnext": (lambda: zoo.convnext(5, depths=(1, 2), widths=(6, 8), scale=0.5), 16, (5,)),
    "convnext cifar": (lambda: zoo.convnext_cifar(5, depths=(1, 1), widths=(6, 8), scale=0.5), 16, (5,)),
    "unet": (lambda: zoo.unet(5, width=4, depth=2), 16, (5, 16, 16)),
    "fastestdet": (lambda: zoo.fastestdet(5, 3, (8, 12, 16), (1, 2, 1)), TALL, (10, TALL // 16, TALL // 16)),
}

#: Parameters and multiply-adds for one image of 224x224 pixels as published, the latter in millions.
PUBLISHED: dict[str, tuple[int, float]] = {
    "vgg16_bn": (138_365_992, 15_470),
    "resnet18": (11_689_512, 1_814),
    "resnet34": (21_797_672, 3_664),
    "resnet50": (25_557_032, 4_089),
    "resnext50_32x4d": (25_028_904, 4_230),
    "densenet121": (7_978_856, 2_834),
    "mobilenet_v2_imagenet": (3_504_872, 300.8),
    "mobilenet_v3_small": (2_542_856, 56.5),
    "mobilenet_v3_large": (5_483_032, 216.6),
    "efficientnet_b0": (5_288_548, 386),
    "shufflenet_v2_x0_5": (1_366_792, 41),
    "shufflenet_v2_x1_0": (2_278_604, 144.9),
    "convnext_tiny": (28_589_128, 4_456),
}


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sample(name: str, batch: int) -> Tensor:
    side = PICO[name][1]
    return torch.randn(batch, 3, side, side)


def lively(name: str) -> nn.Module:
    """A model whose batch norms have seen images, so that signals do not fade on their way through it."""
    model = PICO[name][0]().train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
            part.momentum = 1.0
    with torch.no_grad():
        model(sample(name, 8))
    return model.eval()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", PICO)
def test_gives_the_documented_shape(name: str, batch: int) -> None:
    build, _, shape = PICO[name]
    assert build().eval()(sample(name, batch)).shape == (batch, *shape)


@pytest.mark.parametrize("name", PICO)
def test_an_image_matters_and_does_not_depend_on_its_batch(name: str) -> None:
    model, x = lively(name).double(), sample(name, 3).double()
    with torch.no_grad():
        together = model(x)
        torch.testing.assert_close(together, torch.cat([model(image[None]) for image in x]))
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", PICO)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model = lively(name)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (sample(name, 2),), dynamic_shapes=(batch,))
    x = sample(name, 5)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("name", PICO)
def test_weights_load_into_a_second_model_of_the_same_kind(name: str) -> None:
    build = PICO[name][0]
    model, other, x = lively(name), build().eval(), sample(name, 1)
    other.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_parameters_and_multiply_adds(name: str) -> None:
    with torch.device("meta"):
        model = getattr(zoo, name)().eval()
        with FlopCounterMode(display=False) as counted:
            model(torch.empty(1, 3, 224, 224))
    params, macs = PUBLISHED[name]
    assert size(model) == params
    assert counted.get_total_flops() / 2e6 == pytest.approx(macs, rel=0.015)


@pytest.mark.parametrize(
    ("name", "count"),
    [("densenet_cifar", 769_162), ("resnext_cifar", 34_426_698), ("vgg16_bn_cifar", 14_724_042)],
)
def test_forms_for_small_images_have_the_published_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = getattr(zoo, name)()
        assert size(model) == count
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)


def test_resnet18_for_small_images_has_the_usual_parameters() -> None:
    with torch.device("meta"):
        assert size(zoo.resnet18(10, stem="cifar")) == 11_173_962


def test_the_papers_u_net_with_padding_and_batch_norm_has_the_usual_parameters() -> None:
    with torch.device("meta"):
        assert size(zoo.unet(2, 3, 64, 4)) == 31_037_698


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("efficientnet_lite0", 4.65),
        ("efficientnet_lite1", 5.42),
        ("efficientnet_lite2", 6.09),
        ("efficientnet_cifar", 4.02),
        ("mobilenet_v3_cifar", 1.53),
        ("shufflenet_v2_cifar", 0.352),
        ("convnext_cifar", 3.38),
        ("unet", 0.483),
        ("fastestdet", 0.244),
    ],
)
def test_has_the_size_that_its_docstring_says(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert size(getattr(zoo, name)()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("name", ["efficientnet_cifar", "mobilenet_v3_cifar", "shufflenet_v2_cifar"])
def test_forms_for_small_images_keep_a_side_of_four(name: str) -> None:
    sides = []
    with torch.device("meta"):
        model = getattr(zoo, name)().eval()
        model.last.register_forward_hook(lambda part, given, made: sides.append(made.shape[2:]))
        model(torch.empty(1, 3, 32, 32))
    assert sides == [(4, 4)]


@pytest.mark.parametrize("name", [*PUBLISHED, "unet", "fastestdet", "convnext_cifar", "densenet_cifar"])
def test_takes_other_classes_and_channels(name: str) -> None:
    with torch.device("meta"):
        model = getattr(zoo, name)(7, in_channels=2).eval()
        made = model(torch.empty(1, 2, 64, 64))
    assert made.shape[:2] == (1, 12 if name == "fastestdet" else 7)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (zoo.resnet18, ["conv1.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn2.bias", "fc.bias"]),
        (zoo.resnet50, ["layer1.0.conv3.weight", "layer1.0.downsample.0.weight", "layer3.5.bn3.weight"]),
        (
            zoo.vgg16_bn,
            ["features.0.bias", "features.41.running_mean", "classifier.3.weight", "classifier.6.bias"],
        ),
        (
            zoo.densenet121,
            [
                "features.conv0.weight",
                "features.denseblock3.denselayer24.norm2.weight",
                "features.transition2.conv.weight",
                "features.norm5.bias",
            ],
        ),
        (
            zoo.convnext_tiny,
            [
                "downsample_layers.0.1.weight",
                "downsample_layers.3.1.bias",
                "stages.2.8.gamma",
                "stages.0.0.pwconv1.weight",
                "head.weight",
            ],
        ),
    ],
    ids=["resnet18", "resnet50", "vgg16", "densenet121", "convnext"],
)
def test_tensors_are_named_as_in_published_weights(build: Callable[[], nn.Module], names: list[str]) -> None:
    with torch.device("meta"):
        assert set(names) <= set(build().state_dict())


def test_the_zoo_imports_nothing_but_torch_and_itself() -> None:
    files = list(Path(zoo.__file__).parent.glob("*.py"))
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module or "")
    ours = {name for name in found if name.startswith("sarto")}
    assert all(name.startswith(("sarto.zoo", "sarto.types")) for name in ours)
    assert {name.split(".")[0] for name in found - ours} <= sys.stdlib_module_names | {"torch"}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: zoo.vgg(2, hidden=(4, 0), dropout=1),
            r"hidden is \[4, 0\].*; dropout is 1: give 0 <= p < 1",
        ),
        (lambda: zoo.cifar_resnet(2, in_channels=0), "in_channels is 0: give at least 1"),
        (lambda: zoo.resnet(0, depths=(), stem="big"), r"n_classes is 0.*; depths is \[\].*; stem is 'big'"),
        (lambda: zoo.resnext(groups=0, group_width=-1), "groups is 0.*; group_width is -1"),
        (lambda: zoo.resnext(stem="none"), "stem is 'none': give 'imagenet' or 'cifar'"),
        (lambda: zoo.densenet(depths=(2, 0)), r"depths is \[2, 0\]: give positive numbers"),
        (lambda: zoo.densenet_cifar(0, depth=9), r"n_classes is 0.*; depth is 9: give 6n \+ 4"),
        (lambda: zoo.densenet_cifar(depth=4), r"depth is 4: give 6n \+ 4"),
        (lambda: zoo.mobilenet_v2_imagenet(width_ratio=0, dropout=-1), "dropout is -1.*; width_ratio is 0"),
        (lambda: zoo.mobilenet_v3(size="tiny", width_ratio=-1), "size is 'tiny': .*; width_ratio is -1"),
        (lambda: zoo.mobilenet_v3(stem="x"), "stem is 'x': give 'imagenet' or 'cifar'"),
        (lambda: zoo.efficientnet(depth_ratio=0), "depth_ratio is 0: give more than 0"),
        (lambda: zoo.efficientnet(stages=[(1, 2, 3)]), r"stages holds \[\(1, 2, 3\)\]: .*five positive"),
        (lambda: zoo.efficientnet(stages=[]), "stages is empty"),
        (lambda: zoo.shufflenet_v2(widths=(4, 7, 8)), r"widths holds \[7\]: give even numbers"),
        (lambda: zoo.shufflenet_v2(widths=(4, 8), depths=(1,)), r"widths is \[4, 8\]: give three .*; depths"),
        (lambda: zoo.convnext(depths=(1,), widths=(8, 8)), "depths has 1 stages and widths has 2"),
        (lambda: zoo.convnext_cifar(widths=(0,), depths=(1,)), r"widths is \[0\]: give positive numbers"),
        (lambda: zoo.unet(0, width=0), "n_classes is 0: give at least 1; width is 0"),
        (lambda: zoo.fastestdet(0, widths=(8, 9, 10)), r"n_classes is 0.*; widths holds \[9\]"),
    ],
)
def test_refuses_what_it_cannot_build(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
