"""The aligned Xceptions of DeepLabv3+ (Chen et al. 2018, figure 4), dilated: 65 and its relatives.

Blocks of three depthwise-separable convolutions with a shortcut, and three without one at the end.
Code bases differ in where its ReLUs are and in what they do to the shortcuts; see `XceptionConfig`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import (
    OutputStride,
    check_output_stride,
    dilate,
)
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.backbones.residual import Downsample, sequence
from deeplab_jax.layers import Conv, ConvNormAct, Norm, SpatialLayer, spatial_layer

STEM = (32, 64)
Depth = Literal[41, 65, 71]


class BlockShape(NamedTuple):
    """Channels of a block's convolutions, and the stride of the last in the classification network."""

    widths: tuple[int, int, int]
    stride: int


def _blocks(entry: Sequence[tuple[int, int]], middle: int) -> tuple[BlockShape, ...]:
    """Those of an entry flow of (channels, stride), of a middle flow, and the one of the exit flow."""
    shapes = [*entry, *[(728, 1)] * middle]
    return (
        *(BlockShape((width,) * 3, stride) for width, stride in shapes),
        BlockShape((728, 1024, 1024), 2),
    )


ENTRY = ((128, 2), (256, 2), (728, 2))
NETWORKS: dict[Depth, tuple[BlockShape, ...]] = {
    41: _blocks(ENTRY, 8),
    65: _blocks(ENTRY, 16),
    71: _blocks(((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)), 16),
}
"""The blocks before the last three convolutions, by the depth."""
EXIT = (1536, 1536, 2048)


# ---------------------------------------------------------------------------- configs


@dataclasses.dataclass(frozen=True)
class XceptionConfig:
    """The aligned Xception. The defaults are TensorFlow's research/deeplab, the paper's own code.

    Attributes:
      output_stride: 8, 16 or 32.
      low: the low-level features: "block2" is the second convolution of the block that strides from 4 to
        8 (256 channels; the second block, but in Xception-71 the third), and "block2_relu" (timm) has the
        ReLU behind it; "block1" (yassouali) and "block1_relu" (jfzhang) are the output of the first
        block (128 channels), before and after the ReLU that the next begins with.
      stem_relu: a ReLU after the second convolution; yassouali's has none.
      shortcut_relu: which shortcuts start behind the ReLU that the block begins with: "none",
        "identity", those without a convolution (bubbliiiing), or "all" (jfzhang, yassouali). It is what
        ReLUs that work in place do to the tensor that the shortcut still reads.
      exit_relu: "after" each batch norm of the last three convolutions; or "before" each of these
        convolutions and after the last, as in the blocks (jfzhang, yassouali).
      exit_stride: of the last block in the classification network: 2, or 1 (bubbliiiing), which leaves
        no stride to lose there, so that what follows is not dilated for it.
      dilate_exit_last: the last block's third convolution has the block's atrous rate; False for
        rate 1 (jfzhang).
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm; 3e-4 and 1e-3 in TensorFlow's own.
      depth: 41 (half as many blocks in the middle), 65 or 71 (two blocks more at the beginning).
      keep_shortcut: a block that lost its stride keeps the convolution of its shortcut even where its
        channels stay (TensorFlow's own; Xception-71 at output stride 8); False drops it (timm).
    """

    kind: ClassVar[str] = "xception"
    output_stride: OutputStride = 16
    low: Literal["block2", "block2_relu", "block1", "block1_relu"] = "block2"
    stem_relu: bool = True
    shortcut_relu: Literal["none", "identity", "all"] = "none"
    exit_relu: Literal["after", "before"] = "after"
    exit_stride: Literal[1, 2] = 2
    dilate_exit_last: bool = True
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    depth: Depth = 65
    keep_shortcut: bool = False

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.depth not in NETWORKS:
            raise ValueError(f"Xception's depth must be 41, 65 or 71, got {self.depth!r}")
        if self.output_stride > 16 * self.exit_stride:
            raise ValueError("output_stride 32 needs the last block's stride, got exit_stride 1")

    def build(self, *, rngs: nnx.Rngs) -> "Xception":
        return Xception(self, rngs=rngs)


