"""Label maps that are drawn when they are asked for, of the regions that an annotation file lists."""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image

from deeplab_jax.images import image_size
from train.data.dataset import Part


class Region(Protocol):
    """A part of a picture that is of one class."""

    def paint(self, label: np.ndarray, value: int) -> None:
        """Sets its pixels of uint8 `[H, W]` to `value`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Polygon:
    """The inside of a polygon.

    A pixel is inside if its centre is; by the even-odd rule, so that a polygon may have holes.

    Attributes:
      points: x and y of the corners, float `[N, 2]`, in pixels; (0, 0) is the picture's corner.
    """

    points: np.ndarray

    def paint(self, label: np.ndarray, value: int) -> None:
        height, width = label.shape
        x, y = np.asarray(self.points, np.float64).T
        x1, y1 = np.roll(x, -1), np.roll(y, -1)
        down = np.minimum(y, y1), np.maximum(y, y1)
        # An edge crosses the rows whose centre is between its ends, the lower end not among them.
        first, last = (np.clip(np.ceil(end - 0.5), 0, height).astype(int) for end in down)
        rows_of = last - first
        edge = np.repeat(np.arange(len(x)), rows_of)
        row = (
            np.arange(rows_of.sum())
            - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
            + first[edge]
        )
        if not edge.size:
            return
        at = x[edge] + (row + 0.5 - y[edge]) / (y1 - y)[edge] * (x1 - x)[edge]
        column = np.clip(np.ceil(at - 0.5), 0, width).astype(int)
        top, bottom = row.min(), row.max() + 1
        crossings = np.zeros((bottom - top, width + 1), np.int32)
        np.add.at(crossings, (row - top, column), 1)
        inside = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
        label[top:bottom][inside] = value


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """A rectangle with, perhaps, a mask in it.

    Attributes:
      left, top: of its first pixel.
      mask: bool `[h, w]`.
    """

    left: int
    top: int
    mask: np.ndarray

    def paint(self, label: np.ndarray, value: int) -> None:
        height, width = label.shape
        top, left = max(self.top, 0), max(self.left, 0)
        rows, columns = self.mask.shape
        bottom, right = min(self.top + rows, height), min(self.left + columns, width)
        if top < bottom and left < right:
            part = self.mask[
                top - self.top : bottom - self.top, left - self.left : right - self.left
            ]
            label[top:bottom, left:right][part] = value


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture and its regions, to be painted in this order.

    Attributes:
      picture: its file.
      annotation: the file that has the regions.
      regions: each with its class.
      size: (H, W); None is the picture's own.
    """

    picture: Path
    annotation: Path
    regions: tuple[tuple[int, Region], ...]
    size: tuple[int, int] | None = None

    def label(self) -> np.ndarray:
        """Class ids, uint8 `[H, W]`; 0, the background, where there is no region."""
        size = self.size or image_size(self.picture)
        label = np.zeros(size, np.uint8)
        for value, region in self.regions:
            region.paint(label, value)
        return label


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Examples whose label maps are drawn; see `dataset.Encoded`.

    Attributes:
      root: what names are relative to.
      examples: in order.
    """

    root: Path
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def open(self, index: int, *parts: Part) -> tuple[BinaryIO, ...]:
        """The picture's file, and the label map as a PNG in memory."""
        example = self.examples[index]
        return tuple(
            example.picture.open("rb") if part == "image" else _png(example.label())
            for part in parts
        )

    def name(self, index: int, part: Part = "image") -> str:
        """The path of the picture, or of the file that its regions are in, and the picture's."""
        example = self.examples[index]
        picture = str(example.picture.relative_to(self.root))
        if part == "image":
            return picture
        return f"{example.annotation.relative_to(self.root)} ({picture})"


def largest_first(regions: Iterable[tuple[float, int, Region]]) -> tuple[tuple[int, Region], ...]:
    """(area, class, region) in the order in which small regions stay visible on large ones."""
    ordered: Sequence = sorted(regions, key=lambda region: -region[0])
    return tuple((value, region) for _, value, region in ordered)


def _png(label: np.ndarray) -> BinaryIO:
    file = io.BytesIO()
    Image.fromarray(label).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file
