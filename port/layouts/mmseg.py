"""mmsegmentation: DeepLabv3 and v3+ on ResNets (v1c, and v1b, the plain one) and MobileNetV2, and LR-ASPP.

What its model zoo calls d8 is output stride 8, the default; "d16-mg124" is output stride 16 with
multi_grid 1 2 4, and the models trained on crops of 769 x 769 or 513 x 513 have align_corners. All of
them have contract_dilation, which is first_block_dilation "previous" here; without it it is "same".
"""

from typing import ClassVar

from deeplab_jax.backbones import MobileNetV2Config, MobileNetV3Config, ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import (
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    SteppedLRASPPConfig,
)
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes, conv_bn, under

BRANCHES = 4  # convolutions in ASPP
LRASPP_EPSILON = 1e-3
"""Of every batch norm in its configs of LR-ASPP, the only ones that have MobileNetV3."""


class MMSeg(Layout):
    name = "mmseg"
    code = "mmsegmentation"
    models = (
        "DeepLabV3 and V3Plus on ResNet (v1b, v1c, v1d), ResNeXt, ResNeSt and MobileNetV2; d8 and "
        "d16-mg124; auxiliary head; LR-ASPP on MobileNetV3"
    )
    choices = ("output_stride", "first_block_dilation", "multi_grid", "align_corners", "rates")

    rules: ClassVar = {
        ResNetConfig: {
            "first_block_dilation": "previous",  # dilated stages begin with half their rate
            "absolute_multi_grid": True,
            "basic_block_dilation": "first",
        },
        MobileNetV2Config: {"first_block_dilation": "same", "dilated_blocks": "first"},
        MobileNetV3Config: {
            "first_block_dilation": "same",
            "padding": "same",
            "norm_momentum": 0.1,
            "norm_epsilon": LRASPP_EPSILON,
        },
    }
    rule: ClassVar = {"first_block_dilation": "previous"}

    def recognises(self, shapes: Shapes) -> bool:
        return (
            "decode_head.aspp_modules.0.conv.weight" in shapes
            or "decode_head.conv_up_input.weight" in shapes
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        if "decode_head.conv_up_input.weight" in shapes:
            lraspp = SteppedLRASPPConfig(
                shapes["decode_head.aspp_conv.conv.weight"][0],
                tuple(shapes[f"decode_head.convs.conv{i}.weight"][0] for i in (1, 0)),
                norm_epsilon=LRASPP_EPSILON,
            )
            classes = shapes.get("decode_head.conv_seg.weight", (19,))[0]
            return Config(self.backbone(shapes, output_stride or 8), lraspp, classes)
        common = {
            "channels": shapes["decode_head.bottleneck.conv.weight"][0],
            "project_kernel": 3,
            "drop_channels": True,
        }
        if "decode_head.c1_bottleneck.conv.weight" in shapes:
            head = DeepLabV3PlusConfig(
                **common,
                separable=True,
                norm_between=True,
                dropout=0.0,
                low_channels=shapes["decode_head.c1_bottleneck.conv.weight"][0],
                separable_decoder=True,
                decoder_dropout=(0.0, 0.1),
            )
        else:
            head = DeepLabV3Config(**common, dropout=0.1, convs=0)
        aux = None
        if "auxiliary_head.convs.0.conv.weight" in shapes:
            width = shapes["auxiliary_head.convs.0.conv.weight"][0]
            aux = FCNConfig(tap="aux", channels=width, drop_channels=True)
        return Config(
            self.backbone(shapes, output_stride or 8),
            head,
            shapes.get("decode_head.conv_seg.weight", (19,))[0],
            aux,
        )

    def choices_for(self, config: Config) -> tuple[str, ...]:
        """Its MobileNets have one rule for the first block of a dilated stage, and LR-ASPP has no rates."""
        if isinstance(config.head, SteppedLRASPPConfig):
            return ("output_stride", "align_corners", "norm_epsilon")
        if isinstance(config.backbone, ResNetConfig):
            return self.choices
        return tuple(choice for choice in self.choices if choice != "first_block_dilation")

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        if isinstance(config.head, SteppedLRASPPConfig):
            return names | under("head", "decode_head", _lraspp_names())
        plus = isinstance(config.head, DeepLabV3PlusConfig)
        head = _module("aspp.pool", "image_pool.1")
        head |= _module("aspp.branches.0", "aspp_modules.0")
        for i in range(1, BRANCHES):
            branch = _separable_module if plus else _module
            head |= branch(f"aspp.branches.{i}", f"aspp_modules.{i}")
        head |= _module("aspp.project", "bottleneck")
        if plus:
            head |= _module("decoder.low", "c1_bottleneck")
            for i in range(2):
                head |= _separable_module(f"decoder.convs.{i}", f"sep_bottleneck.{i}")
        head["decoder.classifier" if plus else "classifier"] = "conv_seg"
        names |= under("head", "decode_head", head)
        if config.aux_head:
            aux = _module("conv", "convs.0") | {"classifier": "conv_seg"}
            names |= under("aux_head", "auxiliary_head", aux)
        return names

    def rolls(self, config: Config) -> dict[str, int]:
        """ASPP concatenates (image pooling, branches) and the decoder (ASPP, low-level)."""
        rolls = {"head.aspp.project.conv": config.head.channels}
        if isinstance(config.head, DeepLabV3PlusConfig):
            for part in ("depthwise", "depthwise_bn", "pointwise"):
                rolls[f"head.decoder.convs.0.{part}"] = config.head.channels
        return rolls


def _lraspp_names() -> Names:
    """Its steps are numbered from the finest."""
    names = _module("cbr", "aspp_conv") | {"scale": "image_pool.1.conv", "gated": "conv_up_input"}
    for ours, theirs in ((0, 1), (1, 0)):
        names[f"branches.{ours}"] = f"convs.conv{theirs}"
        names |= _module(f"convs.{ours}", f"conv_ups.conv_up{theirs}")
    return names | {"classifier": "conv_seg"}


def _module(ours: str, theirs: str) -> Names:
    """mmcv's ConvModule: a convolution and its norm."""
    return conv_bn(ours, f"{theirs}.conv", f"{theirs}.bn")


def _separable_module(ours: str, theirs: str) -> Names:
    """Two ConvModules, so that a norm and an activation are between depthwise and pointwise."""
    return {
        f"{ours}.depthwise": f"{theirs}.depthwise_conv.conv",
        f"{ours}.depthwise_bn": f"{theirs}.depthwise_conv.bn",
        f"{ours}.pointwise": f"{theirs}.pointwise_conv.conv",
        f"{ours}.bn": f"{theirs}.pointwise_conv.bn",
    }
