"""Attention over channels, as the relatives of ResNet have it; squeeze-excite is in `layers`."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax.layers import (
    Conv,
    Norm,
    Normal,
    SqueezeExcite,
    check_rngs,
    global_mean,
    make_divisible,
)

Attention = Literal["none", "se", "eca"]
SQUEEZE = 16  # times fewer channels between squeeze-excite's two layers
SPLIT_SQUEEZE = 4  # the same of split attention
FEWEST_SQUEEZED = 32  # and how many there are at least


def channel_attention(kind: Attention, channels: int, *, rngs: nnx.Rngs) -> nnx.Module | None:
    """What weighs the channels of a residual block before the shortcut is added; None for "none"."""
    if kind == "se":
        return SqueezeExcite(
            channels, make_divisible(channels / SQUEEZE), gate="sigmoid", rngs=rngs
        )
    return EfficientChannelAttention(channels, rngs=rngs) if kind == "eca" else None


class EfficientChannelAttention(nnx.Module):
    """ECA (Wang et al. 2020, arXiv 1910.03151): mean, a convolution *along the channels*, sigmoid.

    `[B, H, W, channels]` -> the same shape. The more channels, the longer the kernel.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        half = channels.bit_length() // 2  # (log2(channels) + 1) / 2
        length = max(3, half + 1 - half % 2)  # the next odd number
        normal = Normal(length**-0.5)
        shape = (1, 1, length)
        self.kernel = nnx.Param(normal(check_rngs(rngs).params(), shape), init=normal)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].reshape(-1).astype(x.dtype)
        length, channels = len(kernel), x.shape[-1]
        around = (length // 2, length // 2)
        mean = jnp.pad(global_mean(x), ((0, 0), (0, 0), (0, 0), around))
        seen = (jax.lax.slice_in_dim(mean, i, i + channels, axis=-1) for i in range(length))
        taps = (kernel[i : i + 1] * part for i, part in enumerate(seen))
        return x * jax.nn.sigmoid(sum(taps))


class SplitAttention(nnx.Module):
    """ResNeSt's 3x3 convolution to `radix` times the channels, whose weighted sum is one image again.

    Section 3 of Zhang et al. 2020 (arXiv 2004.08955): `[B, H, W, channels]` -> the same channels. The
    weights are a softmax over the splits (a sigmoid where there is one), for each channel.
    """

    def __init__(
        self,
        channels: int,
        *,
        radix: int,
        groups: int,
        stride: int,
        dilation: int,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.radix, self.groups = radix, groups
        squeezed = max(FEWEST_SQUEEZED, make_divisible(channels * radix / SPLIT_SQUEEZE))
        self.conv = Conv(
            channels,
            channels * radix,
            3,
            stride=stride,
            dilation=dilation,
            groups=groups * radix,
            rngs=rngs,
        )
        self.bn = norm(channels * radix)
        self.fc1 = Conv(channels, squeezed, groups=groups, bias=True, rngs=rngs)
        self.fc1_bn = norm(squeezed)
        self.fc2 = Conv(squeezed, channels * radix, groups=groups, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.bn(self.conv(x)))
        mean = self._sum(global_mean(x))
        weights = self.fc2(jax.nn.relu(self.fc1_bn(self.fc1(mean))))
        return self._sum(x * self._share(weights))

    def _sum(self, x: jax.Array) -> jax.Array:
        """Of the splits, which follow each other among the channels."""
        return functools.reduce(jnp.add, jnp.split(x, self.radix, axis=-1))

    def _share(self, weights: jax.Array) -> jax.Array:
        """`[B, 1, 1, radix x channels]`, by groups and within them splits -> by splits, adding up to 1."""
        if self.radix == 1:
            return jax.nn.sigmoid(weights)
        by_group = weights.reshape(*weights.shape[:3], self.groups, self.radix, -1)
        share = jax.nn.softmax(by_group, axis=-2)
        return share.swapaxes(-3, -2).reshape(weights.shape)
