"""The orientation that cameras note in a picture: which way up its pixels are meant."""

from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

STORED = 1
"""The tag of pixels that are stored as they are to be seen."""


def orientation(image: Image.Image) -> int:
    """The tag (EXIF, XMP), 1 to 8, of a picture that is open but not loaded.

    Nothing is decoded, but for a PNG with metadata behind its pixels.
    """
    early = image.format == "PNG" and not _has_late_metadata(image.fp)
    # A PNG's own `getexif` would decode it.
    exif = Image.Image.getexif(image) if early else image.getexif()
    tag = exif.get(ExifTags.Base.Orientation, STORED)
    return tag if tag in range(1, 9) else STORED


def stored_size(image: Image.Image, tag: int) -> tuple[int, int]:
    """(H, W) of the pixels in the file. Of TIFFs, Pillow says what they are once they are turned."""
    size = image.height, image.width
    return turned_size(size, tag) if image.format == "TIFF" else size


def turned_size(size: tuple[int, int], tag: int) -> tuple[int, int]:
    """(H, W) once the orientation is applied to pixels of the size (H, W)."""
    return size[::-1] if tag >= 5 else size


def turned(pixels: np.ndarray, tag: int) -> np.ndarray:
    """Pixels `[H, W, ...]` with the orientation applied, as `PIL.ImageOps.exif_transpose` does."""
    if tag >= 5:
        pixels = pixels.swapaxes(0, 1)
    if tag in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if tag in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _has_late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG has chunks between its pixels and its end; `file` stays where it is."""
    here = file.tell()
    file.seek(8)
    behind = False
    try:
        while len(head := file.read(8)) == 8 and (kind := head[4:]) != b"IEND":
            if behind and kind != b"IDAT":
                return True
            behind = kind == b"IDAT"
            file.seek(int.from_bytes(head[:4]) + 4, 1)
        return False
    finally:
        file.seek(here)
