"""MobileViT (Mehta & Rastegari 2022, arXiv 2110.02178), dilated.

MobileNetV2's blocks, and from stride 8 on blocks that hand their features to a transformer: each
pixel of a 2 x 2 patch attends to the pixels at the same place in all other patches.
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
from deeplab_jax.backbones.inverted_residual import Block, InvertedResidual, run
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.layers import Conv, ConvNormAct, LayerNorm, Norm, SpatialLayer, spatial_layer

Size = Literal["xxs", "xs", "s"]


class Widths(NamedTuple):
    """A size's channels: of the stem, the five stages and the three transformers; the expansion."""

    stem: int
    stages: tuple[int, int, int, int, int]
    transformers: tuple[int, int, int]
    expansion: int


WIDTHS: dict[str, Widths] = {  # table 4 of the paper
    "xxs": Widths(16, (16, 24, 48, 64, 80), (64, 80, 96), 2),
    "xs": Widths(16, (32, 48, 64, 80, 96), (96, 120, 144), 4),
    "s": Widths(16, (32, 64, 96, 128, 160), (144, 192, 240), 4),
}
LAYERS = (2, 4, 3)
"""Layers of the transformers of the last three stages."""
HEADS = 4
PATCH = 2
TAPS = {"low": 3, "mid": 4, "aux": 5}
"""Features that are a block's output -> the index of the block."""
LINEAR_STD = 0.02  # of the initial matrices of a transformer


@dataclasses.dataclass(frozen=True)
class MobileViTConfig:
    """
    Attributes:
      size: "xxs", "xs" or "s".
      output_stride: 8, 16 or 32. Only depthwise convolutions that come after one that lost its
        stride have an atrous rate; the dense 3x3 around the transformers have none.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
      layer_norm_epsilon: of every layer norm.
      hidden_dropout: rate inside the transformers; the heads have dropout of their own.
    """

    kind: ClassVar[str] = "mobilevit"
    size: Size = "s"
    output_stride: OutputStride = 16
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    layer_norm_epsilon: float = 1e-5
    hidden_dropout: float = 0.1

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.size not in WIDTHS:
            raise ValueError(f"MobileViT's size must be xxs, xs or s, got {self.size!r}")

    def build(self, *, rngs: nnx.Rngs) -> "MobileViT":
        return MobileViT(self, rngs=rngs)


