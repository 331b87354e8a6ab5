"""timm: ImageNet classifiers.

Weights born in TensorFlow (`tf_*`) have the names of those that were not: `padding="same"` and
`norm_epsilon=1e-3` tell. So does the architecture in the config.json that timm saves beside them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.backbones import EfficientNetLiteConfig, MobileNetV2Config, MobileNetV3Config
from deeplab_jax.preprocessing import Preprocessing
from port.backbones.convnext import TimmConvNeXt
from port.backbones.efficientnet_lite import TimmEfficientNetLite
from port.backbones.mobilenet_v2 import TimmMobileNetV2
from port.backbones.mobilenet_v3 import TimmMobileNetV3
from port.layouts.classification import Classification

DEFAULTS = {"norm_momentum": 0.1, "norm_epsilon": 1e-5}  # of everything but tf_*
TENSORFLOWS = {"padding": "same", "norm_epsilon": 1e-3}


class Timm(Classification):
    name = "timm"
    code = "timm"
    models = "ImageNet MobileNetV2 and V3, EfficientNet-Lite and ConvNeXt as dilated networks"
    choices = ("output_stride", "padding", "norm_epsilon", "norm_momentum")
    prefixes = ("",)
    namings = (TimmMobileNetV2, TimmMobileNetV3, TimmEfficientNetLite, TimmConvNeXt)
    rules: ClassVar = dict.fromkeys(
        (MobileNetV2Config, MobileNetV3Config, EfficientNetLiteConfig),
        {"first_block_dilation": "previous"} | DEFAULTS,
    )

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        fields = timm_preprocessing(settings)
        architecture = str(settings["architecture"])
        if architecture.startswith("tf_"):
            return fields | TENSORFLOWS
        if architecture.startswith(("mobilenet", "efficientnet")):
            fields |= {"padding": "symmetric", "norm_epsilon": DEFAULTS["norm_epsilon"]}
        return fields


def timm_preprocessing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The images' mean and standard deviation in timm's config.json.

    Raises:
      ValueError: it is another code's.
    """
    if "architecture" not in settings:
        raise ValueError(
            "it has no architecture, so it is not timm's. Remove it, or pass the folder that timm saved"
        )
    statistics = settings.get("pretrained_cfg") or {}
    if not statistics.get("mean") or not statistics.get("std"):
        return {}
    return {"preprocessing": Preprocessing(tuple(statistics["mean"]), tuple(statistics["std"]))}
