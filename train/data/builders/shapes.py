"""Drawn shapes: a data set that needs no download, small and hard enough to see training work."""

import colorsys
import math
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from train.data.builders.pairs import Example, PairsBuilder
from train.data.class_names import SHAPES

SIZE = (96, 128)
EXAMPLES = {"train": 400, "validation": 100}

_FINE = 4  # shapes are drawn so many times larger, and shrunk to smooth edges


class Shapes(PairsBuilder, skip_registration=True):
    """See `draw`."""

    DESCRIPTION = "Pictures of drawn shapes on textured backgrounds, with the class of each pixel."

    def examples(self) -> dict[str, Iterator[Example]]:
        """The splits of `EXAMPLES`, always the same."""
        return {
            split: _examples(split, seed, count)
            for seed, (split, count) in enumerate(EXAMPLES.items())
        }


def _examples(split: str, seed: int, count: int) -> Iterator[Example]:
    for index in range(count):
        picture, label = draw(np.random.default_rng((seed, index)))
        yield f"{split}_{index:04d}", Image.fromarray(picture), Image.fromarray(label)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 `[96, 128, 3]` and its labels uint8 `[96, 128]`.

    Two to five shapes of random size, place, turn and texture, one over the other, on a pale background
    of random texture with lines across it; all blurred a little and noisy. Each class has a hue of its
    own, so that a network without any pretraining needs minutes, not hours.
    """
    picture = _texture(rng, _pale(rng), contrast=45)
    label = np.zeros(SIZE, np.uint8)
    for _ in range(rng.integers(0, 4)):
        ends = [tuple(int(v) for v in rng.integers(0, SIZE[::-1])) for _ in range(2)]
        cv2.line(picture, *ends, _pale(rng).tolist(), int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(rng.integers(2, 6)):
        shape = int(rng.integers(1, len(SHAPES)))
        cover = _cover(shape, rng)
        inside = cover >= 0.5
        surface = _texture(rng, _bright(shape, rng), contrast=20)
        picture = picture + cover[..., None] * (surface - picture)
        label[inside] = shape
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.8))
    picture += rng.normal(0, rng.uniform(3, 9), picture.shape).astype(np.float32)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8), label


def _pale(rng: np.random.Generator) -> np.ndarray:
    """A colour of any hue, but near grey: float32 `[3]`."""
    return rng.uniform(50, 205) + rng.uniform(-25, 25, 3).astype(np.float32)


def _bright(shape: int, rng: np.random.Generator) -> np.ndarray:
    """A colour of about the hue of a class: float32 `[3]`."""
    hue = (shape / (len(SHAPES) - 1) + rng.uniform(-0.06, 0.06)) % 1.0
    colour = colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 1.0), rng.uniform(0.55, 1.0))
    return 255 * np.array(colour, np.float32)


def _texture(rng: np.random.Generator, colour: np.ndarray, contrast: float) -> np.ndarray:
    """Smooth noise, coarse to fine, or stripes, about a colour: float32 `[96, 128, 3]`."""
    rows, columns = SIZE
    noise = np.zeros((rows, columns), np.float32)
    if rng.random() < 0.3:
        y, x = np.mgrid[:rows, :columns]
        angle, period = rng.uniform(0, math.pi), rng.uniform(5, 16)
        noise += np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period))
    for cell, strength in ((32, 1.0), (12, 0.6), (4, 0.4)):
        grid = rng.normal(0, strength, (rows // cell + 1, columns // cell + 1)).astype(np.float32)
        noise += cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC)
    tint = rng.uniform(0.4, 1.0, 3).astype(np.float32)
    return colour + contrast / 2 * noise[..., None] * tint


def _cover(shape: int, rng: np.random.Generator) -> np.ndarray:
    """The part of each pixel that a random shape of a class covers, float32 `[96, 128]`."""
    rows, columns = SIZE
    radius = rng.uniform(13, 28)
    middle = np.array(
        (
            rng.uniform(0.5 * radius, columns - 0.5 * radius),
            rng.uniform(0.5 * radius, rows - 0.5 * radius),
        )
    )
    turn = rng.uniform(0, 2 * math.pi)
    canvas = np.zeros((rows * _FINE, columns * _FINE), np.uint8)

    def fill(corners: int, radii: tuple[float, ...], value: int) -> None:
        angles = turn + np.arange(corners) * (2 * math.pi / corners)
        reach = radius * np.resize(radii, corners)
        points = middle + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        cv2.fillPoly(canvas, [np.round(points * _FINE).astype(np.int32)], value)

    match SHAPES[shape]:
        case "circle":
            fill(64, (1.0,), 255)
        case "square":
            fill(4, (1.1,), 255)
        case "triangle":
            fill(3, (1.2,), 255)
        case "star":
            fill(10, (1.25, 0.55), 255)
        case "ring":
            fill(64, (1.0,), 255)
            fill(64, (0.5,), 0)
    return (
        cv2.resize(canvas, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    )
