"""Pictures in and out of files: anything that Pillow opens becomes RGB; nothing is half written."""

import functools
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps

from deeplab_jax.orientation import STORED, orientation, stored_size, turned_size
from deeplab_jax.paths import check_local
from deeplab_jax.whole_file import write_file

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""What counts as a picture in a folder. A file named outright is opened whatever its suffix."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What Pillow calls the formats that are read, whatever a file's name says. Of its others, EPS for one
starts another program."""

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""The last bytes of a whole file of a format."""

_PNG = b"\x89PNG\r\n\x1a\n"  # how a PNG begins

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels. Their own colour is arbitrary, often black."""

_STRIP = 256  # rows that are converted at once: whole pictures would be in memory four times

MOST_TRANSLUCENT = 0.1
"""Share of a TIFF's pixels that may be neither opaque nor wholly transparent. Cut-outs have some at
their edges; where there are more, the last band is infrared or the like, which GDAL marks as
transparency unless told otherwise."""

File = str | os.PathLike | BinaryIO

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how a file begins; + is BigTIFF

T = TypeVar("T")


class ImageError(ValueError):
    """A picture that cannot be had: missing, not a picture, damaged, or too large."""


class NotRgbError(ImageError):
    """A picture that cannot be seen as RGB: measurements, more bands, or numbers without a fixed range."""


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The picture in a file as uint8 `[H, W, 3]`, RGB; see `to_rgb`. Of an animation, the first.

    A picture of more than twice `PIL.Image.MAX_IMAGE_PIXELS` (2 x 89 million) pixels is taken for a
    decompression bomb and refused. A file that was cut off is damaged where pixels are missing; a PNG that
    lacks only its last checksums or its end mark is read.

    Raises:
      ImageError: the file is missing, is not a picture, is damaged or is too large.
    """
    path = Path(path)

    def decode(image: Image.Image) -> np.ndarray:
        with path.open("rb") as file:
            check_checksums(file)
        return to_rgb(image)

    return _open(path, decode)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(H, W) of `read_image(path)`, from the header: nothing is decoded, as a rule.

    Raises:
      ImageError: as `read_image`, except that damage to the pixels is not seen.
    """
    return _open(Path(path), upright_size)


def frames_of(path: str | os.PathLike) -> int:
    """How many frames or pages a picture has, of which `read_image` takes the first.

    A JPEG of several, MPO, is one picture with previews or another eye's view.

    Raises:
      ImageError: as `image_size`.
    """
    return _open(
        Path(path), lambda image: 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    )


def open_picture(file: File) -> Image.Image:
    """What `PIL.Image.open` gives, for a file in one of `FORMATS`; nothing is decoded yet.

    Raises:
      NotRgbError: a TIFF that Pillow does not know what to make of.
      PIL.UnidentifiedImageError: another format.
    """
    try:
        return Image.open(file, formats=_formats())
    except PIL.UnidentifiedImageError:
        if not isinstance(file, str | os.PathLike):
            file.seek(0)
        if not is_tiff(file):
            raise
    raise NotRgbError(
        "a TIFF that is damaged or no picture of 8 bits: other bands and other numbers are for models "
        "that were trained on them"
    )


def is_tiff(file: File) -> bool:
    """Whether a file begins as a TIFF does; raises OSError where it cannot be read."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return opened.read(4) in _TIFF
    place = file.tell()
    try:
        return file.read(4) in _TIFF
    finally:
        file.seek(place)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_end(file: BinaryIO, image: Image.Image) -> None:
    """Decodes a picture that may have been cut off, from an open file; the others are taken on trust.

    Of a format whose files end in a mark, one with the mark is whole. One without it lacks pixels, and is
    damaged; or only what is behind them (a PNG's checksums and IEND), or has more behind the mark, and is
    as good as whole. A JPEG without the mark counts as damaged: its decoder cannot tell.

    Raises whatever Pillow does where pixels are missing.
    """
    if (mark := ENDS.get(image.format)) is None:
        return
    place = file.tell()
    file.seek(-len(mark), os.SEEK_END)
    if file.read() != mark:
        file.seek(place)
        image.load()


