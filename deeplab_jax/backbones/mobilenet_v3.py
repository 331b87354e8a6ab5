"""MobileNetV3 (Howard et al. 2019), dilated."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import FirstBlockDilation, OutputStride, check_output_stride
from deeplab_jax.backbones.inverted_residual import (
    Block,
    inverted_residuals,
    last_at_stride,
    run,
    spatial_layers,
    taps,
)
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.heads import LRASPPConfig
from deeplab_jax.layers import Activation, ConvNormAct, Norm, SpatialLayer, make_divisible

R, H = "relu", "hard_swish"
TABLES = {  # kernel, expanded, channels, squeeze-excite, activation, stride: tables 1 and 2
    "large": (
        (3, 16, 16, False, R, 1),
        (3, 64, 24, False, R, 2),
        (3, 72, 24, False, R, 1),
        (5, 72, 40, True, R, 2),
        (5, 120, 40, True, R, 1),
        (5, 120, 40, True, R, 1),
        (3, 240, 80, False, H, 2),
        (3, 200, 80, False, H, 1),
        (3, 184, 80, False, H, 1),
        (3, 184, 80, False, H, 1),
        (3, 480, 112, True, H, 1),
        (3, 672, 112, True, H, 1),
        (5, 672, 160, True, H, 2),
        (5, 960, 160, True, H, 1),
        (5, 960, 160, True, H, 1),
    ),
    "small": (
        (3, 16, 16, True, R, 2),
        (3, 72, 24, False, R, 2),
        (3, 88, 24, False, R, 1),
        (5, 96, 40, True, H, 2),
        (5, 240, 40, True, H, 1),
        (5, 240, 40, True, H, 1),
        (5, 120, 48, True, H, 1),
        (5, 144, 48, True, H, 1),
        (5, 288, 96, True, H, 2),
        (5, 576, 96, True, H, 1),
        (5, 576, 96, True, H, 1),
    ),
}
STEM = 16


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config:
    """
    Attributes:
      size: "large" or "small".
      width: multiplier on the channels.
      rounding: how channels follow from it: "scaled", where those inside a block are the table's, scaled
        and rounded like all others (torchvision); or "expanded", where they are the block's rounded input
        times the table's expansion, and the stem keeps its 16 below a width of .75 (timm). Of width 1
        they are the same.
      minimal: Google's variant for accelerators: 3x3 and ReLU throughout, no squeeze-excite.
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage; torchvision's is "same".
      padding: "symmetric", or "same" for weights born in TensorFlow.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm; torchvision's backbone has .01 and 1e-3.
    """

    kind: ClassVar[str] = "mobilenet_v3"
    size: Literal["large", "small"] = "large"
    width: float = 1.0
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "same"
    padding: Literal["symmetric", "same"] = "symmetric"
    in_channels: int = 3
    norm_momentum: float = 0.01
    norm_epsilon: float = 1e-3
    rounding: Literal["scaled", "expanded"] = "scaled"
    minimal: bool = False

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.size not in TABLES:
            raise ValueError(f"MobileNetV3's size must be large or small, got {self.size!r}")

    def build(self, *, rngs: nnx.Rngs) -> "MobileNetV3":
        return MobileNetV3(self, rngs=rngs)


class MobileNetV3(Backbone[MobileNetV3Config]):
    """Images `[B, H, W, in_channels]` -> features half, low, mid, aux and high, at strides 2, 4, 8, 16 and
    the output stride.

    half is the last block at stride 2, or the stem where there is none. mid is the *first* block at
    stride 8, where torchvision taps LR-ASPP's low-level features and the auxiliary head.
    """

    def __init__(self, config: MobileNetV3Config, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        padding: ops.Padding | None = "same" if config.padding == "same" else None
        stem, blocks = stem_channels(config), block_table(config)
        activation: Activation = "relu" if config.minimal else "hard_swish"
        self.stem = ConvNormAct(
            config.in_channels,
            stem,
            3,
            stride=2,
            padding=padding,
            activation=activation,
            norm=norm,
            rngs=rngs,
        )
        self.blocks = inverted_residuals(
            stem,
            blocks,
            output_stride=config.output_stride,
            first_block_dilation=config.first_block_dilation,
            paddings=[padding] * len(blocks),
            norm=norm,
            rngs=rngs,
        )
        high = 6 * blocks[-1].channels
        self.last = ConvNormAct(
            blocks[-1].channels, high, activation=activation, norm=norm, rngs=rngs
        )
        self.high_channels = high

    @property
    def taps(self) -> dict[str, int]:
        """Features that are a block's output -> the index of the block."""
        blocks = block_table(self.config)
        half = {"half": last_at_stride(blocks, 2)} if blocks[0].stride == 1 else {}
        return half | taps(blocks) | {"mid": last_at_stride(blocks, 4) + 1}

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        blocks = block_table(self.config)
        channels = {name: blocks[i].channels for name, i in self.taps.items()}
        return {"half": stem_channels(self.config)} | channels | {"high": self.high_channels}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        half = self.stem(images)
        high, features = run(self.blocks, half, self.taps, rngs=rngs)
        return {"half": half} | features | {"high": self.last(high)}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        return spatial_layers(self.stem, self.blocks)


def stem_channels(config: MobileNetV3Config) -> int:
    """Channels of the first convolution."""
    fixed = config.rounding == "expanded" and config.width < 0.75
    return STEM if fixed else make_divisible(STEM * config.width)


def block_table(config: MobileNetV3Config) -> list[Block]:
    """The rows of the network, the paper's for width 1."""
    blocks: list[Block] = []
    before, channels, stage = STEM, stem_channels(config), -1
    for kernel, expanded, out, squeeze, activation, stride in TABLES[config.size]:
        stage += not blocks or stride > 1 or out != before
        wide = expanded * config.width
        if config.rounding == "expanded":
            wide = channels * expanded / before
        block = Block(
            kernel_size=3 if config.minimal else kernel,
            expanded=make_divisible(wide),
            channels=make_divisible(out * config.width),
            stride=stride,
            activation="relu" if config.minimal else activation,
            squeezed=make_divisible(make_divisible(wide) // 4)
            if squeeze and not config.minimal
            else None,
            stage=stage,
        )
        before, channels = out, block.channels
        blocks.append(block)
    return blocks


register_backbone(
    MobileNetV3Config,
    presets={f"mobilenet_v3_{size}": MobileNetV3Config(size) for size in ("large", "small")},
    heads={**SEPARABLE_HEADS, "lraspp": LRASPPConfig()},
)
