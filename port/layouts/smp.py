"""segmentation_models_pytorch: DeepLabV3 and V3Plus on ResNet, MobileNetV2 and EfficientNet-Lite.

Its own encoders are dilated by its own rule: every block of a dilated stage has the stage's rate. Those
of timm (`tu-resnet50`, whose names begin `encoder.model.`) are dilated by timm, whose first block has the
rate of the stage before. What the weights cannot tell is in the config.json that `save_pretrained` writes.
"""

from collections.abc import Mapping
from typing import Any

from deeplab_jax.backbones import (
    BackboneConfig,
    EfficientNetLiteConfig,
    MobileNetV2Config,
    ResNetConfig,
)
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import (
    aspp_names,
    conv_bn,
    mobilenet_v2_names,
    resnet_names,
    separable_names,
    timm_names,
    under,
)
from port.layouts.shapes import (
    efficientnet_lite_config,
    mobilenet_v2_config,
    resnet_config,
    timm_projections,
    torchvision_v2_projections,
    within,
)

RATES = (12, 24, 36)  # the default at every output stride
OLD_NAMES = {
    "decoder.0.": "decoder.aspp.",
    "decoder.1.": "decoder.conv.",
    "decoder.2.": "decoder.bn.",
}


class SMP(Layout):
    name = "smp"
    code = "segmentation_models_pytorch"
    models = (
        "DeepLabV3 and DeepLabV3Plus on resnet18 to 152, tu-resnet18 to 152, mobilenet_v2, "
        "timm-tf_efficientnet_lite0 to 4; options from config.json"
    )
    choices = ("output_stride", "rates", "preprocessing")
    apart = ("classification_head.",)

    def canonical(self, name: str) -> str:
        """DeepLabV3's decoder was a Sequential before 0.4."""
        for old, new in OLD_NAMES.items():
            if name.startswith(old):
                return name.replace(old, new, 1)
        return name

    def recognises(self, shapes: Shapes) -> bool:
        return "segmentation_head.0.weight" in shapes and (
            "decoder.aspp.0.convs.0.0.weight" in shapes or "decoder.aspp.convs.0.0.weight" in shapes
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        plus = "decoder.aspp.0.convs.0.0.weight" in shapes
        stride = output_stride or (16 if plus else 8)
        aspp = "decoder.aspp.0." if plus else "decoder.aspp."
        common = {
            "rates": RATES,
            "channels": shapes[f"{aspp}convs.0.0.weight"][0],
            "separable": f"{aspp}convs.1.0.1.weight" in shapes,
        }
        if plus:
            head = DeepLabV3PlusConfig(
                **common, refine=True, decoder_convs=1, separable_decoder=True
            )
        else:
            head = DeepLabV3Config(**common)
        backbone = _backbone(within(shapes, "encoder."), stride)
        lite = isinstance(backbone, EfficientNetLiteConfig)
        half = (0.5,) * backbone.in_channels
        mean_std = {"mean": half, "std": half} if lite else {}
        return Config(
            backbone,
            head,
            shapes["segmentation_head.0.weight"][0],
            align_corners=True,
            preprocessing=Preprocessing(**mean_std, size_multiple=stride),
        )

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        if not {"encoder_name", "encoder_output_stride"} <= settings.keys():
            raise ValueError(
                "it has no encoder_name and encoder_output_stride, so it is not "
                "segmentation_models_pytorch's. Take it away, or pass the folder of save_pretrained"
            )
        stride = settings["encoder_output_stride"]
        # What brings the logits back to the image's size, and what is not built otherwise.
        sizes = {"DeepLabV3": stride, "DeepLabV3Plus": 4}
        fixed = {"encoder_depth": (5,)}
        if (size := sizes.get(settings.get("_model_class"))) is not None:
            fixed["upsampling"] = (size, None)
        other = [
            f"{name} is {settings[name]!r}, and we can only do {values[0]!r}"
            for name, values in fixed.items()
            if settings.get(name, values[0]) not in values
        ]
        if other:
            raise ValueError("; ".join(other))
        told = {"output_stride": stride}
        if rates := settings.get("decoder_atrous_rates"):
            told["rates"] = tuple(rates)
        if (dropout := settings.get("decoder_aspp_dropout")) is not None:
            told["dropout"] = dropout
        return told

    def names(self, config: Config) -> Names:
        match config.backbone:
            case ResNetConfig():
                encoder = "encoder.model" if _is_timms(config.backbone) else "encoder"
                names = under("backbone", encoder, resnet_names(config.backbone))
            case MobileNetV2Config():
                names = under("backbone", "encoder", mobilenet_v2_names(config.backbone))
            case _:
                names = timm_names(config.backbone) | conv_bn("last", "conv_head", "bn2")
                names = under("backbone", "encoder", names)
        plus = isinstance(config.head, DeepLabV3PlusConfig)
        aspp = aspp_names(branches=4, separable="" if config.head.separable else None)
        names |= under("head.aspp", "decoder.aspp.0" if plus else "decoder.aspp", aspp)
        if not plus:
            names |= conv_bn("head.convs.0", "decoder.conv", "decoder.bn")
            return names | {"head.classifier": "segmentation_head.0"}
        names |= separable_names("head.refine", "decoder.aspp.1.")
        names |= {"head.refine.bn": "decoder.aspp.2"}
        names |= conv_bn("head.decoder.low", "decoder.block1.0", "decoder.block1.1")
        names |= separable_names("head.decoder.convs.0", "decoder.block2.0.")
        names |= {"head.decoder.convs.0.bn": "decoder.block2.1"}
        return names | {"head.decoder.classifier": "segmentation_head.0"}

    def rolls(self, config: Config) -> dict[str, int]:
        """The decoder concatenates (ASPP, low-level)."""
        if isinstance(config.head, DeepLabV3Config):
            return {}
        conv = "head.decoder.convs.0"
        return dict.fromkeys((f"{conv}.depthwise", f"{conv}.pointwise"), config.head.channels)

    def reference(self, config: Config):
        import segmentation_models_pytorch as smp

        plus = isinstance(config.head, DeepLabV3PlusConfig)
        return (smp.DeepLabV3Plus if plus else smp.DeepLabV3)(
            encoder_name=_encoder_name(config.backbone),
            encoder_weights=None,
            encoder_output_stride=config.backbone.output_stride,
            in_channels=config.backbone.in_channels,
            classes=config.num_classes,
            decoder_channels=config.head.channels,
            decoder_atrous_rates=config.head.rates,
            decoder_aspp_separable=config.head.separable,
        )


def _backbone(shapes: Shapes, output_stride: int) -> BackboneConfig:
    fields = {"output_stride": output_stride, "first_block_dilation": "same"}
    if "layer1.0.conv1.weight" in shapes:
        return resnet_config(shapes, **fields)
    if "model.layer1.0.conv1.weight" in shapes:
        return resnet_config(
            within(shapes, "model."), **fields | {"first_block_dilation": "previous"}
        )
    if "features.0.0.weight" in shapes:
        last = shapes["features.18.0.weight"][0]
        projections = torchvision_v2_projections(shapes)
        return mobilenet_v2_config(
            projections, shapes["features.0.0.weight"][1], last=last, **fields
        )
    if "conv_stem.weight" in shapes:
        return efficientnet_lite_config(
            timm_projections(shapes),
            shapes["conv_stem.weight"][1],
            last_conv="unused",
            drop_path=0.2,
            **fields,
        )
    raise ValueError(
        "the encoder is not one that we know: resnet18 to 152, tu-resnet18 to 152, mobilenet_v2 and "
        "timm-tf_efficientnet_lite0 to 4 are"
    )


def _is_timms(backbone: ResNetConfig) -> bool:
    return backbone.first_block_dilation == "previous"


def _encoder_name(backbone: BackboneConfig) -> str:
    match backbone:
        case ResNetConfig():
            return f"{'tu-' if _is_timms(backbone) else ''}resnet{backbone.depth}"
        case MobileNetV2Config():
            return "mobilenet_v2"
        case _:
            return f"timm-tf_efficientnet_lite{backbone.variant}"
