"""segmentation_models_pytorch: sizes must be multiples of the output stride."""

import dataclasses

from deeplab_jax.backbones import EfficientNetLiteConfig, MobileNetV2Config, ResNetConfig
from originals.case import Cases, smp_model


def _lite(variant: int, stride: int = 16) -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(variant, stride, last_conv="unused", drop_path=0.2)


_v2_smp = MobileNetV2Config(last_conv="used")
COMPARED: Cases = {
    "smp-v3plus-r18-os16": smp_model("DeepLabV3Plus", "resnet18", ResNetConfig(18, 16)),
    "smp-v3-r18-os8-1-channel": smp_model(
        "DeepLabV3", "resnet18", ResNetConfig(18, 8, in_channels=1), in_channels=1
    ),
    "smp-v3-r18-os16-separable-4-channels": smp_model(
        "DeepLabV3",
        "resnet18",
        ResNetConfig(18, 16, in_channels=4),
        {"rates": (6, 12, 18)},
        in_channels=4,
        decoder_channels=96,
        decoder_atrous_rates=(6, 12, 18),
        decoder_aspp_separable=True,
    ),
    "smp-v3plus-r50-os8-dense": smp_model(
        "DeepLabV3Plus", "resnet50", ResNetConfig(50, 8), decoder_aspp_separable=False
    ),
    "smp-v3-mbv2-os8": smp_model(
        "DeepLabV3", "mobilenet_v2", dataclasses.replace(_v2_smp, output_stride=8)
    ),
    "smp-v3plus-mbv2-os16": smp_model("DeepLabV3Plus", "mobilenet_v2", _v2_smp),
    "smp-v3plus-lite0-os16": smp_model("DeepLabV3Plus", "timm-tf_efficientnet_lite0", _lite(0)),
    "smp-v3plus-tu-r34-os16": smp_model("DeepLabV3Plus", "tu-resnet34", ResNetConfig(34, 16)),
    "smp-v3-tu-r50-os8": smp_model("DeepLabV3", "tu-resnet50", ResNetConfig(50, 8)),
    "smp-v3-lite0-os8": smp_model("DeepLabV3", "timm-tf_efficientnet_lite0", _lite(0, 8)),
}
DEEPER: Cases = {
    f"smp-v3plus-r{depth}-os{stride}": smp_model(
        "DeepLabV3Plus", f"resnet{depth}", ResNetConfig(depth, stride)
    )
    for depth, stride in ((34, 8), (50, 16), (101, 16), (152, 8))
}
DEEPER |= {
    f"smp-v3plus-lite{variant}": smp_model(
        "DeepLabV3Plus", f"timm-tf_efficientnet_lite{variant}", _lite(variant)
    )
    for variant in (1, 2, 3, 4)
}
DEEPER |= {
    "smp-v3-r101-os8": smp_model("DeepLabV3", "resnet101", ResNetConfig(101, 8)),
    "smp-v3plus-mbv2-os8": smp_model(
        "DeepLabV3Plus", "mobilenet_v2", dataclasses.replace(_v2_smp, output_stride=8)
    ),
}
