"""timm: ImageNet classifiers.

Weights born in TensorFlow (`tf_*`) have the names of those that were not: `padding="same"` and
`norm_epsilon=1e-3` tell. So does the architecture in the config.json that timm saves beside them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.preprocessing import Preprocessing
from port.backbones.inverted_residual import TIMM_NORM
from port.backbones.resnet import check_strides
from port.layouts.classification import Classification

TENSORFLOWS = {"padding": "same", "norm_epsilon": 1e-3}


class Timm(Classification):
    name = "timm"
    code = "timm"
    models = (
        "ImageNet MobileNetV2 and V3, EfficientNet-Lite, ConvNeXt, RegNetX and RegNetY, aligned "
        "Xception and MobileOne as dilated networks"
    )
    choices = ("output_stride", "padding", "norm_epsilon", "norm_momentum")
    prefixes = ("",)
    rule: ClassVar = {"first_block_dilation": "previous"}

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        fields = timm_preprocessing(settings)
        architecture = str(settings["architecture"])
        if architecture.startswith("tf_"):
            return fields | TENSORFLOWS
        if architecture.startswith(("mobilenet", "efficientnet")):
            fields |= {"padding": "symmetric", "norm_epsilon": TIMM_NORM["norm_epsilon"]}
        return fields


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
