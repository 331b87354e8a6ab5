"""VainF's DeepLabV3Plus-Pytorch: v3 and v3+ on ResNet and MobileNetV2, dense or separable."""

from typing import ClassVar

from deeplab_jax.backbones import (
    HRNetConfig,
    MobileNetV2Config,
    OriginalXceptionConfig,
    ResNetConfig,
)
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig
from port.layouts.base import Layout, Place
from port.layouts.heads import aspp_names, separable_names
from port.naming import Names, Shapes, conv_bn, under


class VainF(Layout):
    name = "vainf"
    code = "VainF/DeepLabV3Plus-Pytorch"
    models = "v3 and v3+ on ResNet, MobileNetV2, Xception and HRNetV2; separable convolutions"

    rules: ClassVar = {
        ResNetConfig: {},
        MobileNetV2Config: {"pad_before_expand": True, "stem_padding": 0},
        HRNetConfig: {"upsample": "nearest", "stem_relu": False},
        OriginalXceptionConfig: {
            "first_block_dilation": "same",
            "exit_padding": 1,
            "last_norm": False,
        },
    }
    rule: ClassVar = {"first_block_dilation": "previous"}

    def recognises(self, shapes: Shapes) -> bool:
        return (
            "classifier.aspp.convs.0.0.weight" in shapes
            or "classifier.classifier.0.convs.0.0.weight" in shapes
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 16)
        # The original takes an output stride for HRNet too, and does nothing with it.
        rates = (12, 24, 36) if isinstance(backbone, HRNetConfig) else None
        if "classifier.classifier.0.convs.0.0.weight" in shapes:
            classes = shapes.get("classifier.classifier.4.weight", (21,))[0]
            return Config(backbone, DeepLabV3Config(rates, dropout=0.1), classes)
        head = DeepLabV3PlusConfig(
            rates,
            separable="classifier.aspp.convs.1.0.body.0.weight" in shapes,
            separable_decoder="classifier.classifier.0.body.0.weight" in shapes,
            decoder_convs=1,
            dropout=0.1,
        )
        return Config(backbone, head, shapes.get("classifier.classifier.3.weight", (21,))[0])

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        if isinstance(config.head, DeepLabV3Config):
            aspp = aspp_names(branches=4)
            names |= under("head.aspp", "classifier.classifier.0", aspp)
            names |= conv_bn("head.convs.0", "classifier.classifier.1", "classifier.classifier.2")
            return names | {"head.classifier": "classifier.classifier.4"}
        separable = "body." if config.head.separable else None
        aspp = aspp_names(branches=4, separable=separable)
        names |= under("head.aspp", "classifier.aspp", aspp)
        names |= conv_bn("head.decoder.low", "classifier.project.0", "classifier.project.1")
        names["head.decoder.convs.0.bn"] = "classifier.classifier.1"
        if config.head.separable_decoder:
            names |= separable_names("head.decoder.convs.0", "classifier.classifier.0.body.")
        else:
            names["head.decoder.convs.0.conv"] = "classifier.classifier.0"
        return names | {"head.decoder.classifier": "classifier.classifier.3"}
