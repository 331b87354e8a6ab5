"""Random scale, crop and flip of pictures and their labels, in the type that they have, all in OpenCV.

Everything random comes from the generator that is passed in.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from deeplab_jax.users_function import made_by
from train.metrics import IGNORE_LABEL

# The pipeline works on many examples at once; OpenCV's own threads would only get in the way.
cv2.setNumThreads(1)


MEAN = (124, 116, 104)
"""ImageNet's mean colour."""

_IGNORED = (IGNORE_LABEL,) * 4  # of each label, in what is not filled
_MOST_BANDS = 4  # of OpenCV's values for borders, and of some of its functions


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The DeepLab papers' augmentation; what they do not do is off (0).

    Attributes:
      crop: rows and columns of what is cut out at random, after scaling. What the picture does not
        fill, at the bottom and right, has the colour `fill` and is ignored.
      scale: smallest and largest random factor of size.
      scale_step: draw only factors that are a whole number of these above the smallest; 0 draws any.
        DeepLab's TensorFlow code has 0.25.
      scales: draw one of these factors instead; one that is listed twice comes twice as often.
      flip: probability of a mirror image, left to right.
      rotation: degrees to either side; corners are filled as above.
      brightness: a factor is drawn from 1 - x to 1 + x.
      contrast: likewise, about the mean grey.
      saturation: likewise, about each pixel's grey.
      hue: shifted to either side by up to this part of the colour circle, at most 0.5.
      blur: probability of a Gaussian blur, with a sigma of 0.1 to 2 pixels.
      extra: module:factory, a function of yours that makes the last step: a function (image, label, rng) ->
        (image, label) of arrays as `augment` gives them, which must keep their shapes and types. The module
        is looked for in the current folder too.
      fill: RGB, or the value of each band, of what a picture does not fill; None is what is zero to the
        model that is trained, the mean of its preprocessing, and `MEAN` where there is no model.
    """

    crop: tuple[int, int] = (513, 513)
    scale: tuple[float, float] = (0.5, 2.0)
    scale_step: float = 0.0
    scales: tuple[float, ...] = ()
    flip: float = 0.5
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    extra: str | None = None
    fill: tuple[float, ...] | None = None

    def __post_init__(self):
        problems = []
        if min(self.crop) < 1:
            problems.append(f"crop must be at least 1 x 1, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            problems.append(f"scale must be 0 < smallest <= largest, got {self.scale}")
        if any(scale <= 0 for scale in self.scales):
            problems.append(f"scales must be above 0, got {self.scales}")
        for name in ("flip", "blur"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                problems.append(f"{name} is a probability, 0 to 1, got {value}")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= (value := getattr(self, name)) <= most:
                problems.append(f"{name} must be 0 to {most}, got {value}")
        for name, most in (("scale_step", np.inf), ("rotation", 180)):
            if not 0 <= (value := getattr(self, name)) <= most:
                problems.append(f"{name} must be 0 to {most}, got {value}")
        if self.extra is not None:
            try:
                _extra(self.extra)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))


def augment(
    image: np.ndarray,
    label: np.ndarray,
    config: AugmentConfig,
    rng: np.random.Generator,
    *,
    height_multiple: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """A random view of an example.

    Only the part of the picture that the crop shows is resized, bilinearly; labels by nearest.

    Args:
      image: `[H, W, C]`: uint8 RGB, or any bands of uint8, uint16 or float32, whose saturation and hue
        cannot be changed.
      label: uint8 `[H, W]`, or `[H, W, labels]`.
      height_multiple: pad the crop's rows, as the crop itself is padded, to a multiple of this.

    Returns:
      `[rows, columns, C]` of the image's type and uint8 `[rows, columns]`, or `[rows, columns, labels]`,
      C-contiguous.
    """
    fill = config.fill or (MEAN if image.shape[-1] == 3 else (0,) * image.shape[-1])
    image, label = _scaled_crop(image, label, config, _draw_scale(config, rng), rng)
    if rng.random() < config.flip:
        image = _by_bands(lambda bands, _: cv2.flip(bands, 1), image)
        label = cv2.flip(label, 1)
    change = _change_colours if _is_rgb(image) else _change_bands
    image = change(image, config, rng)
    if config.rotation:
        image, label = _rotate(image, label, rng.uniform(-1, 1) * config.rotation, fill)
    rows, columns = config.crop
    image, label = pad(image, label, (rows + -rows % height_multiple, columns), fill)
    return _checked(_extra(config.extra), image, label, rng) if config.extra else (image, label)


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], fill: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """An example filled up at the bottom and right to `size` (H, W), there ignored."""
    bottom, right = size[0] - label.shape[0], size[1] - label.shape[1]
    border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)

    def filled(bands: np.ndarray, value: Sequence[float]) -> np.ndarray:
        return cv2.copyMakeBorder(bands, *border, value=value)

    return (
        _by_bands(filled, image, fill),
        cv2.copyMakeBorder(label, *border, value=_IGNORED),
    )


def _by_bands(
    change: Callable[[np.ndarray, Sequence[float]], np.ndarray],
    image: np.ndarray,
    values: Sequence[float] = (),
) -> np.ndarray:
    """`change` of a picture, and of a value for each band: OpenCV takes no more than four bands at once."""
    channels = image.shape[-1]
    if 1 < channels <= _MOST_BANDS:
        return change(image, values)
    parts = [slice(start, start + _MOST_BANDS) for start in range(0, channels, _MOST_BANDS)]
    changed = [change(np.ascontiguousarray(image[..., part]), values[part]) for part in parts]
    return np.concatenate([c[..., None] if c.ndim == 2 else c for c in changed], axis=-1)


# ---------------------------------------------------------------------------- where


def _draw_scale(config: AugmentConfig, rng: np.random.Generator) -> float:
    if config.scales:
        return float(rng.choice(config.scales))
    low, high = config.scale
    if config.scale_step:
        steps = int((high - low) / config.scale_step + 1e-6)
        return low + config.scale_step * int(rng.integers(steps + 1))
    return rng.uniform(low, high)


def _scaled_crop(
    image: np.ndarray,
    label: np.ndarray,
    config: AugmentConfig,
    scale: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The crop of the scaled picture, or all of that where it is smaller."""
    (top, rows, to_rows), (left, columns, to_columns) = (
        _window(side, crop, scale, rng)
        for side, crop in zip(label.shape[:2], config.crop, strict=True)
    )
    window = slice(top, top + rows), slice(left, left + columns)
    if (rows, columns) == (to_rows, to_columns):
        return image[window], label[window]
    # Below half size bilinear interpolation would skip pixels.
    by = cv2.INTER_LINEAR if scale >= 0.5 else cv2.INTER_AREA
    return (
        _by_bands(
            lambda bands, _: cv2.resize(bands, (to_columns, to_rows), interpolation=by),
            image[window],
        ),
        # The plain INTER_NEAREST is half a pixel off.
        cv2.resize(label[window], (to_columns, to_rows), interpolation=cv2.INTER_NEAREST_EXACT),
    )


