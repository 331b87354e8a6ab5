"""MobileNetV2, as torchvision, timm, VainF, mmsegmentation and transformers name it, and as copies do."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

from deeplab_jax.backbones import MobileNetV2Config, mobilenet_v2
from deeplab_jax.config import Config
from port.backbones import slim
from port.backbones.base import Naming, register_naming
from port.backbones.inverted_residual import (
    TIMM_NORM,
    WIDTHS,
    born_in,
    no_width,
    output_channels,
    timm_family,
    timm_names,
    timm_shapes,
    within_stage,
)
from port.naming import Names, Shapes, conv_bn, count

BLOCKS = len(mobilenet_v2.block_table(1.0))
DEEPER = {1.1: 1.2, 1.2: 1.4}
"""Width -> depth of timm's networks with more blocks."""


def _config(
    projections: list[int],
    in_channels: int,
    *,
    last: int | None,
    divisors: Sequence[int] = (8,),
    **fields,
) -> MobileNetV2Config:
    """The width from the output channels of the blocks; `last`: of the classifier's convolution."""
    for divisor, width in itertools.product(divisors, WIDTHS):
        table = mobilenet_v2.block_table(width, divisor=divisor)
        if output_channels(table) == projections:
            fields = {"last_conv": "none" if last is None else "used"} | fields
            return MobileNetV2Config(width, in_channels=in_channels, divisor=divisor, **fields)
    raise no_width("MobileNetV2", projections)


class _MobileNetV2(Naming):
    family = MobileNetV2Config
    known = "MobileNetV2"


