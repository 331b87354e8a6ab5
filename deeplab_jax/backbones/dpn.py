"""Dual Path Networks (Chen et al. 2017, arXiv 1707.01629), dilated.

Each block adds to the first channels, as a residual network does, and appends a few, as a DenseNet does.
Norms and ReLUs come before the convolutions.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import OutputStride, check_output_stride, dilate
from deeplab_jax.backbones.registry import register_backbone
from deeplab_jax.backbones.residual import sequence
from deeplab_jax.layers import BatchNorm, Conv, ConvNormAct, Norm, SpatialLayer, spatial_layer

Variant = Literal["68", "68b", "92", "98", "107", "131"]
FEATURES = ("low", "mid", "aux", "high")


class Network(NamedTuple):
    """A variant.

    Attributes:
      stem: channels of the first convolution.
      kernel_size: of it.
      blocks: of the four stages.
      residual: channels of the first stage that are added to; twice as many in each stage after it.
      inner: the same of the 3x3 convolution.
      groups: of that.
      growth: channels that each block of a stage appends.
      split: two convolutions make what is added and what is appended, not one.
    """

    stem: int
    kernel_size: int
    blocks: tuple[int, int, int, int]
    residual: int
    inner: int
    groups: int
    growth: tuple[int, int, int, int]
    split: bool = False


_SMALL = Network(10, 3, (3, 4, 12, 3), 64, 128, 32, (16, 32, 32, 64))
NETWORKS: dict[Variant, Network] = {
    "68": _SMALL,
    "68b": _SMALL._replace(split=True),
    "92": Network(64, 7, (3, 4, 20, 3), 256, 96, 32, (16, 32, 24, 128)),
    "98": Network(96, 7, (3, 6, 20, 3), 256, 160, 40, (16, 32, 32, 128)),
    "107": Network(128, 7, (4, 8, 20, 3), 256, 200, 50, (20, 64, 64, 128)),
    "131": Network(128, 7, (4, 8, 28, 3), 256, 160, 40, (16, 32, 32, 128)),
}


@dataclasses.dataclass(frozen=True)
class DPNConfig:
    """
    Attributes:
      variant: "68", "68b", "92", "98", "107" or "131".
      output_stride: 8, 16 or 32. All blocks of a stage that lost its stride have the same atrous rate.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
    """

    kind: ClassVar[str] = "dpn"
    variant: Variant = "68"
    output_stride: OutputStride = 16
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-3

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.variant not in NETWORKS:
            raise ValueError(
                f"DPN's variant must be one of {', '.join(NETWORKS)}, got {self.variant!r}"
            )

    def build(self, *, rngs: nnx.Rngs) -> "DPN":
        return DPN(self, rngs=rngs)


class DPN(Backbone[DPNConfig]):
    """Images `[B, H, W, in_channels]` -> features.

    The features are low (layer1, stride 4), mid (layer2, stride 8) and aux (layer3), each behind a ReLU,
    and high (layer4, at the output stride), behind the last norm and a ReLU.
    """

    def __init__(self, config: DPNConfig, *, rngs: nnx.Rngs):
        self.config = config
        network = NETWORKS[config.variant]
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        self.stem = ConvNormAct(
            config.in_channels, network.stem, network.kernel_size, stride=2, norm=norm, rngs=rngs
        )
        plan = dilate((1, 2, 2, 2), config.output_stride, start=4, first_block="same")
        stages, before = [], network.stem
        for i, (stride, dilation) in enumerate(plan):
            blocks: list[DualPathBlock] = []
            for block in range(network.blocks[i]):
                blocks.append(
                    DualPathBlock(
                        before,
                        network.residual << i,
                        network.growth[i],
                        inner=network.inner << i,
                        groups=network.groups,
                        stride=stride if block == 0 else 1,
                        dilation=dilation,
                        first=block == 0,
                        split=network.split,
                        norm=norm,
                        rngs=rngs,
                    )
                )
                before = blocks[-1].channels
            stages.append(Stage(blocks, norm(before) if i == len(plan) - 1 else None))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return {name: stage.channels for name, stage in zip(FEATURES, stages, strict=True)}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        low = self.layer1(ops.max_pool(self.stem(images)))
        mid = self.layer2(low)
        aux = self.layer3(mid)
        high = self.layer4(aux)
        features = {"low": low, "mid": mid, "aux": aux, "high": high}
        return {name: jax.nn.relu(x) for name, x in features.items()}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order; shortcuts do not."""
        yield spatial_layer("stem", self.stem.conv)
        yield SpatialLayer("stem.pool", kernel_size=3, stride=2, dilation=1)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(getattr(self, name).parts):
                yield spatial_layer(f"{name}.parts.{i}.conv2", block.conv2)


class Stage(nnx.Module):
    """Blocks, and behind those of the last stage a norm."""

    def __init__(self, blocks: list["DualPathBlock"], norm: BatchNorm | None):
        self.parts = nnx.List(blocks)
        self.norm = norm
        self.channels = blocks[-1].channels

    def __call__(self, x: jax.Array) -> jax.Array:
        x = sequence(self.parts, x)
        return x if self.norm is None else self.norm(x)


class DualPathBlock(nnx.Module):
    """Norm, 1x1, norm, 3x3 in groups, norm, 1x1: `[B, H, W, in]` -> `[B, H', W', channels]`.

    Args:
      residual: channels that are added to the first of the input's.
      growth: channels that are appended.
      first: of its stage: the input goes through a convolution, to `residual + 2 growth` channels.
      split: see `Network`.
    """

    def __init__(
        self,
        in_channels: int,
        residual: int,
        growth: int,
        *,
        inner: int,
        groups: int,
        stride: int,
        dilation: int,
        first: bool,
        split: bool,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.residual = residual
        kept = residual + 2 * growth if first else in_channels
        self.channels = kept + growth
        self.shortcut_norm = norm(in_channels) if first else None
        self.shortcut = Conv(in_channels, kept, stride=stride, rngs=rngs) if first else None
        self.norm1 = norm(in_channels)
        self.conv1 = Conv(in_channels, inner, rngs=rngs)
        self.bn1 = norm(inner)
        self.conv2 = Conv(
            inner, inner, 3, stride=stride, dilation=dilation, groups=groups, rngs=rngs
        )
        self.bn2 = norm(inner)
        self.conv3 = Conv(inner, residual if split else residual + growth, rngs=rngs)
        self.grow = Conv(inner, growth, rngs=rngs) if split else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kept = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            kept = self.shortcut(jax.nn.relu(self.shortcut_norm(x)))
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.bn1(y)))
        y = jax.nn.relu(self.bn2(y))
        added, appended = jnp.split(self.conv3(y), [self.residual], axis=-1)
        appended = appended if self.grow is None else self.grow(y)
        kept, dense = jnp.split(kept, [self.residual], axis=-1)
        return jnp.concatenate([kept + added, dense, appended], axis=-1)


register_backbone(DPNConfig, presets={f"dpn{variant}": DPNConfig(variant) for variant in NETWORKS})
