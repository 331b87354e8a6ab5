"""Dilated classification networks.

Each turns images `[B, H, W, C]` into a dict of features: `low`, `mid` and `aux` at strides 4, 8 and
16 and `high` at the output stride (those with a larger stride than the output stride keep its size).
What is random in training draws from the `rngs` of the call, as in the heads.
"""

from deeplab_jax.backbones.drn import DRN, DRNConfig
from deeplab_jax.backbones.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from deeplab_jax.backbones.hrnet import HRNet, HRNetConfig
from deeplab_jax.backbones.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from deeplab_jax.backbones.mobilenet_v3 import MobileNetV3, MobileNetV3Config
from deeplab_jax.backbones.mobilevit import MobileViT, MobileViTConfig
from deeplab_jax.backbones.original_xception import OriginalXception, OriginalXceptionConfig
from deeplab_jax.backbones.resnet import ResNet, ResNetConfig
from deeplab_jax.backbones.xception import Xception, XceptionConfig

BackboneConfig = (
    ResNetConfig
    | MobileNetV2Config
    | MobileNetV3Config
    | EfficientNetLiteConfig
    | MobileViTConfig
    | HRNetConfig
    | DRNConfig
    | XceptionConfig
    | OriginalXceptionConfig
)

__all__ = [
    "DRN",
    "BackboneConfig",
    "DRNConfig",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "HRNet",
    "HRNetConfig",
    "MobileNetV2",
    "MobileNetV2Config",
    "MobileNetV3",
    "MobileNetV3Config",
    "MobileViT",
    "MobileViTConfig",
    "OriginalXception",
    "OriginalXceptionConfig",
    "ResNet",
    "ResNetConfig",
    "Xception",
    "XceptionConfig",
]
