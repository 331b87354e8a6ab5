"""The inverted residual block and its kin, and the networks that are a table of them.

1x1 to more channels, depthwise, (squeeze-excite,) 1x1 to few, and a shortcut where the shape stays
(Sandler et al. 2018; Howard et al. 2019). MobileNetV2 and V3, EfficientNet, its V2 and Lite, and MnasNet
are made of them.
"""

import abc
import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone, BackboneConfig
from deeplab_jax.backbones.dilation import FirstBlockDilation, dilate
from deeplab_jax.layers import (
    Activation,
    Conv,
    ConvNormAct,
    Norm,
    SpatialLayer,
    SqueezeExcite,
    make_divisible,
    spatial_layer,
)

Form = Literal["inverted", "fused", "plain"]
"""What a block consists of: 1x1, depthwise, 1x1 ("inverted"); a dense convolution to more channels and a
1x1 ("fused": EfficientNetV2's Fused-MBConv, Tan & Le 2021, fig. 2); or one dense convolution ("plain":
the same without an expansion)."""

LastConv = Literal["none", "used", "unused"]
"""The classifier's 1x1 behind the blocks: "none"; "used", as the end of the network; or "unused", carried
along and never run (segmentation_models_pytorch has it in its checkpoints)."""


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of a network's table.

    Attributes:
      kernel_size: of the depthwise convolution, or of the dense one that is in its place.
      expanded: channels between the first convolution and the last; no first 1x1 where the input has
        them already.
      channels: of the output.
      stride: in the classification network.
      activation: after all convolutions but the projection, which has none.
      squeezed: channels inside squeeze-excite, None for none.
      always_expand: have the first convolution even where the input has `expanded` channels already.
      form: see `Form`.
      squeeze_activation, gate: of squeeze-excite, see `SqueezeExcite`.
      stage: the stage of the network that it belongs to.
    """

    kernel_size: int
    expanded: int
    channels: int
    stride: int
    activation: Activation = "relu6"
    squeezed: int | None = None
    always_expand: bool = False
    form: Form = "inverted"
    squeeze_activation: Activation = "relu"
    gate: Activation = "hard_sigmoid"
    stage: int = 0


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
        spatial = {
            "kernel_size": block.kernel_size,
            "stride": stride,
            "dilation": dilation,
            "padding": 0 if pad_input else padding,
        }
        self.ring = dilation * (block.kernel_size - 1) // 2 if pad_input else 0
        self.expand = (
            ConvNormAct(
                in_channels,
                width,
                activation=act,
                norm=norm,
                rngs=rngs,
                **(spatial if block.form == "fused" else {}),
            )
            if has_expansion(block, in_channels)
            else None
        )
        self.depthwise = (
            ConvNormAct(width, width, activation=act, norm=norm, groups=width, rngs=rngs, **spatial)
            if block.form == "inverted"
            else None
        )
        self.se = (
            SqueezeExcite(
                width,
                block.squeezed,
                activation=block.squeeze_activation,
                gate=block.gate,
                rngs=rngs,
            )
            if block.squeezed
            else None
        )
        plain = block.form == "plain"
        self.project = ConvNormAct(
            in_channels if plain else width,
            block.channels,
            activation=act if plain else "none",
            norm=norm,
            rngs=rngs,
            **(spatial if plain else {}),
        )
        # The classification network's stride decides, even where dilation has replaced it.
        self.shortcut = block.stride == 1 and in_channels == block.channels
        self.drop_path = nnx.Dropout(drop_path, broadcast_dims=(1, 2, 3))

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.end(x, self.begin(x), rngs=rngs)

    def begin(self, x: jax.Array) -> jax.Array:
        """What the depthwise convolution gives, or the last that is before its place."""
        ring = (self.ring, self.ring)
        y = jnp.pad(x, ((0, 0), ring, ring, (0, 0))) if self.ring else x
        y = y if self.expand is None else self.expand(y)
        return y if self.depthwise is None else self.depthwise(y)

    def end(self, x: jax.Array, y: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The block's output, given its input and what `begin` made of that."""
        y = y if self.se is None else self.se(y)
        y = self.project(y)
        return x + self.drop_path(y, rngs=rngs) if self.shortcut else y

    @property
    def spatial(self) -> Conv:
        """The one convolution that is larger than 1x1."""
        if self.depthwise is not None:
            return self.depthwise.conv
        return (self.project if self.expand is None else self.expand).conv


def has_expansion(block: Block, in_channels: int) -> bool:
    """Whether a block begins with a convolution to more channels."""
    wider = block.expanded != in_channels or block.always_expand
    return wider and block.form != "plain"


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
    blocks: nnx.List,
    x: jax.Array,
    taps: dict[str, int],
    *,
    inside: tuple[str, ...] = (),
    rngs: nnx.Rngs | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The last block's output, and those of the blocks that `taps` names by their index.

    Args:
      inside: the taps that are what the block's depthwise convolution gives.
    """
    features = {}
    for i, block in enumerate(blocks):
        names = [name for name, index in taps.items() if index == i]
        if inner := [name for name in names if name in inside]:
            y = block.begin(x)
            x = block.end(x, y, rngs=rngs)
            features |= dict.fromkeys(inner, y)
        else:
            x = block(x, rngs=rngs)
        features |= {name: x for name in names if name not in inner}
    return x, features


def spatial_layers(stem: ConvNormAct, blocks: nnx.List) -> Iterator[SpatialLayer]:
    """What widens the receptive field, in order."""
    yield spatial_layer("stem", stem.conv)
    for i, block in enumerate(blocks):
        yield spatial_layer(f"blocks.{i}", block.spatial)


# ---------------------------------------------------------------------------- whole networks


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of a paper's table: blocks of which the first has the stride.

    Attributes:
      blocks: how many, before they are multiplied.
      kernel_size: of each.
      stride: of the first.
      expansion: how many times wider than its input a block is inside.
      channels: of the outputs, before they are multiplied.
      form: see `Form`.
      squeeze: squeeze-excite to so many times the channels of the block's *input*; 0 for none.
      always_expand: see `Block`.
    """

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int
    form: Form = "inverted"
    squeeze: float = 0.0
    always_expand: bool = False


