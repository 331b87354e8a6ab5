"""The Mix Transformer (MiT) of SegFormer (Xie et al. 2021, arXiv 2105.15203), dilated.

Four stages of transformer blocks behind overlapping patches. Attention is among all pixels, with keys and
values of a smaller image; a 3x3 depthwise convolution in each perceptron tells where a pixel is.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import OutputStride, check_output_stride, dilate
from deeplab_jax.backbones.registry import register_backbone
from deeplab_jax.layers import Conv, LayerNorm

Size = Literal["b0", "b1", "b2", "b3", "b4", "b5"]


class Network(NamedTuple):
    """Blocks and channels of the four stages."""

    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]


WIDE = (64, 128, 320, 512)
NETWORKS: dict[Size, Network] = {  # table 6 of the paper
    "b0": Network((2, 2, 2, 2), (32, 64, 160, 256)),
    "b1": Network((2, 2, 2, 2), WIDE),
    "b2": Network((3, 4, 6, 3), WIDE),
    "b3": Network((3, 4, 18, 3), WIDE),
    "b4": Network((3, 8, 27, 3), WIDE),
    "b5": Network((3, 6, 40, 3), WIDE),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # by how much smaller each side of the keys' image is
PATCHES = (7, 3, 3, 3)
STRIDES = (4, 2, 2, 2)
EXPANSION = 4
STD = 0.02  # of the initial linear layers
SMALLEST = 32  # pixels of which the keys of the first stage have one
FEATURES = ("low", "mid", "aux", "high")


@dataclasses.dataclass(frozen=True)
class MixTransformerConfig:
    """
    Attributes:
      size: "b0" to "b5".
      output_stride: 8, 16 or 32. In a stage that lost its stride all convolutions have the stage's atrous
        rate. The one that reduces the image of the keys there loses its stride as well, so that attention
        is among all pixels (segmentation_models_pytorch's rule).
      in_channels: of the images.
      norm_epsilon: of the layer norms of blocks and stages.
      conv_norm_epsilon: of those behind the convolutions that make patches and keys.
      drop_path: stochastic depth in training: how often an image goes through a block's shortcut alone,
        from 0 at the first block growing to this at the last. .1 in the paper.
    """

    kind: ClassVar[str] = "mix_transformer"
    size: Size = "b2"
    output_stride: OutputStride = 16
    in_channels: int = 3
    norm_epsilon: float = 1e-6
    conv_norm_epsilon: float = 1e-5
    drop_path: float = 0.0

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.size not in NETWORKS:
            raise ValueError(
                f"Mix Transformer's size must be one of {', '.join(NETWORKS)}, got {self.size!r}"
            )

    def build(self, *, rngs: nnx.Rngs) -> "MixTransformer":
        return MixTransformer(self, rngs=rngs)


class MixTransformer(Backbone[MixTransformerConfig]):
    """Images `[B, H, W, in_channels]` -> features.

    The features are low (layer1, stride 4), mid (layer2, stride 8), aux (layer3) and high (layer4,
    at the output stride). Images of less than 32 pixels, of which there would be no key in the first stage,
    are filled up with zeros to 32.
    """

    def __init__(self, config: MixTransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        blocks, channels = NETWORKS[config.size]
        plan = dilate(STRIDES, config.output_stride, start=1, first_block="same")
        drops = [config.drop_path * i / (sum(blocks) - 1) for i in range(sum(blocks))]
        stages, before = [], config.in_channels
        for i, (stride, dilation) in enumerate(plan):
            stages.append(
                Stage(
                    before,
                    channels[i],
                    config,
                    patch=PATCHES[i],
                    stride=stride,
                    dilation=dilation,
                    heads=HEADS[i],
                    reduction=REDUCTIONS[i],
                    drops=[drops.pop(0) for _ in range(blocks[i])],
                    rngs=rngs,
                )
            )
            before = channels[i]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        return dict(zip(FEATURES, NETWORKS[self.config.size].channels, strict=True))

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        bottom, right = (max(0, SMALLEST - size) for size in images.shape[1:3])
        x, features = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0))), {}
        for name, stage in zip(
            FEATURES, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True
        ):
            x = features[name] = stage(x, rngs=rngs)
        return features


class Stage(nnx.Module):
    """Overlapping patches, transformer blocks and a norm: `[B, H, W, in]` -> `[B, H', W', channels]`."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        config: MixTransformerConfig,
        *,
        patch: int,
        stride: int,
        dilation: int,
        heads: int,
        reduction: int,
        drops: list[float],
        rngs: nnx.Rngs,
    ):
        self.patches = Conv(
            in_channels, channels, patch, stride=stride, dilation=dilation, bias=True, rngs=rngs
        )
        self.patches_norm = LayerNorm(channels, epsilon=config.conv_norm_epsilon)
        self.transformer = nnx.List(
            Block(
                channels,
                config,
                dilation=dilation,
                heads=heads,
                reduction=reduction,
                drop_path=drop,
                rngs=rngs,
            )
            for drop in drops
        )
        self.norm = LayerNorm(channels, epsilon=config.norm_epsilon)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.patches_norm(self.patches(x))
        for block in self.transformer:
            x = block(x, rngs=rngs)
        return self.norm(x)


