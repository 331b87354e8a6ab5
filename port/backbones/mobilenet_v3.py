"""MobileNetV3, as torchvision, mmsegmentation and timm name it."""

import itertools
from typing import ClassVar

from deeplab_jax.backbones import MobileNetV3Config, mobilenet_v3
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming, register_naming
from port.backbones.inverted_residual import (
    TENSORFLOWS,
    TIMM_NORM,
    WIDTHS,
    born_in,
    no_width,
    output_channels,
    parts,
    same_blocks,
    timm_family,
    timm_names,
    timm_shapes,
    torchvision_names,
)
from port.naming import Names, Shapes, conv_bn, count

ONLY_TENSORFLOWS = (("large", 0.75, False), ("large", 1.0, True), ("small", 1.0, True))
"""Size, width and whether it is minimal, of those that timm has no other weights of."""


class _MobileNetV3(Naming):
    family = MobileNetV3Config
    known = "MobileNetV3"


class TorchvisionMobileNetV3(_MobileNetV3):
    """`{0..16}`, blocks as a Sequential called `block`."""

    layouts = ("torchvision", "torchvision-classification")
    classifier_prefix = "features."
    classifier: ClassVar = {"hidden": "classifier.0", "classifier": "classifier.3"}

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("1.block.0.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV3Config:
        parts = {i: count(shapes, f"{i}.block.{{}}.") for i in range(1, count(shapes, "{}."))}
        channels = [shapes[f"{i}.block.{n - 1}.0.weight"][0] for i, n in parts.items() if n]
        for size, width in itertools.product(mobilenet_v3.TABLES, WIDTHS):
            config = MobileNetV3Config(size, width, in_channels=shapes["0.0.weight"][1], **fields)
            if output_channels(mobilenet_v3.block_table(config)) == channels:
                return config
        raise no_width("MobileNetV3", channels)

    def names(self, config: MobileNetV3Config) -> Names:
        names = conv_bn("stem", "0.0", "0.1")
        table = mobilenet_v3.block_table(config)
        channels = mobilenet_v3.stem_channels(config)
        for i, block in enumerate(table):
            names |= torchvision_names(f"blocks.{i}", f"{i + 1}.block", block, channels)
            channels = block.channels
        return names | conv_bn("last", f"{len(table) + 1}.0", f"{len(table) + 1}.1")

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        return ClassifierConfig(shapes.get("classifier.0.weight", (1280,))[0])

    def classifier_module(self, config: Config):
        from torchvision import models

        backbone, stride = config.backbone, config.backbone.output_stride
        if stride == 8:
            return None
        make = getattr(models, f"mobilenet_v3_{backbone.size}")
        options = {"width_mult": backbone.width, "dilated": stride == 16}
        return make(num_classes=config.num_classes, **options)


class MMSegMobileNetV3(_MobileNetV3):
    """`layer{0..16}`, of which the first is the stem and the last the convolution behind the blocks."""

    layouts = ("mmseg",)

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("layer1.depthwise_conv.conv.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV3Config:
        blocks = [f"layer{i}" for i in range(1, count(shapes, "layer{}.") - 1)]
        channels = [shapes[f"{block}.linear_conv.conv.weight"][0] for block in blocks]
        for size in mobilenet_v3.TABLES:
            config = MobileNetV3Config(size, in_channels=shapes["layer0.conv.weight"][1], **fields)
            if output_channels(mobilenet_v3.block_table(config)) == channels:
                return config
        raise no_width("MobileNetV3", channels)

    def names(self, config: MobileNetV3Config) -> Names:
        names = conv_bn("stem", "layer0.conv", "layer0.bn")
        table = mobilenet_v3.block_table(config)
        channels = mobilenet_v3.stem_channels(config)
        convs = {"expand": "expand_conv", "depthwise": "depthwise_conv", "project": "linear_conv"}
        for i, block in enumerate(table):
            ours, theirs = f"blocks.{i}", f"layer{i + 1}"
            for part in parts(block, channels):
                if part == "se":
                    names |= {f"{ours}.se.fc{n}": f"{theirs}.se.conv{n}.conv" for n in (1, 2)}
                else:
                    conv = f"{theirs}.{convs[part]}"
                    names |= conv_bn(f"{ours}.{part}", f"{conv}.conv", f"{conv}.bn")
            channels = block.channels
        last = f"layer{len(table) + 1}"
        return names | conv_bn("last", f"{last}.conv", f"{last}.bn")


class TimmMobileNetV3(_MobileNetV3):
    """`blocks.{stage}.{block}`, see `inverted_residual.timm_names`; the last convolution is a stage too."""

    layouts = ("timm",)
    classifier: ClassVar = {"hidden": "conv_head", "classifier": "classifier"}

    def recognises(self, shapes: Shapes) -> bool:
        return timm_family(shapes) is self.family

    def config(self, shapes: Shapes, **fields) -> MobileNetV3Config:
        *blocks, _ = timm_shapes(shapes)
        stem, in_channels, *_ = shapes["conv_stem.weight"]
        minimal = not any(".se." in name for name in shapes)
        for size, width in itertools.product(mobilenet_v3.TABLES, WIDTHS):
            rounding = "scaled" if width == 1 else "expanded"
            born = TENSORFLOWS if (size, width, minimal) in ONLY_TENSORFLOWS else {}
            given = TIMM_NORM | born | fields
            config = MobileNetV3Config(
                size, width, in_channels=in_channels, rounding=rounding, minimal=minimal, **given
            )
            same_stem = mobilenet_v3.stem_channels(config) == stem
            table = mobilenet_v3.block_table(config)
            if same_stem and same_blocks(table, blocks):
                if [b.squeezed for b in table] != [b.squeezed for b in blocks]:
                    raise ValueError(
                        "its squeeze-excite has other channels than MobileNetV3's: timm's "
                        "mobilenetv3_rw is not among those we know"
                    )
                return config
        raise no_width("MobileNetV3", output_channels(blocks))

    def names(self, config: MobileNetV3Config) -> Names:
        table = mobilenet_v3.block_table(config)
        last = table[-1].stage + 1
        names = timm_names(table, mobilenet_v3.stem_channels(config))
        return names | conv_bn("last", f"blocks.{last}.0.conv", f"blocks.{last}.0.bn1")

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        minimal = not any(".se." in name for name in shapes)
        return ClassifierConfig(
            shapes.get("conv_head.weight", (1280,))[0],
            activation="relu" if minimal else "hard_swish",
        )

    def timm_name(self, config: MobileNetV3Config) -> str:
        size = f"{config.size}_minimal" if config.minimal else config.size
        return born_in(config.padding, f"mobilenetv3_{size}_{round(100 * config.width):03d}")

    def classifier_module(self, config: Config):
        if config.backbone.output_stride < 32:
            return None  # timm dilates it as an extractor of features only
        return super().classifier_module(config)


register_naming(TorchvisionMobileNetV3())
register_naming(MMSegMobileNetV3())
register_naming(TimmMobileNetV3())
