"""ResNet (He et al. 2016), dilated. Modules are named as in torchvision's `resnet.py`.

The variant whose bottleneck has its stride in the 3x3 convolution ("v1.5"), as torchvision, timm and
mmsegmentation have it.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
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
from deeplab_jax.layers import Conv, ConvNormAct, Norm, SpatialLayer, spatial_layer

Depth = Literal[18, 34, 50, 101, 152]
BLOCKS: dict[Depth, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """
    Attributes:
      depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      multi_grid: factors on the atrous rate of the blocks of layer4, (1, 2, 4) in DeepLabv3; () for
        none.
      absolute_multi_grid: they are the rates themselves (mmsegmentation).
      basic_block_dilation: which 3x3 convolutions of a basic block (depth 18 and 34) have the atrous
        rate, "both" or the "first" only (mmsegmentation).
      stem: "plain" is one 7x7 convolution; "deep" is three 3x3 of 32, 32 and 64 channels, which
        mmsegmentation calls "v1c".
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
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

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.depth not in BLOCKS:
            raise ValueError(f"ResNet's depth must be one of {sorted(BLOCKS)}, got {self.depth!r}")

    def build(self, *, rngs: nnx.Rngs) -> "ResNet":
        return ResNet(self, rngs=rngs)


class ResNet(Backbone[ResNetConfig]):
    """Images `[B, H, W, in_channels]` -> features.

    The features are low (layer1, stride 4), mid (layer2, stride 8), aux (layer3) and high (layer4,
    at the output stride).
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        block_type = BasicBlock if config.depth < 50 else Bottleneck
        if config.stem == "plain":
            self.conv1 = Conv(config.in_channels, 64, 7, stride=2, rngs=rngs)
            self.bn1 = norm(64)
        else:
            widths = (config.in_channels, 32, 32, 64)
            self.stem = nnx.List(
                ConvNormAct(cin, cout, 3, stride=2 if i == 0 else 1, norm=norm, rngs=rngs)
                for i, (cin, cout) in enumerate(itertools.pairwise(widths))
            )
        stages, channels = [], 64
        for blocks in _plan(config):
            stage: nnx.List[BasicBlock | Bottleneck] = nnx.List()
            for width, stride, dilation, second in blocks:
                rates = {"dilation": dilation}
                if block_type is BasicBlock:
                    rates["second_dilation"] = second
                stage.append(
                    block_type(channels, width, stride=stride, **rates, norm=norm, rngs=rngs)
                )
                channels = width * block_type.expansion
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        expansion = self.layer1[0].expansion
        widths = {"low": 64, "mid": 128, "aux": 256, "high": 512}
        return {name: width * expansion for name, width in widths.items()}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        if self.config.stem == "plain":
            x = jax.nn.relu(self.bn1(self.conv1(images)))
        else:
            x = sequence(self.stem, images)
        x = ops.max_pool(x)
        low = sequence(self.layer1, x)
        mid = sequence(self.layer2, low)
        aux = sequence(self.layer3, mid)
        high = sequence(self.layer4, aux)
        return {"low": low, "mid": mid, "aux": aux, "high": high}

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
                yield spatial_layer(f"{name}.{i}.conv1", block.conv1)
                yield spatial_layer(f"{name}.{i}.conv2", block.conv2)


def _plan(config: ResNetConfig) -> list[list[tuple[int, int, int, int]]]:
    """(width, stride, rate, rate of a basic block's second 3x3) of each block of each stage.

    The second 3x3 of a block that lost its stride works at its stage's own rate by either rule: the
    stride that was lost lies before it.
    """
    counts = BLOCKS[config.depth]
    strides = [
        2 if block == 0 and stage > 0 else 1
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
            blocks.append((64 * 2**stage, stride, first, second))
        stages.append(blocks)
    return stages


def sequence(modules: nnx.List, x: jax.Array) -> jax.Array:
    """`x` through the modules, one after the other."""
    for module in modules:
        x = module(x)
    return x


class Downsample(nnx.Module):
    """The 1x1 convolution and norm of a shortcut whose shape changes."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm: Norm, *, rngs: nnx.Rngs
    ):
        self.conv = Conv(in_channels, out_channels, stride=stride, rngs=rngs)
        self.bn = norm(out_channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut; ResNet-18 and -34."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        second_dilation: int | None = None,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv(in_channels, width, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, width, 3, dilation=second_dilation or dilation, rngs=rngs)
        self.bn2 = norm(width)
        changes = stride > 1 or in_channels != width
        self.downsample = (
            Downsample(in_channels, width, stride, norm, rngs=rngs) if changes else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return jax.nn.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride and the atrous rate), 1x1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        out = width * self.expansion
        self.conv1 = Conv(in_channels, width, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, width, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.bn2 = norm(width)
        self.conv3 = Conv(width, out, rngs=rngs)
        self.bn3 = norm(out)
        changes = stride > 1 or in_channels != out
        self.downsample = Downsample(in_channels, out, stride, norm, rngs=rngs) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        return jax.nn.relu(self.bn3(self.conv3(x)) + shortcut)


register_backbone(ResNetConfig, presets={f"resnet{depth}": ResNetConfig(depth) for depth in BLOCKS})
