"""torchvision.models, and timm's ResNets, whose names are the same: ImageNet classifiers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.backbones import (
    EfficientNetConfig,
    MnasNetConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    RegNetConfig,
    ResNetConfig,
)
from port.layouts.classification import Classification
from port.layouts.timm import timm_preprocessing


class TorchvisionClassification(Classification):
    name = "torchvision-classification"
    code = "torchvision.models and timm's ResNets"
    models = (
        "ImageNet ResNet, ResNeXt, wide ResNet, SE-ResNet, ECA-ResNet, ResNet-C and -D, ResNeSt, Res2Net, "
        "RegNetX and RegNetY, MobileNetV2 and V3, EfficientNet and EfficientNetV2, MnasNet and ConvNeXt as "
        "dilated networks"
    )
    choices = ("output_stride", "preprocessing")
    linear_head = ("head.classifier", "head.hidden")
    prefixes = ("", "features.", "layers.")
    rules: ClassVar = {
        ResNetConfig: {},
        RegNetConfig: {},
        MobileNetV2Config: {},
        MobileNetV3Config: {},
        EfficientNetConfig: {},
        MnasNetConfig: {},
    }

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """timm's; torchvision saves none."""
        return timm_preprocessing(settings) if "architecture" in settings else {}