def check_checksums(file: BinaryIO) -> None:
    """Compares each chunk of a PNG with its checksum, to which decoders look now and then.

    What is cut off is left to them. `file` is read from its start, and stays where it is.

    Raises:
      ImageError: a checksum is wrong.
    """
    place = file.tell()
    file.seek(0)
    is_png = file.read(len(_PNG)) == _PNG
    try:
        while is_png and len(head := file.read(8)) == 8:
            body, kept = file.read(int.from_bytes(head[:4])), file.read(4)
            if len(kept) == 4 and zlib.crc32(head[4:] + body) != int.from_bytes(kept):
                raise ImageError("damaged, a checksum in it is wrong; fetch it anew")
    finally:
        file.seek(place)


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image as uint8 `[H, W, 3]`, RGB.

    The EXIF orientation is applied. Grey is repeated three times; 16-bit grey is scaled from
    0..65535 to 0..255; transparent pixels show `BACKGROUND`; palettes and CMYK become RGB.

    Raises:
      NotRgbError: grey pixels that are floating-point numbers or do not fit 16 bits; a TIFF whose last band
        is marked as transparency and is something else.
    """
    check_rgb(image)
    if image.getexif().get(ExifTags.Base.Orientation, STORED) != STORED:  # else it would be a copy
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise NotRgbError(
                f"whole-number grey pixels must be 0..65535, got {grey.min()}..{grey.max()}; "
                "scale them to 8 or 16 bits"
            )
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=-1)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _STRIP):
        bottom = min(top + _STRIP, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (*BACKGROUND, 255)), strip)
        pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    return pixels


def check_rgb(image: Image.Image) -> None:
    """Raises NotRgbError where a Pillow image cannot be seen as RGB; of TIFFs, transparency is decoded."""
    if image.mode == "F":
        raise NotRgbError(
            "pixels must be whole numbers, got floating-point ones, which have no fixed range; "
            "scale them to 8 or 16 bits"
        )
    if image.format != "TIFF" or image.mode not in ("LA", "RGBA"):
        return
    bands = image.getbands()
    alpha = np.asarray(image.getchannel("A"))
    share = ((alpha > 0) & (alpha < 255)).mean()
    if share > MOST_TRANSLUCENT:
        raise NotRgbError(
            f"a TIFF of {len(bands)} bands whose last one is marked as transparency, but many of its "
            "pixels are neither opaque nor transparent: it is infrared or another measurement. Save the "
            f"first {len(bands) - 1} alone (`gdal_translate -b 1 -b 2 -b 3`), or take a model of all "
            f"{len(bands)}"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of `to_rgb(image)`; see `orientation.orientation` for what is decoded."""
    tag = orientation(image)
    return turned_size(stored_size(image, tag), tag)


def find_images(
    arguments: Sequence[str | os.PathLike],
    *,
    recursive: bool = False,
    leave_out: str | os.PathLike | None = None,
) -> list[Path]:
    """The pictures that files and folders stand for, in order, each once.

    A folder stands for the files in it that have one of `SUFFIXES`, by name; names that start with a dot
    are left out.

    Args:
      recursive: a folder stands for those in its own folders too.
      leave_out: a folder in which results go; what is in it is no picture that a folder stands for.

    Raises:
      ImageError: listing all arguments that do not exist and all folders without a picture.
    """
    found: dict[Path, Path] = {}  # by the real path, so that no picture is there twice
    problems = []
    results = None if leave_out is None else Path(leave_out).resolve()
    check_local({f"picture {number}": path for number, path in enumerate(arguments, 1)})
    for argument in map(Path, arguments):
        if argument.is_dir():
            paths = list(_pictures_in(argument, recursive, results))
            if not paths:
                problems.append(f"{argument}: {_no_picture_in(argument, recursive, results)}")
        elif argument.exists():
            paths = [argument]
        else:
            paths = []
            problems.append(f"{argument}: no such file or folder")
        for path in paths:
            found.setdefault(path.resolve(), path)
    if problems:
        raise ImageError("\n".join(["every argument must be a picture or a folder of:", *problems]))
    return list(found.values())


def _pictures_in(folder: Path, recursive: bool, results: Path | None) -> Iterator[Path]:
    """The pictures of a folder by name, then those of its own folders."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    yield from (path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file())
    for path in entries if recursive else ():
        # Links could lead in a circle.
        if path.is_dir() and not path.is_symlink() and path.resolve() != results:
            yield from _pictures_in(path, recursive, results)


def _no_picture_in(folder: Path, recursive: bool, results: Path | None) -> str:
    kinds = ", ".join(SUFFIXES)
    if not recursive and (below := sum(1 for _ in _pictures_in(folder, True, results))):
        return f"no picture in this folder, {below} in its own folders: --recursive takes those ({kinds})"
    return f"no picture in this folder ({kinds})"


def write_image(path: Path, image: Image.Image, **options: object) -> None:
    """Writes a picture (format by suffix) so that `path` has all of it or is as it was before.

    Args:
      options: for the format's writer, see `PIL.Image.Image.save`.

    Raises:
      OSError: the file cannot be written.
    """
    encoded = io.BytesIO()
    image.save(encoded, Image.registered_extensions()[path.suffix.lower()], **options)
    write_file(path, encoded.getvalue())


def _open(path: Path, use: Callable[[Image.Image], T]) -> T:
    """`use` of the picture in a file, and whatever goes wrong as an `ImageError` with its path."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ImageError("a picture must be a file, this is a pipe or a device")
        with open_picture(path) as image:
            return use(image)
    except FileNotFoundError:
        problem = "no such file"
    except IsADirectoryError:
        problem = "a picture must be a file, this is a folder; `find_images` lists a folder"
    except PermissionError:
        problem = "may not be read; change the permissions of the file"
    except PIL.UnidentifiedImageError:
        problem = (
            f"not a picture in a format that is read ({', '.join(FORMATS)}); convert it to PNG"
        )
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        problem = f"too large: {error} Cut it into parts, or raise PIL.Image.MAX_IMAGE_PIXELS"
    except ImageError as error:
        problem = str(error)
    except Exception as error:  # damaged files make decoders raise nearly anything
        problem = f"damaged, cannot be decoded ({type(error).__name__}: {error}); fetch it anew"
    raise ImageError(f"{path}: {problem}")
