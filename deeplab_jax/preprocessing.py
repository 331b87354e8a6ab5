"""From pictures to what a model expects."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

PixelType = Literal["uint8", "uint16", "float32"]
"""The numbers of pictures."""

FULL_SCALE = {"uint8": 255, "uint16": 65535, "float32": 1}
"""What is 1 once images are scaled; floating-point ones are taken as they are."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What the training code did to its images, and so what prediction must do.

    Attributes:
      mean, std: of each channel as the model takes them, of images scaled to [0, 1], see `FULL_SCALE`;
        ImageNet's by default.
      size_multiple: pad at the bottom and right to a multiple of this, with zeros after normalisation,
        and crop the logits: for models whose code accepts no other sizes (segmentation_models_pytorch).
      channel_order: of what the model takes; for "bgr" (MobileViT), the first and the third channel
        of images, which are always RGB, are swapped.
      pixels: the numbers of images. Of floating-point ones those that are not finite are "no data", and
        become the mean.
      bands: which bands of a picture file are the channels, the first of which is 1; None is RGB as people
        see it, or, of models that take something else, all bands in order.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size_multiple: int = 1
    channel_order: Literal["rgb", "bgr"] = "rgb"
    pixels: PixelType = "uint8"
    bands: tuple[int, ...] | None = None

    def __post_init__(self):
        if len(self.mean) != len(self.std) or not all(deviation > 0 for deviation in self.std):
            raise ValueError(
                "mean and std must have a value for each channel, and std's must be above 0, got "
                f"mean {self.mean} and std {self.std}"
            )
        if self.pixels not in FULL_SCALE:
            raise ValueError(f"pixels must be one of {', '.join(FULL_SCALE)}, got {self.pixels!r}")
        if self.bands is not None and (
            len(self.bands) != len(self.mean) or min(self.bands, default=0) < 1
        ):
            raise ValueError(
                f"bands must be a number from 1 on for each of {len(self.mean)} channels, got {self.bands}"
            )

    @property
    def is_rgb(self) -> bool:
        """Whether images are RGB of 8 bits, as people see a picture."""
        return len(self.mean) == 3 and self.pixels == "uint8" and self.bands is None


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """Images `[B, H, W, C]` -> float32: in [0, 1], in the model's order, minus mean, over std.

    Args:
      images: of `preprocessing.pixels`, uint8 as a rule.
    """
    x = images.astype(jnp.float32) / FULL_SCALE[preprocessing.pixels]
    if preprocessing.channel_order == "bgr":
        x = jnp.concatenate([jnp.flip(x[..., :3], -1), x[..., 3:]], axis=-1)
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    if preprocessing.pixels == "float32":
        x = jnp.where(jnp.isfinite(x), x, mean)
    return (x - mean) / jnp.asarray(preprocessing.std, jnp.float32)


def pad_to_multiple(images: jax.Array, multiple: int) -> jax.Array:
    """Zeros at the bottom and right of `[B, H, W, C]` until both sides are multiples of `multiple`."""
    if multiple == 1:  # not known of a symbolic size, see `lowering.is_symbolic`
        return images
    bottom, right = (-n % multiple for n in images.shape[1:3])
    return jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
