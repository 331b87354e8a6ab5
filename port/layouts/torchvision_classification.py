"""torchvision.models, and timm's ResNets, whose names are the same: ImageNet classifiers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.backbones import MobileNetV2Config, MobileNetV3Config, ResNetConfig
from deeplab_jax.config import Config
from port.backbones.convnext import TorchvisionConvNeXt
from port.backbones.mobilenet_v2 import TorchvisionMobileNetV2
from port.backbones.mobilenet_v3 import TorchvisionMobileNetV3
from port.backbones.resnet import TorchvisionResNet
from port.layouts.classification import Classification
from port.layouts.timm import timm_preprocessing


class TorchvisionClassification(Classification):
    name = "torchvision-classification"
    code = "torchvision.models and timm's ResNets"
    models = "ImageNet ResNet-18 to 152, MobileNetV2 and V3 and ConvNeXt as dilated networks"
    linear_head = ("head.classifier", "head.hidden")
    prefixes = ("", "features.")
    namings = (
        TorchvisionResNet,
        TorchvisionMobileNetV2,
        TorchvisionMobileNetV3,
        TorchvisionConvNeXt,
    )
    rules: ClassVar = {ResNetConfig: {}, MobileNetV2Config: {}, MobileNetV3Config: {}}

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """timm's; torchvision saves none."""
        return timm_preprocessing(settings) if "architecture" in settings else {}

    def prefix(self, config: Config) -> str:
        return "" if isinstance(config.backbone, ResNetConfig | MobileNetV2Config) else "features."
