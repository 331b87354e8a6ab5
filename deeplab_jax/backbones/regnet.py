"""RegNetX and RegNetY (Radosavovic et al. 2020, arXiv 2003.13678), dilated.

Residual bottlenecks as wide inside as outside, whose 3x3 convolution has groups of one width in all of the
network; in RegNetY squeeze-excite follows it.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

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
from deeplab_jax.backbones.residual import Downsample, add_shortcut, stage_features
from deeplab_jax.layers import ConvNormAct, Norm, SpatialLayer, SqueezeExcite, spatial_layer

STEM = 32
SQUEEZE = 4  # times fewer channels between squeeze-excite's two layers than *enter the block*
FEATURES = ("low", "mid", "aux", "high")


class Network(NamedTuple):
    """Blocks and channels of the four stages, and channels of a group."""

    blocks: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    group_width: int


NETWORKS = {  # appendix B of the paper; "tv" where torchvision rounds channels otherwise
    "x_002": Network((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "x_004": Network((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "x_004_tv": Network((1, 2, 7, 12), (32, 64, 160, 400), 16),
    "x_006": Network((1, 3, 5, 7), (48, 96, 240, 528), 24),
    "x_008": Network((1, 3, 7, 5), (64, 128, 288, 672), 16),
    "x_016": Network((2, 4, 10, 2), (72, 168, 408, 912), 24),
    "x_032": Network((2, 6, 15, 2), (96, 192, 432, 1008), 48),
    "x_040": Network((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    "x_064": Network((2, 4, 10, 1), (168, 392, 784, 1624), 56),
    "x_080": Network((2, 5, 15, 1), (80, 240, 720, 1920), 120),
    "x_120": Network((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "x_160": Network((2, 6, 13, 1), (256, 512, 896, 2048), 128),
    "x_320": Network((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
    "y_002": Network((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "y_004": Network((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "y_006": Network((1, 3, 7, 4), (48, 112, 256, 608), 16),
    "y_008": Network((1, 3, 8, 2), (64, 128, 320, 768), 16),
    "y_008_tv": Network((1, 3, 8, 2), (64, 144, 320, 784), 16),
    "y_016": Network((2, 6, 17, 2), (48, 120, 336, 888), 24),
    "y_032": Network((2, 5, 13, 1), (72, 216, 576, 1512), 24),
    "y_040": Network((2, 6, 12, 2), (128, 192, 512, 1088), 64),
    "y_064": Network((2, 7, 14, 2), (144, 288, 576, 1296), 72),
    "y_080": Network((2, 4, 10, 1), (168, 448, 896, 2016), 56),
    "y_080_tv": Network((2, 4, 10, 1), (224, 448, 896, 2016), 56),
    "y_120": Network((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "y_160": Network((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
    "y_320": Network((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
    "y_640": Network((2, 5, 12, 1), (328, 984, 1968, 4920), 328),
    "y_1280": Network((2, 7, 17, 1), (528, 1056, 2904, 7392), 264),
    "y_2560": Network((2, 7, 17, 1), (746, 1492, 4103, 10444), 373),
}
"""By "x" or "y" and hundredths of a GFLOP, as timm has them."""
PRESETS = ("x_002", "x_008", "x_032", "y_002", "y_008", "y_016", "y_032", "y_080")


@dataclasses.dataclass(frozen=True)
class RegNetConfig:
    """
    Attributes:
      variant: one of `NETWORKS`: "x_032" is RegNetX at 3.2 GFLOPs, "y_032" is RegNetY.
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
    """

    kind: ClassVar[str] = "regnet"
    variant: str = "y_032"
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.variant not in NETWORKS:
            raise ValueError(
                f"RegNet's variant must be one of {', '.join(NETWORKS)}, got {self.variant!r}"
            )

    @property
    def squeeze_excite(self) -> bool:
        """Whether it is a RegNetY."""
        return self.variant.startswith("y")

    def build(self, *, rngs: nnx.Rngs) -> "RegNet":
        return RegNet(self, rngs=rngs)


class RegNet(Backbone[RegNetConfig]):
    """Images `[B, H, W, in_channels]` -> features.

    The features are low (layer1, stride 4), mid (layer2, stride 8), aux (layer3) and high (layer4,
    at the output stride).
    """

    def __init__(self, config: RegNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        network = NETWORKS[config.variant]
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        self.stem = ConvNormAct(config.in_channels, STEM, 3, stride=2, norm=norm, rngs=rngs)
        strides = [2 if i == 0 else 1 for blocks in network.blocks for i in range(blocks)]
        rule = config.first_block_dilation
        plan = iter(dilate(strides, config.output_stride, start=2, first_block=rule))
        stages, before = [], STEM
        for blocks, channels in zip(network.blocks, network.channels, strict=True):
            stage: nnx.List[Block] = nnx.List()
            for _ in range(blocks):
                stride, dilation = next(plan)
                stage.append(
                    Block(
                        before,
                        channels,
                        stride=stride,
                        dilation=dilation,
                        group_width=min(network.group_width, channels),
                        squeeze_excite=config.squeeze_excite,
                        norm=norm,
                        rngs=rngs,
                    )
                )
                before = channels
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        return dict(zip(FEATURES, NETWORKS[self.config.variant].channels, strict=True))

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        return stage_features(self, self.stem(images))

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order; shortcuts do not."""
        yield spatial_layer("stem", self.stem.conv)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(getattr(self, name)):
                yield spatial_layer(f"{name}.{i}.conv2", block.conv2.conv)


class Block(nnx.Module):
    """1x1, 3x3 in groups (with the stride and the atrous rate), squeeze-excite, 1x1, and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilation: int,
        group_width: int,
        squeeze_excite: bool,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.conv1 = ConvNormAct(in_channels, channels, norm=norm, rngs=rngs)
        self.conv2 = ConvNormAct(
            channels,
            channels,
            3,
            stride=stride,
            dilation=dilation,
            groups=channels // group_width,
            norm=norm,
            rngs=rngs,
        )
        squeezed = round(in_channels / SQUEEZE)
        self.attention = (
            SqueezeExcite(channels, squeezed, gate="sigmoid", rngs=rngs) if squeeze_excite else None
        )
        self.conv3 = ConvNormAct(channels, channels, activation="none", norm=norm, rngs=rngs)
        changes = stride > 1 or in_channels != channels
        self.downsample = (
            Downsample(in_channels, channels, stride, norm, rngs=rngs) if changes else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv2(self.conv1(x))
        y = y if self.attention is None else self.attention(y)
        return add_shortcut(self.conv3(y), x, self.downsample)


register_backbone(
    RegNetConfig, presets={f"regnet{variant}": RegNetConfig(variant) for variant in PRESETS}
)
