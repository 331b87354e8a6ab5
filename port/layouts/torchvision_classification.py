"""torchvision.models, and timm's ResNets: ImageNet classifiers, read as dilated networks."""

from collections.abc import Mapping
from typing import Any

from deeplab_jax.backbones import MobileNetV2Config, MobileNetV3Config, ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import (
    mobilenet_v2_names,
    mobilenet_v3_names,
    resnet_names,
    under,
)
from port.layouts.shapes import (
    mobilenet_v2_config,
    mobilenet_v3_config,
    resnet_config,
    torchvision_v2_projections,
    torchvision_v3_projections,
    within,
)
from port.layouts.timm import preprocessing_told


class TorchvisionClassification(Layout):
    name = "torchvision-classification"
    code = "torchvision.models and timm's ResNets"
    models = "ImageNet ResNet-18 to 152, MobileNetV2 and V3 as dilated networks"
    linear = ("head.classifier", "head.hidden")

    def recognises(self, shapes: Shapes) -> bool:
        return (
            "layer1.0.conv1.weight" in shapes
            or "features.1.conv.0.0.weight" in shapes
            or "features.1.block.0.0.weight" in shapes
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        stride = output_stride or 32
        classifier, hidden = "fc.weight", None
        if "layer1.0.conv1.weight" in shapes:
            backbone = resnet_config(shapes, output_stride=stride)
        elif "features.1.conv.0.0.weight" in shapes:
            classifier = "classifier.1.weight"
            backbone = mobilenet_v2_config(
                torchvision_v2_projections(shapes),
                shapes["features.0.0.weight"][1],
                last=shapes["features.18.0.weight"][0],
                output_stride=stride,
            )
        else:
            classifier = "classifier.3.weight"
            hidden = shapes.get("classifier.0.weight", (1280,))[0]
            backbone = mobilenet_v3_config(
                torchvision_v3_projections(within(shapes, "features.")),
                shapes["features.0.0.weight"][1],
                output_stride=stride,
            )
        dropout = 0.0 if isinstance(backbone, ResNetConfig) else 0.2
        head = ClassifierConfig(hidden, dropout=dropout)
        return Config(backbone, head, shapes.get(classifier, (1000,))[0])

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return (
            preprocessing_told(settings) if "architecture" in settings else {}
        )  # torchvision has none

    def names(self, config: Config) -> Names:
        match config.backbone:
            case ResNetConfig():
                return under("backbone", "", resnet_names(config.backbone)) | {
                    "head.classifier": "fc"
                }
            case MobileNetV2Config():
                return under("backbone", "", mobilenet_v2_names(config.backbone)) | {
                    "head.classifier": "classifier.1"
                }
            case MobileNetV3Config():
                return under("backbone", "features", mobilenet_v3_names(config.backbone)) | {
                    "head.hidden": "classifier.0",
                    "head.classifier": "classifier.3",
                }

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
