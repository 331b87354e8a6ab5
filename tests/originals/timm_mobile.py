"""timm's MobileNets and EfficientNet-Lites."""

import dataclasses

from deeplab_jax.backbones import EfficientNetLiteConfig, MobileNetV3Config
from originals.case import Cases, timm_classifier, v2


def v3_timm(size: str, stride: int, **fields) -> MobileNetV3Config:
    return MobileNetV3Config(
        size, 1.0, stride, "previous", norm_momentum=0.1, **{"norm_epsilon": 1e-5} | fields
    )


BORN_IN_TF = {"padding": "same", "norm_epsilon": 1e-3}  # what no weight tells
_LITE_TIMM = EfficientNetLiteConfig(0, 32, last_conv="used")
COMPARED: Cases = {
    "timm-mbv2-050-os16": timm_classifier("mobilenetv2_050", v2(0.5, 16)),
    "timm-mbv3-small": timm_classifier("mobilenetv3_small_100", v3_timm("small", 32)),
    "timm-tf-mbv3-large": timm_classifier(
        "tf_mobilenetv3_large_100", v3_timm("large", 32, **BORN_IN_TF), BORN_IN_TF
    ),
    "timm-lite0-os8": timm_classifier(
        "efficientnet_lite0", dataclasses.replace(_LITE_TIMM, output_stride=8)
    ),
    "timm-tf-lite0-os16": timm_classifier(
        "tf_efficientnet_lite0",
        dataclasses.replace(_LITE_TIMM, output_stride=16, **BORN_IN_TF),
        BORN_IN_TF,
    ),
}
DEEPER: Cases = {
    "timm-mbv2-100-os8": timm_classifier("mobilenetv2_100", v2(1.0, 8)),
    "timm-mbv2-140": timm_classifier("mobilenetv2_140", v2(1.4)),
    "timm-mbv3-large": timm_classifier("mobilenetv3_large_100", v3_timm("large", 32)),
    "timm-lite4": timm_classifier("efficientnet_lite4", dataclasses.replace(_LITE_TIMM, variant=4)),
}
