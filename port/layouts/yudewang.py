"""YudeWang's deeplabv3plus-pytorch: v3+ on ResNet-50, 101 and 152, with biases in all of the head.

Its multi-grid is written out as atrous rates, and is another one for ResNet-101.
"""

import dataclasses
from typing import ClassVar

from deeplab_jax.backbones import ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from port.layouts.base import Layout, Place
from port.layouts.heads import branched_names
from port.naming import Names, Shapes

MULTI_GRID = {50: (1, 2, 1), 101: (2, 2, 2), 152: (1, 2, 1)}
"""The atrous rates of layer4's blocks at output stride 16, by depth."""


class YudeWang(Layout):
    name = "yudewang"
    code = "YudeWang/deeplabv3plus-pytorch"
    models = "v3+ on ResNet-50, 101 and 152"
    takes_others = False  # its rates are its ResNet's own

    rules: ClassVar = {
        ResNetConfig: {
            "first_block_dilation": "same",
            "absolute_multi_grid": True,
            "norm_momentum": 3e-4,
        }
    }

    def recognises(self, shapes: Shapes) -> bool:
        return (
            "aspp.branch1.0.weight" in shapes
            and "cat_conv.0.weight" in shapes
            and any(name.startswith("backbone.layer1.") for name in shapes)
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 16)
        if backbone.depth not in MULTI_GRID:
            raise ValueError(
                f"it has ResNets of depth 50, 101 and 152, and this is a ResNet-{backbone.depth}"
            )
        factor = 16 // backbone.output_stride
        multi_grid = tuple(rate * factor for rate in MULTI_GRID[backbone.depth])
        head = DeepLabV3PlusConfig(
            channels=shapes["aspp.branch1.0.weight"][0],
            low_channels=shapes["shortcut_conv.0.weight"][0],
            bias=True,
            decoder_dropout=(0.5, 0.1),
        )
        return Config(
            dataclasses.replace(backbone, multi_grid=multi_grid),
            head,
            shapes.get("cls_conv.weight", (21,))[0],
            align_corners=True,
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        return self.backbone_names(config, place) | branched_names()

    def rolls(self, config: Config) -> dict[str, int]:
        """The decoder concatenates (ASPP, low-level)."""
        return {"head.decoder.convs.0.conv": config.head.channels}
