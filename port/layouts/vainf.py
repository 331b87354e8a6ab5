"""VainF's DeepLabV3Plus-Pytorch: v3 and v3+ on ResNet and MobileNetV2, dense or separable."""

import dataclasses

from deeplab_jax.backbones import HRNetConfig, OriginalXceptionConfig, ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import (
    aspp_names,
    conv_bn,
    hrnet_names,
    mobilenet_v2_names,
    resnet_names,
    separable_names,
    under,
    xception_names,
)
from port.layouts.shapes import count, hrnet_config, mobilenet_v2_config, resnet_config, within

LOW_LEVEL_BLOCKS = 4  # MobileNetV2's features.{0..3} are called low_level_features


class VainF(Layout):
    name = "vainf"
    code = "VainF/DeepLabV3Plus-Pytorch"
    models = "v3 and v3+ on ResNet, MobileNetV2, Xception and HRNetV2; separable convolutions"

    def recognises(self, shapes: Shapes) -> bool:
        return (
            "classifier.aspp.convs.0.0.weight" in shapes
            or "classifier.classifier.0.convs.0.0.weight" in shapes
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        inner = within(shapes, "backbone.")
        stride = output_stride or 16
        if "low_level_features.0.0.weight" in inner:
            backbone = _mobilenet_v2(inner, stride)
        elif "transition1.0.0.weight" in inner:
            backbone = hrnet_config(inner, upsample="nearest", stem_relu=False)
        elif "block1.skip.weight" in inner:
            backbone = OriginalXceptionConfig(
                stride,
                first_block_dilation="same",
                exit_padding=1,
                last_norm=False,
                in_channels=inner.get("conv1.weight", (32, 3))[1],
            )
        else:
            backbone = resnet_config(inner, output_stride=stride)
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

    def names(self, config: Config) -> Names:
        if isinstance(config.backbone, ResNetConfig):
            names = under("backbone", "backbone", resnet_names(config.backbone))
        elif isinstance(config.backbone, HRNetConfig):
            names = under("backbone", "backbone", hrnet_names(config.backbone))
        elif isinstance(config.backbone, OriginalXceptionConfig):
            names = under("backbone", "backbone", xception_names(config.backbone))
        else:
            names = under("backbone", "backbone", _mobilenet_v2_names(config.backbone))
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


def _mobilenet_v2(shapes: Shapes, output_stride: int):
    """The projection is the last convolution of a block, one before its norm."""
    projections = []
    for i in range(1, 18):
        level = _level(i)
        parts = count(shapes, f"{level}.{i}.conv.{{}}.")
        projections.append(shapes.get(f"{level}.{i}.conv.{parts - 2}.weight", (0,))[0])
    config = mobilenet_v2_config(
        projections,
        shapes["low_level_features.0.0.weight"][1],
        last=None,
        output_stride=output_stride,
    )
    return dataclasses.replace(config, pad_before_expand=True, stem_padding=0)


def _mobilenet_v2_names(config) -> Names:
    names = {}
    for path, name in mobilenet_v2_names(config).items():
        _, index, rest = name.split(".", 2)
        names[path] = f"{_level(int(index))}.{index}.{rest}"
    return names


def _level(index: int) -> str:
    return "low_level_features" if index < LOW_LEVEL_BLOCKS else "high_level_features"