def _window(side: int, crop: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Along one side: where the window begins, its pixels, and to how many they are resized."""
    if round(side * scale) <= crop:
        return 0, side, max(1, round(side * scale))
    window = min(side, max(1, round(crop / scale)))
    return int(rng.integers(side - window + 1)), window, crop


def _rotate(
    image: np.ndarray, label: np.ndarray, degrees: float, fill: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = label.shape[:2]
    matrix = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0)
    size, border = (columns, rows), {"borderMode": cv2.BORDER_CONSTANT}

    def turned(bands: np.ndarray, value: Sequence[float]) -> np.ndarray:
        options = {"flags": cv2.INTER_LINEAR, "borderValue": value, **border}
        return cv2.warpAffine(bands, matrix, size, **options)

    def turned_labels(labels: np.ndarray, _: Sequence[float] = ()) -> np.ndarray:
        options = {"flags": cv2.INTER_NEAREST, "borderValue": _IGNORED, **border}
        return cv2.warpAffine(labels, matrix, size, **options)

    several = label.ndim == 3
    return (
        _by_bands(turned, image, fill),
        _by_bands(turned_labels, label) if several else turned_labels(label),
    )


# ---------------------------------------------------------------------------- how it looks


def _is_rgb(image: np.ndarray) -> bool:
    return image.dtype == np.uint8 and image.shape[-1] == 3


def _change_colours(
    image: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """The jitter of torchvision's ColorJitter, in this order, and blur."""

    def factor(most: float) -> float:
        return rng.uniform(1 - most, 1 + most)

    if config.brightness:
        image = cv2.convertScaleAbs(image, alpha=factor(config.brightness))
    if config.contrast:
        by = factor(config.contrast)
        grey = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
        image = cv2.addWeighted(image, by, image, 0, (1 - by) * grey)
    if config.saturation:
        by = factor(config.saturation)
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, by, grey, 1 - by, 0)
    if config.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # hue in 256 parts: uint8 wraps round
        hsv[..., 0] += np.uint8(round(rng.uniform(-config.hue, config.hue) * 256) % 256)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    if config.blur and rng.random() < config.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.1, 2.0))
    return image


def _change_bands(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """The same of any bands, as far as it is defined: the contrast is about each band's own mean."""
    if config.brightness or config.contrast:
        by = rng.uniform(1 - config.brightness, 1 + config.brightness)
        contrast = rng.uniform(1 - config.contrast, 1 + config.contrast)
        changed = image.astype(np.float32) * by
        mean = np.nansum(changed, axis=(0, 1)) / np.maximum(np.isfinite(changed).sum((0, 1)), 1)
        changed = mean + (changed - mean) * np.float32(contrast)
        if image.dtype != np.float32:
            changed = np.rint(changed).clip(0, np.iinfo(image.dtype).max)
        image = changed.astype(image.dtype)
    if config.blur and rng.random() < config.blur:
        sigma = rng.uniform(0.1, 2.0)
        image = _by_bands(lambda bands, _: cv2.GaussianBlur(bands, (0, 0), sigma), image)
    return image


# ---------------------------------------------------------------------------- a user's own

Step = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@functools.cache
def _extra(name: str) -> Step:
    """The step that `AugmentConfig.extra` names; raises ValueError where there is none."""
    step = made_by(name, "augment.extra")
    if not callable(step):
        raise ValueError(
            f"augment.extra {name} must give a function (image, label, rng), got {step!r}"
        )
    return step


def _checked(
    step: Step, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What a user's step makes of an example; raises ValueError where it changed shapes or types."""
    changed = step(image, label, rng)
    if not (isinstance(changed, tuple) and len(changed) == 2):
        raise ValueError(f"augment.extra must give (image, label), got {type(changed).__name__}")
    for name, before, after in zip(("image", "label"), (image, label), changed, strict=True):
        after = np.asarray(after)
        if (after.shape, after.dtype) != (before.shape, before.dtype):
            raise ValueError(
                f"augment.extra must keep the {name} {before.dtype} {list(before.shape)}, it gave "
                f"{after.dtype} {list(after.shape)}"
            )
    return np.ascontiguousarray(changed[0]), np.ascontiguousarray(changed[1])
