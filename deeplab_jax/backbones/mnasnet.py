"""MnasNet (Tan et al. 2019, arXiv 1807.11626), dilated."""

import dataclasses
from typing import ClassVar, Literal

from flax import nnx

from deeplab_jax.backbones.dilation import FirstBlockDilation, OutputStride, check_output_stride
from deeplab_jax.backbones.inverted_residual import (
    InvertedResiduals,
    LastConv,
    Network,
    Stage,
    network_of,
    paddings,
)
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.layers import make_divisible

SE = 0.25
STAGES = {  # blocks, kernel, stride of the first, expansion, channels
    "b1": (
        Stage(1, 3, 1, 1, 16),
        Stage(3, 3, 2, 3, 24),
        Stage(3, 5, 2, 3, 40),
        Stage(3, 5, 2, 6, 80),
        Stage(2, 3, 1, 6, 96),
        Stage(4, 5, 2, 6, 192),
        Stage(1, 3, 1, 6, 320),
    ),
    "a1": (
        Stage(1, 3, 1, 1, 16),
        Stage(2, 3, 2, 6, 24),
        Stage(3, 5, 2, 3, 40, squeeze=SE),
        Stage(4, 3, 2, 6, 80),
        Stage(2, 3, 1, 6, 112, squeeze=SE),
        Stage(3, 5, 2, 6, 160, squeeze=SE),
        Stage(1, 3, 1, 6, 320),
    ),
    "small": (
        Stage(1, 3, 1, 1, 8),
        Stage(1, 3, 2, 3, 16),
        Stage(2, 3, 2, 6, 16),
        Stage(4, 5, 2, 6, 32, squeeze=SE),
        Stage(3, 3, 1, 6, 32, squeeze=SE),
        Stage(3, 5, 2, 6, 88, squeeze=SE),
        Stage(1, 3, 1, 6, 144),
    ),
}
STEMS = {"b1": 32, "a1": 32, "small": 8}


@dataclasses.dataclass(frozen=True)
class MnasNetConfig:
    """
    Attributes:
      variant: "b1", the network without squeeze-excite that torchvision has; "a1", the paper's with it
        (timm's semnasnet); or "small".
      width: multiplier on the channels.
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      last_conv: the classifier's 1x1 to 1280 channels, see `LastConv`.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm; torchvision's momentum is .0003.
    """

    kind: ClassVar[str] = "mnasnet"
    variant: Literal["b1", "a1", "small"] = "b1"
    width: float = 1.0
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    last_conv: LastConv = "none"
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.variant not in STAGES:
            raise ValueError(f"MnasNet's variant must be b1, a1 or small, got {self.variant!r}")

    def build(self, *, rngs: nnx.Rngs) -> "MnasNet":
        return MnasNet(self, rngs=rngs)


class MnasNet(InvertedResiduals[MnasNetConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high."""

    def __init__(self, config: MnasNetConfig, *, rngs: nnx.Rngs):
        net = network(config.variant, config.width)
        stride = config.output_stride
        super().__init__(
            config, paddings=paddings("symmetric", net.blocks, output_stride=stride), rngs=rngs
        )

    @property
    def network(self) -> Network:
        return network(self.config.variant, self.config.width)


def network(variant: Literal["b1", "a1", "small"], width: float) -> Network:
    """The network of a variant; the last 1x1 keeps its 1280 channels."""
    return network_of(
        STAGES[variant],
        stem=make_divisible(STEMS[variant] * width),
        width=width,
        activation="relu",
        squeeze_activation="relu",
    )


register_backbone(MnasNetConfig, presets={"mnasnet": MnasNetConfig()}, heads=SEPARABLE_HEADS)
