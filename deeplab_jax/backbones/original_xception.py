"""Xception (Chollet 2017), dilated.

The aligned one of DeepLabv3+ grew out of it (see `xception`): this has two or three convolutions in a
block, half as many blocks, pooling where that has strides, and no batch norm after the depthwise
convolutions.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
from flax import nnx

from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import (
    FirstBlockDilation,
    OutputStride,
    check_output_stride,
    dilate,
)
from deeplab_jax.backbones.registry import register_backbone
from deeplab_jax.backbones.residual import sequence
from deeplab_jax.backbones.xception import STEM, Block, SeparableConv, spatial_layers
from deeplab_jax.layers import ConvNormAct, Norm, SpatialLayer

BLOCKS = ((128,) * 2, (256,) * 2, (728,) * 2, *((728,) * 3,) * 8, (728, 1024))
"""Channels of the convolutions of each block."""
EXIT = (1536, 2048)


@dataclasses.dataclass(frozen=True)
class OriginalXceptionConfig:
    """Chollet's Xception, by Cadene's code for PyTorch. The stem pads nothing.

    Attributes:
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      exit_padding: zeros around the last two convolutions; None keeps the size. VainF has 1 at every
        atrous rate, so that the features lose a margin.
      last_norm: batch norm and ReLU after the last convolution; VainF takes the features before them.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
    """

    kind: ClassVar[str] = "original_xception"
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    exit_padding: int | None = None
    last_norm: bool = True
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        check_output_stride(self.output_stride)

    def build(self, *, rngs: nnx.Rngs) -> "OriginalXception":
        return OriginalXception(self, rngs=rngs)


class OriginalXception(Backbone[OriginalXceptionConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high.

    The first three are the blocks' outputs, before the ReLU that the next block begins with.
    """

    def __init__(self, config: OriginalXceptionConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        common = {"norm": norm, "rngs": rngs}
        self.stem = nnx.List()
        channels = config.in_channels
        for i, width in enumerate(STEM):
            self.stem.append(ConvNormAct(channels, width, 3, stride=2 - i, padding=0, **common))
            channels = width
        strides = [2, 2, 2, *[1] * (len(BLOCKS) - 4), 2, 1]
        plan = dilate(
            strides, config.output_stride, start=2, first_block=config.first_block_dilation
        )
        self.blocks = nnx.List()
        for i, (widths, (stride, dilation)) in enumerate(zip(BLOCKS, plan, strict=False)):
            self.blocks.append(
                Block(
                    channels,
                    widths,
                    stride=stride,
                    dilations=(dilation,) * len(widths),
                    pool=True,
                    norm_between=False,
                    relu_first=i > 0,
                    **common,
                )
            )
            channels = widths[-1]
        self.exit = nnx.List()
        for width in EXIT:
            self.exit.append(
                SeparableConv(
                    channels,
                    width,
                    dilation=plan[-1][1],
                    padding=config.exit_padding,
                    norm_between=False,
                    norm_after=width != EXIT[-1] or config.last_norm,
                    relu=True,
                    **common,
                )
            )
            channels = width

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        taps = {"low": BLOCKS[0], "mid": BLOCKS[1], "aux": BLOCKS[-2], "high": EXIT}
        return {name: widths[-1] for name, widths in taps.items()}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        x = sequence(self.stem, images)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        high = sequence(self.exit, x)
        return {"low": outputs[0], "mid": outputs[1], "aux": outputs[-2], "high": high}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        return spatial_layers(self.stem, self.blocks, self.exit)


register_backbone(OriginalXceptionConfig)
