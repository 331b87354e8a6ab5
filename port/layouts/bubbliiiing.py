"""bubbliiiing's deeplabv3-plus-pytorch: DeepLabv3+ on MobileNetV2 and the aligned Xception.

Every convolution of the head has a bias, batch norm or not. Images are scaled to [0, 1] and no more.
"""

from typing import ClassVar

from deeplab_jax.backbones import MobileNetV2Config, XceptionConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Place
from port.layouts.heads import branched_names
from port.naming import Names, Shapes


class Bubbliiiing(Layout):
    name = "bubbliiiing"
    code = "bubbliiiing/deeplabv3-plus-pytorch"
    models = "v3+ on MobileNetV2 and Xception"

    rules: ClassVar = {
        MobileNetV2Config: {},
        XceptionConfig: {"shortcut_relu": "identity", "exit_stride": 1, "norm_momentum": 3e-4},
    }
    rule: ClassVar = {"first_block_dilation": "previous"}

    def recognises(self, shapes: Shapes) -> bool:
        return (
            "aspp.branch1.0.weight" in shapes
            and "cat_conv.0.weight" in shapes
            and not any(name.startswith("backbone.layer1.") for name in shapes)  # YudeWang's
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 16)
        return Config(
            backbone,
            DeepLabV3PlusConfig(bias=True, dropout=0.0, decoder_dropout=(0.5, 0.1)),
            shapes.get("cls_conv.weight", (21,))[0],
            align_corners=True,
            preprocessing=Preprocessing(
                mean=(0.0,) * backbone.in_channels, std=(1.0,) * backbone.in_channels
            ),
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        return self.backbone_names(config, place) | branched_names()

    def rolls(self, config: Config) -> dict[str, int]:
        """The decoder concatenates (ASPP, low-level)."""
        return {"head.decoder.convs.0.conv": config.head.channels}
