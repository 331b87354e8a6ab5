"""CoinCheung's DeepLab-v3-plus-cityscapes: v3+ on a ResNet-101 with in-place activated batch norms.

Their activation is a leaky ReLU, and their gain is |weight| + epsilon: what is exported is within a
rounding of the absolute value of what was read. Image pooling is an option, and off in its config.
"""

from typing import ClassVar

from deeplab_jax.backbones import ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes, conv_bn


class CoinCheung(Layout):
    name = "coincheung"
    code = "CoinCheung/DeepLab-v3-plus-cityscapes"
    models = "v3+ on ResNet-101, with image pooling and without"
    choices = ("output_stride", "rates")
    takes_others = False  # its norms and activations are its ResNet's own
    absolute_gains = True

    rules: ClassVar = {ResNetConfig: {"first_block_dilation": "same", "nonlinearity": "leaky_relu"}}

    def recognises(self, shapes: Shapes) -> bool:
        return {"aspp.conv_out.conv.weight", "decoder.conv_low.conv.weight"} <= shapes.keys()

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        head = DeepLabV3PlusConfig(
            rates=(6, 12, 18),
            channels=shapes["aspp.conv_out.conv.weight"][0],
            low_channels=shapes["decoder.conv_low.conv.weight"][0],
            dropout=0.0,
            bias=True,
            image_pooling="aspp.conv1x1.conv.weight" in shapes,
            pointwise_padding=1,
            nonlinearity="leaky_relu",
            classifier_bias=False,
        )
        classes = shapes.get("decoder.conv_out.weight", (19,))[0]
        return Config(self.backbone(shapes, output_stride or 16), head, classes, align_corners=True)

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        parts = {f"aspp.branches.{i}": f"aspp.conv{i + 1}" for i in range(4)}
        if config.head.image_pooling:
            parts["aspp.pool"] = "aspp.conv1x1"
        parts |= {"aspp.project": "aspp.conv_out", "decoder.low": "decoder.conv_low"}
        parts |= {f"decoder.convs.{i}": f"decoder.conv_cat.{i}" for i in range(2)}
        for ours, theirs in parts.items():
            names |= conv_bn(f"head.{ours}", f"{theirs}.conv", f"{theirs}.bn")
        return names | {"head.decoder.classifier": "decoder.conv_out"}
