"""EfficientNet-Lite, as timm and efficientnet-lite-pytorch name it."""

from typing import ClassVar

from deeplab_jax.backbones import EfficientNetLiteConfig, efficientnet_lite
from port.backbones.base import Naming, register_naming
from port.backbones.inverted_residual import (
    TIMM_NORM,
    born_in,
    is_plain_timms,
    no_width,
    timm_names,
    timm_projections,
)
from port.naming import Names, Shapes, conv_bn, count


def _config(projections: list[int], in_channels: int, **fields) -> EfficientNetLiteConfig:
    """The variant from the output channels of the blocks."""
    for variant in efficientnet_lite.SCALING:
        table = efficientnet_lite.block_table(variant)
        if [block.channels for block in table] == projections:
            fields = {"last_conv": "used"} | fields
            return EfficientNetLiteConfig(variant, in_channels=in_channels, **fields)
    raise no_width("EfficientNet-Lite", projections)


class _EfficientNetLite(Naming):
    family = EfficientNetLiteConfig
    known = "EfficientNet-Lite0 to 4"


class TimmEfficientNetLite(_EfficientNetLite):
    """`blocks.{stage}.{block}`, see `inverted_residual.timm_names`."""

    layouts = ("smp", "timm")
    classifier: ClassVar = {"classifier": "classifier"}

    def recognises(self, shapes: Shapes) -> bool:
        return is_plain_timms(shapes, 5)

    def config(self, shapes: Shapes, **fields) -> EfficientNetLiteConfig:
        fields = TIMM_NORM | fields
        return _config(timm_projections(shapes), shapes["conv_stem.weight"][1], **fields)

    def names(self, config: EfficientNetLiteConfig) -> Names:
        names = timm_names(efficientnet_lite.block_table(config.variant), efficientnet_lite.STEM)
        return names | (conv_bn("last", "conv_head", "bn2") if config.last_conv != "none" else {})

    def timm_name(self, config: EfficientNetLiteConfig) -> str:
        return born_in(config.padding, f"efficientnet_lite{config.variant}")

    def smp_name(self, config: EfficientNetLiteConfig) -> str:
        return f"timm-tf_efficientnet_lite{config.variant}"


class LukeMelasEfficientNetLite(_EfficientNetLite):
    """efficientnet-lite-pytorch's: `_blocks.{i}._expand_conv` and the like."""

    layouts = ("efficientnet-lite-pytorch",)

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("_blocks.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> EfficientNetLiteConfig:
        projections = [
            shapes[f"_blocks.{i}._project_conv.weight"][0]
            for i in range(count(shapes, "_blocks.{}."))
        ]
        return _config(projections, shapes["_conv_stem.weight"][1], **fields)

    def names(self, config: EfficientNetLiteConfig) -> Names:
        names = conv_bn("stem", "_conv_stem", "_bn0")
        for i in range(len(efficientnet_lite.block_table(config.variant))):
            for at, part in enumerate(("expand", "depthwise", "project")):
                if (i, part) != (0, "expand"):
                    prefix = f"_blocks.{i}."
                    conv, bn = f"{prefix}_{part}_conv", f"{prefix}_bn{at}"
                    names |= conv_bn(f"blocks.{i}.{part}", conv, bn)
        return names | (conv_bn("last", "_conv_head", "_bn1") if config.last_conv != "none" else {})


register_naming(TimmEfficientNetLite())
register_naming(LukeMelasEfficientNetLite())
