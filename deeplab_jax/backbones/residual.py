"""Residual blocks: ResNet's two, and what its relatives made of them.

Modules are named as in torchvision's `resnet.py`, where it has them.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.channel_attention import Attention, SplitAttention, channel_attention
from deeplab_jax.layers import ACTIVATIONS, Conv, ConvNormAct, Norm, SpatialLayer, spatial_layer

WIDTH = 64  # of the first stage's blocks; `width_per_group` is in proportion to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockForm:
    """What a family of residual blocks has in common; the defaults are those of ResNet (v1.5).

    All but `attention`, `nonlinearity` and the shortcut's concerns bottlenecks only.

    Attributes:
      groups: of the 3x3 convolution, 32 or 64 in ResNeXt (Xie et al. 2017).
      width_per_group: channels of each group in the first stage, 4 in ResNeXt-50 32x4d; with one group
        those of the 3x3 convolution, 128 in the wide ResNets.
      reduce_first: by what the first 1x1 convolution has fewer channels than the 3x3, 2 in SENet-154.
      bottleneck_stride: which convolution has the stride, "3x3" or the first "1x1" (the paper's form, as in
        Caffe's weights).
      attention: "se" (squeeze-excite) or "eca" before the shortcut is added, or "none".
      radix: splits of ResNeSt's split attention, which replaces the 3x3 convolution; 0 for none.
      split_pool: where a block with split attention is strided, 3x3 average pooling "after" or "before" it.
      scale: of Res2Net (Gao et al. 2019): parts of the channels, each of which has a 3x3 convolution of its
        own, one upon the other; 1 for none.
      shortcut: where the shape changes, a "conv", or the "average" of 2x2 pixels and a 1x1 convolution
        without stride (ResNet-D, He et al. 2018, arXiv 1812.01187).
      shortcut_kernel: size of that convolution where the stride is; 3 in SENet-154.
      dilated_average: where a block lost its stride, "average" is over 2x2 pixels still, counting zeros
        beyond the bottom and right ("same", timm's), or over one ("none", mmsegmentation's).
      nonlinearity: of a block's inner norms and of the stem's: "relu", or "leaky_relu" of slope .01, as
        in-place activated batch norm has it (CoinCheung). The sum with the shortcut has a ReLU anyhow.
      strided_shortcut: where the stride alone changes the shape, what `shortcut` says ("conv"), or every
        other pixel as it is ("subsample", Google's).
    """

    groups: int = 1
    width_per_group: int = WIDTH
    reduce_first: Literal[1, 2] = 1
    bottleneck_stride: Literal["3x3", "1x1"] = "3x3"
    attention: Attention = "none"
    radix: int = 0
    split_pool: Literal["after", "before"] = "after"
    scale: int = 1
    shortcut: Literal["conv", "average"] = "conv"
    shortcut_kernel: Literal[1, 3] = 1
    dilated_average: Literal["same", "none"] = "same"
    strided_shortcut: Literal["conv", "subsample"] = "conv"
    nonlinearity: Literal["relu", "leaky_relu"] = "relu"


PLAIN = BlockForm()


def sequence(modules: Iterable[Any], x: jax.Array) -> jax.Array:
    """`x` through the modules, one after the other."""
    for module in modules:
        x = module(x)
    return x


def stage_features(network: Any, x: jax.Array) -> dict[str, jax.Array]:
    """What the four stages of a network, `layer1` to `layer4`, make of the stem's output, by feature."""
    features = {}
    for name, number in (("low", 1), ("mid", 2), ("aux", 3), ("high", 4)):
        features[name] = x = sequence(getattr(network, f"layer{number}"), x)
    return features


class Downsample(nnx.Module):
    """The convolution (1x1 as a rule) and norm of a shortcut whose shape changes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        norm: Norm,
        *,
        kernel_size: int = 1,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, rngs=rngs
        )
        self.bn = norm(out_channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


class AverageDownsample(Downsample):
    """ResNet-D's: 2x2 average pooling first, which has the stride.

    Args:
      stride: 2; of 1 it averages too, with zeros beyond the bottom and right, which count.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm: Norm, *, rngs: nnx.Rngs
    ):
        super().__init__(in_channels, out_channels, 1, norm, rngs=rngs)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        counted = self.stride == 1
        x = ops.average_pool(x, 2, stride=self.stride, padding="same", count_padding=counted)
        return super().__call__(x)


class Subsample(nnx.Module):
    """Every so many pixels of a shortcut, as they are."""

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, :: self.stride, :: self.stride]


