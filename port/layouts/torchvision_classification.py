"""torchvision.models, and timm's ResNets: ImageNet classifiers, read as dilated networks."""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.backbones import MobileNetV2Config, MobileNetV3Config, ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones.mobilenet_v2 import TorchvisionMobileNetV2
from port.backbones.mobilenet_v3 import TorchvisionMobileNetV3
from port.backbones.resnet import TorchvisionResNet
from port.layouts.base import Layout, Place
from port.layouts.timm import preprocessing_told
from port.naming import Names, Shapes

CLASSIFIERS = {
    ResNetConfig: "fc",
    MobileNetV2Config: "classifier.1",
    MobileNetV3Config: "classifier.3",
}


class TorchvisionClassification(Layout):
    name = "torchvision-classification"
    code = "torchvision.models and timm's ResNets"
    models = "ImageNet ResNet-18 to 152, MobileNetV2 and V3 as dilated networks"
    linear_head = ("head.classifier", "head.hidden")
    takes_others = False  # its classifier is the backbone's own
    prefixes = ("", "features.")
    namings = (TorchvisionResNet, TorchvisionMobileNetV2, TorchvisionMobileNetV3)
    rules: ClassVar = {ResNetConfig: {}, MobileNetV2Config: {}, MobileNetV3Config: {}}

    def recognises(self, shapes: Shapes) -> bool:
        return (
            "layer1.0.conv1.weight" in shapes
            or "features.1.conv.0.0.weight" in shapes
            or "features.1.block.0.0.weight" in shapes
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 32)
        hidden = None
        if isinstance(backbone, MobileNetV3Config):
            hidden = shapes.get("classifier.0.weight", (1280,))[0]
        dropout = 0.0 if isinstance(backbone, ResNetConfig) else 0.2
        classes = shapes.get(f"{CLASSIFIERS[type(backbone)]}.weight", (1000,))[0]
        return Config(backbone, ClassifierConfig(hidden, dropout=dropout), classes)

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return (
            preprocessing_told(settings) if "architecture" in settings else {}
        )  # torchvision has none

    def prefix(self, config: Config) -> str:
        return "features." if isinstance(config.backbone, MobileNetV3Config) else ""

    def names(self, config: Config, place: Place | None = None) -> Names:
        v3 = isinstance(config.backbone, MobileNetV3Config)
        hidden = {"head.hidden": "classifier.0"} if v3 else {}
        classifier = {"head.classifier": CLASSIFIERS[type(config.backbone)]}
        return self.backbone_names(config, place) | hidden | classifier

    def reference(self, config: Config):
        from torchvision import models

        backbone, stride = config.backbone, config.backbone.output_stride
        match backbone:
            case ResNetConfig(depth=depth) if depth >= 50 or stride == 32:
                dilated = {"replace_stride_with_dilation": [False, stride == 8, stride <= 16]}
                model = getattr(models, f"resnet{depth}")
                return model(num_classes=config.num_classes, **(dilated if stride < 32 else {}))
            case MobileNetV2Config(width=width) if stride == 32:
                return models.mobilenet_v2(num_classes=config.num_classes, width_mult=width)
            case MobileNetV3Config(size=size, width=width) if stride in (16, 32):
                model = getattr(models, f"mobilenet_v3_{size}")
                return model(num_classes=config.num_classes, width_mult=width, dilated=stride == 16)
        return None  # torchvision cannot dilate it so
