"""Pictures of any number of bands, read as they are stored: satellite images, TIFF stacks, one grey band.

TIFFs are read by rasterio, the extra `geotiff`; of the other formats Pillow gives the stored bands.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from deeplab_jax.images import (
    File,
    ImageError,
    check_checksums,
    image_size,
    is_tiff,
    open_picture,
    read_image,
    upright_size,
)
from deeplab_jax.preprocessing import PixelType, Preprocessing

_STORED = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I;16B")
"""Pillow's modes whose pixels are those of the file."""

_SHOWN = (2, 98)
"""Percentiles of a band that are black and white in pictures for people."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a picture file holds.

    Attributes:
      size: (H, W).
      count: number of bands.
      pixels: what its numbers are read as: whole numbers of 8 and 16 bits as they are, all others as
        float32.
    """

    size: tuple[int, int]
    count: int
    pixels: PixelType


@dataclasses.dataclass(frozen=True)
class BandReader:
    """Reads picture files band by band: numbers as they are stored, without a thought of colour.

    The pages of a TIFF stack are its bands. What a TIFF of floating-point or signed numbers marks as "no
    data" is NaN.

    Attributes:
      channels: number of bands that are read.
      pixels: the type that they must have.
      bands: which of a file's bands, the first of which is 1; None is all, and then a file must have no
        others.
    """

    channels: int
    pixels: PixelType
    bands: tuple[int, ...] | None = None

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> "BandReader":
        """The one for a model with this preprocessing."""
        return cls(len(preprocessing.mean), preprocessing.pixels, preprocessing.bands)

    def read(self, file: File) -> np.ndarray:
        """The pixels `[H, W, channels]` of a file.

        Raises:
          ImageError: it cannot be read, or has other bands or other numbers.
        """
        with _named(file), _opened(file) as stored:
            self.check(stored.layout)
            _check_pixels(*stored.layout.size)
            return stored.read(self.indices)

    def size(self, file: File) -> tuple[int, int]:
        """(H, W) of a file, from its header, which is checked; raises ImageError as `read` does."""
        with _named(file), _opened(file) as stored:
            self.check(stored.layout)
            return stored.layout.size

    def check(self, layout: Layout) -> None:
        """Raises ImageError where a file of this layout has not got the bands, or has other numbers."""
        if self.bands is None and layout.count != self.channels:
            raise ImageError(
                f"has {_bands(layout.count)}, where {_bands(self.channels)} are taken: save those that "
                f"are meant alone, or take another model"
            )
        if max(self.indices) > layout.count:
            raise ImageError(f"has {_bands(layout.count)}, band {max(self.indices)} is asked for")
        if layout.pixels != self.pixels:
            raise ImageError(
                f"its numbers are {layout.pixels}, where {self.pixels} is taken: other numbers mean "
                "another brightness; convert them as those of training were"
            )

    @property
    def indices(self) -> tuple[int, ...]:
        """The bands that are read, the first of which is 1."""
        return self.bands or tuple(range(1, self.channels + 1))


def layout_of(file: File) -> Layout:
    """What a picture file holds; raises ImageError where it cannot be read."""
    with _named(file), _opened(file) as stored:
        return stored.layout


def read_picture(path: str | os.PathLike, preprocessing: Preprocessing) -> np.ndarray:
    """A picture file as a model takes it, `[H, W, C]`, not yet normalised.

    RGB as people see it, see `images.read_image`; but band by band where the model takes something else.

    Raises:
      ImageError: it cannot be read, or is no picture for this model.
    """
    if preprocessing.is_rgb:
        return read_image(path)
    return BandReader.of(preprocessing).read(path)


def picture_size(path: str | os.PathLike, preprocessing: Preprocessing) -> tuple[int, int]:
    """(H, W) of `read_picture`, from the header."""
    if preprocessing.is_rgb:
        return image_size(path)
    return BandReader.of(preprocessing).size(path)


def to_show(pixels: np.ndarray) -> np.ndarray:
    """A picture for people to look at, uint8 `[H, W, 3]`, of pixels `[H, W, C]` of any type.

    The first three bands are red, green and blue, or the first one is grey. Unless they are RGB already,
    each is stretched between its 2nd and its 98th percentile.
    """
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        return pixels
    few = pixels[..., : 3 if pixels.shape[-1] >= 3 else 1].astype(np.float32)
    finite = np.where(np.isfinite(few), few, np.nan)
    step = max(1, int(np.sqrt(few.shape[0] * few.shape[1] / 1e6)))  # a million tell enough
    sample = finite[::step, ::step].reshape(-1, few.shape[-1])
    known = [band[~np.isnan(band)] for band in sample.T]
    low, high = np.array([np.percentile(b, _SHOWN) if b.size else (0, 0) for b in known]).T
    shown = (finite - low) / np.where(high > low, high - low, 1)
    shown = np.nan_to_num(shown.clip(0, 1)) * 255
    return np.broadcast_to(np.rint(shown).astype(np.uint8), (*pixels.shape[:2], 3))


def pixel_type(dtype: str | np.dtype) -> PixelType:
    """What numbers of a file are read as; raises ImageError for those that are none, or are complex."""
    name = np.dtype(dtype).name
    if name in ("bool", "uint8"):
        return "uint8"
    if name == "uint16":
        return "uint16"
    if np.dtype(dtype).kind not in "iuf":
        raise ImageError(f"its numbers are {name}: they must be whole or floating-point")
    return "float32"


