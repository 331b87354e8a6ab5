"""DeepLabv3 and v3+ in JAX and Flax: models, parts to build your own, and prediction."""

from deeplab_jax import backbones
from deeplab_jax.adapt import reset_classifier, with_backbone_of, with_input_channels
from deeplab_jax.backbones import *  # noqa: F403 - each family is exported where it is listed
from deeplab_jax.checkpoint import ModelError, load, save
from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.heads import (
    ASPP,
    ClassifierConfig,
    Decoder,
    DeepLabV2Config,
    DeepLabV2Head,
    DeepLabV3Config,
    DeepLabV3Head,
    DeepLabV3PlusConfig,
    DeepLabV3PlusHead,
    FCNConfig,
    FCNHead,
    LRASPPConfig,
    LRASPPHead,
    SteppedLRASPPConfig,
    SteppedLRASPPHead,
    rates_for,
)
from deeplab_jax.memory import keep_memory
from deeplab_jax.model import (
    DeepLabV3,
    DeepLabV3Plus,
    FeaturesModel,
    SegmentationModel,
    build,
    create,
    freeze_backbone,
    freeze_batch_norm,
    group_batch_norm,
    named_variables,
    with_values,
)
from deeplab_jax.ops import compiler_options, output_size, receptive_field, resize_bilinear
from deeplab_jax.predict import predict
from deeplab_jax.preprocessing import Preprocessing, normalize
from deeplab_jax.presets import PRESETS
from deeplab_jax.summary import summarize
from deeplab_jax.version import __version__

__all__ = [
    "ASPP",
    "PRESETS",
    "ClassifierConfig",
    "Config",
    "Decoder",
    "DeepLabV2Config",
    "DeepLabV2Head",
    "DeepLabV3",
    "DeepLabV3Config",
    "DeepLabV3Head",
    "DeepLabV3Plus",
    "DeepLabV3PlusConfig",
    "DeepLabV3PlusHead",
    "FCNConfig",
    "FCNHead",
    "FeaturesConfig",
    "FeaturesModel",
    "LRASPPConfig",
    "LRASPPHead",
    "ModelError",
    "Preprocessing",
    "SegmentationModel",
    "SteppedLRASPPConfig",
    "SteppedLRASPPHead",
    "__version__",
    "build",
    "compiler_options",
    "create",
    "fold_batch_norm",
    "freeze_backbone",
    "freeze_batch_norm",
    "group_batch_norm",
    "keep_memory",
    "load",
    "named_variables",
    "normalize",
    "output_size",
    "predict",
    "rates_for",
    "receptive_field",
    "reset_classifier",
    "resize_bilinear",
    "save",
    "summarize",
    "with_backbone_of",
    "with_input_channels",
    "with_values",
]
__all__ += backbones.__all__
