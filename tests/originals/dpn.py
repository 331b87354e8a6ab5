"""Dual Path Networks of segmentation_models_pytorch."""

from deeplab_jax.backbones import DPNConfig
from originals.case import Cases, smp_model

COMPARED: Cases = {
    "smp-v3plus-dpn-68-os16": smp_model("DeepLabV3Plus", "dpn68", DPNConfig("68", 16)),
    "smp-v3-dpn-68b-os8": smp_model("DeepLabV3", "dpn68b", DPNConfig("68b", 8)),
}
DEEPER: Cases = {}