class MobileViT(Backbone[MobileViTConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high."""

    def __init__(self, config: MobileViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        widths = WIDTHS[config.size]
        self.stem = ConvNormAct(
            config.in_channels,
            widths.stem,
            3,
            stride=2,
            activation="silu",
            norm=norm,
            rngs=rngs,
        )
        self.blocks = nnx.List()
        table, channels = block_table(config.size), widths.stem
        plan = dilate(
            [block.stride for block in table],
            config.output_stride,
            start=2,
            first_block="previous",
        )
        first_transformer = len(table) - len(LAYERS)
        for i, (block, (stride, dilation)) in enumerate(zip(table, plan, strict=True)):
            down = InvertedResidual(
                channels, block, stride=stride, dilation=dilation, norm=norm, rngs=rngs
            )
            if i < first_transformer:
                self.blocks.append(down)
            else:
                self.blocks.append(
                    MobileViTBlock(
                        down,
                        block.channels,
                        widths.transformers[i - first_transformer],
                        LAYERS[i - first_transformer],
                        norm=norm,
                        epsilon=config.layer_norm_epsilon,
                        dropout=config.hidden_dropout,
                        rngs=rngs,
                    )
                )
            channels = block.channels

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        _, low, mid, aux, high = WIDTHS[self.config.size].stages
        return {"low": low, "mid": mid, "aux": aux, "high": high}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        high, features = run(self.blocks, self.stem(images), TAPS, rngs=rngs)
        return features | {"high": high}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order, but the transformers, which see it all."""
        yield spatial_layer("stem", self.stem.conv)
        for i, block in enumerate(self.blocks):
            if isinstance(block, InvertedResidual):
                yield spatial_layer(f"blocks.{i}", block.depthwise.conv)
            else:
                for conv in (block.down.depthwise, block.local, block.fuse):
                    yield spatial_layer(f"blocks.{i}", conv.conv)


def block_table(size: Size) -> list[Block]:
    """The inverted residuals of the network; the last three begin a stage with a transformer."""
    widths = WIDTHS[size]
    stages = zip(widths.stages, (1, 3, 1, 1, 1), (1, 2, 2, 2, 2), strict=True)
    blocks, before = [], widths.stem
    for channels, count, stride in stages:
        for i in range(count):
            expanded = widths.expansion * before
            blocks.append(Block(3, expanded, channels, stride if i == 0 else 1, activation="silu"))
            before = channels
    return blocks


# ---------------------------------------------------------------------------- parts


class MobileViTBlock(nnx.Module):
    """Downsampling, then local and global features, fused: `[B, H', W', channels]`.

    Args:
      down: the inverted residual that begins the stage.
      channels: of its output, and of the block's.
      width: channels inside the transformer.
      layers: of the transformer.
      norm: makes the batch norms.
      epsilon: of the layer norms.
      dropout: rate on what each half of a transformer's layer adds to its shortcut.
    """

    def __init__(
        self,
        down: InvertedResidual,
        channels: int,
        width: int,
        layers: int,
        *,
        norm: Norm,
        epsilon: float,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        silu = {"activation": "silu", "norm": norm, "rngs": rngs}
        self.down = down
        self.local = ConvNormAct(channels, channels, 3, **silu)
        self.embed = Conv(channels, width, rngs=rngs)
        self.transformer = nnx.List(
            TransformerLayer(width, epsilon=epsilon, dropout=dropout, rngs=rngs)
            for _ in range(layers)
        )
        self.norm = LayerNorm(width, epsilon=epsilon)
        self.project = ConvNormAct(width, channels, **silu)
        self.fuse = ConvNormAct(2 * channels, channels, 3, **silu)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.down(x)
        y = self.embed(self.local(x))
        size = y.shape[1:3]
        whole = tuple(-(-n // PATCH) * PATCH for n in size)  # patches want an even number of pixels
        tokens = unfold(ops.resize_bilinear(y, whole))
        for layer in self.transformer:
            tokens = layer(tokens, rngs=rngs)
        y = ops.resize_bilinear(fold(self.norm(tokens), whole), size)
        return self.fuse(jnp.concatenate([x, self.project(y)], axis=-1))


class TransformerLayer(nnx.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut.

    `[B, P, N, width]` -> the same; the N tokens of each of the P places attend to each other. A
    linear layer is a 1x1 convolution of such an array.
    """

    def __init__(self, width: int, *, epsilon: float, dropout: float, rngs: nnx.Rngs):
        linear = {"bias": True, "std": LINEAR_STD, "rngs": rngs}
        self.norm1 = LayerNorm(width, epsilon=epsilon)
        self.query = Conv(width, width, **linear)
        self.key = Conv(width, width, **linear)
        self.value = Conv(width, width, **linear)
        self.out = Conv(width, width, **linear)
        self.norm2 = LayerNorm(width, epsilon=epsilon)
        self.fc1 = Conv(width, 2 * width, **linear)
        self.fc2 = Conv(2 * width, width, **linear)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.norm1(x)
        y = attend(self.query(y), self.key(y), self.value(y))
        x = x + self.dropout(self.out(y), rngs=rngs)
        y = self.fc2(jax.nn.silu(self.fc1(self.norm2(x))))
        return x + self.dropout(y, rngs=rngs)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Multi-head attention among the N tokens of `[B, P, N, C]`; the softmax is in float32."""
    batch, places, tokens, width = query.shape
    heads = (batch * places, tokens, HEADS, width // HEADS)
    out = jax.nn.dot_product_attention(
        query.reshape(heads), key.reshape(heads), value.reshape(heads)
    )
    return out.reshape(query.shape)


def unfold(x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, 4, H W / 4, C]`: the place within a patch, then the patch."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, PATCH * PATCH, -1, channels)


def fold(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What `unfold` made of an image of `size` (rows, columns), put back."""
    batch, _, _, channels = x.shape
    rows, columns = (n // PATCH for n in size)
    x = x.reshape(batch, PATCH, PATCH, rows, columns, channels)
    return x.transpose(0, 3, 1, 4, 2, 5).reshape(batch, *size, channels)


register_backbone(
    MobileViTConfig,
    presets={f"mobilevit_{size}": MobileViTConfig(size) for size in WIDTHS},
    heads=SEPARABLE_HEADS,
)
