"""MobileOne (Vasu et al. 2023, arXiv 2206.04040), dilated.

Depthwise and pointwise layers in turn, each of which is a sum of parallel branches in training. For
inference the branches of a layer add up to one convolution ("reparameterised").
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.backbones.dilation import OutputStride, check_output_stride, dilate
from deeplab_jax.backbones.registry import SEPARABLE_HEADS, register_backbone
from deeplab_jax.backbones.residual import stage_features
from deeplab_jax.layers import (
    BatchNorm,
    Conv,
    ConvNormAct,
    Norm,
    SpatialLayer,
    SqueezeExcite,
    spatial_layer,
)

Size = Literal["s0", "s1", "s2", "s3", "s4"]
BLOCKS = (2, 8, 10, 1)  # of the stages; a depthwise and a pointwise layer each
SQUEEZE = 16  # times fewer channels between squeeze-excite's two layers
FEATURES = ("low", "mid", "aux", "high")


class Network(NamedTuple):
    """Channels of the stem and of the four stages.

    Attributes:
      convs: parallel convolutions of the same size in each layer but the stem.
      attended: blocks at the end of each stage that have squeeze-excite.
    """

    stem: int
    channels: tuple[int, int, int, int]
    convs: int = 1
    attended: tuple[int, int, int, int] = (0, 0, 0, 0)


NETWORKS: dict[Size, Network] = {  # table 10 of the paper
    "s0": Network(48, (48, 128, 256, 1024), convs=4),
    "s1": Network(64, (96, 192, 512, 1280)),
    "s2": Network(64, (96, 256, 640, 2048)),
    "s3": Network(64, (128, 320, 768, 2048)),
    "s4": Network(64, (192, 448, 896, 2048), attended=(0, 0, 5, 1)),
}


@dataclasses.dataclass(frozen=True)
class MobileOneConfig:
    """
    Attributes:
      size: "s0" to "s4".
      output_stride: 8, 16 or 32. All blocks of a stage that lost its stride have the same atrous rate.
      atrous: False leaves all rates at 1 (timm, whose layers are not told theirs).
      reparameterised: each layer is one convolution with a bias, as models for inference are saved.
      in_channels: of the images.
      norm_momentum, norm_epsilon: of every batch norm.
    """

    kind: ClassVar[str] = "mobileone"
    size: Size = "s1"
    output_stride: OutputStride = 16
    atrous: bool = True
    reparameterised: bool = False
    in_channels: int = 3
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        check_output_stride(self.output_stride)
        if self.size not in NETWORKS:
            raise ValueError(
                f"MobileOne's size must be one of {', '.join(NETWORKS)}, got {self.size!r}"
            )

    def build(self, *, rngs: nnx.Rngs) -> "MobileOne":
        return MobileOne(self, rngs=rngs)


class MobileOne(Backbone[MobileOneConfig]):
    """Images `[B, H, W, in_channels]` -> features.

    The features are low (layer1, stride 4), mid (layer2, stride 8), aux (layer3) and high (layer4,
    at the output stride).
    """

    def __init__(self, config: MobileOneConfig, *, rngs: nnx.Rngs):
        self.config = config
        network = NETWORKS[config.size]
        norm = Norm(config.norm_momentum, config.norm_epsilon)
        common: dict[str, Any] = {"fused": config.reparameterised, "norm": norm, "rngs": rngs}
        self.stem = Branches(config.in_channels, network.stem, 3, stride=2, strided=True, **common)
        strides = [2 if i == 0 else 1 for blocks in BLOCKS for i in range(blocks)]
        plan = iter(dilate(strides, config.output_stride, start=2, first_block="same"))
        stages, before = [], network.stem
        for blocks, channels, attended in zip(
            BLOCKS, network.channels, network.attended, strict=True
        ):
            layers: nnx.List[Branches] = nnx.List()
            for i in range(blocks):
                stride, dilation = next(plan)
                options = common | {"convs": network.convs, "attended": i >= blocks - attended}
                depthwise: dict[str, Any] = {
                    "stride": stride,
                    "strided": i == 0,
                    "dilation": dilation if config.atrous else 1,
                    "groups": before,
                }
                layers.append(Branches(before, before, 3, **depthwise, **options))
                layers.append(Branches(before, channels, 1, **options))
                before = channels
            stages.append(layers)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        return dict(zip(FEATURES, NETWORKS[self.config.size].channels, strict=True))

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        return stage_features(self, self.stem(images))

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        yield self.stem.spatial_layer("stem")
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for i, layer in enumerate(getattr(self, name)):
                yield layer.spatial_layer(f"{name}.{i}")


class Branches(nnx.Module):
    """A sum of convolutions, each with its norm; then squeeze-excite, where it is, and ReLU.

    Beside `convs` of the kernel's size there are a 1x1 convolution, where that size is another, and a norm
    alone, where the shape stays.

    Args:
      strided: whether the layer has a stride in the classification network, where the shape changes.
      fused: one convolution with a bias in place of all.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        strided: bool = False,
        dilation: int = 1,
        groups: int = 1,
        convs: int = 1,
        attended: bool = False,
        fused: bool,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"stride": stride, "groups": groups, "rngs": rngs}
        kernel: dict[str, Any] = {"kernel_size": kernel_size, "dilation": dilation} | options
        branch: dict[str, Any] = {"activation": "none", "norm": norm}
        self.fused = Conv(in_channels, channels, bias=True, **kernel) if fused else None
        self.parts = nnx.List(
            ConvNormAct(in_channels, channels, **branch, **kernel)
            for _ in range(0 if fused else convs)
        )
        one = not fused and kernel_size > 1
        self.one = ConvNormAct(in_channels, channels, **branch, **options) if one else None
        same = not fused and not strided and in_channels == channels
        self.skip = norm(channels) if same else None
        self.attention = (
            SqueezeExcite(channels, channels // SQUEEZE, gate="sigmoid", rngs=rngs)
            if attended
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = sum(branch(x) for branch in self._branches())
        y = y if self.attention is None else self.attention(y)
        return ops.relu_of_sum(y)

    def _branches(self) -> list[Any]:
        others = (self.fused, self.one, self.skip)
        return [*self.parts, *(branch for branch in others if branch is not None)]

    def fold(self) -> None:
        """Makes one convolution with a bias of all branches, as their norms are in eval mode."""
        if self.fused is not None:
            return
        largest = self.parts[0].conv
        kernel = np.zeros(largest.kernel.shape, np.float32)
        bias = np.zeros(kernel.shape[-1], np.float32)
        for branch in self._branches():
            conv: Conv | None = None if branch is self.skip else branch.conv
            norm: BatchNorm = branch if conv is None else branch.bn
            scale, shift, mean, var = map(
                np.asarray, (norm.scale[...], norm.bias[...], norm.mean[...], norm.var[...])
            )
            gain = scale / np.sqrt(var + np.float32(norm.epsilon))
            one = _identity(largest) if conv is None else np.asarray(conv.kernel[...])
            border = (len(kernel) - len(one)) // 2
            kernel += gain * np.pad(one, ((border, border), (border, border), (0, 0), (0, 0)))
            bias = bias + shift - mean * gain
        whole = nnx.clone(largest)
        whole.kernel[...] = jax.device_put(kernel)
        whole.bias = nnx.data(nnx.Param(jax.device_put(bias)))
        self.fused = nnx.data(whole)
        self.parts, self.one, self.skip = nnx.List(), None, None

    def spatial_layer(self, path: str) -> SpatialLayer:
        """The largest of its convolutions."""
        return spatial_layer(path, self.parts[0].conv if self.fused is None else self.fused)


def _identity(conv: Conv) -> np.ndarray:
    """The 1x1 kernel, in as many groups, that changes nothing."""
    _, _, inputs, channels = conv.kernel.shape
    return (np.arange(channels) % inputs == np.arange(inputs)[:, None]).astype(np.float32)[
        None, None
    ]


register_backbone(
    MobileOneConfig,
    presets={f"mobileone_{size}": MobileOneConfig(size) for size in NETWORKS},
    heads=SEPARABLE_HEADS,
)
