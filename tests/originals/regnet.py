"""RegNetX and RegNetY, of timm, alone and within segmentation_models_pytorch, and of torchvision."""

from deeplab_jax.backbones import RegNetConfig
from originals.case import Cases, smp_model, timm_classifier, torchvision_classifier

COMPARED: Cases = {
    "smp-v3plus-tu-regnety-002-os16": smp_model(
        "DeepLabV3Plus", "tu-regnety_002", RegNetConfig("y_002", 16)
    ),
    "timm-regnetx-002-os8": timm_classifier("regnetx_002", RegNetConfig("x_002", 8)),
    "tvc-regnet-y-400mf": torchvision_classifier("regnet_y_400mf", RegNetConfig("y_004", 32)),
}
DEEPER: Cases = {}