class Block(nnx.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut: `[B, H, W, channels]`.

    Linear layers are 1x1 convolutions.

    Args:
      reduction: size and stride of the convolution that makes the image of the keys; where the stage is
        dilated it has no stride.
    """

    def __init__(
        self,
        channels: int,
        config: MixTransformerConfig,
        *,
        dilation: int,
        heads: int,
        reduction: int,
        drop_path: float,
        rngs: nnx.Rngs,
    ):
        linear: dict[str, Any] = {"bias": True, "std": STD, "rngs": rngs}
        conv: dict[str, Any] = {"bias": True, "dilation": dilation, "rngs": rngs}
        self.heads = heads
        self.norm1 = LayerNorm(channels, epsilon=config.norm_epsilon)
        self.query = Conv(channels, channels, **linear)
        dense = {"padding": reduction // 2 * dilation}
        sparse = {"stride": reduction, "padding": 0}
        options = conv | (sparse if dilation == 1 else dense)
        fewer = reduction > 1
        self.reduce = Conv(channels, channels, reduction, **options) if fewer else None
        self.reduce_norm = LayerNorm(channels, epsilon=config.conv_norm_epsilon) if fewer else None
        self.key_value = Conv(channels, 2 * channels, **linear)
        self.out = Conv(channels, channels, **linear)
        self.norm2 = LayerNorm(channels, epsilon=config.norm_epsilon)
        hidden = EXPANSION * channels
        self.fc1 = Conv(channels, hidden, **linear)
        self.depthwise = Conv(hidden, hidden, 3, groups=hidden, **conv)
        self.fc2 = Conv(hidden, channels, **linear)
        self.drop_path = nnx.Dropout(drop_path, broadcast_dims=(1, 2, 3))

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x + self.drop_path(self._attend(self.norm1(x)), rngs=rngs)
        y = self.depthwise(self.fc1(self.norm2(x)))
        y = self.fc2(jax.nn.gelu(y, approximate=False))
        return x + self.drop_path(y, rngs=rngs)

    def _attend(self, x: jax.Array) -> jax.Array:
        """Of all pixels to the keys, in float32 where it is a softmax."""
        seen = x
        if self.reduce is not None and self.reduce_norm is not None:
            seen = self.reduce_norm(self.reduce(x))
        batch, _, _, channels = x.shape
        split = (batch, -1, self.heads, channels // self.heads)
        key, value = jnp.split(self.key_value(seen), 2, axis=-1)
        y = jax.nn.dot_product_attention(
            self.query(x).reshape(split), key.reshape(split), value.reshape(split)
        )
        return self.out(y.reshape(x.shape))


register_backbone(
    MixTransformerConfig, presets={f"mit_{size}": MixTransformerConfig(size) for size in NETWORKS}
)
