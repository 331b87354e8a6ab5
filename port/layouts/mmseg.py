"""mmsegmentation: DeepLabv3 and v3+ on its ResNets (v1c, and v1b, the plain one) and MobileNetV2.

What its model zoo calls d8 is output stride 8, the default; "d16-mg124" is output stride 16 with
multi_grid 1 2 4, and the models trained on crops of 769 x 769 or 513 x 513 have align_corners. All of
them have contract_dilation, which is first_block_dilation "previous" here; without it it is "same".
"""

from deeplab_jax.backbones import MobileNetV2Config, ResNetConfig, mobilenet_v2
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig, FCNConfig
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import conv_bn, resnet_names, under
from port.layouts.shapes import count, mobilenet_v2_config, resnet_config, within

BRANCHES = 4  # convolutions in ASPP
ROWS = len(mobilenet_v2.TABLE)  # of MobileNetV2, each a `layer{n}`


class MMSeg(Layout):
    name = "mmseg"
    code = "mmsegmentation"
    models = "DeepLabV3 and V3Plus on ResNet (v1b, v1c) and MobileNetV2; d8 and d16-mg124; auxiliary head"
    choices = ("output_stride", "first_block_dilation", "multi_grid", "align_corners", "rates")

    def recognises(self, shapes: Shapes) -> bool:
        return "decode_head.aspp_modules.0.conv.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
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
            _backbone(within(shapes, "backbone."), output_stride or 8),
            head,
            shapes.get("decode_head.conv_seg.weight", (19,))[0],
            aux,
        )

    def options(self, config: Config) -> tuple[str, ...]:
        """Its MobileNetV2 has one rule for the first block of a dilated stage."""
        if isinstance(config.backbone, ResNetConfig):
            return self.choices
        return tuple(choice for choice in self.choices if choice != "first_block_dilation")

    def names(self, config: Config) -> Names:
        if isinstance(config.backbone, ResNetConfig):
            names = under("backbone", "backbone", resnet_names(config.backbone))
        else:
            names = under("backbone", "backbone", _mobilenet_v2_names())
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


def _backbone(shapes: Shapes, output_stride: int) -> ResNetConfig | MobileNetV2Config:
    if "layer1.0.conv1.weight" in shapes:  # the dilated stages begin with half their rate
        return resnet_config(
            shapes,
            output_stride=output_stride,
            first_block_dilation="previous",
            absolute_multi_grid=True,
            basic_block_dilation="first",
        )
    if "layer1.0.conv.0.conv.weight" in shapes:
        projections = []
        for row in range(1, ROWS + 1):
            for i in range(count(shapes, f"layer{row}.{{}}.")):
                last = count(shapes, f"layer{row}.{i}.conv.{{}}.") - 1
                projections.append(shapes[f"layer{row}.{i}.conv.{last}.conv.weight"][0])
        return mobilenet_v2_config(
            projections,
            shapes["conv1.conv.weight"][1],
            last=None,
            output_stride=output_stride,
            first_block_dilation="same",
            dilated_blocks="first",
        )
    raise ValueError(
        "its backbone is not one that we know: ResNet, ResNetV1c and MobileNetV2 are, "
        f"this one begins with {', '.join(list(shapes)[:3])}"
    )


def _mobilenet_v2_names() -> Names:
    names = _module("stem", "conv1")
    for block, (row, i) in enumerate(mobilenet_v2.row_and_index()):
        parts = ("expand", "depthwise", "project")[row == 0 :]  # the first row expands nothing
        for at, part in enumerate(parts):
            names |= _module(f"blocks.{block}.{part}", f"layer{row + 1}.{i}.conv.{at}")
    return names


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
