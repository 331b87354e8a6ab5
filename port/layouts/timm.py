"""timm: MobileNetV2, MobileNetV3 and EfficientNet-Lite classifiers.

Weights born in TensorFlow (`tf_*`) have the names of those that were not: `padding="same"` and
`norm_epsilon=1e-3` tell. So does the architecture in the config.json that timm saves beside them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.backbones import EfficientNetLiteConfig, MobileNetV2Config, MobileNetV3Config
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from deeplab_jax.preprocessing import Preprocessing
from port.backbones.efficientnet_lite import TimmEfficientNetLite
from port.backbones.mobilenet_v2 import TimmMobileNetV2
from port.backbones.mobilenet_v3 import TimmMobileNetV3
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes

DEFAULTS = {"norm_momentum": 0.1, "norm_epsilon": 1e-5}  # of everything but tf_*
TENSORFLOWS = {"padding": "same", "norm_epsilon": 1e-3}


class Timm(Layout):
    name = "timm"
    code = "timm"
    models = "ImageNet MobileNetV2, MobileNetV3 and EfficientNet-Lite as dilated networks"
    choices = ("output_stride", "padding", "norm_epsilon", "norm_momentum")
    linear_head = ("head.classifier",)
    takes_others = False  # its classifier is the backbone's own
    prefixes = ("",)
    namings = (TimmMobileNetV2, TimmMobileNetV3, TimmEfficientNetLite)
    rules: ClassVar = dict.fromkeys(
        (MobileNetV2Config, MobileNetV3Config, EfficientNetLiteConfig),
        {"first_block_dilation": "previous"} | DEFAULTS,
    )

    def recognises(self, shapes: Shapes) -> bool:
        return "conv_stem.weight" in shapes and "blocks.0.0.conv_dw.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 32)
        hidden = None
        if isinstance(backbone, MobileNetV3Config):
            hidden = shapes.get("conv_head.weight", (1280,))[0]
        classes = shapes.get("classifier.weight", (1000,))[0]
        return Config(backbone, ClassifierConfig(hidden), classes)

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        told = preprocessing_told(settings)
        if str(settings["architecture"]).startswith("tf_"):
            return told | TENSORFLOWS
        return told | {"padding": "symmetric", "norm_epsilon": DEFAULTS["norm_epsilon"]}

    def names(self, config: Config, place: Place | None = None) -> Names:
        v3 = isinstance(config.backbone, MobileNetV3Config)
        hidden = {"head.hidden": "conv_head"} if v3 else {}
        return self.backbone_names(config, place) | hidden | {"head.classifier": "classifier"}

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
