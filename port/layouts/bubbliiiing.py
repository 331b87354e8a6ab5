"""bubbliiiing's deeplabv3-plus-pytorch: DeepLabv3+ on MobileNetV2 and the aligned Xception.

Every convolution of the head has a bias, batch norm or not. Images are scaled to [0, 1] and no more.
"""

import itertools

from deeplab_jax.backbones import BackboneConfig, XceptionConfig, xception
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import conv_bn, flat_mobilenet_v2_names, under
from port.layouts.shapes import flat_v2_projections, mobilenet_v2_config, within


class Bubbliiiing(Layout):
    name = "bubbliiiing"
    code = "bubbliiiing/deeplabv3-plus-pytorch"
    models = "v3+ on MobileNetV2 and Xception"

    def recognises(self, shapes: Shapes) -> bool:
        return "aspp.branch1.0.weight" in shapes and "cat_conv.0.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = _backbone(within(shapes, "backbone."), output_stride or 16)
        return Config(
            backbone,
            DeepLabV3PlusConfig(bias=True, dropout=0.0, decoder_dropout=(0.5, 0.1)),
            shapes.get("cls_conv.weight", (21,))[0],
            align_corners=True,
            preprocessing=Preprocessing(
                mean=(0.0,) * backbone.in_channels, std=(1.0,) * backbone.in_channels
            ),
        )

    def names(self, config: Config) -> Names:
        if isinstance(config.backbone, XceptionConfig):
            backbone = _xception_names()
        else:
            backbone = flat_mobilenet_v2_names(config.backbone)
        names = under("backbone", "backbone", backbone)
        for i in range(4):
            theirs = f"aspp.branch{i + 1}"
            names |= conv_bn(f"head.aspp.branches.{i}", f"{theirs}.0", f"{theirs}.1")
        names |= conv_bn("head.aspp.pool", "aspp.branch5_conv", "aspp.branch5_bn")
        names |= conv_bn("head.aspp.project", "aspp.conv_cat.0", "aspp.conv_cat.1")
        names |= conv_bn("head.decoder.low", "shortcut_conv.0", "shortcut_conv.1")
        names |= conv_bn("head.decoder.convs.0", "cat_conv.0", "cat_conv.1")
        names |= conv_bn("head.decoder.convs.1", "cat_conv.4", "cat_conv.5")
        return names | {"head.decoder.classifier": "cls_conv"}

    def rolls(self, config: Config) -> dict[str, int]:
        """The decoder concatenates (ASPP, low-level)."""
        return {"head.decoder.convs.0.conv": config.head.channels}


def _backbone(shapes: Shapes, output_stride: int) -> BackboneConfig:
    if "block1.skip.weight" in shapes:
        return XceptionConfig(
            output_stride,
            shortcut_relu="identity",
            exit_stride=1,
            in_channels=shapes.get("conv1.weight", (32, 3))[1],
            norm_momentum=3e-4,
        )
    if "features.0.0.weight" in shapes:
        return mobilenet_v2_config(
            flat_v2_projections(shapes),
            shapes["features.0.0.weight"][1],
            last=None,
            output_stride=output_stride,
        )
    raise ValueError("the backbone is not one that we know: MobileNetV2 and Xception are")


def _xception_names() -> Names:
    names = conv_bn("stem.0", "conv1", "bn1") | conv_bn("stem.1", "conv2", "bn2")
    blocks = itertools.pairwise([xception.STEM, *xception.BLOCKS])
    for i, (before, widths) in enumerate(blocks):
        for conv in range(3):
            names |= _separable(f"blocks.{i}.convs.{conv}", f"block{i + 1}.sepconv{conv + 1}")
        if before[-1] != widths[-1]:
            theirs = f"block{i + 1}"
            names |= conv_bn(f"blocks.{i}.shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
    for i in range(3):
        names |= _separable(f"exit.{i}", f"conv{i + 3}")
    return names


def _separable(ours: str, theirs: str) -> Names:
    parts = {"depthwise": "depthwise", "depthwise_bn": "bn1", "pointwise": "pointwise", "bn": "bn2"}
    return {f"{ours}.{part}": f"{theirs}.{called}" for part, called in parts.items()}