class TorchvisionMobileNetV2(_MobileNetV2):
    """`features.{0..18}`, blocks as nested Sequentials called `conv`."""

    layouts = ("smp", "torchvision-classification")
    classifier: ClassVar = {"classifier": "classifier.1"}

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("features.1.conv.0.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV2Config:
        last = shapes.get(f"features.{BLOCKS + 1}.0.weight", (None,))[0]
        projections = [_nested_projection(shapes, f"features.{i}") for i in range(1, BLOCKS + 1)]
        return _config(projections, shapes["features.0.0.weight"][1], last=last, **fields)

    def names(self, config: MobileNetV2Config) -> Names:
        names = conv_bn("stem", "features.0.0", "features.0.1")
        for i in range(BLOCKS):
            ours, theirs = f"blocks.{i}", f"features.{i + 1}.conv"
            # The first expands nothing.
            parts = ["depthwise"] if i == 0 else ["expand", "depthwise"]
            for at, part in enumerate(parts):
                names |= conv_bn(f"{ours}.{part}", f"{theirs}.{at}.0", f"{theirs}.{at}.1")
            at = len(parts)
            names |= conv_bn(f"{ours}.project", f"{theirs}.{at}", f"{theirs}.{at + 1}")
        if config.last_conv != "none":
            names |= conv_bn("last", f"features.{BLOCKS + 1}.0", f"features.{BLOCKS + 1}.1")
        return names

    def smp_name(self, config: MobileNetV2Config) -> str | None:
        return "mobilenet_v2" if config.width == 1.0 else None

    def classifier_module(self, config: Config):
        from torchvision import models

        if config.backbone.output_stride < 32:
            return None
        return models.mobilenet_v2(num_classes=config.num_classes, width_mult=config.backbone.width)


def _nested_projection(shapes: Shapes, block: str) -> int:
    """Output channels of a block: of its last convolution, the last part but one."""
    return shapes[f"{block}.conv.{count(shapes, f'{block}.conv.{{}}.') - 2}.weight"][0]


class VainFMobileNetV2(TorchvisionMobileNetV2):
    """torchvision's blocks without the last, cut into `low_level_features` and `high_level_features`."""

    layouts = ("vainf",)
    classifier: ClassVar = {}
    low_level_blocks = 4
    """The first so many members of `features` are the low-level features."""

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("low_level_features.1.conv.0.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV2Config:
        projections = []
        for i in range(1, BLOCKS + 1):
            level = self._level(i)
            parts = count(shapes, f"{level}.{i}.conv.{{}}.")
            projections.append(shapes.get(f"{level}.{i}.conv.{parts - 2}.weight", (0,))[0])
        channels = shapes["low_level_features.0.0.weight"][1]
        return _config(projections, channels, last=None, **fields)

    def names(self, config: MobileNetV2Config) -> Names:
        names = {}
        for path, name in super().names(config).items():
            _, index, rest = name.split(".", 2)
            names[path] = f"{self._level(int(index))}.{index}.{rest}"
        return names

    def _level(self, index: int) -> str:
        return f"{'low' if index < self.low_level_blocks else 'high'}_level_features"


class FlatMobileNetV2(_MobileNetV2):
    """`features.{0..17}`, blocks as one flat Sequential called `conv` (jfzhang, bubbliiiing)."""

    layouts = ("jfzhang", "bubbliiiing")

    def recognises(self, shapes: Shapes) -> bool:
        return "features.1.conv.0.weight" in shapes or "features.2.conv.0.weight" in shapes

    def config(self, shapes: Shapes, **fields) -> MobileNetV2Config:
        projections = [
            shapes[f"features.{i}.conv.{3 if i == 1 else 6}.weight"][0]
            for i in range(1, BLOCKS + 1)
        ]
        return _config(projections, shapes["features.0.0.weight"][1], last=None, **fields)

    def names(self, config: MobileNetV2Config) -> Names:
        names = conv_bn("stem", "features.0.0", "features.0.1")
        for i in range(BLOCKS):
            parts = ["depthwise", "project"] if i == 0 else ["expand", "depthwise", "project"]
            for at, part in enumerate(parts):  # convolution, norm and ReLU of each
                conv = f"features.{i + 1}.conv.{3 * at}"
                names |= conv_bn(f"blocks.{i}.{part}", conv, f"features.{i + 1}.conv.{3 * at + 1}")
        return names


class TimmMobileNetV2(_MobileNetV2):
    """`blocks.{stage}.{block}`, see `inverted_residual.timm_names`."""

    layouts = ("timm",)
    classifier: ClassVar = {"classifier": "classifier"}

    def recognises(self, shapes: Shapes) -> bool:
        return timm_family(shapes) is self.family

    def config(self, shapes: Shapes, **fields) -> MobileNetV2Config:
        fields = TIMM_NORM | fields
        last = shapes.get("conv_head.weight", (None,))[0]
        projections, channels = output_channels(timm_shapes(shapes)), shapes["conv_stem.weight"][1]
        for width, depth in DEEPER.items():
            if output_channels(mobilenet_v2.block_table(width, depth)) == projections:
                used = "none" if last is None else "used"
                fields = {"last_conv": used, "last_channels": last} | fields
                return MobileNetV2Config(width, depth=depth, in_channels=channels, **fields)
        return _config(projections, channels, last=last, **fields)

    def names(self, config: MobileNetV2Config) -> Names:
        table = mobilenet_v2.block_table(config.width, config.depth)
        names = timm_names(table, table[0].expanded)
        return names | (conv_bn("last", "conv_head", "bn2") if config.last_conv != "none" else {})

    def timm_name(self, config: MobileNetV2Config) -> str:
        deeper = "d" if config.depth > 1 else ""
        return born_in(config.padding, f"mobilenetv2_{round(100 * config.width):03d}{deeper}")


class MMSegMobileNetV2(_MobileNetV2):
    """`layer{1..7}`, one for each row of the network's table, blocks as Sequentials of ConvModules."""

    layouts = ("mmseg",)
    rows = len(mobilenet_v2.TABLE)

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("layer1.0.conv.0.conv.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV2Config:
        projections = []
        for row in range(1, self.rows + 1):
            for i in range(count(shapes, f"layer{row}.{{}}.")):
                last = count(shapes, f"layer{row}.{i}.conv.{{}}.") - 1
                projections.append(shapes[f"layer{row}.{i}.conv.{last}.conv.weight"][0])
        return _config(projections, shapes["conv1.conv.weight"][1], last=None, **fields)

    def names(self, config: MobileNetV2Config) -> Names:
        names = conv_bn("stem", "conv1.conv", "conv1.bn")
        table = mobilenet_v2.block_table(config.width)
        for i, (block, within) in enumerate(zip(table, within_stage(table), strict=True)):
            row = block.stage
            parts = ("expand", "depthwise", "project")[row == 0 :]  # the first row expands nothing
            for at, part in enumerate(parts):
                theirs = f"layer{row + 1}.{within}.conv.{at}"
                names |= conv_bn(f"blocks.{i}.{part}", f"{theirs}.conv", f"{theirs}.bn")
        return names


class TransformersMobileNetV2(_MobileNetV2):
    """`conv_stem` with the first block in it, and `layer.{0..15}`."""

    layouts = ("transformers-mobilenet-v2",)

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("conv_stem.first_conv.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV2Config:
        reduced = ["conv_stem.", *(f"layer.{i}." for i in range(BLOCKS - 1))]
        projections = [shapes[f"{prefix}reduce_1x1.convolution.weight"][0] for prefix in reduced]
        first = shapes["conv_stem.first_conv.convolution.weight"]
        if first[0] == projections[0]:
            raise ValueError(
                "its stem is so narrow that the first block keeps the number of channels: "
                "transformers has no shortcut there, which we cannot express"
            )
        last = shapes.get("conv_1x1.convolution.weight", (1280,))[0]
        expand = "conv_stem.expand_1x1.convolution.weight" in shapes
        return _config(projections, first[1], last=last, first_expand=expand, **fields)

    def names(self, config: MobileNetV2Config) -> Names:
        names = conv_layer("stem", "conv_stem.first_conv")
        names |= inverted_residual("blocks.0", "conv_stem", expand=config.first_expand)
        for i in range(1, BLOCKS):
            names |= inverted_residual(f"blocks.{i}", f"layer.{i - 1}")
        return names | conv_layer("last", "conv_1x1")


class SlimMobileNetV2(_MobileNetV2):
    """`MobilenetV2.expanded_conv_{1..16}`: the names of TF-slim's variables."""

    layouts = ("google",)

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("MobilenetV2.expanded_conv.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV2Config:
        projections = [
            shapes[f"{slim.block('MobilenetV2', i)}.project.weight"][0] for i in range(BLOCKS)
        ]
        return _config(
            projections,
            shapes["MobilenetV2.Conv.weight"][1],
            last=None,
            divisors=(8, 1),
            **fields,
        )

    def names(self, config: MobileNetV2Config) -> Names:
        names = slim.conv_norm("stem", "MobilenetV2.Conv")
        for i in range(BLOCKS):
            for part in ("expand", "depthwise", "project")[i == 0 :]:
                names |= slim.conv_norm(
                    f"blocks.{i}.{part}", f"{slim.block('MobilenetV2', i)}.{part}"
                )
        return names


# ---------------------------------------------------------------------------- transformers' parts


def conv_layer(ours: str, theirs: str) -> Names:
    """What transformers calls a ConvLayer."""
    return {f"{ours}.conv": f"{theirs}.convolution", f"{ours}.bn": f"{theirs}.normalization"}


def inverted_residual(ours: str, theirs: str, *, expand: bool = True) -> Names:
    """What transformers calls an InvertedResidual."""
    parts = {"expand": "expand_1x1"} if expand else {}
    parts |= {"depthwise": "conv_3x3", "project": "reduce_1x1"}
    return {
        path: name
        for part, called in parts.items()
        for path, name in conv_layer(f"{ours}.{part}", f"{theirs}.{called}").items()
    }


register_naming(TorchvisionMobileNetV2())
register_naming(VainFMobileNetV2())
register_naming(FlatMobileNetV2())
register_naming(TimmMobileNetV2())
register_naming(MMSegMobileNetV2())
register_naming(TransformersMobileNetV2())
register_naming(SlimMobileNetV2())
