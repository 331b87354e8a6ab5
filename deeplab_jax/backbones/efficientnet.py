"""EfficientNet (Tan & Le 2019, arXiv 1905.11946) and EfficientNetV2 (2021, arXiv 2104.00298), dilated."""

import dataclasses
from typing import ClassVar, Literal

from flax import nnx

from deeplab_jax.backbones.dilation import FirstBlockDilation, OutputStride, check_output_stride
from deeplab_jax.backbones.inverted_residual import (
    InvertedResiduals,
    LastConv,
    Network,
    Stage,
    last_at_stride,
    network_of,
    paddings,
)
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.layers import make_divisible

SE = 0.25
V1 = (  # blocks, kernel, stride of the first, expansion, channels: B0, table 1 of the first paper
    Stage(1, 3, 1, 1, 16, squeeze=SE),
    Stage(2, 3, 2, 6, 24, squeeze=SE),
    Stage(2, 5, 2, 6, 40, squeeze=SE),
    Stage(3, 3, 2, 6, 80, squeeze=SE),
    Stage(3, 5, 1, 6, 112, squeeze=SE),
    Stage(4, 5, 2, 6, 192, squeeze=SE),
    Stage(1, 3, 1, 6, 320, squeeze=SE),
)
V2_BASE = (
    Stage(1, 3, 1, 1, 16, "plain"),
    Stage(2, 3, 2, 4, 32, "fused"),
    Stage(2, 3, 2, 4, 48, "fused"),
    Stage(3, 3, 2, 4, 96, squeeze=SE),
    Stage(5, 3, 1, 6, 112, squeeze=SE),
    Stage(8, 3, 2, 6, 192, squeeze=SE),
)
V2_S = (  # table 4 of the second paper
    Stage(2, 3, 1, 1, 24, "plain"),
    Stage(4, 3, 2, 4, 48, "fused"),
    Stage(4, 3, 2, 4, 64, "fused"),
    Stage(6, 3, 2, 4, 128, squeeze=SE),
    Stage(9, 3, 1, 6, 160, squeeze=SE),
    Stage(15, 3, 2, 6, 256, squeeze=SE),
)
V2_RW = (  # timm's, from before the second paper's code was public
    Stage(2, 3, 1, 1, 24, "fused", always_expand=True),
    *V2_S[1:-1],
    Stage(15, 3, 2, 6, 272, squeeze=SE),
)
V2_M = (
    Stage(3, 3, 1, 1, 24, "plain"),
    Stage(5, 3, 2, 4, 48, "fused"),
    Stage(5, 3, 2, 4, 80, "fused"),
    Stage(7, 3, 2, 4, 160, squeeze=SE),
    Stage(14, 3, 1, 6, 176, squeeze=SE),
    Stage(18, 3, 2, 6, 304, squeeze=SE),
    Stage(5, 3, 1, 6, 512, squeeze=SE),
)
V2_L = (
    Stage(4, 3, 1, 1, 32, "plain"),
    Stage(7, 3, 2, 4, 64, "fused"),
    Stage(7, 3, 2, 4, 96, "fused"),
    Stage(10, 3, 2, 4, 192, squeeze=SE),
    Stage(19, 3, 1, 6, 224, squeeze=SE),
    Stage(25, 3, 2, 6, 384, squeeze=SE),
    Stage(7, 3, 1, 6, 640, squeeze=SE),
)
V2_XL = (
    Stage(4, 3, 1, 1, 32, "plain"),
    Stage(8, 3, 2, 4, 64, "fused"),
    Stage(8, 3, 2, 4, 96, "fused"),
    Stage(16, 3, 2, 4, 192, squeeze=SE),
    Stage(24, 3, 1, 6, 256, squeeze=SE),
    Stage(32, 3, 2, 6, 512, squeeze=SE),
    Stage(8, 3, 1, 6, 640, squeeze=SE),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family.

    Attributes:
      stages: its table.
      width: multiplier on all channels.
      depth: multiplier on the number of blocks, or one for each stage.
      stem, last: channels at the two ends, before they are multiplied.
      least: how channels are rounded, see `make_divisible`.
    """

    stages: tuple[Stage, ...]
    width: float = 1.0
    depth: float | tuple[float, ...] = 1.0
    stem: int = 32
    last: int = 1280
    least: float = 0.9


VARIANTS = {
    "b0": Variant(V1),
    "b1": Variant(V1, 1.0, 1.1),
    "b2": Variant(V1, 1.1, 1.2),
    "b3": Variant(V1, 1.2, 1.4),
    "b4": Variant(V1, 1.4, 1.8),
    "b5": Variant(V1, 1.6, 2.2),
    "b6": Variant(V1, 1.8, 2.6),
    "b7": Variant(V1, 2.0, 3.1),
    "b8": Variant(V1, 2.2, 3.6),
    "l2": Variant(V1, 4.3, 5.3),
    "v2_b0": Variant(V2_BASE, least=0.0),
    "v2_b1": Variant(V2_BASE, 1.0, 1.1, least=0.0),
    "v2_b2": Variant(V2_BASE, 1.1, 1.2, least=0.0),
    "v2_b3": Variant(V2_BASE, 1.2, 1.4, least=0.0),
    "v2_s": Variant(V2_S, stem=24),
    "v2_m": Variant(V2_M, stem=24),
    "v2_l": Variant(V2_L),
    "v2_xl": Variant(V2_XL),
    "v2_rw_t": Variant(V2_S, 0.8, 0.9, stem=24),
    "v2_rw_s": Variant(V2_RW, stem=24, last=1792),
    "v2_rw_m": Variant(V2_RW, 1.2, (1.2, 1.2, 1.2, 1.2, 1.6, 1.6), stem=24, last=1792),
}


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """
    Attributes:
      variant: "b0" to "b8" and "l2", or of EfficientNetV2 "v2_s", "v2_m", "v2_l" and "v2_xl", the smaller
        "v2_b0" to "v2_b3", and timm's "v2_rw_t", "v2_rw_s" and "v2_rw_m".
      output_stride: 8, 16 or 32.
      first_block_dilation: rule for the first block of a dilated stage.
      early_blocks: the last so many blocks at stride 16 have the atrous rate of the stage at stride 32
        already: 2 in segmentation_models_pytorch's own efficientnet-b0, whose table counts two too few.
      last_conv: the classifier's 1x1 to 1280 channels or more, see `LastConv`.
      padding: "symmetric" (timm, torchvision), or TensorFlow's "same".
      same_size: with "same", the side of the image that the padding is computed for once and for all, as
        EfficientNet-PyTorch does (224 for B0, 600 for B7); None computes it from the real image.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm; .01 and 1e-3 in TensorFlow's own.
      drop_path: stochastic depth in training (Huang et al. 2016, arXiv 1603.09382): how often an image
        goes through a block's shortcut alone, from 0 at the first block growing to this after the last.
        The paper's is 0.2.
    """

    kind: ClassVar[str] = "efficientnet"
    variant: str = "b0"
    output_stride: OutputStride = 16
    first_block_dilation: FirstBlockDilation = "previous"
    early_blocks: int = 0
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
        if self.variant not in VARIANTS:
            raise ValueError(
                f"EfficientNet's variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}"
            )

    def build(self, *, rngs: nnx.Rngs) -> "EfficientNet":
        return EfficientNet(self, rngs=rngs)


class EfficientNet(InvertedResiduals[EfficientNetConfig]):
    """Images `[B, H, W, in_channels]` -> features low, mid, aux (strides 4, 8, 16) and high."""

    def __init__(self, config: EfficientNetConfig, *, rngs: nnx.Rngs):
        net = network(config.variant)
        first = last_at_stride(net.blocks, 16) + 1  # of the stage at stride 32
        early = range(first - config.early_blocks, first)
        super().__init__(
            config,
            paddings=paddings(
                config.padding,
                net.blocks,
                same_size=config.same_size,
                output_stride=config.output_stride,
            ),
            rate_of=[first if i in early else i for i in range(len(net.blocks))],
            drop_path=config.drop_path,
            rngs=rngs,
        )

    @property
    def network(self) -> Network:
        return network(self.config.variant)


def network(name: str) -> Network:
    """The network of a variant."""
    variant = VARIANTS[name]
    depth = variant.depth
    return network_of(
        variant.stages,
        stem=make_divisible(variant.stem * variant.width, least=variant.least),
        last=make_divisible(variant.last * variant.width, least=variant.least),
        width=variant.width,
        depths=depth if isinstance(depth, tuple) else (depth,) * len(variant.stages),
        least=variant.least,
        activation="silu",
        squeeze_activation="silu",
    )


register_backbone(
    EfficientNetConfig,
    presets={
        f"efficientnet_{variant}": EfficientNetConfig(variant)
        for variant in (*(f"b{n}" for n in range(8)), "v2_s", "v2_m", "v2_l")
    },
    heads=SEPARABLE_HEADS,
)
