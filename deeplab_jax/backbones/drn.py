"""DRN, dilated residual networks (Yu, Koltun & Funkhouser 2017): at stride 8 from the start.

Eight levels, the last five of them at stride 8: the atrous rate is 2 in layer5, 4 in layer6, and
falls to 2 and 1 in layer7 and layer8, which have no shortcuts and smooth out the grid that dilation
leaves behind. Modules are named as in the authors' `drn.py`.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
from flax import nnx

from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.registry import register_backbone
from deeplab_jax.backbones.residual import BasicBlock, Bottleneck, sequence
from deeplab_jax.layers import Conv, ConvNormAct, Norm, SpatialLayer, spatial_layer

WIDTHS = (16, 32, 64, 128, 256, 512, 512, 512)
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)
"""Of layer1 to layer8; those of strided layers are their first block's."""

VARIANTS = {
    "c_26": (BasicBlock, (1, 1, 2, 2, 2, 2, 1, 1)),
    "c_42": (BasicBlock, (1, 1, 3, 4, 6, 3, 1, 1)),
    "c_58": (Bottleneck, (1, 1, 3, 4, 6, 3, 1, 1)),
    "d_22": (BasicBlock, (1, 1, 2, 2, 2, 2, 1, 1)),
    "d_24": (BasicBlock, (1, 1, 2, 2, 2, 2, 2, 2)),
    "d_38": (BasicBlock, (1, 1, 3, 4, 6, 3, 1, 1)),
    "d_40": (BasicBlock, (1, 1, 3, 4, 6, 3, 2, 2)),
    "d_54": (Bottleneck, (1, 1, 3, 4, 6, 3, 1, 1)),
    "d_56": (Bottleneck, (1, 1, 3, 4, 6, 3, 2, 2)),
    "d_105": (Bottleneck, (1, 1, 3, 4, 23, 3, 1, 1)),
    "d_107": (Bottleneck, (1, 1, 3, 4, 23, 3, 2, 2)),
}
"""The blocks of layer3 to layer6, and how many of them or of convolutions layer1 to layer8 have."""


@dataclasses.dataclass(frozen=True)
class DRNConfig:
    """
    Attributes:
      output_stride: 8, and nothing else.
      variant: one of `VARIANTS`. DRN-C has residual blocks at both ends, in layer1 and layer2 with
        shortcuts and in layer7 and layer8 without; DRN-D has plain convolutions there.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
    """

    kind: ClassVar[str] = "drn"
    output_stride: ClassVar[int] = 8
    variant: str = "d_54"
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise ValueError(f"DRN's variant must be {', '.join(VARIANTS)}; got {self.variant!r}")

    def build(self, *, rngs: nnx.Rngs) -> "DRN":
        return DRN(self, rngs=rngs)


class DRN(Backbone[DRNConfig]):
    """Images `[B, H, W, in_channels]` -> features.

    The features are low (layer3, at stride 4), mid (layer4), aux (layer5) and high (layer8), these
    at stride 8.
    """

    def __init__(self, config: DRNConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        self.layer0 = ConvNormAct(config.in_channels, WIDTHS[0], 7, norm=norm, rngs=rngs)
        channels, counts = WIDTHS[0], VARIANTS[config.variant][1]
        plan = zip(block_types(config.variant), counts, WIDTHS, STRIDES, DILATIONS, strict=True)
        for level, (block_type, count, width, stride, dilation) in enumerate(plan, 1):
            layer = nnx.List()
            for i in range(count):
                options = {
                    "stride": stride if i == 0 else 1,
                    "dilation": dilation,
                    "norm": norm,
                    "rngs": rngs,
                }
                if block_type is ConvNormAct:
                    layer.append(ConvNormAct(channels, width, 3, **options))
                    channels = width
                else:
                    layer.append(block_type(channels, width, **options))
                    channels = width * block_type.expansion
            setattr(self, f"layer{level}", layer)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        expansion = VARIANTS[self.config.variant][0].expansion
        widths = {"low": WIDTHS[2], "mid": WIDTHS[3], "aux": WIDTHS[4]}
        return {name: w * expansion for name, w in widths.items()} | {"high": WIDTHS[7]}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        x = sequence(self.layer2, sequence(self.layer1, self.layer0(images)))
        low = sequence(self.layer3, x)
        mid = sequence(self.layer4, low)
        aux = sequence(self.layer5, mid)
        x = sequence(self.layer7, sequence(self.layer6, aux))
        return {"low": low, "mid": mid, "aux": aux, "high": sequence(self.layer8, x)}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order; shortcuts do not."""
        yield spatial_layer("layer0", self.layer0.conv)
        for level in range(1, 9):
            for i, part in enumerate(getattr(self, f"layer{level}")):
                path = f"layer{level}.{i}"
                if isinstance(part, ConvNormAct):
                    yield spatial_layer(path, part.conv)
                else:
                    yield spatial_layer(f"{path}.conv1", part.conv1)
                    yield spatial_layer(f"{path}.conv2", part.conv2)


class PlainBlock(nnx.Module):
    """Two 3x3 convolutions without a shortcut."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv(in_channels, width, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, width, 3, dilation=dilation, rngs=rngs)
        self.bn2 = norm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return jax.nn.relu(self.bn2(self.conv2(x)))


def block_types(variant: str) -> tuple[type, ...]:
    """What layer1 to layer8 are made of."""
    block_type = VARIANTS[variant][0]
    first, last = (BasicBlock, PlainBlock) if variant.startswith("c") else (ConvNormAct,) * 2
    return (first, first, *(block_type,) * 4, last, last)


register_backbone(
    DRNConfig, presets={f"drn_{v}": DRNConfig(v) for v in ("d_22", "d_38", "d_54", "d_105")}
)
