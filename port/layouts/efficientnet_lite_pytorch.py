"""efficientnet-lite-pytorch: the EfficientNet-Lite classifiers with TensorFlow's weights."""

import dataclasses
from typing import ClassVar

from deeplab_jax.backbones import EfficientNetLiteConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes

IMAGE_SIZES = (224, 240, 260, 280, 300)  # of variants 0 to 4; "same" padding is fixed for them


class EfficientNetLitePytorch(Layout):
    name = "efficientnet-lite-pytorch"
    code = "efficientnet-lite-pytorch"
    models = "ImageNet EfficientNet-Lite0 to 4 as dilated networks"
    choices = ("output_stride", "same_size", "preprocessing")
    linear_head = ("head.classifier",)
    takes_others = False  # its classifier is the backbone's own
    prefixes = ("",)
    rules: ClassVar = {
        EfficientNetLiteConfig: {
            "padding": "same",
            "norm_momentum": 0.01,
            "norm_epsilon": 1e-3,
            "drop_path": 0.2,
        }
    }

    def recognises(self, shapes: Shapes) -> bool:
        return "_conv_stem.weight" in shapes and "_blocks.0._project_conv.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 32)
        backbone = dataclasses.replace(backbone, same_size=IMAGE_SIZES[backbone.variant])
        channels = backbone.in_channels
        return Config(
            backbone,
            ClassifierConfig(),
            shapes.get("_fc.weight", (1000,))[0],
            preprocessing=Preprocessing((127 / 255,) * channels, (128 / 255,) * channels),
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        return self.backbone_names(config, place) | {"head.classifier": "_fc"}

    def reference(self, config: Config, place: Place | None = None):
        del place
        if config.backbone.output_stride != 32:
            return None  # the package cannot dilate
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(
            f"efficientnet-lite{config.backbone.variant}",
            in_channels=config.backbone.in_channels,
            num_classes=config.num_classes,
        )
