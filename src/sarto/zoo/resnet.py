"""CIFAR ResNets: three stages of basic blocks on a thin stem."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels of zeros before and after the given ones; no parameters."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.before = (made - given) // 2
        self.after = made - given - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / 2, w / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, given: int, made: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or given != made:
            if shortcut == "pad":
                self.shortcut = PadShortcut(given, made)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made)
                )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images.

    Reference:
        He et al., Deep Residual Learning, CVPR 2016, section 4.2.
        Differs: `width` may widen all stages; the shortcut may be a 1x1 convolution (option B).
    """

    def __init__(self, n_classes: int, depth: int, width: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        n = (depth - 2) // 6
        self.layer1 = _stage(width, width, n, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, n, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, n, 2, shortcut)
        self.linear = nn.Linear(4 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, 3, h, w)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(given: int, made: int, n: int, stride: int, shortcut: str) -> nn.Sequential:
    blocks = [BasicBlock(given, made, stride, shortcut)]
    blocks += [BasicBlock(made, made, 1, shortcut) for _ in range(n - 1)]
    return nn.Sequential(*blocks)


def cifar_resnet(n_classes: int, depth: int = 20, width: int = 16, shortcut: str = "conv") -> CifarResNet:
    """A CIFAR ResNet; depth 20, 32, 44, 56, 110 are the paper's.

    Args:
        width: channels of the first stage (16 in the paper).
        shortcut: `conv` (1x1 convolution, option B) or `pad` (strided with zero channels, option A).

    Raises:
        ValueError: depth is not 6n + 2, a number is not positive, or the shortcut is unknown.
    """
    problems = [] if n_classes >= 1 else [f"n_classes is {n_classes}: give at least 1"]
    if depth < 8 or (depth - 2) % 6:
        problems.append(f"depth is {depth}: give 6n + 2, such as 8, 20, 32, 44, 56 or 110")
    if width < 1:
        problems.append(f"width is {width}: give at least 1")
    if shortcut not in ("conv", "pad"):
        problems.append(f"shortcut is {shortcut!r}: give 'conv' or 'pad'")
    if problems:
        raise ValueError("; ".join(problems))
    return CifarResNet(n_classes, depth, width, shortcut)
