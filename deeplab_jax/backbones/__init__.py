"""Dilated classification networks, a file per family; `Backbone` says what each of them does.

The families stand here in the order of `deeplab list`.
"""

# isort: off
from deeplab_jax.backbones.resnet import ResNet, ResNetConfig
from deeplab_jax.backbones.regnet import RegNet, RegNetConfig
from deeplab_jax.backbones.dpn import DPN, DPNConfig
from deeplab_jax.backbones.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from deeplab_jax.backbones.mobilenet_v3 import MobileNetV3, MobileNetV3Config
from deeplab_jax.backbones.mobileone import MobileOne, MobileOneConfig
from deeplab_jax.backbones.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from deeplab_jax.backbones.efficientnet import EfficientNet, EfficientNetConfig
from deeplab_jax.backbones.mnasnet import MnasNet, MnasNetConfig
from deeplab_jax.backbones.mobilevit import MobileViT, MobileViTConfig
from deeplab_jax.backbones.mix_transformer import MixTransformer, MixTransformerConfig
from deeplab_jax.backbones.hrnet import HRNet, HRNetConfig
from deeplab_jax.backbones.drn import DRN, DRNConfig
from deeplab_jax.backbones.xception import Xception, XceptionConfig
from deeplab_jax.backbones.original_xception import OriginalXception, OriginalXceptionConfig
from deeplab_jax.backbones.convnext import ConvNeXt, ConvNeXtConfig

# isort: on
from deeplab_jax.backbones.base import Backbone, BackboneConfig
from deeplab_jax.backbones.registry import HEADS, SEPARABLE_HEADS, register_backbone

__all__ = [
    "DPN",
    "DRN",
    "HEADS",
    "SEPARABLE_HEADS",
    "Backbone",
    "BackboneConfig",
    "ConvNeXt",
    "ConvNeXtConfig",
    "DPNConfig",
    "DRNConfig",
    "EfficientNet",
    "EfficientNetConfig",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "HRNet",
    "HRNetConfig",
    "MixTransformer",
    "MixTransformerConfig",
    "MnasNet",
    "MnasNetConfig",
    "MobileNetV2",
    "MobileNetV2Config",
    "MobileNetV3",
    "MobileNetV3Config",
    "MobileOne",
    "MobileOneConfig",
    "MobileViT",
    "MobileViTConfig",
    "OriginalXception",
    "OriginalXceptionConfig",
    "RegNet",
    "RegNetConfig",
    "ResNet",
    "ResNetConfig",
    "Xception",
    "XceptionConfig",
    "register_backbone",
]
