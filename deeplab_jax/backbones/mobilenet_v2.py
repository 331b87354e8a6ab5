"""MobileNetV2 (Sandler et al. 2018), dilated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
from flax import nnx

from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import FirstBlockDilation, OutputStride, check_output_stride
from deeplab_jax.backbones.inverted_residual import (
    Block,
    LastConv,
    inverted_residuals,
    run,
    spatial_layers,
    taps,
)
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.layers import ConvNormAct, Norm, SpatialLayer, make_divisible

TABLE = (  # expansion, channels, blocks, stride of the first: table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config:
    """
    Attributes:
      width: multiplier on the channels.
      depth: multiplier on the number of blocks of all rows but the first and the last; with one above 1
        the stem keeps its 32 channels (timm's mobilenetv2_110d and 120d).
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      dilated_blocks: which blocks of a row of the paper's table 2 have the stage's atrous rate: "all"; the
        "first" only (mmsegmentation, with "same" above); or "none", where all have that of the row's
        first block, which "previous" leaves at the rate of the row before (jfzhang).
      last_conv: the classifier's 1x1 to 1280 channels, see `LastConv`; segmentation_models_pytorch uses it,
        the DeepLab papers drop it, transformers has it in its checkpoints. True and False, of older model
        folders, are "used" and "none".
      last_channels: of that 1x1; None is 1280, widened by a `width` above 1 and never narrowed.
      first_expand: the first block, which expands nothing, has its 1x1 all the same (transformers with
        first_layer_is_expansion=False).
      padding: of every 3x3: "symmetric", or TensorFlow's "same".
      pad_before_expand: zeros go around the input of each block instead of the depthwise convolution's
        (VainF and jfzhang): the border sees what the expansion makes of zeros.
      stem_padding: 1, or 0 as VainF has it; where `padding` is "symmetric".
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
      divisor: what channels are rounded to a multiple of; 1 in Google's DeepLabs of another width than 1.
      low: the low-level features are the output of the last block at stride 4 ("block"), or of the
        depthwise convolution in it ("depthwise", Google's).
    """

    kind: ClassVar[str] = "mobilenet_v2"
    width: float = 1.0
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    dilated_blocks: Literal["all", "first", "none"] = "all"
    last_conv: LastConv = "none"
    last_channels: int | None = None
    first_expand: bool = False
    padding: Literal["symmetric", "same"] = "symmetric"
    pad_before_expand: bool = False
    stem_padding: int = 1
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    depth: float = 1.0
    divisor: int = 8
    low: Literal["block", "depthwise"] = "block"

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if isinstance(self.last_conv, bool):
            object.__setattr__(self, "last_conv", "used" if self.last_conv else "none")

    def build(self, *, rngs: nnx.Rngs) -> "MobileNetV2":
        return MobileNetV2(self, rngs=rngs)


class MobileNetV2(Backbone[MobileNetV2Config]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high."""

    def __init__(self, config: MobileNetV2Config, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        stem = stem_channels(config.width, config.depth, config.divisor)
        blocks = self._table()
        blocks[0] = dataclasses.replace(blocks[0], always_expand=config.first_expand)
        rows = [block.stage for block in blocks]
        firsts = [rows.index(row) for row in rows]
        same = config.padding == "same"
        self.stem = ConvNormAct(
            config.in_channels,
            stem,
            3,
            stride=2,
            padding="same" if same else config.stem_padding,
            activation="relu6",
            norm=norm,
            rngs=rngs,
        )
        self.blocks = inverted_residuals(
            stem,
            blocks,
            output_stride=config.output_stride,
            first_block_dilation=config.first_block_dilation,
            dilated=[config.dilated_blocks != "first" or i in firsts for i in range(len(blocks))],
            rate_of=firsts if config.dilated_blocks == "none" else None,
            paddings=["same"] * len(blocks) if same else None,
            pad_input=config.pad_before_expand,
            norm=norm,
            rngs=rngs,
        )
        high = blocks[-1].channels
        last = config.last_channels or make_divisible(1280 * max(1.0, config.width))
        self.last = (
            ConvNormAct(high, last, activation="relu6", norm=norm, rngs=rngs)
            if config.last_conv != "none"
            else None
        )
        self.high_channels = last if config.last_conv == "used" else high

    @property
    def taps(self) -> dict[str, int]:
        """Features that are a block's output -> the index of the block."""
        return taps(self._table())

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        blocks = self._table()
        channels = {name: blocks[i].channels for name, i in self.taps.items()}
        if self.config.low == "depthwise":
            channels["low"] = blocks[self.taps["low"]].expanded
        return channels | {"high": self.high_channels}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        inside = ("low",) if self.config.low == "depthwise" else ()
        high, features = run(self.blocks, self.stem(images), self.taps, inside=inside, rngs=rngs)
        return features | {"high": self.last(high) if self.config.last_conv == "used" else high}

    def _table(self) -> list[Block]:
        return block_table(self.config.width, self.config.depth, self.config.divisor)

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        return spatial_layers(self.stem, self.blocks)


def stem_channels(width: float, depth: float = 1.0, divisor: int = 8) -> int:
    """Channels of the first convolution."""
    return 32 if depth > 1 else make_divisible(32 * width, divisor)


def block_table(width: float, depth: float = 1.0, divisor: int = 8) -> list[Block]:
    """The rows of the network, the paper's for width 1."""
    blocks, channels = [], stem_channels(width, depth, divisor)
    for row, (expansion, out, count, stride) in enumerate(TABLE):
        fixed = row in (0, len(TABLE) - 1)
        for i in range(count if fixed else math.ceil(count * depth)):
            block = Block(
                kernel_size=3,
                expanded=channels if expansion == 1 else make_divisible(channels * expansion),
                channels=make_divisible(out * width, divisor),
                stride=stride if i == 0 else 1,
                stage=row,
            )
            channels = block.channels
            blocks.append(block)
    return blocks


register_backbone(
    MobileNetV2Config, presets={"mobilenet_v2": MobileNetV2Config()}, heads=SEPARABLE_HEADS
)
