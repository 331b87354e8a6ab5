"""The inverted residual block, and the loop over it that MobileNetV2, V3 and EfficientNet-Lite share.

1x1 to more channels, depthwise, (squeeze-excite,) 1x1 to few, and a shortcut where the shape stays
(Sandler et al. 2018; Howard et al. 2019).
"""

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.dilation import FirstBlockDilation, dilate
from deeplab_jax.layers import (
    Activation,
    ConvNormAct,
    Norm,
    SpatialLayer,
    SqueezeExcite,
    spatial_layer,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of a network's table.

    Attributes:
      kernel_size: of the depthwise convolution.
      expanded: channels between the two 1x1 convolutions; no first 1x1 where the input has them already.
      channels: of the output.
      stride: in the classification network.
      activation: after expansion and depthwise; the projection has none.
      squeezed: channels inside squeeze-excite, None for none.
      always_expand: have the first 1x1 even where the input has `expanded` channels already.
    """

    kernel_size: int
    expanded: int
    channels: int
    stride: int
    activation: Activation = "relu6"
    squeezed: int | None = None
    always_expand: bool = False


class InvertedResidual(nnx.Module):
    """`[B, H, W, in_channels]` -> `[B, H / stride, W / stride, block.channels]`.

    Args:
      pad_input: pad the *input* of the block instead of the depthwise convolution's, so that the ring
        around the image is what the expansion makes of zeros. VainF's and jfzhang's MobileNetV2 do it.
      drop_path: rate at which, in training, an image goes through the shortcut alone.
    """

    def __init__(
        self,
        in_channels: int,
        block: Block,
        *,
        stride: int,
        dilation: int,
        padding: ops.Padding | None = None,
        pad_input: bool = False,
        drop_path: float = 0.0,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        width, act = block.expanded, block.activation
        self.ring = dilation * (block.kernel_size - 1) // 2 if pad_input else 0
        self.expand = (
            ConvNormAct(in_channels, width, activation=act, norm=norm, rngs=rngs)
            if width != in_channels or block.always_expand
            else None
        )
        self.depthwise = ConvNormAct(
            width,
            width,
            block.kernel_size,
            stride=stride,
            dilation=dilation,
            padding=0 if pad_input else padding,
            groups=width,
            activation=act,
            norm=norm,
            rngs=rngs,
        )
        self.se = SqueezeExcite(width, block.squeezed, rngs=rngs) if block.squeezed else None
        self.project = ConvNormAct(width, block.channels, activation="none", norm=norm, rngs=rngs)
        # The classification network's stride decides, even where dilation has replaced it.
        self.shortcut = block.stride == 1 and in_channels == block.channels
        self.drop_path = nnx.Dropout(drop_path, broadcast_dims=(1, 2, 3))

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        ring = (self.ring, self.ring)
        y = jnp.pad(x, ((0, 0), ring, ring, (0, 0))) if self.ring else x
        y = y if self.expand is None else self.expand(y)
        y = self.depthwise(y)
        y = y if self.se is None else self.se(y)
        y = self.project(y)
        return x + self.drop_path(y, rngs=rngs) if self.shortcut else y


def inverted_residuals(
    in_channels: int,
    blocks: Sequence[Block],
    *,
    output_stride: int,
    first_block_dilation: FirstBlockDilation,
    dilated: Sequence[bool] | None = None,
    rate_of: Sequence[int] | None = None,
    paddings: Sequence[ops.Padding | None] | None = None,
    pad_input: bool = False,
    drop_path: float = 0.0,
    norm: Norm,
    rngs: nnx.Rngs,
) -> nnx.List:
    """The blocks of a network whose stem has stride 2, dilated to `output_stride`.

    Args:
      dilated: whether a block has its stage's atrous rate, or none; all have by default.
      rate_of: index of the block whose atrous rate each block takes; its own by default.
      drop_path: of a block after the last; it grows linearly from 0 at the first.
    """
    plan = dilate(
        [block.stride for block in blocks], output_stride, start=2, first_block=first_block_dilation
    )
    modules = nnx.List()
    for i, (block, (stride, dilation)) in enumerate(zip(blocks, plan, strict=True)):
        if rate_of is not None:
            _, dilation = plan[rate_of[i]]
        modules.append(
            InvertedResidual(
                in_channels,
                block,
                stride=stride,
                dilation=dilation if dilated is None or dilated[i] else 1,
                padding=paddings[i] if paddings else None,
                pad_input=pad_input,
                drop_path=drop_path * i / len(blocks),
                norm=norm,
                rngs=rngs,
            )
        )
        in_channels = block.channels
    return modules


def last_at_stride(blocks: Sequence[Block], stride: int) -> int:
    """Index of the last block at `stride` in the classification network (whose stem has stride 2)."""
    strides = list(itertools.accumulate((b.stride for b in blocks), operator.mul, initial=2))[1:]
    return len(strides) - 1 - strides[::-1].index(stride)


def taps(blocks: Sequence[Block]) -> dict[str, int]:
    """The features low, mid and aux: the index of the last block at strides 4, 8 and 16."""
    return {
        name: last_at_stride(blocks, stride)
        for name, stride in (("low", 4), ("mid", 8), ("aux", 16))
    }


def run(
    blocks: nnx.List, x: jax.Array, taps: dict[str, int], *, rngs: nnx.Rngs | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The last block's output, and those of the blocks that `taps` names by their index."""
    outputs = []
    for block in blocks:
        x = block(x, rngs=rngs)
        outputs.append(x)
    return x, {name: outputs[index] for name, index in taps.items()}


def spatial_layers(stem: ConvNormAct, blocks: nnx.List) -> Iterator[SpatialLayer]:
    """What widens the receptive field, in order."""
    yield spatial_layer("stem", stem.conv)
    for i, block in enumerate(blocks):
        yield spatial_layer(f"blocks.{i}", block.depthwise.conv)
