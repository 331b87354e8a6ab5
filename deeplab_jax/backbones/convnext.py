"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), dilated by timm's rule."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import OutputStride, check_output_stride, dilate
from deeplab_jax.backbones.registry import register_backbone
from deeplab_jax.layers import Conv, LayerNorm, LayerScale, SpatialLayer, spatial_layer

Size = Literal["tiny", "small", "base", "large"]


class Network(NamedTuple):
    """Blocks and channels of the four stages."""

    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]


NETWORKS: dict[Size, Network] = {  # section 3 of the paper
    "tiny": Network((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": Network((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": Network((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": Network((3, 3, 27, 3), (192, 384, 768, 1536)),
}
PATCH = 4
KERNEL = 7
EXPANSION = 4
STD = 0.02  # of the initial kernels
SMALLEST = 32  # pixels of which there is one of the highest features
FEATURES = ("low", "mid", "aux", "high")


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """
    Attributes:
      size: "tiny", "small", "base" or "large".
      output_stride: 8, 16 or 32. A downsampling that lost its stride keeps its 2x2 kernel, at the rate of
        the stage before, with TensorFlow's "same" padding; the blocks behind it have their stage's rate.
      in_channels: of the images.
      norm_epsilon: of every layer norm.
      layer_scale: initial value of the layer scale.
      drop_path: stochastic depth in training: how often an image goes through a block's shortcut alone,
        from 0 at the first block growing to this at the last. The paper's are .1 (tiny), .4 and .5.
    """

    kind: ClassVar[str] = "convnext"
    size: Size = "tiny"
    output_stride: OutputStride = 16
    in_channels: int = 3
    norm_epsilon: float = 1e-6
    layer_scale: float = 1e-6
    drop_path: float = 0.0

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.size not in NETWORKS:
            raise ValueError(
                f"ConvNeXt's size must be one of {', '.join(NETWORKS)}, got {self.size!r}"
            )

    def build(self, *, rngs: nnx.Rngs) -> "ConvNeXt":
        return ConvNeXt(self, rngs=rngs)


class ConvNeXt(Backbone[ConvNeXtConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high.

    Nothing is padded: rows and columns that do not fill a window are left out, as in the original. Images
    of less than 32 pixels, of which it would make nothing, are filled up with zeros to 32.
    """

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
        self.config = config
        counts, widths = NETWORKS[config.size]
        plan = dilate((1, 2, 2, 2), config.output_stride, start=PATCH, first_block="previous")
        rates = dilate((1, 2, 2, 2), config.output_stride, start=PATCH, first_block="same")
        drops = iter(_drop_rates(sum(counts), config.drop_path))
        self.stem = Patches(config, widths[0], rngs=rngs)
        self.stages: nnx.List[Stage] = nnx.List()
        before = widths[0]
        for i, (count, width) in enumerate(zip(counts, widths, strict=True)):
            stride, rate_before = plan[i]
            down = (
                Downsample(before, width, stride, rate_before, config.norm_epsilon, rngs=rngs)
                if i > 0
                else None
            )
            blocks = [
                Block(width, rates[i][1], config, drop_path=next(drops), rngs=rngs)
                for _ in range(count)
            ]
            self.stages.append(Stage(down, blocks))
            before = width

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        return dict(zip(FEATURES, NETWORKS[self.config.size].channels, strict=True))

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        bottom, right = (max(0, SMALLEST - size) for size in images.shape[1:3])
        images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        x, features = self.stem(images), {}
        for name, stage in zip(FEATURES, self.stages, strict=True):
            x = features[name] = stage(x, rngs=rngs)
        return features

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        yield spatial_layer("stem", self.stem.conv)
        for i, stage in enumerate(self.stages):
            if stage.down is not None:
                yield spatial_layer(f"stages.{i}", stage.down.conv)
            for block in stage.blocks:
                yield spatial_layer(f"stages.{i}", block.depthwise)


class Patches(nnx.Module):
    """The stem: a convolution whose windows do not overlap, and its norm."""

    def __init__(self, config: ConvNeXtConfig, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(
            config.in_channels,
            channels,
            PATCH,
            stride=PATCH,
            padding=0,
            bias=True,
            std=STD,
            rngs=rngs,
        )
        self.norm = LayerNorm(channels, epsilon=config.norm_epsilon)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.norm(self.conv(images))


class Downsample(nnx.Module):
    """What begins a stage: a norm, and a 2x2 convolution to half the size, or to the same by a rate."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        epsilon: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm = LayerNorm(in_channels, epsilon=epsilon)
        self.conv = Conv(
            in_channels,
            out_channels,
            2,
            stride=stride,
            dilation=dilation,
            padding=0 if stride > 1 else "same",
            bias=True,
            std=STD,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class Stage(nnx.Module):
    """Downsampling, except in the first stage, and blocks."""

    def __init__(self, down: Downsample | None, blocks: list["Block"]):
        self.down = down
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x if self.down is None else self.down(x)
        for block in self.blocks:
            x = block(x, rngs=rngs)
        return x


class Block(nnx.Module):
    """Depthwise 7x7, norm, 1x1 to four times the channels, GELU, 1x1 back, layer scale, shortcut."""

    def __init__(
        self,
        channels: int,
        dilation: int,
        config: ConvNeXtConfig,
        *,
        drop_path: float,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"bias": True, "std": STD, "rngs": rngs}
        self.depthwise = Conv(
            channels, channels, KERNEL, dilation=dilation, groups=channels, **options
        )
        self.norm = LayerNorm(channels, epsilon=config.norm_epsilon)
        self.expand = Conv(channels, EXPANSION * channels, **options)
        self.project = Conv(EXPANSION * channels, channels, **options)
        self.scale = LayerScale(channels, config.layer_scale)
        self.drop_path = nnx.Dropout(drop_path, broadcast_dims=(1, 2, 3))

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.expand(self.norm(self.depthwise(x)))
        y = self.project(jax.nn.gelu(y, approximate=False))
        return x + self.drop_path(self.scale(y), rngs=rngs)


def _drop_rates(blocks: int, last: float) -> list[float]:
    return [last * i / (blocks - 1) for i in range(blocks)]


register_backbone(
    ConvNeXtConfig, presets={f"convnext_{size}": ConvNeXtConfig(size) for size in NETWORKS}
)
