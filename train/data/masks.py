"""Label maps in files: what one holds, and its classes, by ids, by colours or label by label."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import BinaryIO, Literal

import cv2
import numpy as np
from PIL import Image, ImageOps

from deeplab_jax.images import open_picture
from deeplab_jax.orientation import STORED, orientation
from train.data.class_table import MOST_CLASSES, pack, unpack
from train.data.dataset import DataError, a_few
from train.metrics import IGNORE_LABEL

_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000", "WEBP": "WebP", "AVIF": "AVIF"}
"""What Pillow calls formats that are lossy, or may be without saying so."""

_NUMPY = b"\x93NUMPY"  # how a .npy file begins
_COLOURS = ("RGB", "RGBA", "RGBX")
_NO_CLASS = MOST_CLASSES  # of a colour that is in no table
_KEPT = 300  # colours of a label map; more than a table can have


class LossyLabel(DataError):
    """A label map in a format that does not keep its ids; the message is the same for all of a format."""


def open_label(file: BinaryIO) -> Image.Image:
    """The picture that is a label map, loaded, with its own orientation applied.

    Raises:
      LossyLabel: its format, whatever its name says, does not keep ids.
    """
    with _opened(file) as image:
        compression = str(image.info.get("compression"))  # of a TIFF
        lossy = "JPEG" if "jpeg" in compression else _LOSSY.get(image.format)
        if lossy:
            raise LossyLabel(
                f"a label map cannot be a {lossy}, which is lossy: ids smear at edges, and pixels get "
                "classes that nobody drew. Export it as PNG from where it was drawn. Where that cannot be "
                "done and there are two classes, black and white, ImageMagick makes two ids of it again: "
                "mogrify -format png -colorspace Gray -threshold 50% FILES"
            )
        return ImageOps.exif_transpose(image)


def _opened(file: BinaryIO) -> Image.Image:
    """A picture, or a numpy array (.npy) as one.

    Raises:
      DataError: the array is not a label map.
    """
    magic = file.read(len(_NUMPY))
    file.seek(0)
    if magic != _NUMPY:
        return open_picture(file)
    array = np.load(file, allow_pickle=False)
    ids = array.dtype.kind in "bui"
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not ids:
        raise DataError(
            f"an array that is a label map must be whole numbers [H, W], got {array.dtype} "
            f"{list(array.shape)}; or, of several labels for a pixel, 0 and 1 [H, W, labels]"
        )
    small = not array.size or (array.min() >= 0 and array.max() <= 255)
    return Image.fromarray(array.astype(np.uint8 if small else np.int32))


def read_labels(file: BinaryIO) -> np.ndarray | None:
    """A numpy array of several labels for a pixel, uint8 `[H, W, labels]`; None of any other label map.

    1 is where a label is, 0 where it is not, and `IGNORE_LABEL` where it is not known.

    Raises:
      DataError: it holds other numbers.
    """
    magic = file.read(len(_NUMPY))
    file.seek(0)
    if magic != _NUMPY:
        return None
    array = np.load(file, allow_pickle=False)
    file.seek(0)
    if array.ndim != 3 or array.shape[-1] == 1 or array.dtype.kind not in "bui":
        return None
    known = (array == 0) | (array == 1) | (array == IGNORE_LABEL)
    if not known.all():
        others = np.unique(array[~known]).tolist()
        raise DataError(
            f"an array [H, W, labels] must be 1 where a pixel has a label, 0 where not, and {IGNORE_LABEL} "
            f"where that is not known, got {a_few(others)} in {list(array.shape)}"
        )
    return array.astype(np.uint8)


def decode_label(file: BinaryIO) -> np.ndarray:
    """Class ids uint8 `[H, W]`: the pixels of a grey picture, the indices (not colours) of a palette one.

    Raises:
      DataError: the picture is in colour or lossy, or has ids above 255.
    """
    return label_ids(open_label(file))


def label_ids(image: Image.Image) -> np.ndarray:
    """The ids of an `open_label`; see `decode_label`."""
    if image.mode not in ("1", "L", "LA", "P") and not image.mode.startswith("I"):
        raise DataError(
            "label maps must be grey or palette pictures whose pixels are class ids, whole numbers, this "
            f"one is {image.mode}; replace what it holds by ids and save it as PNG"
        )
    ids = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
    if ids.dtype != np.uint8:
        if ids.size and (ids.min() < 0 or ids.max() > 255):
            raise DataError(
                f"ids in label maps must be 0..255, got {ids.min()}..{ids.max()}; give the classes "
                "smaller ids and save it with 8 bits"
            )
        ids = ids.astype(np.uint8)
    return ids


@dataclasses.dataclass(frozen=True)
class ByIds:
    """Decodes label maps whose pixels are ids.

    Attributes:
      classes: of each id; `IGNORE_LABEL` where it is ignored.
      others: whether ids that are not in `classes` are ignored, or refused with a DataError.
    """

    classes: Mapping[int, int]
    others: Literal["ignored", "refused"] = "refused"

    def __call__(self, file: BinaryIO) -> np.ndarray:
        ids = decode_label(file)
        if self.others == "refused" and cv2.LUT(ids, self._unknown).any():
            unknown = np.unique(ids[self._unknown[ids] > 0]).tolist()
            raise DataError(f"the labels {a_few(unknown)} are neither classes nor ignored")
        return cv2.LUT(ids, self._table)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        table = np.full(256, IGNORE_LABEL, np.uint8)
        table[list(self.classes)] = list(self.classes.values())
        return table

    @functools.cached_property
    def _unknown(self) -> np.ndarray:
        unknown = np.ones(256, np.uint8)
        unknown[list(self.classes)] = 0
        return unknown


@dataclasses.dataclass(frozen=True)
class ByColours:
    """Decodes label maps in colour; the colours of palettes and greys count too, transparency does not.

    Attributes:
      classes: of each packed colour; `IGNORE_LABEL` where it is ignored. Others raise a DataError.
    """

    classes: Mapping[int, int]

    def __call__(self, file: BinaryIO) -> np.ndarray:
        image = open_label(file)
        in_colour = image.mode in _COLOURS
        colours = _packed(image) if in_colour else _palette(image)[label_ids(image)]
        labels = self._table[colours]
        if (unknown := labels == _NO_CLASS).any():
            found = [unpack(colour) for colour in np.unique(colours[unknown]).tolist()]
            raise DataError(f"the colours {a_few(found)} are neither classes nor ignored")
        return labels

    @functools.cached_property
    def _table(self) -> np.ndarray:
        table = np.full(1 << 24, _NO_CLASS, np.uint8)
        table[list(self.classes)] = list(self.classes.values())
        return table


@dataclasses.dataclass(frozen=True)
class ByLabels:
    """Decodes label maps of several labels for a pixel, uint8 `[H, W, labels]`, see `read_labels`.

    Attributes:
      count: of the labels.
    """

    count: int

    def __call__(self, file: BinaryIO) -> np.ndarray:
        labels = read_labels(file)
        if labels is None or labels.shape[-1] != self.count:
            raise DataError(f"this is no array [H, W, {self.count}], as the others are")
        return labels


@dataclasses.dataclass(frozen=True)
class Mask:
    """What one label map holds.

    Attributes:
      mode: Pillow's.
      size: (H, W), with the orientation applied.
      orientation: its own tag.
      ids: those that have pixels; None in a label map in colour, or of several labels.
      colours: packed, those of `ids`; or the most frequent ones of a label map in colour.
      pixels: of each; or with each label.
      labels: how many there are, where a pixel may have several.
    """

    mode: str
    size: tuple[int, int]
    orientation: int
    ids: np.ndarray | None
    colours: np.ndarray
    pixels: np.ndarray
    labels: int | None = None


def read_mask(file: BinaryIO) -> Mask:
    """Reads the ids or colours of a label map.

    Raises:
      LossyLabel: its format does not keep ids.
      DataError: its pixels are neither ids of 8 bits nor colours nor labels.
    """
    if (labels := read_labels(file)) is not None:
        height, width, count = labels.shape
        pixels = np.count_nonzero(labels == 1, axis=(0, 1))
        none = np.zeros(0, np.int64)
        return Mask("labels", (height, width), STORED, None, none, pixels, count)
    with _opened(file) as header:
        tag = orientation(header)
    file.seek(0)
    image = open_label(file)
    size = image.height, image.width
    if image.mode in _COLOURS:
        colours, pixels = np.unique(_packed(image), return_counts=True)
        most = np.argsort(-pixels, kind="stable")[:_KEPT]
        return Mask(image.mode, size, tag, None, colours[most], pixels[most])
    counts = np.bincount(label_ids(image).ravel(), minlength=256)
    ids = np.flatnonzero(counts)
    return Mask(image.mode, size, tag, ids, _palette(image)[ids], counts[ids])


def _packed(image: Image.Image) -> np.ndarray:
    """The colours of a picture in colour, packed, int32 `[H, W]`."""
    pixels = np.asarray(image.convert("RGB"))
    return pack(*(pixels[..., channel].astype(np.int32) for channel in range(3)))


def _palette(image: Image.Image) -> np.ndarray:
    """The packed colour of each id, int32 `[256]`; black beyond the end of a palette."""
    if image.mode == "P":
        flat = np.array(image.getpalette("RGB"), np.int32)
    elif image.mode == "1":
        flat = np.array([0, 0, 0, 255, 255, 255], np.int32)
    else:
        flat = np.repeat(np.arange(256, dtype=np.int32), 3)
    full = np.zeros((256, 3), np.int32)
    full[: flat.size // 3] = flat.reshape(-1, 3)
    return pack(*full.T)
