"""EfficientNet-Lite, as timm and efficientnet-lite-pytorch name it."""

from typing import ClassVar

from deeplab_jax.backbones import EfficientNetLiteConfig, efficientnet_lite
from port.backbones.base import Naming, register_naming
from port.backbones.inverted_residual import (
    TIMM_NORM,
    born_in,
    no_width,
    output_channels,
    timm_family,
    timm_names,
    timm_shapes,
)
from port.backbones.lukemelas import is_lukemelas, lukemelas_names, lukemelas_projections
from port.naming import Names, Shapes, conv_bn


def _config(channels: list[int], in_channels: int, **fields) -> EfficientNetLiteConfig:
    """The variant from the output channels of the blocks."""
    for variant in efficientnet_lite.SCALING:
        if output_channels(efficientnet_lite.network(variant).blocks) == channels:
            return EfficientNetLiteConfig(variant, in_channels=in_channels, **fields)
    raise no_width("EfficientNet-Lite", channels)


class _EfficientNetLite(Naming):
    family = EfficientNetLiteConfig
    known = "EfficientNet-Lite0 to 4"


class TimmEfficientNetLite(_EfficientNetLite):
    """`blocks.{stage}.{block}`, see `inverted_residual.timm_names`."""

    layouts = ("smp", "timm")
    classifier: ClassVar = {"classifier": "classifier"}

    def recognises(self, shapes: Shapes) -> bool:
        return timm_family(shapes) is self.family

    def config(self, shapes: Shapes, **fields) -> EfficientNetLiteConfig:
        last = "used" if "conv_head.weight" in shapes else "none"
        fields = TIMM_NORM | {"last_conv": last} | fields
        channels = output_channels(timm_shapes(shapes))
        return _config(channels, shapes["conv_stem.weight"][1], **fields)

    def names(self, config: EfficientNetLiteConfig) -> Names:
        network = efficientnet_lite.network(config.variant)
        names = timm_names(network.blocks, network.stem)
        return names | (conv_bn("last", "conv_head", "bn2") if config.last_conv != "none" else {})

    def timm_name(self, config: EfficientNetLiteConfig) -> str:
        return born_in(config.padding, f"efficientnet_lite{config.variant}")

    def smp_name(self, config: EfficientNetLiteConfig) -> str:
        return f"timm-tf_efficientnet_lite{config.variant}"


class LukeMelasEfficientNetLite(_EfficientNetLite):
    """efficientnet-lite-pytorch's, see `lukemelas_names`."""

    layouts = ("efficientnet-lite-pytorch",)

    def recognises(self, shapes: Shapes) -> bool:
        return is_lukemelas(shapes, squeezed=False)

    def config(self, shapes: Shapes, **fields) -> EfficientNetLiteConfig:
        fields = {"last_conv": "used"} | fields
        return _config(lukemelas_projections(shapes), shapes["_conv_stem.weight"][1], **fields)

    def names(self, config: EfficientNetLiteConfig) -> Names:
        network = efficientnet_lite.network(config.variant)
        return lukemelas_names(network, last=config.last_conv != "none")


register_naming(TimmEfficientNetLite())
register_naming(LukeMelasEfficientNetLite())
