"""timm: ImageNet classifiers.

Weights born in TensorFlow (`tf_*`) have the names of those that were not: `padding="same"` and
`norm_epsilon=1e-3` tell. So does the architecture in the config.json that timm saves beside them.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from deeplab_jax.config import Config
from deeplab_jax.preprocessing import Preprocessing
from port.backbones.inverted_residual import conventions
from port.backbones.resnet import check_strides
from port.layouts.classification import Classification

INCEPTION = re.compile(
    r"efficientnet_b1$|tf_mobilenetv3|tf_efficientnet_(b8|lite)|tf_efficientnetv2_(b3|s|m|l|xl)$"
    r"|xception\d"
)
"""The networks whose images have a mean and a deviation of .5, by the beginning of their names: those of
the weights that timm has by default."""

DPN = Preprocessing((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
"""That of the images of Dual Path Networks."""


class Timm(Classification):
    name = "timm"
    code = "timm"
    models = (
        "ImageNet MobileNetV2 and V3, EfficientNet, EfficientNetV2 and Lite, MnasNet, ConvNeXt, RegNetX "
        "and RegNetY, aligned Xception and MobileOne as dilated networks"
    )
    choices = ("output_stride", "padding", "norm_epsilon", "norm_momentum", "preprocessing")
    prefixes = ("",)
    rule: ClassVar = {"first_block_dilation": "previous"}

    def preprocessing(self, config: Config, source: Mapping[str, np.ndarray]) -> Preprocessing:
        del source
        name = self.place(config).naming.timm_name(config.backbone)
        return default_preprocessing(name or "", config.backbone.in_channels)

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return timm_preprocessing(settings) | conventions(str(settings["architecture"]))


def default_preprocessing(name: str, channels: int) -> Preprocessing:
    """The mean and deviation of the images of timm's network of that name: ImageNet's, or its own."""
    if name.startswith("dpn") and channels == len(DPN.mean):
        return DPN
    if not INCEPTION.match(name):
        return Preprocessing()
    return Preprocessing((0.5,) * channels, (0.5,) * channels)


def timm_preprocessing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The images' mean and standard deviation in timm's config.json.

    Raises:
      ValueError: it is another code's, or of a network that we cannot compute.
    """
    if "architecture" not in settings:
        raise ValueError(
            "it has no architecture, so it is not timm's. Remove it, or pass the folder that timm saved"
        )
    check_strides(str(settings["architecture"]))
    statistics = settings.get("pretrained_cfg") or {}
    if not statistics.get("mean") or not statistics.get("std"):
        return {}
    return {"preprocessing": Preprocessing(tuple(statistics["mean"]), tuple(statistics["std"]))}
