"""DeepLabv3 and v3+ in JAX and Flax: models, parts to build your own, and prediction."""

from deeplab_jax.backbones import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    MobileNetV2,
    MobileNetV2Config,
    MobileNetV3,
    MobileNetV3Config,
    ResNet,
    ResNetConfig,
)
from deeplab_jax.checkpoint import ModelError, load, save
from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.heads import (
    ASPP,
    ClassifierConfig,
    Decoder,
    DeepLabV3Config,
    DeepLabV3Head,
    DeepLabV3PlusConfig,
    DeepLabV3PlusHead,
    FCNConfig,
    FCNHead,
    LRASPPConfig,
    LRASPPHead,
    rates_for,
)
from deeplab_jax.model import (
    PRESETS,
    DeepLabV3,
    DeepLabV3Plus,
    SegmentationModel,
    build,
    create,
    freeze_backbone,
    freeze_batch_norm,
)
from deeplab_jax.ops import output_size, receptive_field, resize_bilinear
from deeplab_jax.predict import predict
from deeplab_jax.preprocessing import Preprocessing, normalize
from deeplab_jax.summary import summarize

__all__ = [
    "ASPP",
    "PRESETS",
    "ClassifierConfig",
    "Config",
    "Decoder",
    "DeepLabV3",
    "DeepLabV3Config",
    "DeepLabV3Head",
    "DeepLabV3Plus",
    "DeepLabV3PlusConfig",
    "DeepLabV3PlusHead",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "FCNConfig",
    "FCNHead",
    "FeaturesConfig",
    "LRASPPConfig",
    "LRASPPHead",
    "MobileNetV2",
    "MobileNetV2Config",
    "MobileNetV3",
    "MobileNetV3Config",
    "ModelError",
    "Preprocessing",
    "ResNet",
    "ResNetConfig",
    "SegmentationModel",
    "build",
    "create",
    "freeze_backbone",
    "freeze_batch_norm",
    "load",
    "normalize",
    "output_size",
    "predict",
    "receptive_field",
    "resize_bilinear",
    "save",
    "summarize",
]
