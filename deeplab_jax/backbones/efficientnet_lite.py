"""EfficientNet-Lite (Liu 2020; Tan & Le 2019 without squeeze-excite and with ReLU6), dilated."""

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

STAGES = (  # blocks, kernel, stride of the first, expansion, channels: lite0
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
SCALING = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}
"""Variant -> multipliers on channels and on the number of blocks."""


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """
    Attributes:
      variant: 0 to 4.
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      last_conv: the classifier's 1x1 to 1280 channels, see `LastConv`.
      padding: "symmetric" (segmentation_models_pytorch), or TensorFlow's "same".
      same_size: with "same", the side of the image that the padding is computed for once and for all;
        None computes it from the real image. efficientnet-lite-pytorch does the former (224 for lite0).
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm; .01 and 1e-3 in TensorFlow's own.
      drop_path: stochastic depth in training (Huang et al. 2016, arXiv 1603.09382): how often an image
        goes through a block's shortcut alone, from 0 at the first block growing to this after the last.
        EfficientNet's own is 0.2.
    """

    kind: ClassVar[str] = "efficientnet_lite"
    variant: Literal[0, 1, 2, 3, 4] = 0
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    last_conv: LastConv = "none"
    padding: Literal["symmetric", "same"] = "symmetric"
    same_size: int | None = None
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    drop_path: float = 0.0

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.variant not in SCALING:
            raise ValueError(f"EfficientNet-Lite's variant must be 0 to 4, got {self.variant}")

    def build(self, *, rngs: nnx.Rngs) -> "EfficientNetLite":
        return EfficientNetLite(self, rngs=rngs)


class EfficientNetLite(InvertedResiduals[EfficientNetLiteConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high."""

    def __init__(self, config: EfficientNetLiteConfig, *, rngs: nnx.Rngs):
        net = network(config.variant)
        super().__init__(
            config,
            paddings=paddings(
                config.padding,
                net.blocks,
                same_size=config.same_size,
                output_stride=config.output_stride,
            ),
            drop_path=config.drop_path,
            rngs=rngs,
        )

    @property
    def network(self) -> Network:
        return network(self.config.variant)


def network(variant: int) -> Network:
    """The network of a variant. The first and the last stage keep their number of blocks."""
    wider, deeper = SCALING[variant]
    depths = (1.0, *(deeper,) * (len(STAGES) - 2), 1.0)
    return network_of(
        STAGES, width=wider, depths=depths, activation="relu6", squeeze_activation="relu"
    )


register_backbone(
    EfficientNetLiteConfig,
    presets={f"efficientnet_lite{v}": EfficientNetLiteConfig(v) for v in SCALING},
    heads=SEPARABLE_HEADS,
)
