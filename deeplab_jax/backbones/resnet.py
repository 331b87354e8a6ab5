"""ResNet (He et al. 2016), dilated, and its relatives. Modules are named as in torchvision's `resnet.py`.

By default the variant whose bottleneck has its stride in the 3x3 convolution ("v1.5"), as torchvision,
timm and mmsegmentation have it. ResNeXt, the wide ResNets, SE-ResNet, ResNet-C and -D, ECA-ResNet, ResNeSt
and Res2Net differ from it in fields of the config.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import (
    FirstBlockDilation,
    OutputStride,
    check_output_stride,
    dilate,
)
from deeplab_jax.backbones.registry import register_backbone
from deeplab_jax.backbones.residual import (
    PLAIN,
    BasicBlock,
    BlockForm,
    Bottleneck,
    sequence,
    stage_features,
)
from deeplab_jax.layers import ACTIVATIONS, Conv, ConvNormAct, Norm, SpatialLayer, spatial_layer

Depth = Literal[10, 14, 18, 26, 34, 50, 101, 152, 200, 269]
BLOCKS: dict[Depth, tuple[int, ...]] = {
    10: (1, 1, 1, 1),
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
BASIC: tuple[Depth, ...] = (10, 18, 34)  # those of basic blocks; the others are of bottlenecks
FEATURES = {"low": 64, "mid": 128, "aux": 256, "high": 512}  # widths of the four stages


@dataclasses.dataclass(frozen=True)
class ResNetConfig(BlockForm):
    """
    The fields of `BlockForm` are of it too.

    Attributes:
      depth: 10, 18, 34 (basic blocks), 14, 26, 50, 101, 152, 200 or 269 (bottlenecks).
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      multi_grid: factors on the atrous rate of the blocks of layer4, (1, 2, 4) in DeepLabv3; () for
        none.
      absolute_multi_grid: they are the rates themselves (mmsegmentation).
      basic_block_dilation: which 3x3 convolutions of a basic block (depth 10, 18 and 34) have the atrous
        rate, "both" or the "first" only (mmsegmentation).
      stem: "plain" is one 7x7 convolution; "deep" is three 3x3, which mmsegmentation calls "v1c".
      stem_widths: channels of the three: (32, 32, 64) in ResNet-C and -D, (64, 64, 128) in ResNeSt-101,
        (24, 32, 64) in what timm calls "t".
      stem_pool: max pooling with zeros "around" the image; "ceil": without, but with the windows that
        stick out at the bottom and right (Caffe's form, of the SENets); or "both" (DeepLab's in Caffe);
        "same" is TensorFlow's padding.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
      stage_stride: which block of a stage has a stride: the "first" of all but layer1, or the "last" of
        all but layer4 (Google's), so that mid and aux are layer1 and layer2.
      low: the low-level features are the output of layer1 ("stage"), or what its last block at stride 4
        adds to its shortcut ("residual", Google's).
    """

    kind: ClassVar[str] = "resnet"
    depth: Depth = 50
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    multi_grid: tuple[int, ...] = ()
    absolute_multi_grid: bool = False
    basic_block_dilation: Literal["both", "first"] = "both"
    stem: Literal["plain", "deep"] = "plain"
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    stem_widths: tuple[int, int, int] = (32, 32, 64)
    stem_pool: Literal["around", "ceil", "both", "same"] = "around"
    stage_stride: Literal["first", "last"] = "first"
    low: Literal["stage", "residual"] = "stage"

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.depth not in BLOCKS:
            raise ValueError(f"ResNet's depth must be one of {sorted(BLOCKS)}, got {self.depth!r}")
        if problems := list(self._problems()):
            raise ValueError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.bottlenecks:
            if (self.stage_stride, self.low) != ("first", "stage"):
                yield (
                    "stage_stride and low are for bottlenecks (depth 14, 26, 50 and more), and "
                    f"ResNet-{self.depth} has basic blocks: leave them out"
                )
            for name in OF_BOTTLENECKS:
                if (value := getattr(self, name)) != getattr(PLAIN, name):
                    yield (
                        f"{name} is for bottlenecks (depth 14, 26, 50 and more), and ResNet-{self.depth} "
                        f"has basic blocks: leave it at {getattr(PLAIN, name)!r}, got {value!r}"
                    )
        elif (self.stage_stride, self.low) == ("last", "stage"):
            yield 'stage_stride="last" leaves no stage at stride 4: low must be "residual", got "stage"'
        counts = {"groups": 1, "width_per_group": 1, "scale": 1, "radix": 0}
        for name, least in counts.items():
            if (value := getattr(self, name)) < least:
                yield f"{name} must be at least {least}, got {value!r}"
        if self.nonlinearity != "relu" and (self.radix or self.scale > 1):
            yield (
                "nonlinearity is for blocks without radix (of ResNeSt) and scale (of Res2Net), got "
                f"{self.nonlinearity!r}"
            )
        if self.radix and self.scale > 1:
            yield "radix (of ResNeSt) and scale (of Res2Net) both replace the 3x3 convolution: give one"
        if self.width_per_group % self.reduce_first:
            yield (
                f"width_per_group must be a multiple of reduce_first, {self.reduce_first}, got "
                f"{self.width_per_group!r}"
            )
        if self.shortcut == "average" and self.shortcut_kernel > 1:
            yield 'shortcut_kernel is for shortcut="conv"; with "average" it is 1'
        if len(self.stem_widths) != 3:
            yield f"stem_widths must be three numbers of channels, got {self.stem_widths!r}"

    @property
    def bottlenecks(self) -> bool:
        """Whether the blocks are bottlenecks."""
        return self.depth not in BASIC

    @property
    def stem_channels(self) -> int:
        """What the stem gives."""
        return FEATURES["low"] if self.stem == "plain" else self.stem_widths[-1]

    def build(self, *, rngs: nnx.Rngs) -> "ResNet":
        return ResNet(self, rngs=rngs)


OF_BOTTLENECKS = (
    "groups",
    "width_per_group",
    "reduce_first",
    "bottleneck_stride",
    "radix",
    "scale",
    "strided_shortcut",
)


class ResNet(Backbone[ResNetConfig]):
    """Images `[B, H, W, in_channels]` -> features.

    The features are low (layer1, stride 4), mid (layer2, stride 8), aux (layer3) and high (layer4,
    at the output stride).
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        channels = config.stem_channels
        if config.stem == "plain":
            self.conv1 = Conv(config.in_channels, channels, 7, stride=2, rngs=rngs)
            self.bn1 = norm(channels)
        else:
            widths = (config.in_channels, *config.stem_widths)
            self.stem = nnx.List(
                ConvNormAct(
                    cin,
                    cout,
                    3,
                    stride=2 if i == 0 else 1,
                    activation=config.nonlinearity,
                    norm=norm,
                    rngs=rngs,
                )
                for i, (cin, cout) in enumerate(itertools.pairwise(widths))
            )
        stages = []
        for width, steps in zip(FEATURES.values(), _plan(config), strict=True):
            stage: nnx.List[BasicBlock | Bottleneck] = nnx.List()
            for step in steps:
                options: dict[str, Any] = {
                    "stride": step.stride,
                    "dilation": step.dilation,
                    "lost_stride": step.lost_stride,
                    "form": config,
                    "norm": norm,
                    "rngs": rngs,
                }
                if config.bottlenecks:
                    stage.append(Bottleneck(channels, width, **options))
                else:
                    options["second_dilation"] = step.second
                    stage.append(BasicBlock(channels, width, **options))
                channels = width * stage[-1].expansion
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        expansion = self.layer1[0].expansion
        channels = {name: width * expansion for name, width in FEATURES.items()}
        if self.config.stage_stride == "last":
            channels |= {"mid": channels["low"], "aux": channels["mid"]}
        return channels

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        if self.config.stem == "plain":
            x = ACTIVATIONS[self.config.nonlinearity](self.bn1(self.conv1(images)))
        else:
            x = sequence(self.stem, images)
        match self.config.stem_pool:
            case "around":
                x = ops.max_pool(x)
            case "same":
                x = _same_max_pool(x)
            case pool:
                x = _ceil_max_pool(x, before=1 if pool == "both" else 0)
        if self.config.low == "stage":
            return stage_features(self, x)
        return self._features(x)

    def _features(self, x: jax.Array) -> dict[str, jax.Array]:
        """Those of the stages where low is a residual."""
        at_last = self.config.stage_stride == "last"
        tapped = len(self.layer1) - (2 if at_last else 1)
        x = sequence(self.layer1[:tapped], x)
        low = self.layer1[tapped].begin(x)
        x = self.layer1[tapped].end(x, low)
        first = sequence(self.layer1[tapped + 1 :], x)
        second = sequence(self.layer2, first)
        third = sequence(self.layer3, second)
        mid, aux = (first, second) if at_last else (second, third)
        return {"low": low, "mid": mid, "aux": aux, "high": sequence(self.layer4, third)}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order; shortcuts do not."""
        if self.config.stem == "plain":
            yield spatial_layer("conv1", self.conv1)
        else:
            for i, part in enumerate(self.stem):
                yield spatial_layer(f"stem.{i}", part.conv)
        yield SpatialLayer("stem.pool", kernel_size=3, stride=2, dilation=1)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(getattr(self, name)):
                yield from block.spatial_layers(f"{name}.{i}")


def _same_max_pool(x: jax.Array) -> jax.Array:
    """Max pooling 3x3 with stride 2 and TensorFlow's padding; zeros never win, as after a ReLU."""
    sides = (ops.same_padding(size, 3, 2, 1) for size in x.shape[1:3])
    return ops.max_pool(jnp.pad(x, ((0, 0), *sides, (0, 0))), padding=0)


def _ceil_max_pool(x: jax.Array, before: int) -> jax.Array:
    """Max pooling 3x3 with stride 2 whose last windows may stick out.

    Zeros there never win, as there is none below zero after a ReLU.

    Args:
      before: rows and columns of zeros before the first.
    """
    sides = []
    for size in x.shape[1:3]:
        whole = max(3, size + 2 * before)
        sides.append((before, whole - size - before + (whole - 1) % 2))
    return ops.max_pool(jnp.pad(x, ((0, 0), *sides, (0, 0))), padding=0)


class _Step(NamedTuple):
    """What the dilation of the network makes of a block.

    Attributes:
      dilation: of its first convolution that has a rate.
      second: the rate of a basic block's second 3x3 convolution.
      lost_stride: whether it has a stride in the classification network and none here.
    """

    stride: int
    dilation: int
    second: int
    lost_stride: bool


def _plan(config: ResNetConfig) -> list[list[_Step]]:
    """Each block of each stage.

    The second 3x3 of a block that lost its stride works at its stage's own rate by either rule: the
    stride that was lost lies before it.
    """
    counts = BLOCKS[config.depth]
    strides = [
        2 if _is_strided(config, stage, block) else 1
        for stage, count in enumerate(counts)
        for block in range(count)
    ]
    firsts, seconds = (
        iter(dilate(strides, config.output_stride, start=4, first_block=rule))
        for rule in (config.first_block_dilation, "same")
    )
    stages = []
    for stage, count in enumerate(counts):
        blocks = []
        for block in range(count):
            (stride, first), (_, second) = next(firsts), next(seconds)
            if stage == 3 and config.multi_grid:
                factor = config.multi_grid[block % len(config.multi_grid)]
                absolute = config.absolute_multi_grid
                first, second = (factor if absolute else rate * factor for rate in (first, second))
            if config.basic_block_dilation == "first":
                second = 1
            lost_stride = _is_strided(config, stage, block) and stride == 1
            blocks.append(_Step(stride, first, second, lost_stride))
        stages.append(blocks)
    return stages


def _is_strided(config: ResNetConfig, stage: int, block: int) -> bool:
    """Whether a block has a stride in the classification network."""
    if config.stage_stride == "last":
        return stage < 3 and block == BLOCKS[config.depth][stage] - 1
    return block == 0 < stage


def _resnext(depth: Depth, groups: int, width: int, **fields: Any) -> ResNetConfig:
    return ResNetConfig(depth, groups=groups, width_per_group=width, **fields)


_DEEP: dict[str, Any] = {"stem": "deep", "shortcut": "average"}  # ResNet-D
_WIDE_DEEP = _DEEP | {"stem_widths": (64, 64, 128)}
_CAFFE: dict[str, Any] = {"attention": "se", "stem_pool": "ceil"}  # the SENets of their authors

register_backbone(
    ResNetConfig,
    presets={f"resnet{depth}": ResNetConfig(depth) for depth in (18, 34, 50, 101, 152)}
    | {
        # as torchvision and timm name them
        "resnext50_32x4d": _resnext(50, 32, 4),
        "resnext101_32x8d": _resnext(101, 32, 8),
        "resnext101_64x4d": _resnext(101, 64, 4),
        "wide_resnet50_2": ResNetConfig(50, width_per_group=128),
        "wide_resnet101_2": ResNetConfig(101, width_per_group=128),
        "resnet18d": ResNetConfig(18, **_DEEP),
        "resnet34d": ResNetConfig(34, **_DEEP),
        "resnet50d": ResNetConfig(50, **_DEEP),
        "resnet101d": ResNetConfig(101, **_DEEP),
        "seresnet50": ResNetConfig(50, attention="se"),
        "seresnext50_32x4d": _resnext(50, 32, 4, attention="se"),
        "ecaresnet50d": ResNetConfig(50, attention="eca", **_DEEP),
        "resnest14d": ResNetConfig(14, radix=2, **_DEEP),
        "resnest26d": ResNetConfig(26, radix=2, **_DEEP),
        "resnest50d": ResNetConfig(50, radix=2, **_DEEP),
        "resnest101e": ResNetConfig(101, radix=2, **_WIDE_DEEP),
        "res2net50_26w_4s": ResNetConfig(50, width_per_group=26, scale=4),
        # as segmentation_models_pytorch names its own
        "se_resnet50": ResNetConfig(50, bottleneck_stride="1x1", **_CAFFE),
        "se_resnet101": ResNetConfig(101, bottleneck_stride="1x1", **_CAFFE),
        "se_resnext50_32x4d": _resnext(50, 32, 4, **_CAFFE),
        "se_resnext101_32x4d": _resnext(101, 32, 4, **_CAFFE),
        "senet154": _resnext(
            152,
            64,
            4,
            stem="deep",
            stem_widths=(64, 64, 128),
            reduce_first=2,
            shortcut_kernel=3,
            **_CAFFE,
        ),
    },
)