# ---------------------------------------------------------------------------- parts


class SeparableConv(nnx.Module):
    """Depthwise 3x3 and pointwise 1x1: `[B, H, W, in]` -> `[B, H', W', out]`.

    Args:
      norm_between: batch norm after the depthwise convolution too.
      norm_after: batch norm after the pointwise convolution.
      relu: ReLU after every batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        norm_between: bool,
        norm_after: bool = True,
        relu: bool = False,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.relu = relu
        self.depthwise = Conv(
            in_channels,
            in_channels,
            3,
            stride=stride,
            dilation=dilation,
            padding=padding,
            groups=in_channels,
            rngs=rngs,
        )
        self.depthwise_bn = norm(in_channels) if norm_between else None
        self.pointwise = Conv(in_channels, out_channels, rngs=rngs)
        self.bn = norm(out_channels) if norm_after else None

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, bn in ((self.depthwise, self.depthwise_bn), (self.pointwise, self.bn)):
            x = conv(x)
            if bn is not None:
                x = jax.nn.relu(bn(x)) if self.relu else bn(x)
        return x


class Block(nnx.Module):
    """Separable convolutions, a ReLU before each, and a shortcut around them.

    Args:
      widths: output channels of each convolution.
      stride: of the last of them, or of a max pooling after it (`pool`).
      dilations: atrous rate of each.
      norm_between: see `SeparableConv`.
      relu_first: False leaves out the first ReLU.
      keep_shortcut: the shortcut has a convolution whatever the stride and the channels.
      shortcut_relu: see `XceptionConfig`.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        stride: int,
        dilations: Sequence[int],
        pool: bool,
        norm_between: bool,
        relu_first: bool = True,
        shortcut_relu: str = "none",
        keep_shortcut: bool = False,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.relu_first = relu_first
        self.pool_stride = stride if pool else 1
        out = widths[-1]
        self.shortcut = (
            Downsample(in_channels, out, stride, norm, rngs=rngs)
            if stride > 1 or in_channels != out or keep_shortcut
            else None
        )
        self.shortcut_relu = shortcut_relu == "all" or (
            shortcut_relu == "identity" and self.shortcut is None
        )
        self.convs = nnx.List()
        for i, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
            last = i == len(widths) - 1
            self.convs.append(
                SeparableConv(
                    in_channels,
                    width,
                    stride=stride if last and not pool else 1,
                    dilation=dilation,
                    norm_between=norm_between,
                    norm=norm,
                    rngs=rngs,
                )
            )
            in_channels = width

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.end(x, self.begin(x))

    def begin(self, x: jax.Array) -> jax.Array:
        """Output of the last convolution but one, before its ReLU."""
        y = jax.nn.relu(x) if self.relu_first else x
        for i in range(len(self.convs) - 1):
            y = self.convs[i](y if i == 0 else jax.nn.relu(y))
        return y

    def end(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The block's output, given its input and what `begin` made of that."""
        y = self.convs[len(self.convs) - 1](jax.nn.relu(y))
        y = ops.max_pool(y, stride=self.pool_stride) if self.pool_stride > 1 else y
        x = jax.nn.relu(x) if self.shortcut_relu and self.relu_first else x
        return y + (x if self.shortcut is None else self.shortcut(x))

    def spatial_layers(self, path: str) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order; shortcuts do not."""
        for i, conv in enumerate(self.convs):
            yield spatial_layer(f"{path}.convs.{i}", conv.depthwise)
        if self.pool_stride > 1:
            yield SpatialLayer(f"{path}.pool", 3, self.pool_stride, 1)


# ---------------------------------------------------------------------------- networks


class Xception(Backbone[XceptionConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high.

    mid and aux are the blocks' outputs, before the ReLU that the next block begins with.
    """

    def __init__(self, config: XceptionConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        self.stem = nnx.List()
        channels = config.in_channels
        for i, width in enumerate(STEM):
            act = "relu" if i == 0 or config.stem_relu else "none"
            self.stem.append(
                ConvNormAct(channels, width, 3, stride=2 - i, activation=act, norm=norm, rngs=rngs)
            )
            channels = width
        shapes, steps = NETWORKS[config.depth], plan(config)
        self.blocks = nnx.List()
        for i, (shape, (stride, dilation)) in enumerate(zip(shapes, steps, strict=False)):
            widths = shape.widths
            exit_last = 1 if i == len(shapes) - 1 and not config.dilate_exit_last else dilation
            self.blocks.append(
                Block(
                    channels,
                    widths,
                    stride=stride,
                    dilations=(dilation, dilation, exit_last),
                    pool=False,
                    norm_between=True,
                    relu_first=i > 0,
                    shortcut_relu=config.shortcut_relu,
                    keep_shortcut=config.keep_shortcut and shape.stride > 1,
                    norm=norm,
                    rngs=rngs,
                )
            )
            channels = widths[-1]
        self.exit = nnx.List()
        for width in EXIT:
            self.exit.append(
                SeparableConv(
                    channels,
                    width,
                    dilation=steps[-1][1],
                    norm_between=True,
                    relu=config.exit_relu == "after",
                    norm=norm,
                    rngs=rngs,
                )
            )
            channels = width

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        widths = [shape.widths for shape in NETWORKS[self.config.depth]]
        inner = widths[self._inner]
        low = inner[1] if self.config.low.startswith("block2") else widths[0][-1]
        return {"low": low, "mid": inner[-1], "aux": widths[-2][-1], "high": EXIT[-1]}

    @property
    def _inner(self) -> int:
        """Index of the block that strides from 4 to 8, the second with a stride."""
        shapes = NETWORKS[self.config.depth]
        return [i for i, shape in enumerate(shapes) if shape.stride > 1][1]

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        first, *entry = self.blocks[: self._inner]
        block2, *middle, last = self.blocks[self._inner :]
        x = block1 = first(sequence(self.stem, images))
        x = sequence(entry, x)
        inner = block2.begin(x)
        low = block1 if self.config.low.startswith("block1") else inner
        low = jax.nn.relu(low) if self.config.low.endswith("relu") else low
        mid = block2.end(x, inner)
        aux = sequence(middle, mid)
        x = last(aux)
        relu_before = self.config.exit_relu == "before"
        x = jax.nn.relu(x) if relu_before else x
        for conv in self.exit:
            x = jax.nn.relu(conv(x)) if relu_before else conv(x)
        return {"low": low, "mid": mid, "aux": aux, "high": x}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        return spatial_layers(self.stem, self.blocks, self.exit)


def plan(config: XceptionConfig) -> list[tuple[int, int]]:
    """(stride, dilation) of each block, and of the last three convolutions."""
    strides = [shape.stride for shape in NETWORKS[config.depth][:-1]]
    strides += [config.exit_stride, 1]
    return dilate(strides, config.output_stride, start=2, first_block="previous")


def spatial_layers(
    stem: nnx.List, blocks: nnx.List, exit_convs: nnx.List
) -> Iterator[SpatialLayer]:
    """What widens the receptive field, in order, given the parts of an Xception."""
    for i, part in enumerate(stem):
        yield spatial_layer(f"stem.{i}", part.conv)
    for i, block in enumerate(blocks):
        yield from block.spatial_layers(f"blocks.{i}")
    for i, conv in enumerate(exit_convs):
        yield spatial_layer(f"exit.{i}", conv.depthwise)


register_backbone(
    XceptionConfig,
    presets={f"xception{depth}": XceptionConfig(depth=depth) for depth in NETWORKS},
    heads=SEPARABLE_HEADS,
)
