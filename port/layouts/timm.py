"""timm: MobileNetV2, MobileNetV3 and EfficientNet-Lite classifiers.

Weights born in TensorFlow (`tf_*`) have the names of those that were not: `padding="same"` and
`norm_epsilon=1e-3` tell. So does the architecture in the config.json that timm saves beside them.
"""

from collections.abc import Mapping
from typing import Any

from deeplab_jax.backbones import EfficientNetLiteConfig, MobileNetV2Config, MobileNetV3Config
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import conv_bn, timm_names, under
from port.layouts.shapes import (
    efficientnet_lite_config,
    mobilenet_v2_config,
    mobilenet_v3_config,
    timm_projections,
)

DEFAULTS = {"norm_momentum": 0.1, "norm_epsilon": 1e-5}  # of everything but tf_*
TENSORFLOWS = {"padding": "same", "norm_epsilon": 1e-3}


class Timm(Layout):
    name = "timm"
    code = "timm"
    models = "ImageNet MobileNetV2, MobileNetV3 and EfficientNet-Lite as dilated networks"
    choices = ("output_stride", "padding", "norm_epsilon", "norm_momentum")
    linear = ("head.classifier",)

    def recognises(self, shapes: Shapes) -> bool:
        return "conv_stem.weight" in shapes and "blocks.0.0.conv_dw.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        fields = {"output_stride": output_stride or 32, "first_block_dilation": "previous"}
        fields |= DEFAULTS
        projections, in_channels = timm_projections(shapes), shapes["conv_stem.weight"][1]
        last = shapes.get("conv_head.weight", (1280,))[0]
        hidden = None
        if "blocks.2.0.se.conv_reduce.weight" in shapes or "conv_head.bias" in shapes:
            backbone = mobilenet_v3_config(projections[:-1], in_channels, **fields)
            hidden = last
        elif shapes["blocks.2.0.conv_dw.weight"][-1] == 5:
            backbone = efficientnet_lite_config(
                projections, in_channels, last_conv="used", **fields
            )
        else:
            backbone = mobilenet_v2_config(projections, in_channels, last=last, **fields)
        classes = shapes.get("classifier.weight", (1000,))[0]
        return Config(backbone, ClassifierConfig(hidden), classes)

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        told = preprocessing_told(settings)
        if str(settings["architecture"]).startswith("tf_"):
            return told | TENSORFLOWS
        return told | {"padding": "symmetric", "norm_epsilon": DEFAULTS["norm_epsilon"]}

    def names(self, config: Config) -> Names:
        names = timm_names(config.backbone)
        if isinstance(config.backbone, MobileNetV3Config):
            stage = max(int(name.split(".")[1]) for name in names.values() if "blocks" in name) + 1
            names |= conv_bn("last", f"blocks.{stage}.0.conv", f"blocks.{stage}.0.bn1")
            heads = {"head.hidden": "conv_head", "head.classifier": "classifier"}
        else:
            names |= conv_bn("last", "conv_head", "bn2")
            heads = {"head.classifier": "classifier"}
        return under("backbone", "", names) | heads

    def reference(self, config: Config):
        import timm

        match config.backbone:
            case MobileNetV3Config(size=size, width=width):
                name = f"mobilenetv3_{size}_{round(100 * width):03d}"
            case MobileNetV2Config(width=width):
                name = f"mobilenetv2_{round(100 * width):03d}"
            case EfficientNetLiteConfig(variant=variant):
                name = f"efficientnet_lite{variant}"
        if getattr(config.backbone, "padding", "symmetric") == "same":
            name = f"tf_{name}"
        if not timm.is_model(name):
            return None
        stride = config.backbone.output_stride
        if isinstance(config.backbone, MobileNetV3Config) and stride < 32:
            return None  # timm dilates it as an extractor of features only
        return timm.create_model(
            name,
            num_classes=config.num_classes,
            in_chans=config.backbone.in_channels,
            **({"output_stride": stride} if stride < 32 else {}),
        )


def preprocessing_told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The images' mean and standard deviation in timm's config.json.

    Raises:
      ValueError: it is another code's.
    """
    if "architecture" not in settings:
        raise ValueError(
            "it has no architecture, so it is not timm's. Take it away, or pass the folder that timm saved"
        )
    statistics = settings.get("pretrained_cfg") or {}
    if not statistics.get("mean") or not statistics.get("std"):
        return {}
    return {"preprocessing": Preprocessing(tuple(statistics["mean"]), tuple(statistics["std"]))}
