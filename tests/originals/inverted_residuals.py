"""EfficientNets, MnasNets and the MobileNets of timm: the paths that other files have not."""

import dataclasses

from deeplab_jax.backbones import (
    EfficientNetConfig,
    MnasNetConfig,
    MobileNetV2Config,
    MobileNetV3Config,
)
from originals.case import Cases, smp_model, timm_classifier, torchvision_classifier
from originals.timm_mobile import BORN_IN_TF, v3_timm

_OWN = {"last_conv": "unused", "drop_path": 0.2}
_LUKEMELAS = {
    **_OWN,
    "padding": "same",
    "same_size": 224,
    "norm_momentum": 0.01,
    "norm_epsilon": 1e-3,
    "early_blocks": 2,
}
_RW_T = EfficientNetConfig("v2_rw_t", 32, last_conv="used")
_MINIMAL = MobileNetV3Config(
    "small", minimal=True, first_block_dilation="previous", norm_momentum=0.1, **BORN_IN_TF
)
_ZERO_75 = dataclasses.replace(v3_timm("small", 32), width=0.75, rounding="expanded")

COMPARED: Cases = {
    "smp-v3plus-effb0-os16": smp_model(
        "DeepLabV3Plus", "efficientnet-b0", EfficientNetConfig("b0", **_LUKEMELAS)
    ),
    "smp-v3-timm-effb0-os8": smp_model(
        "DeepLabV3", "timm-efficientnet-b0", EfficientNetConfig("b0", 8, **_OWN)
    ),
    "smp-v3plus-tu-tf-effv2-b0": smp_model(
        "DeepLabV3Plus", "tu-tf_efficientnetv2_b0", EfficientNetConfig("v2_b0", **BORN_IN_TF)
    ),
    "smp-v3-minimal-os8": smp_model(
        "DeepLabV3",
        "tu-tf_mobilenetv3_small_minimal_100",
        dataclasses.replace(_MINIMAL, output_stride=8),
    ),
    "timm-mbv3-small-075": timm_classifier("mobilenetv3_small_075", _ZERO_75),
    "timm-semnasnet-050-os16": timm_classifier(
        "semnasnet_050", MnasNetConfig("a1", 0.5, 16, last_conv="used")
    ),
    "tvc-mnasnet-0.5": torchvision_classifier(
        "mnasnet0_5",
        MnasNetConfig("b1", 0.5, 32, last_conv="used", norm_momentum=1 - 0.9997),
    ),
    "tvc-effb0": torchvision_classifier(
        "efficientnet_b0", EfficientNetConfig("b0", 32, last_conv="used")
    ),
}
DEEPER: Cases = {
    "tvc-effv2-s": torchvision_classifier(
        "efficientnet_v2_s", EfficientNetConfig("v2_s", 32, last_conv="used", norm_epsilon=1e-3)
    ),
    "timm-effv2-rw-t": timm_classifier("efficientnetv2_rw_t", _RW_T),
    "timm-effv2-rw-s": timm_classifier(
        "efficientnetv2_rw_s", dataclasses.replace(_RW_T, variant="v2_rw_s")
    ),
    "timm-mnasnet-small": timm_classifier(
        "mnasnet_small", MnasNetConfig("small", output_stride=32, last_conv="used")
    ),
    "timm-mbv3-small-050": timm_classifier(
        "mobilenetv3_small_050", dataclasses.replace(_ZERO_75, width=0.5)
    ),
    "smp-v3plus-tu-mbv2-110d": smp_model(
        "DeepLabV3Plus", "tu-mobilenetv2_110d", MobileNetV2Config(1.1, depth=1.2)
    ),
}
