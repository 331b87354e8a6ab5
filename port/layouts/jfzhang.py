"""jfzhang95's pytorch-deeplab-xception: v3+ on ResNet, aligned Xception, MobileNetV2 and DRN.

Its MobileNetV2 is registered twice: as `features`, and cut in two as `low_level_features` and
`high_level_features`, so that each of its tensors has two names in a checkpoint.
"""

from deeplab_jax.backbones import (
    BackboneConfig,
    DRNConfig,
    MobileNetV2Config,
    ResNetConfig,
    XceptionConfig,
)
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import (
    conv_bn,
    drn_names,
    flat_mobilenet_v2_names,
    resnet_names,
    under,
    xception_names,
)
from port.layouts.shapes import (
    drn_config,
    flat_v2_projections,
    mobilenet_v2_config,
    resnet_config,
    within,
)

LOW_LEVEL_BLOCKS = 4  # MobileNetV2's features.{0..3} are low_level_features too
MULTI_GRID = (1, 2, 4)  # of every ResNet


class JFZhang(Layout):
    name = "jfzhang"
    code = "jfzhang95/pytorch-deeplab-xception"
    models = "v3+ on ResNet-101, Xception, MobileNetV2 and DRN-D"

    def recognises(self, shapes: Shapes) -> bool:
        return "aspp.aspp1.atrous_conv.weight" in shapes and "decoder.last_conv.0.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        return Config(
            _backbone(within(shapes, "backbone."), output_stride or 16),
            DeepLabV3PlusConfig(decoder_dropout=(0.5, 0.1)),
            shapes.get("decoder.last_conv.8.weight", (21,))[0],
            align_corners=True,
        )

    def names(self, config: Config) -> Names:
        names = under("backbone", "backbone", _backbone_names(config.backbone))
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

    def aliases(self, config: Config) -> Names:
        if not isinstance(config.backbone, MobileNetV2Config):
            return {}
        aliases = {}
        for name in flat_mobilenet_v2_names(config.backbone).values():
            _, index, rest = name.split(".", 2)
            level = "low" if int(index) < LOW_LEVEL_BLOCKS else "high"
            aliases[f"backbone.{name}"] = f"backbone.{level}_level_features.{index}.{rest}"
        return aliases


def _backbone(shapes: Shapes, output_stride: int) -> BackboneConfig:
    if "block1.skip.weight" in shapes:
        return XceptionConfig(
            output_stride,
            low="block1_relu",
            shortcut_relu="all",
            exit_relu="before",
            dilate_exit_last=False,
            in_channels=shapes.get("conv1.weight", (32, 3))[1],
        )
    if "features.0.0.weight" in shapes:
        return mobilenet_v2_config(
            flat_v2_projections(shapes),
            shapes["features.0.0.weight"][1],
            last=None,
            output_stride=output_stride,
            dilated_blocks="none",
            pad_before_expand=True,
        )
    if "layer0.0.weight" in shapes:
        return drn_config(shapes)  # the original takes an output stride, and uses 8
    if "layer1.0.conv1.weight" in shapes:
        return resnet_config(
            shapes,
            output_stride=output_stride,
            first_block_dilation="same",
            multi_grid=MULTI_GRID,
        )
    raise ValueError(
        "the backbone is not one that we know: ResNets, Xception, MobileNetV2 and DRN-D are"
    )


def _backbone_names(backbone: BackboneConfig) -> Names:
    match backbone:
        case ResNetConfig():
            return resnet_names(backbone)
        case DRNConfig():
            return drn_names(backbone)
        case XceptionConfig():
            # The ReLU before block2 is outside it: it works on the low-level features too.
            return xception_names(backbone, without_relu=(1, 2))
        case _:
            return flat_mobilenet_v2_names(backbone)
