"""torchvision.models, and timm's ResNets under the same names."""

from deeplab_jax.backbones import MobileNetV3Config, ResNetConfig
from originals.case import Cases, timm_classifier, torchvision_classifier, v2

COMPARED: Cases = {
    "tvc-r18": torchvision_classifier("resnet18", ResNetConfig(18, 32)),
    "tvc-mbv3-small": torchvision_classifier(
        "mobilenet_v3_small", MobileNetV3Config("small", output_stride=32)
    ),
    "timm-r50-os16": timm_classifier("resnet50", ResNetConfig(50, 16)),
}
DEEPER: Cases = {
    f"tvc-r{depth}": torchvision_classifier(f"resnet{depth}", ResNetConfig(depth, 32))
    for depth in (34, 50, 101, 152)
}
DEEPER |= {
    "tvc-mbv2-1.4": torchvision_classifier("mobilenet_v2", v2(1.4), width_mult=1.4),
    "tvc-mbv3-large-os16": torchvision_classifier(
        "mobilenet_v3_large", MobileNetV3Config("large", output_stride=16), dilated=True
    ),
    "tvc-r50-os8": torchvision_classifier(
        "resnet50", ResNetConfig(50, 8), replace_stride_with_dilation=[False, True, True]
    ),
    "tvc-r50-os16": torchvision_classifier(
        "resnet50", ResNetConfig(50, 16), replace_stride_with_dilation=[False, False, True]
    ),
    "tvc-mbv2-0.5": torchvision_classifier("mobilenet_v2", v2(0.5), width_mult=0.5),
    "tvc-mbv2-1.0": torchvision_classifier("mobilenet_v2", v2(1.0)),
    "tvc-mbv3-large": torchvision_classifier(
        "mobilenet_v3_large", MobileNetV3Config("large", output_stride=32)
    ),
    "tvc-mbv3-small-os16": torchvision_classifier(
        "mobilenet_v3_small", MobileNetV3Config("small", output_stride=16), dilated=True
    ),
    "timm-r18": timm_classifier("resnet18", ResNetConfig(18, 32)),
    "timm-r50-os8": timm_classifier("resnet50", ResNetConfig(50, 8)),
}
