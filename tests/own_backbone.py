"""A backbone as a stranger would write it, in a module that a command imports by --plugin."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
from flax import nnx

import deeplab_jax
from deeplab_jax.layers import BatchNorm, Conv, SpatialLayer, spatial_layer


@dataclasses.dataclass(frozen=True)
class StripesConfig:
    """
    Attributes:
      output_stride: 8 or 16.
      width: channels of the first stage.
      in_channels: of the images.
    """

    kind: ClassVar[str] = "stripes"
    output_stride: Literal[8, 16] = 16
    width: int = 8
    in_channels: int = 3

    def build(self, *, rngs: nnx.Rngs) -> "Stripes":
        return Stripes(self, rngs=rngs)


class Step(nnx.Module):
    """A convolution whose batch norm is not named after it."""

    norm_follows: ClassVar[dict[str, str]] = {"normalise": "look"}

    def __init__(self, cin: int, cout: int, stride: int, dilation: int, *, rngs: nnx.Rngs):
        self.look = Conv(cin, cout, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.normalise = BatchNorm(cout)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.normalise(self.look(x)))


class Stripes(deeplab_jax.Backbone[StripesConfig]):
    """Images -> features; the last of four steps loses its stride at output stride 8."""

    def __init__(self, config: StripesConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.stem = Step(config.in_channels, width, 2, 1, rngs=rngs)
        self.late = Step(4 * width, 8 * width, config.output_stride // 8, 1, rngs=rngs)
        self.early = Step(width, 2 * width, 2, 1, rngs=rngs)
        self.blocks = nnx.List([Step(2 * width, 4 * width, 2, 1, rngs=rngs)])

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each of the features."""
        return {"low": 2 * self.config.width, "high": 8 * self.config.width}

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        del rngs  # nothing is random
        low = self.early(self.stem(images))
        return {"low": low, "high": self.late(self.blocks[0](low))}

    def spatial_layers(self) -> Iterator[SpatialLayer]:
        """What widens the receptive field, in order."""
        yield spatial_layer("stem", self.stem.look)
        yield spatial_layer("early", self.early.look)
        yield spatial_layer("blocks.0", self.blocks[0].look)
        yield spatial_layer("late", self.late.look)


deeplab_jax.register_backbone(
    StripesConfig, presets={"stripes8": StripesConfig(), "stripes4": StripesConfig(width=4)}
)
