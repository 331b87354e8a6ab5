"""EfficientNet and EfficientNetV2, as timm, torchvision and EfficientNet-PyTorch name them."""

from collections.abc import Sequence
from typing import ClassVar

from deeplab_jax.backbones import EfficientNetConfig, efficientnet
from deeplab_jax.config import Config
from port.backbones.base import Naming, register_naming
from port.backbones.inverted_residual import (
    TENSORFLOWS,
    TIMM_NORM,
    born_in,
    no_width,
    output_channels,
    timm_family,
    timm_names,
    timm_shapes,
    torchvision_names,
    within_stage,
)
from port.backbones.lukemelas import is_lukemelas, lukemelas_names, lukemelas_projections
from port.naming import Names, Shapes, conv_bn, count

ONLY_TENSORFLOWS = (
    *("b6", "b7", "b8", "l2"),
    *("v2_b0", "v2_b1", "v2_b2", "v2_b3", "v2_s", "v2_m", "v2_l", "v2_xl"),
)
"""The variants of which timm has no other weights than those born in TensorFlow."""

IMAGE_SIZES = {
    "b0": 224,
    "b1": 240,
    "b2": 260,
    "b3": 300,
    "b4": 380,
    "b5": 456,
    "b6": 528,
    "b7": 600,
    "b8": 672,
    "l2": 800,
}
"""The side that EfficientNet-PyTorch computes "same" padding for."""


def _variant(stem: int, channels: Sequence[int]) -> str:
    """The variant from the channels of the stem and of the blocks' outputs."""
    for variant in efficientnet.VARIANTS:
        network = efficientnet.network(variant)
        if (network.stem, output_channels(network.blocks)) == (stem, channels):
            return variant
    raise no_width("EfficientNet", list(channels))


class _EfficientNet(Naming):
    family = EfficientNetConfig
    known = "EfficientNet-B0 to B8 and EfficientNetV2"


class TimmEfficientNet(_EfficientNet):
    """`blocks.{stage}.{block}`, see `inverted_residual.timm_names`."""

    layouts = ("smp", "timm")
    classifier: ClassVar = {"classifier": "classifier"}

    def recognises(self, shapes: Shapes) -> bool:
        return timm_family(shapes) is self.family

    def config(self, shapes: Shapes, **fields) -> EfficientNetConfig:
        stem, in_channels, *_ = shapes["conv_stem.weight"]
        if not any(".se." in name for name in shapes):
            raise ValueError(
                "it has fused blocks without squeeze-excite after them: EfficientNet-EdgeTPU (es, em, el) "
                "and its kin are not among those we know"
            )
        variant = _variant(stem, output_channels(timm_shapes(shapes)))
        last = "used" if "conv_head.weight" in shapes else "none"
        born = TENSORFLOWS if variant in ONLY_TENSORFLOWS else {}
        fields = TIMM_NORM | {"last_conv": last} | born | fields
        return EfficientNetConfig(variant, in_channels=in_channels, **fields)

    def names(self, config: EfficientNetConfig) -> Names:
        network = efficientnet.network(config.variant)
        names = timm_names(network.blocks, network.stem)
        return names | (conv_bn("last", "conv_head", "bn2") if config.last_conv != "none" else {})

    def timm_name(self, config: EfficientNetConfig) -> str | None:
        same = config.padding == "same"
        born_once = ("v2_b", not same), ("v2_rw", same)
        if config.same_size or any(
            config.variant.startswith(variants) and other for variants, other in born_once
        ):
            return None
        name = f"efficientnet_{config.variant}".replace("_v2_", "v2_")
        return born_in(config.padding, name)

    def smp_name(self, config: EfficientNetConfig) -> str | None:
        if config.variant not in IMAGE_SIZES or config.padding == "same":
            return None
        return f"timm-efficientnet-{config.variant}"


class TorchvisionEfficientNet(_EfficientNet):
    """`{1..7}.{block}`, a Sequential for each stage, blocks as a Sequential called `block`."""

    layouts = ("torchvision-classification",)
    classifier_prefix = "features."
    classifier: ClassVar = {"classifier": "classifier.1"}

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("1.0.block.0.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> EfficientNetConfig:
        channels = []
        for stage in range(1, count(shapes, "{}.") - 1):
            for i in range(count(shapes, f"{stage}.{{}}.")):
                last = count(shapes, f"{stage}.{i}.block.{{}}.") - 1
                channels.append(shapes[f"{stage}.{i}.block.{last}.0.weight"][0])
        stem, in_channels, *_ = shapes["0.0.weight"]
        variant = _variant(stem, channels)
        norm = {"norm_momentum": 0.1, "norm_epsilon": 1e-5}
        if variant in ("b5", "b6", "b7"):
            norm = {"norm_momentum": 0.01, "norm_epsilon": 1e-3}
        elif variant.startswith("v2"):
            norm = {"norm_momentum": 0.1, "norm_epsilon": 1e-3}
        fields = norm | {"last_conv": "used"} | fields
        return EfficientNetConfig(variant, in_channels=in_channels, **fields)

    def names(self, config: EfficientNetConfig) -> Names:
        network = efficientnet.network(config.variant)
        names, channels = conv_bn("stem", "0.0", "0.1"), network.stem
        stages = network.blocks[-1].stage + 1
        for i, (block, at) in enumerate(
            zip(network.blocks, within_stage(network.blocks), strict=True)
        ):
            theirs = f"{block.stage + 1}.{at}.block"
            names |= torchvision_names(f"blocks.{i}", theirs, block, channels)
            channels = block.channels
        last = conv_bn("last", f"{stages + 1}.0", f"{stages + 1}.1")
        return names | (last if config.last_conv != "none" else {})

    def classifier_module(self, config: Config):
        from torchvision import models

        make = getattr(models, f"efficientnet_{config.backbone.variant}", None)
        if config.backbone.output_stride < 32 or make is None:
            return None
        return make(num_classes=config.num_classes)


class LukeMelasEfficientNet(_EfficientNet):
    """EfficientNet-PyTorch's, see `lukemelas_names`; its padding is computed for one size of images."""

    layouts = ("smp",)

    def recognises(self, shapes: Shapes) -> bool:
        return is_lukemelas(shapes, squeezed=True)

    def config(self, shapes: Shapes, **fields) -> EfficientNetConfig:
        stem, in_channels, *_ = shapes["_conv_stem.weight"]
        variant = _variant(stem, lukemelas_projections(shapes))
        fields = {"last_conv": "used", "same_size": IMAGE_SIZES.get(variant)} | fields
        return EfficientNetConfig(variant, in_channels=in_channels, **fields)

    def names(self, config: EfficientNetConfig) -> Names:
        network = efficientnet.network(config.variant)
        return lukemelas_names(network, last=config.last_conv != "none")

    def smp_name(self, config: EfficientNetConfig) -> str | None:
        fixed = config.same_size is not None and config.same_size == IMAGE_SIZES[config.variant]
        return f"efficientnet-{config.variant}" if fixed else None


register_naming(TimmEfficientNet())
register_naming(TorchvisionEfficientNet())
register_naming(LukeMelasEfficientNet())
