"""Reference architectures in plain torch: small, typed, one file a family. They need nothing else of sarto."""

from __future__ import annotations

from sarto.zoo.centres import CentreDetector, centre_detector
from sarto.zoo.convnext import ConvNeXt, convnext, convnext_cifar, convnext_tiny
from sarto.zoo.densenet import DenseNet, densenet, densenet121, densenet_cifar
from sarto.zoo.efficientnet import (
    EfficientNet,
    efficientnet,
    efficientnet_b0,
    efficientnet_cifar,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
    rename_published_efficientnet,
)
from sarto.zoo.fastestdet import Detections, FastestDet, decode, detect, fastestdet, overlaps, suppress
from sarto.zoo.mobilenet import MobileNetV2, mobilenet_v2, mobilenet_v2_imagenet
from sarto.zoo.mobilenet_v3 import (
    MobileNetV3,
    mobilenet_v3,
    mobilenet_v3_cifar,
    mobilenet_v3_large,
    mobilenet_v3_small,
)
from sarto.zoo.recurrent import RecurrentClassifier, recurrent
from sarto.zoo.resnet import CifarResNet, ResNet, cifar_resnet, resnet, resnet18, resnet34, resnet50
from sarto.zoo.resnext import resnext, resnext50_32x4d, resnext_cifar
from sarto.zoo.shufflenet import (
    ShuffleNetV2,
    shufflenet_v2,
    shufflenet_v2_cifar,
    shufflenet_v2_x0_5,
    shufflenet_v2_x1_0,
)
from sarto.zoo.swin import SwinTransformer, swin, swin_cifar, swin_t
from sarto.zoo.text_cnn import TextCNN, text_cnn
from sarto.zoo.unet import UNet, unet
from sarto.zoo.vgg import VGG, vgg, vgg16_bn, vgg16_bn_cifar
from sarto.zoo.vit import VisionTransformer, vit, vit_cifar, vit_imagenet

__all__ = [
    "VGG",
    "CentreDetector",
    "CifarResNet",
    "ConvNeXt",
    "DenseNet",
    "Detections",
    "EfficientNet",
    "FastestDet",
    "MobileNetV2",
    "MobileNetV3",
    "RecurrentClassifier",
    "ResNet",
    "ShuffleNetV2",
    "SwinTransformer",
    "TextCNN",
    "UNet",
    "VisionTransformer",
    "centre_detector",
    "cifar_resnet",
    "convnext",
    "convnext_cifar",
    "convnext_tiny",
    "decode",
    "densenet",
    "densenet121",
    "densenet_cifar",
    "detect",
    "efficientnet",
    "efficientnet_b0",
    "efficientnet_cifar",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "fastestdet",
    "mobilenet_v2",
    "mobilenet_v2_imagenet",
    "mobilenet_v3",
    "mobilenet_v3_cifar",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "overlaps",
    "recurrent",
    "rename_published_efficientnet",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext",
    "resnext50_32x4d",
    "resnext_cifar",
    "shufflenet_v2",
    "shufflenet_v2_cifar",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "suppress",
    "swin",
    "swin_cifar",
    "swin_t",
    "text_cnn",
    "unet",
    "vgg",
    "vgg16_bn",
    "vgg16_bn_cifar",
    "vit",
    "vit_cifar",
    "vit_imagenet",
]
