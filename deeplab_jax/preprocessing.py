"""From pictures to what a model expects."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What the training code did to its images, and so what prediction must do.

    Attributes:
      mean, std: of each channel as the model takes them, of images scaled to [0, 1]; ImageNet's by
        default.
      size_multiple: pad at the bottom and right to a multiple of this, with zeros after normalisation,
        and crop the logits: for models whose code accepts no other sizes (segmentation_models_pytorch).
      channel_order: of what the model takes; for "bgr" (MobileViT), the first and the third channel
        of images, which are always RGB, are swapped.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size_multiple: int = 1
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self):
        if len(self.mean) != len(self.std) or not all(deviation > 0 for deviation in self.std):
            raise ValueError(
                "mean and std must have a value for each channel, and std's must be above 0, got "
                f"mean {self.mean} and std {self.std}"
            )


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """uint8 `[B, H, W, C]` -> float32: in [0, 1], in the model's order, minus mean, over std."""
    x = images.astype(jnp.float32) / 255
    if preprocessing.channel_order == "bgr":
        x = jnp.concatenate([jnp.flip(x[..., :3], -1), x[..., 3:]], axis=-1)
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    return (x - mean) / jnp.asarray(preprocessing.std, jnp.float32)


def pad_to_multiple(images: jax.Array, multiple: int) -> jax.Array:
    """Zeros at the bottom and right of `[B, H, W, C]` until both sides are multiples of `multiple`."""
    if multiple == 1:  # not known of a symbolic size, see `lowering.is_symbolic`
        return images
    bottom, right = (-n % multiple for n in images.shape[1:3])
    return jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
