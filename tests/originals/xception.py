"""The aligned Xceptions of timm, alone and within segmentation_models_pytorch."""

from typing import Any

from deeplab_jax.backbones import XceptionConfig
from originals.case import Cases, smp_model, timm_classifier

_timm: dict[str, Any] = {"low": "block2_relu", "norm_epsilon": 1e-3}

COMPARED: Cases = {
    "smp-v3plus-tu-xception-41-os16": smp_model(
        "DeepLabV3Plus", "tu-xception41", XceptionConfig(16, depth=41, **_timm)
    ),
}
DEEPER: Cases = {
    # At stride 8 a block of as many channels loses its stride, and with it its shortcut's convolution.
    "timm-xception-71-os8": timm_classifier("xception71", XceptionConfig(8, depth=71, **_timm)),
}