def rasterio() -> Any:
    """The package, which most people do not need; ImageError where it is not installed.

    What it says of files without a georeference is off from then on, in all threads.
    """
    try:
        import rasterio
    except ModuleNotFoundError as error:
        raise ImageError(
            "TIFFs that are read band by band need rasterio: pip install 'deeplab-jax[geotiff]'"
        ) from error
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    return rasterio


@contextlib.contextmanager
def open_tiff(file: File, mode: str = "r", **options: Any) -> Iterator[Any]:
    """A TIFF as `rasterio.open` opens it; GDAL's other formats, some of which name other files, are not."""
    with rasterio().open(file, mode, **{"driver": "GTiff", **options}) as dataset:
        yield dataset


# ---------------------------------------------------------------------------- two packages


@dataclasses.dataclass(frozen=True)
class _StoredTiff:
    """A TIFF that is open: one dataset of bands, or a stack of pages with a band each."""

    datasets: tuple[Any, ...]

    @property
    def layout(self) -> Layout:
        first = self.datasets[0]
        count = first.count if len(self.datasets) == 1 else len(self.datasets)
        kinds = {pixel_type(t) for dataset in self.datasets for t in dataset.dtypes}
        return Layout(first.shape, count, kinds.pop() if len(kinds) == 1 else "float32")

    def read(self, indices: tuple[int, ...]) -> np.ndarray:
        if len(self.datasets) == 1:
            return read_bands(self.datasets[0], indices, self.layout.pixels)
        pages = [read_bands(self.datasets[i - 1], (1,), self.layout.pixels) for i in indices]
        return np.concatenate(pages, axis=-1)


def read_bands(
    dataset: Any, indices: tuple[int, ...], pixels: PixelType, **options: Any
) -> np.ndarray:
    """Bands of rasterio's dataset, `[H, W, bands]`, with NaN for "no data" among float32.

    Args:
      options: for `rasterio.DatasetReader.read`, such as a window.
    """
    read = np.moveaxis(dataset.read(list(indices), **options), 0, -1)
    values = np.ascontiguousarray(read, pixels)
    if pixels == "float32":
        for channel, index in enumerate(indices):
            nothing = dataset.nodatavals[index - 1]
            if nothing is not None and not np.isnan(nothing):
                values[..., channel][read[..., channel] == nothing] = np.nan
    return values


@dataclasses.dataclass(frozen=True)
class _StoredImage:
    """A picture that Pillow has opened."""

    image: Image.Image

    @property
    def layout(self) -> Layout:
        if self.image.mode not in _STORED:
            raise ImageError(
                f"its pixels ({self.image.mode}) are no bands: save it as TIFF, or as a PNG without a "
                "palette"
            )
        pixels = pixel_type("uint16" if self.image.mode.startswith("I;16") else "uint8")
        return Layout(upright_size(self.image), len(self.image.getbands()), pixels)

    def read(self, indices: tuple[int, ...]) -> np.ndarray:
        kind = self.layout.pixels  # of the header, which is gone once the pixels are read
        pixels = np.asarray(ImageOps.exif_transpose(self.image)).astype(kind)
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        return np.ascontiguousarray(pixels[..., [index - 1 for index in indices]])


@contextlib.contextmanager
def _opened(file: File) -> Iterator[_StoredTiff | _StoredImage]:
    if not is_tiff(file):
        with contextlib.ExitStack() as open_:
            if isinstance(file, str | os.PathLike):
                file = open_.enter_context(open(file, "rb"))
            check_checksums(file)
            yield _StoredImage(open_.enter_context(open_picture(file)))
        return
    with contextlib.ExitStack() as open_:
        dataset = open_.enter_context(open_tiff(file))
        names = dataset.subdatasets
        pages = [open_.enter_context(open_tiff(name)) for name in names]
        alike = {(page.count, page.shape, page.dtypes) for page in pages}
        is_stack = len(pages) > 1 and len(alike) == 1 and pages[0].count == 1
        yield _StoredTiff(tuple(pages) if is_stack else (dataset,))


@contextlib.contextmanager
def _named(file: File) -> Iterator[None]:
    """Whatever goes wrong as an ImageError, with the path where the file has one."""
    path = Path(file) if isinstance(file, str | os.PathLike) else None
    where = f"{path}: " if path else ""
    try:
        if path and path.exists() and not path.is_file():
            raise ImageError("a picture must be a file")
        yield
        return
    except ImageError as error:
        problem = str(error)
    except FileNotFoundError:
        problem = "no such file"
    except PermissionError:
        problem = "may not be read; change the permissions of the file"
    except PIL.UnidentifiedImageError:
        problem = "not a picture in a format that is read"
    except Exception as error:  # damaged files make decoders raise nearly anything
        problem = f"damaged, cannot be decoded ({type(error).__name__}: {error}); fetch it anew"
    raise ImageError(f"{where}{problem}")


def _check_pixels(height: int, width: int) -> None:
    """Raises ImageError for more pixels than Pillow decodes: a small file may claim any number."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > 2 * most:
        raise ImageError(
            f"too large to be read at once: {width} x {height} pixels. `deeplab predict` does TIFFs window "
            "by window; or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _bands(count: int) -> str:
    return f"{count} band{'s' if count > 1 else ''}"