@dataclasses.dataclass(frozen=True)
class Network:
    """What a network is, apart from how it is dilated and padded.

    Attributes:
      stem: channels of the first convolution, a 3x3 of stride 2.
      blocks: all of them.
      last: channels of the classifier's 1x1 behind them.
      activation: after the stem and after that 1x1.
    """

    stem: int
    blocks: tuple[Block, ...]
    last: int
    activation: Activation


def network_of(
    stages: Sequence[Stage],
    *,
    stem: int = 32,
    last: int = 1280,
    width: float = 1.0,
    depths: Sequence[float] | None = None,
    least: float = 0.9,
    activation: Activation,
    squeeze_activation: Activation,
) -> Network:
    """A network from its paper's table.

    Args:
      stem, last: channels at their two ends; not multiplied.
      width: multiplier on the channels of blocks.
      depths: multiplier on the number of blocks, of each stage; all 1 by default.
      least: see `make_divisible`.
      activation: of everything but squeeze-excite, which has a sigmoid gate.
      squeeze_activation: inside squeeze-excite.
    """
    blocks, channels = [], stem
    for number, (stage, deeper) in enumerate(
        zip(stages, depths or (1.0,) * len(stages), strict=True)
    ):
        for i in range(math.ceil(stage.blocks * deeper)):
            block = Block(
                kernel_size=stage.kernel_size,
                expanded=channels * stage.expansion,
                channels=make_divisible(stage.channels * width, least=least),
                stride=stage.stride if i == 0 else 1,
                activation=activation,
                squeezed=round(channels * stage.squeeze) or None,
                always_expand=stage.always_expand,
                form=stage.form,
                squeeze_activation=squeeze_activation,
                gate="sigmoid",
                stage=number,
            )
            channels = block.channels
            blocks.append(block)
    return Network(stem, tuple(blocks), last, activation)


class NetworkConfig(BackboneConfig, Protocol):
    """What the configs of such networks have in common."""

    @property
    def first_block_dilation(self) -> FirstBlockDilation: ...

    @property
    def last_conv(self) -> LastConv: ...

    @property
    def norm_momentum(self) -> float: ...

    @property
    def norm_epsilon(self) -> float: ...


NetworkConfigT = TypeVar("NetworkConfigT", bound=NetworkConfig)


class InvertedResiduals(Backbone[NetworkConfigT]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high.

    Subclasses say of which `network`.

    Args:
      paddings: of the stem and of each block, see `paddings`.
      rate_of, drop_path: see `inverted_residuals`.
    """

    def __init__(
        self,
        config: NetworkConfigT,
        *,
        paddings: Sequence[ops.Padding | None],
        rate_of: Sequence[int] | None = None,
        drop_path: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.config = config
        network, norm = self.network, Norm(config.norm_momentum, config.norm_epsilon)
        self.stem = ConvNormAct(
            config.in_channels,
            network.stem,
            3,
            stride=2,
            padding=paddings[0],
            activation=network.activation,
            norm=norm,
            rngs=rngs,
        )
        self.blocks = inverted_residuals(
            network.stem,
            network.blocks,
            output_stride=config.output_stride,
            first_block_dilation=config.first_block_dilation,
            rate_of=rate_of,
            paddings=paddings[1:],
            drop_path=drop_path,
            norm=norm,
            rngs=rngs,
        )
        high = network.blocks[-1].channels
        self.last = (
            ConvNormAct(high, network.last, activation=network.activation, norm=norm, rngs=rngs)
            if config.last_conv != "none"
            else None
        )

    @property
    @abc.abstractmethod
    def network(self) -> Network:
        """What the config says."""

    @property
    def taps(self) -> dict[str, int]:
        """Features that are a block's output -> the index of the block."""
        return taps(self.network.blocks)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        blocks, used = self.network.blocks, self.config.last_conv == "used"
        channels = {name: blocks[i].channels for name, i in self.taps.items()}
        return channels | {"high": self.network.last if used else blocks[-1].channels}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        high, features = run(self.blocks, self.stem(images), self.taps, rngs=rngs)
        return features | {"high": self.last(high) if self.config.last_conv == "used" else high}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        return spatial_layers(self.stem, self.blocks)


def paddings(
    padding: Literal["symmetric", "same"],
    blocks: Sequence[Block],
    *,
    same_size: int | None = None,
    output_stride: int,
) -> list[ops.Padding | None]:
    """The padding of a 3x3 stem of stride 2 and of each block.

    Args:
      same_size: with "same", the side of the image that it is computed for once and for all; None
        computes it from the real image.
    """
    if padding == "symmetric":
        return [None] * (len(blocks) + 1)
    if same_size is None:
        return ["same"] * (len(blocks) + 1)
    fixed, size, reached = [], same_size, 1
    for kernel, stride in [(3, 2), *((block.kernel_size, block.stride) for block in blocks)]:
        if stride == 1 or reached * stride > output_stride:
            fixed.append("same")  # symmetric at stride 1, whatever the size
            continue
        axis = ops.same_padding(size, kernel, stride, dilation=1)
        fixed.append((axis, axis))
        size, reached = -(-size // stride), reached * stride
    return fixed
