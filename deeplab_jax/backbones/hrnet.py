"""HRNetV2 (Wang et al. 2021, arXiv 1908.07919): streams at four resolutions that exchange features.

Nothing here is dilated: the stream at stride 4 runs through the whole network, so that the features
are fine already. Each stage adds a stream at half the resolution and twice the channels, and every
exchange unit ends with each stream taking the sum of all of them, resized.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.registry import register_backbone
from deeplab_jax.backbones.residual import BasicBlock, Bottleneck, sequence
from deeplab_jax.layers import ConvNormAct, Norm, SpatialLayer, spatial_layer

WIDTHS = (18, 32, 48)
STEM, LOW = 64, 256  # channels of the stem and of layer1, whatever the width
UNITS = {2: 1, 3: 4, 4: 3}
"""Stage -> exchange units in it; a stage has as many streams as its number says."""
BLOCKS = 4  # residual blocks of each stream in a unit, and in layer1

Upsample = Literal["bilinear", "nearest"]


@dataclasses.dataclass(frozen=True)
class HRNetConfig:
    """
    Attributes:
      output_stride: 4, and nothing else.
      width: channels of the finest stream, 18, 32 or 48; the others have 2, 4 and 8 times that.
      upsample: how an exchange unit brings a coarse stream to a finer one's size: "bilinear"
        (HRNetV2), or "nearest" (HRNetV1, and VainF's HRNetV2). The last resize, of all streams to
        the finest's size, is always bilinear, and none of them aligns corners.
      stem_relu: a ReLU between the stem's two convolutions; VainF's models run without.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
    """

    kind: ClassVar[str] = "hrnet"
    output_stride: ClassVar[int] = 4
    width: Literal[18, 32, 48] = 32
    upsample: Upsample = "bilinear"
    stem_relu: bool = True
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        if self.width not in WIDTHS:
            raise ValueError(f"HRNet's width must be 18, 32 or 48, got {self.width}")
        if self.upsample not in ("bilinear", "nearest"):
            raise ValueError(f"upsample must be bilinear or nearest, got {self.upsample!r}")

    def build(self, *, rngs: nnx.Rngs) -> "HRNet":
        return HRNet(self, rngs=rngs)


class HRNet(Backbone[HRNetConfig]):
    """Images `[B, H, W, in_channels]` -> features, of any size.

    The features are low (layer1, stride 4), mid and aux (stage 3's streams at strides 8 and 16) and
    high (all four streams of stage 4 side by side, at stride 4). Sides of the image that are not
    multiples of 32 are fine: with "nearest" what a coarse stream has beyond the image is cut off.
    """

    def __init__(self, config: HRNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        self.stem = nnx.List(
            ConvNormAct(
                channels,
                STEM,
                3,
                stride=2,
                activation="relu" if last or config.stem_relu else "none",
                norm=norm,
                rngs=rngs,
            )
            for channels, last in ((config.in_channels, False), (STEM, True))
        )
        self.layer1 = nnx.List(
            Bottleneck(
                STEM if i == 0 else LOW,
                LOW // Bottleneck.expansion,
                stride=1,
                dilation=1,
                norm=norm,
                rngs=rngs,
            )
            for i in range(BLOCKS)
        )
        widths = stream_channels(config.width)
        options = {"upsample": config.upsample, "norm": norm, "rngs": rngs}
        self.stage2 = Stage((LOW,), widths[:2], UNITS[2], **options)
        self.stage3 = Stage(widths[:2], widths[:3], UNITS[3], **options)
        self.stage4 = Stage(widths[:3], widths, UNITS[4], **options)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        widths = stream_channels(self.config.width)
        return {"low": LOW, "mid": widths[1], "aux": widths[2], "high": sum(widths)}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        low = sequence(self.layer1, sequence(self.stem, images))
        _, mid, aux = streams = self.stage3(self.stage2((low,)))
        finest, *coarser = self.stage4(streams)
        size = finest.shape[1:3]
        high = jnp.concatenate(
            [finest, *(ops.resize_bilinear(x, size) for x in coarser)],
            axis=-1,
        )
        return {"low": low, "mid": mid, "aux": aux, "high": high}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field on the path where it grows most: down at every stage.

        Where exchanges are bilinear the last of them is on it too: two small steps up see more than
        one large step.
        """
        for i, part in enumerate(self.stem):
            yield spatial_layer(f"stem.{i}", part.conv)
        yield from _blocks("layer1", self.layer1)
        for name in ("stage2", "stage3", "stage4"):
            stage = getattr(self, name)
            last = len(stage.transition) - 1
            yield spatial_layer(f"{name}.transition.{last}", stage.transition[last].conv)
            for i, unit in enumerate(stage.units):
                coarsest = len(unit.streams) - 1
                yield from _blocks(f"{name}.units.{i}.streams.{coarsest}", unit.streams[coarsest])
        factor = 8
        if self.config.upsample == "bilinear":
            yield SpatialLayer("stage4.resize", kernel_size=2, stride=Fraction(1, 2), dilation=1)
            factor = 4
        yield SpatialLayer("resize", kernel_size=2, stride=Fraction(1, factor), dilation=1)


def stream_channels(width: int) -> tuple[int, ...]:
    """Channels of the four streams, the finest first."""
    return tuple(width * 2**i for i in range(4))


def _blocks(path: str, blocks: nnx.List) -> Iterator[SpatialLayer]:
    for i, block in enumerate(blocks):
        yield spatial_layer(f"{path}.{i}.conv1", block.conv1)
        yield spatial_layer(f"{path}.{i}.conv2", block.conv2)


class Stage(nnx.Module):
    """Makes the streams that are new and runs the exchange units: streams -> streams, finest first.

    Args:
      in_channels: of the streams that come in.
      channels: of the streams that go out; one more, at half the last one's resolution.
      units: how many exchange units.
      upsample: see `HRNetConfig`.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: tuple[int, ...],
        units: int,
        *,
        upsample: Upsample,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        # The first of these stages makes both of its streams of layer1's features.
        self.kept = len(in_channels) if in_channels == channels[:-1] else 0
        self.transition = nnx.List(
            ConvNormAct(
                in_channels[-1],
                channels[i],
                3,
                stride=1 if i < len(in_channels) else 2,
                norm=norm,
                rngs=rngs,
            )
            for i in range(self.kept, len(channels))
        )
        self.units = nnx.List(
            ExchangeUnit(channels, upsample=upsample, norm=norm, rngs=rngs) for _ in range(units)
        )

    def __call__(self, streams: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        new = [transition(streams[-1]) for transition in self.transition]
        streams = (*streams[: self.kept], *new)
        for unit in self.units:
            streams = unit(streams)
        return streams


class ExchangeUnit(nnx.Module):
    """Residual blocks in each stream, then each stream becomes the sum of all.

    `fuse[i][j]` are the convolutions from stream j to stream i: one 1x1, and a resize after it,
    from a coarser stream, as many of stride 2 as it takes from a finer one, none from itself.
    """

    def __init__(
        self, channels: tuple[int, ...], *, upsample: Upsample, norm: Norm, rngs: nnx.Rngs
    ):
        self.upsample = upsample
        self.streams = nnx.List(
            nnx.List(
                BasicBlock(width, width, stride=1, dilation=1, norm=norm, rngs=rngs)
                for _ in range(BLOCKS)
            )
            for width in channels
        )
        self.fuse = nnx.List()
        for i, width in enumerate(channels):
            paths = nnx.List()
            for j, source in enumerate(channels):
                steps = nnx.List()
                if j > i:
                    steps.append(
                        ConvNormAct(source, width, activation="none", norm=norm, rngs=rngs)
                    )
                for step in range(j + 1, i + 1):
                    steps.append(
                        ConvNormAct(
                            source,
                            width if step == i else source,
                            3,
                            stride=2,
                            activation="none" if step == i else "relu",
                            norm=norm,
                            rngs=rngs,
                        )
                    )
                paths.append(steps)
            self.fuse.append(paths)

    def __call__(self, streams: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        streams = [sequence(blocks, x) for blocks, x in zip(self.streams, streams, strict=True)]
        outputs = []
        for i, paths in enumerate(self.fuse):
            size = streams[i].shape[1:3]
            parts = [sequence(steps, x) for steps, x in zip(paths, streams, strict=True)]
            total = parts[0]  # the order of the sum is PyTorch's
            for j, part in enumerate(parts[1:], 1):
                total = total + (self._resize(part, 2 ** (j - i), size) if j > i else part)
            outputs.append(ops.relu_of_sum(total))
        return tuple(outputs)

    def _resize(self, x: jax.Array, factor: int, size: tuple[int, int]) -> jax.Array:
        if self.upsample == "bilinear":
            return ops.resize_bilinear(x, size)
        return ops.resize_nearest(x, factor)[:, : size[0], : size[1]]


register_backbone(
    HRNetConfig, presets={f"hrnetv2_w{width}": HRNetConfig(width) for width in WIDTHS}
)