def downsample(
    form: BlockForm,
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    dilation: int,
    lost_stride: bool,
    norm: Norm,
    rngs: nnx.Rngs,
) -> Downsample | Subsample | None:
    """The shortcut of a block; None where its shape does not change.

    Args:
      dilation: the atrous rate of the block's first convolution that has one.
      lost_stride: whether the block had a stride in the classification network, and is dilated instead.
    """
    if stride == 1 and in_channels == out_channels:
        return None
    if in_channels == out_channels and form.strided_shortcut == "subsample":
        return Subsample(stride)
    if form.shortcut == "average" and (
        stride > 1 or (lost_stride and form.dilated_average == "same")
    ):
        return AverageDownsample(in_channels, out_channels, stride, norm, rngs=rngs)
    options: dict[str, Any] = {}
    if stride > 1 or lost_stride:
        options = {"kernel_size": form.shortcut_kernel, "dilation": dilation}
    return Downsample(in_channels, out_channels, stride, norm, **options, rngs=rngs)


def add_shortcut(
    y: jax.Array, x: jax.Array, downsample: Downsample | Subsample | None
) -> jax.Array:
    """The end of a residual block: ReLU of `y` plus its input, which `downsample` gives the shape of y."""
    if downsample is None:
        return ops.relu_of_sum(y + x)
    return jax.nn.relu(y + downsample(x))  # its norm reads for its gradient what the ReLU would


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
        lost_stride: bool = False,
        form: BlockForm = PLAIN,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.activation = form.nonlinearity
        self.conv1 = Conv(in_channels, width, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, width, 3, dilation=second_dilation or dilation, rngs=rngs)
        self.bn2 = norm(width)
        self.attention = channel_attention(form.attention, width, rngs=rngs)
        self.downsample = downsample(
            form,
            in_channels,
            width,
            stride=stride,
            dilation=dilation,
            lost_stride=lost_stride,
            norm=norm,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.end(x, self.begin(x))

    def begin(self, x: jax.Array) -> jax.Array:
        """What is added to the shortcut."""
        x = ACTIVATIONS[self.activation](self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return x if self.attention is None else self.attention(x)

    def end(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        """The block's output, given its input and what `begin` made of that."""
        return add_shortcut(residual, x, self.downsample)

    def spatial_layers(self, path: str) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        yield spatial_layer(f"{path}.conv1", self.conv1)
        yield spatial_layer(f"{path}.conv2", self.conv2)


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride and the atrous rate), 1x1 to four times the width, and a shortcut.

    In place of the 3x3, its norm and its activation there may be ResNeSt's split attention or Res2Net's
    scales.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        lost_stride: bool = False,
        form: BlockForm = PLAIN,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        out = width * self.expansion
        inner = width * form.width_per_group // WIDTH * form.groups
        first = inner // form.reduce_first * form.scale
        strides = (stride, 1) if form.bottleneck_stride == "1x1" else (1, stride)
        self.activation = form.nonlinearity
        self.conv1 = Conv(in_channels, first, stride=strides[0], rngs=rngs)
        self.bn1 = norm(first)
        changes = stride > 1 or in_channels != out
        options: dict[str, Any] = {
            "stride": strides[1],
            "dilation": dilation,
            "groups": form.groups,
            "rngs": rngs,
        }
        self.conv2: Conv | PooledSplitAttention | Scales
        if form.radix:
            options |= {"radix": form.radix, "pool": form.split_pool, "norm": norm}
            self.conv2 = PooledSplitAttention(inner, **options)
        elif form.scale > 1:
            options |= {"scale": form.scale, "chained": not changes, "norm": norm}
            self.conv2 = Scales(inner, **options)
        else:
            self.conv2 = Conv(first, inner, 3, **options)
        self.bn2 = norm(inner) if isinstance(self.conv2, Conv) else None
        self.conv3 = Conv(inner * form.scale, out, rngs=rngs)
        self.bn3 = norm(out)
        self.attention = channel_attention(form.attention, out, rngs=rngs)
        self.downsample = downsample(
            form,
            in_channels,
            out,
            stride=stride,
            dilation=dilation,
            lost_stride=lost_stride,
            norm=norm,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.end(x, self.begin(x))

    def begin(self, x: jax.Array) -> jax.Array:
        """What is added to the shortcut."""
        x = self.conv2(ACTIVATIONS[self.activation](self.bn1(self.conv1(x))))
        x = x if self.bn2 is None else ACTIVATIONS[self.activation](self.bn2(x))
        x = self.bn3(self.conv3(x))
        return x if self.attention is None else self.attention(x)

    def end(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        """The block's output, given its input and what `begin` made of that."""
        return add_shortcut(residual, x, self.downsample)

    def spatial_layers(self, path: str) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        yield spatial_layer(f"{path}.conv1", self.conv1)
        if isinstance(self.conv2, Conv):
            yield spatial_layer(f"{path}.conv2", self.conv2)
        else:
            yield from self.conv2.spatial_layers(f"{path}.conv2")


POOL = 3  # side of the windows of the average pooling below


class PooledSplitAttention(SplitAttention):
    """Split attention whose stride is that of 3x3 average pooling, where there is one.

    Args:
      pool: "after" the attention or "before".
    """

    def __init__(
        self, channels: int, *, stride: int, pool: Literal["after", "before"], **options: Any
    ):
        super().__init__(channels, stride=1, **options)
        self.stride, self.pool = stride, pool

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.stride == 1:
            return super().__call__(x)
        if self.pool == "before":
            return super().__call__(self._pooled(x))
        return self._pooled(super().__call__(x))

    def _pooled(self, x: jax.Array) -> jax.Array:
        return ops.average_pool(x, POOL, stride=self.stride, padding=POOL // 2)

    def spatial_layers(self, path: str) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order; the attention sees the image anyhow."""
        layers = [spatial_layer(f"{path}.conv", self.conv)]
        if self.stride > 1:
            layers.append(SpatialLayer(f"{path}.pool", POOL, self.stride, 1))
        yield from layers if self.pool == "after" else reversed(layers)


class Scales(nnx.Module):
    """Res2Net's 3x3 convolutions: `scale` parts of the channels, `[B, H, W, scale x channels]`.

    Each part but the last goes through a convolution, together with what came out of the one before it.

    Args:
      channels: of a part.
      chained: False, where a block's shape changes, keeps the parts apart, and averages over 3x3 pixels of
        the last.
    """

    def __init__(
        self,
        channels: int,
        *,
        scale: int,
        chained: bool,
        stride: int,
        dilation: int,
        groups: int,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.chained, self.stride = chained, stride
        self.parts = nnx.List(
            ConvNormAct(
                channels,
                channels,
                3,
                stride=stride,
                dilation=dilation,
                groups=groups,
                norm=norm,
                rngs=rngs,
            )
            for _ in range(scale - 1)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        *parts, last = jnp.split(x, len(self.parts) + 1, axis=-1)
        results: list[jax.Array] = []
        for part, conv in zip(parts, self.parts, strict=True):
            results.append(conv(part + results[-1] if self.chained and results else part))
        if not self.chained:
            last = ops.average_pool(last, POOL, stride=self.stride, padding=POOL // 2)
        return jnp.concatenate([*results, last], axis=-1)

    def spatial_layers(self, path: str) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order: all of a chain, or one."""
        for i, part in enumerate(self.parts if self.chained else self.parts[:1]):
            yield spatial_layer(f"{path}.parts.{i}", part.conv)
