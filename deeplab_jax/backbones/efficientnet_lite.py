"""EfficientNet-Lite (Liu 2020; Tan & Le 2019 without squeeze-excite and with ReLU6), dilated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import FirstBlockDilation, OutputStride, check_output_stride
from deeplab_jax.backbones.inverted_residual import (
    Block,
    inverted_residuals,
    run,
    spatial_layers,
    taps,
)
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.layers import ConvNormAct, Norm, SpatialLayer, make_divisible

TABLE = (  # expansion, channels, blocks, stride of the first, kernel: lite0
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
SCALING = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}
"""Variant -> multipliers on channels and on the number of blocks."""
STEM, LAST = 32, 1280  # never scaled


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """
    Attributes:
      variant: 0 to 4.
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      last_conv: the classifier's 1x1 to 1280 channels: "none"; "used", as the end of the network; or
        "unused", carried along and never run (segmentation_models_pytorch has it in its checkpoints).
      padding: "symmetric" (segmentation_models_pytorch), or TensorFlow's "same".
      same_size: with "same", the side of the image that the padding is computed for once and for all;
        None computes it from the real image. efficientnet-lite-pytorch does the former (224 for lite0).
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm; .01 and 1e-3 in TensorFlow's own.
      drop_path: stochastic depth in training (Huang et al. 2016, arXiv 1603.09382): how often an image
        goes through a block's shortcut alone, from 0 at the first block growing to this after the last.
        EfficientNet's own is 0.2.
    """

    kind: ClassVar[str] = "efficientnet_lite"
    variant: Literal[0, 1, 2, 3, 4] = 0
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    last_conv: Literal["none", "used", "unused"] = "none"
    padding: Literal["symmetric", "same"] = "symmetric"
    same_size: int | None = None
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    drop_path: float = 0.0

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.variant not in SCALING:
            raise ValueError(f"EfficientNet-Lite's variant must be 0 to 4, got {self.variant}")

    def build(self, *, rngs: nnx.Rngs) -> "EfficientNetLite":
        return EfficientNetLite(self, rngs=rngs)


class EfficientNetLite(Backbone[EfficientNetLiteConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high."""

    def __init__(self, config: EfficientNetLiteConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        blocks = block_table(config.variant)
        stem_padding, *paddings = _paddings(config, blocks)
        self.stem = ConvNormAct(
            config.in_channels,
            STEM,
            3,
            stride=2,
            padding=stem_padding,
            activation="relu6",
            norm=norm,
            rngs=rngs,
        )
        self.blocks = inverted_residuals(
            STEM,
            blocks,
            output_stride=config.output_stride,
            first_block_dilation=config.first_block_dilation,
            paddings=paddings,
            drop_path=config.drop_path,
            norm=norm,
            rngs=rngs,
        )
        high = blocks[-1].channels
        self.last = (
            ConvNormAct(high, LAST, activation="relu6", norm=norm, rngs=rngs)
            if config.last_conv != "none"
            else None
        )
        self.high_channels = LAST if config.last_conv == "used" else high

    @property
    def taps(self) -> dict[str, int]:
        """Features that are a block's output -> the index of the block."""
        blocks = block_table(self.config.variant)
        return taps(blocks)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        blocks = block_table(self.config.variant)
        channels = {name: blocks[i].channels for name, i in self.taps.items()}
        return channels | {"high": self.high_channels}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        high, features = run(self.blocks, self.stem(images), self.taps, rngs=rngs)
        return features | {"high": self.last(high) if self.config.last_conv == "used" else high}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        return spatial_layers(self.stem, self.blocks)


def block_table(variant: int) -> list[Block]:
    """The rows of the network. The first and the last stage keep their number of blocks."""
    wider, deeper = SCALING[variant]
    blocks, channels = [], STEM
    for stage, (expansion, out, count, stride, kernel) in enumerate(TABLE):
        fixed = stage in (0, len(TABLE) - 1)
        for i in range(count if fixed else math.ceil(count * deeper)):
            block = Block(
                kernel_size=kernel,
                expanded=channels * expansion,
                channels=make_divisible(out * wider),
                stride=stride if i == 0 else 1,
            )
            channels = block.channels
            blocks.append(block)
    return blocks


def _paddings(config: EfficientNetLiteConfig, blocks: list[Block]) -> list[ops.Padding | None]:
    """The padding of the stem and of each block's depthwise convolution."""
    if config.padding == "symmetric":
        return [None] * (len(blocks) + 1)
    if config.same_size is None:
        return ["same"] * (len(blocks) + 1)
    paddings, size, reached = [], config.same_size, 1
    for kernel, stride in [(3, 2), *((block.kernel_size, block.stride) for block in blocks)]:
        if stride == 1 or reached * stride > config.output_stride:
            paddings.append("same")  # symmetric at stride 1, whatever the size
            continue
        axis = ops.same_padding(size, kernel, stride, dilation=1)
        paddings.append((axis, axis))
        size, reached = -(-size // stride), reached * stride
    return paddings


register_backbone(
    EfficientNetLiteConfig,
    presets={f"efficientnet_lite{v}": EfficientNetLiteConfig(v) for v in SCALING},
    heads=SEPARABLE_HEADS,
)
