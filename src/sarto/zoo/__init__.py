"""Reference architectures in plain torch: small, typed, one file a family. They import nothing of sarto."""

from __future__ import annotations

from sarto.zoo.mobilenet import MobileNetV2, mobilenet_v2
from sarto.zoo.resnet import CifarResNet, cifar_resnet
from sarto.zoo.vgg import VGG, vgg

__all__ = ["VGG", "CifarResNet", "MobileNetV2", "cifar_resnet", "mobilenet_v2", "vgg"]
