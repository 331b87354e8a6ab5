"""Mean and standard deviation of the bands of a data set, for pictures that ImageNet's do not fit."""

import dataclasses

import numpy as np

from deeplab_jax.preprocessing import FULL_SCALE
from train.data.dataset import Source, in_threads

SAMPLED = 200
"""Examples that are measured, evenly spread over the split: the means of more differ in the third digit."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of each band of pictures that are scaled to [0, 1], see `deeplab_jax.preprocessing.FULL_SCALE`.

    Attributes:
      mean, std: over all pixels but those without data.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


def measure(source: Source) -> Statistics:
    """The statistics of a split, always the same for the same examples.

    A band that is the same everywhere has the standard deviation 1.
    """
    count = min(len(source), SAMPLED)
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    sums = in_threads(lambda i: _sums(source[chosen[i]]), count, "measuring bands")
    number, total, square = (np.sum(values, axis=0) for values in zip(*sums, strict=True))
    number = np.maximum(number, 1)
    mean = total / number
    deviation = np.sqrt(np.maximum(square / number - mean**2, 0))
    return Statistics(tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist()))


def _sums(example: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each band of a picture: the number of its values, their sum, and that of their squares."""
    image = example["image"]
    values = image.reshape(-1, image.shape[-1]) / np.float64(FULL_SCALE[image.dtype.name])
    known = np.isfinite(values)
    values = np.where(known, values, 0)
    return known.sum(0), values.sum(0), (values**2).sum(0)
