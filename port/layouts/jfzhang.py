"""jfzhang95's pytorch-deeplab-xception: v3+ on ResNet, aligned Xception, MobileNetV2 and DRN.

Its MobileNetV2 is registered twice: as `features`, and cut in two as `low_level_features` and
`high_level_features`, so that each of its tensors has two names in a checkpoint.
"""

from typing import ClassVar

from deeplab_jax.backbones import DRNConfig, MobileNetV2Config, ResNetConfig, XceptionConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from port.backbones.mobilenet_v2 import FlatMobileNetV2
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes, conv_bn

LOW_LEVEL_BLOCKS = 4  # MobileNetV2's features.{0..3} are low_level_features too
MULTI_GRID = (1, 2, 4)  # of every ResNet


class JFZhang(Layout):
    name = "jfzhang"
    code = "jfzhang95/pytorch-deeplab-xception"
    models = "v3+ on ResNet-101, Xception, MobileNetV2 and DRN-D"

    rules: ClassVar = {
        ResNetConfig: {"first_block_dilation": "same", "multi_grid": MULTI_GRID},
        XceptionConfig: {
            "low": "block1_relu",
            "shortcut_relu": "all",
            "exit_relu": "before",
            "dilate_exit_last": False,
        },
        MobileNetV2Config: {"dilated_blocks": "none", "pad_before_expand": True},
        DRNConfig: {},  # the original takes an output stride, and uses 8
    }

    def recognises(self, shapes: Shapes) -> bool:
        return "aspp.aspp1.atrous_conv.weight" in shapes and "decoder.last_conv.0.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        return Config(
            self.backbone(shapes, output_stride or 16),
            DeepLabV3PlusConfig(decoder_dropout=(0.5, 0.1)),
            shapes.get("decoder.last_conv.8.weight", (21,))[0],
            align_corners=True,
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        for i in range(4):
            theirs = f"aspp.aspp{i + 1}"
            names |= conv_bn(f"head.aspp.branches.{i}", f"{theirs}.atrous_conv", f"{theirs}.bn")
        names |= conv_bn("head.aspp.pool", "aspp.global_avg_pool.1", "aspp.global_avg_pool.2")
        names |= conv_bn("head.aspp.project", "aspp.conv1", "aspp.bn1")
        names |= conv_bn("head.decoder.low", "decoder.conv1", "decoder.bn1")
        names |= conv_bn("head.decoder.convs.0", "decoder.last_conv.0", "decoder.last_conv.1")
        names |= conv_bn("head.decoder.convs.1", "decoder.last_conv.4", "decoder.last_conv.5")
        return names | {"head.decoder.classifier": "decoder.last_conv.8"}

    def rolls(self, config: Config) -> dict[str, int]:
        """The decoder concatenates (ASPP, low-level)."""
        return {"head.decoder.convs.0.conv": config.head.channels}

    def aliases(self, config: Config, place: Place | None = None) -> Names:
        if not isinstance((place or self.place(config)).naming, FlatMobileNetV2):
            return {}
        aliases = {}
        for name in self.backbone_names(config, place).values():
            _, _, index, rest = name.split(".", 3)
            level = "low" if int(index) < LOW_LEVEL_BLOCKS else "high"
            aliases[name] = f"backbone.{level}_level_features.{index}.{rest}"
        return aliases
