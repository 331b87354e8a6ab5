"""LiheYoung's v3+ of semi-supervised work (ST++, UniMatch): on a ResNet with a deep stem.

Its backbone is dilated as torchvision's is. The Pascal configs have output stride 16, Cityscapes' 8 with
the same atrous rates.
"""

from typing import ClassVar

from deeplab_jax.backbones import ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes, conv_bn


class UniMatch(Layout):
    name = "unimatch"
    code = "LiheYoung's ST++ and UniMatch"
    models = "v3+ on ResNet-50 and 101 with deep stems"
    choices = ("output_stride", "rates")

    rules: ClassVar = {ResNetConfig: {}}
    rule: ClassVar = {"first_block_dilation": "previous"}

    def recognises(self, shapes: Shapes) -> bool:
        return {"head.b0.0.weight", "reduce.0.weight", "fuse.0.weight"} <= shapes.keys()

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        head = DeepLabV3PlusConfig(
            rates=(6, 12, 18),
            channels=shapes["head.b0.0.weight"][0],
            low_channels=shapes["reduce.0.weight"][0],
            dropout=0.0,
        )
        classes = shapes.get("classifier.weight", (21,))[0]
        return Config(self.backbone(shapes, output_stride or 16), head, classes, align_corners=True)

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        for i in range(4):
            names |= conv_bn(f"head.aspp.branches.{i}", f"head.b{i}.0", f"head.b{i}.1")
        names |= conv_bn("head.aspp.pool", "head.b4.gap.1", "head.b4.gap.2")
        names |= conv_bn("head.aspp.project", "head.project.0", "head.project.1")
        names |= conv_bn("head.decoder.low", "reduce.0", "reduce.1")
        names |= conv_bn("head.decoder.convs.0", "fuse.0", "fuse.1")
        names |= conv_bn("head.decoder.convs.1", "fuse.3", "fuse.4")
        return names | {"head.decoder.classifier": "classifier"}
