"""Reference architectures in plain torch: small, typed, one file a family. They import nothing of sarto."""

from __future__ import annotations

from sarto.zoo.mobilenet import MobileNetV2, mobilenet_v2
from sarto.zoo.recurrent import RecurrentClassifier, recurrent
from sarto.zoo.resnet import CifarResNet, cifar_resnet
from sarto.zoo.swin import SwinTransformer, swin, swin_cifar, swin_t
from sarto.zoo.text_cnn import TextCNN, text_cnn
from sarto.zoo.vgg import VGG, vgg
from sarto.zoo.vit import VisionTransformer, vit, vit_cifar, vit_imagenet

__all__ = [
    "VGG",
    "CifarResNet",
    "MobileNetV2",
    "RecurrentClassifier",
    "SwinTransformer",
    "TextCNN",
    "VisionTransformer",
    "cifar_resnet",
    "mobilenet_v2",
    "recurrent",
    "swin",
    "swin_cifar",
    "swin_t",
    "text_cnn",
    "vgg",
    "vit",
    "vit_cifar",
    "vit_imagenet",
]
