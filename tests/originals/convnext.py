"""ConvNeXt, of torchvision, of timm, and of timm within segmentation_models_pytorch."""

from deeplab_jax.backbones import ConvNeXtConfig
from originals.case import Cases, smp_model, timm_classifier, torchvision_classifier

COMPARED: Cases = {
    "tvc-convnext-tiny": torchvision_classifier("convnext_tiny", ConvNeXtConfig("tiny", 32)),
    "timm-convnext-tiny-os16": timm_classifier("convnext_tiny", ConvNeXtConfig("tiny", 16)),
    "timm-convnext-tiny-os8": timm_classifier("convnext_tiny", ConvNeXtConfig("tiny", 8)),
    "smp-v3plus-tu-convnext-tiny-os16": smp_model(
        "DeepLabV3Plus", "tu-convnext_tiny", ConvNeXtConfig("tiny", 16)
    ),
}
DEEPER: Cases = {
    f"timm-convnext-{size}": timm_classifier(f"convnext_{size}", ConvNeXtConfig(size, 32))
    for size in ("tiny", "small", "base")
}
