"""Dilated classification networks.

Each turns images `[B, H, W, C]` into a dict of features: `low`, `mid` and `aux` at strides 4, 8 and
16 and `high` at the output stride (those with a larger stride than the output stride keep its size).
"""

from deeplab_jax.backbones.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from deeplab_jax.backbones.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from deeplab_jax.backbones.mobilenet_v3 import MobileNetV3, MobileNetV3Config
from deeplab_jax.backbones.resnet import ResNet, ResNetConfig

BackboneConfig = ResNetConfig | MobileNetV2Config | MobileNetV3Config | EfficientNetLiteConfig

__all__ = [
    "BackboneConfig",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "MobileNetV2",
    "MobileNetV2Config",
    "MobileNetV3",
    "MobileNetV3Config",
    "ResNet",
    "ResNetConfig",
]
