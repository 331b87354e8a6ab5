"""How the pictures of a data set are read: as RGB, as people see them, or band by band."""

import dataclasses
import io
from typing import BinaryIO, ClassVar, Literal, Protocol

import cv2
import numpy as np

from deeplab_jax.bands import BandReader
from deeplab_jax.images import (
    ENDS,
    check_checksums,
    check_end,
    check_rgb,
    open_picture,
    to_rgb,
    upright_size,
)
from deeplab_jax.orientation import STORED, orientation, stored_size, turned
from deeplab_jax.preprocessing import PixelType

Bands = tuple[int, ...] | Literal["all"]
"""Which bands of picture files are read, the first of which is 1."""


class Pictures(Protocol):
    """What makes pixels of the file of a picture. Called from many threads, and pickled."""

    @property
    def channels(self) -> int:
        """Of the pixels."""
        ...

    @property
    def pixels(self) -> PixelType:
        """The type of the pixels."""
        ...

    @property
    def bands(self) -> tuple[int, ...] | None:
        """The bands of a file that are the channels; None for RGB, and for all that there are."""
        ...

    def decode(self, file: BinaryIO) -> np.ndarray:
        """The pixels `[H, W, channels]`; raises nearly anything where the file is damaged."""
        ...

    def size(self, file: BinaryIO) -> tuple[int, int]:
        """(H, W) of what `decode` gives, from the header."""
        ...

    def check(self, file: BinaryIO) -> tuple[tuple[int, int], int]:
        """(H, W) of the pixels as they are stored, and the orientation tag that turns them.

        Raises nearly anything where the file is damaged, as far as that is seen without decoding it all.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Rgb:
    """Pictures as `deeplab_jax.images.read_image` gives them: uint8 `[H, W, 3]`."""

    channels: ClassVar[int] = 3
    pixels: ClassVar[PixelType] = "uint8"
    bands: ClassVar[None] = None

    def decode(self, file: BinaryIO) -> np.ndarray:
        """See `Pictures.decode`."""
        check_checksums(file)
        with open_picture(file) as image:
            if image.mode in ("RGB", "L") and not image.has_transparency_data:
                tag = orientation(image)
                file.seek(0)
                data = file.read()
                # OpenCV takes half of Pillow's time for the same pixels, but fills up cut-off files. Of
                # orientations it knows those in EXIF alone.
                if data.endswith(tuple(ENDS.values())):
                    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
                    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
                    if pixels is not None:
                        return turned(pixels, tag)
                image = open_picture(io.BytesIO(data))
            return to_rgb(image)

    def size(self, file: BinaryIO) -> tuple[int, int]:
        """See `Pictures.size`."""
        with open_picture(file) as image:
            return upright_size(image)

    def check(self, file: BinaryIO) -> tuple[tuple[int, int], int]:
        """See `Pictures.check`."""
        with open_picture(file) as image:
            check_rgb(image)
            tag = orientation(image)
            stored = stored_size(image, tag)
            check_end(file, image)
        return stored, tag


RGB = Rgb()


@dataclasses.dataclass(frozen=True)
class ByBand:
    """Pictures of any bands, as `deeplab_jax.bands` reads them.

    Attributes:
      reader: of the files.
    """

    reader: BandReader

    @property
    def channels(self) -> int:
        """See `Pictures.channels`."""
        return self.reader.channels

    @property
    def pixels(self) -> PixelType:
        """See `Pictures.pixels`."""
        return self.reader.pixels

    @property
    def bands(self) -> tuple[int, ...] | None:
        """See `Pictures.bands`."""
        return self.reader.bands

    def decode(self, file: BinaryIO) -> np.ndarray:
        """See `Pictures.decode`."""
        return self.reader.read(file)

    def size(self, file: BinaryIO) -> tuple[int, int]:
        """See `Pictures.size`."""
        return self.reader.size(file)

    def check(self, file: BinaryIO) -> tuple[tuple[int, int], int]:
        """See `Pictures.check`; the pixels of a TIFF are not decoded."""
        return self.reader.size(file), STORED
