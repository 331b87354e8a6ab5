"""A check of all pictures and label maps of a data set before it is used: can they be read, do they fit?"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping

from deeplab_jax.bands import BandReader, layout_of
from deeplab_jax.images import NotRgbError
from deeplab_jax.orientation import STORED, turned_size
from train.data.dataset import (
    DataError,
    Encoded,
    a_few,
    in_proportion,
    in_threads,
    sizes_differ,
    unreadable,
)
from train.data.masks import LossyLabel, Mask, read_mask
from train.data.pictures import RGB, Bands, ByBand, Pictures

_AS_STORED = (
    "an orientation tag (EXIF) turns the picture or its label map, and their sizes fit together only "
    "without it"
)
_CANNOT_TELL = (
    "an orientation tag (EXIF) turns or mirrors the picture or its label map but not the other, and their "
    "sizes do not tell whether it was so when the label map was drawn"
)
_TURN = (
    "Where the label map was drawn on the pixels as they are stored, remove the tag: exiftool "
    "-Orientation= FILE. Where it was drawn on the upright picture, apply the tag: mogrify -auto-orient "
    "FILE"
)

_BY_BAND = "To train on all bands as they are stored: --data.bands all (--bands for `data`)"


def pictures_of(splits: Mapping[str, Encoded], bands: Bands | None) -> Pictures:
    """How the pictures of a data set are read: band by band, as the first one is, where `bands` says so.

    Raises:
      DataError: the first picture cannot be read, or has not got these bands.
    """
    if bands is None:
        return RGB
    chosen = None if bands == "all" else tuple(bands)
    if chosen is not None and min(chosen, default=0) < 1:
        raise DataError(f"bands must be numbers from 1 on, or all, got {bands}")
    encoded = next(filter(len, splits.values()))
    try:
        (file,) = encoded.open(0, "image")
        with file:
            layout = layout_of(file)
        reader = BandReader(len(chosen or range(layout.count)), layout.pixels, chosen)
        reader.check(layout)
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise DataError(unreadable(encoded.name(0), error)) from error
    return ByBand(reader)


def survey(
    splits: Mapping[str, Encoded], pictures: Pictures = RGB, *, resize_labels: bool = False
) -> tuple[dict[str, Mask], list[str], list[str]]:
    """Reads every label map, and of every picture the header and, where the end is missing, the pixels.

    Args:
      pictures: how they are read.
      resize_labels: whether label maps may be of another size, in proportion.

    Returns:
      All label maps by name; what is wrong with many examples alike; what is wrong with single ones.
    """
    masks: dict[str, Mask] = {}
    alike: dict[str, list[str]] = defaultdict(list)
    wrong: list[str] = []
    for split, encoded in splits.items():
        check = functools.partial(_check, encoded, pictures, resize_labels)
        results = in_threads(check, len(encoded), "checking label maps")
        for index, (mask, problem) in enumerate(results):
            if mask:
                name = encoded.name(index, "label")
                masks[f"{name} ({split}[{index}])" if name in masks else name] = mask
            if isinstance(problem, str):
                wrong.append(problem)
            elif problem:
                alike[problem.rule].append(problem.example)
    return masks, [f"{a_few(examples)}: {rule}" for rule, examples in alike.items()], wrong


@dataclasses.dataclass(frozen=True)
class _Broken:
    """A rule that many examples may break in the same way, and what to call this one."""

    rule: str
    example: str


def _check(
    encoded: Encoded, pictures: Pictures, resize_labels: bool, index: int
) -> tuple[Mask | None, _Broken | str | None]:
    """A label map, if it can be read, and what is wrong with it or with its picture."""
    picture, label = (encoded.name(index, part) for part in ("image", "label"))
    try:
        (file,) = encoded.open(index, "label")
        with file:
            mask = read_mask(file)
    except LossyLabel as error:
        return None, _Broken(str(error), label)
    except Exception as error:  # damaged files make decoders raise nearly anything
        return None, unreadable(label, error)
    try:
        (file,) = encoded.open(index, "image")
        with file:
            stored, tag = pictures.check(file)
    except NotRgbError as error:
        return mask, _Broken(f"{error}. {_BY_BAND}", picture)
    except Exception as error:
        return mask, unreadable(picture, error)
    upright = turned_size(stored, tag)
    if resize_labels and tag == STORED and mask.size != upright:
        if in_proportion(upright, mask.size):
            return mask, None
        return (
            mask,
            f"{picture}: {sizes_differ(upright, mask.size)}, in another proportion ({label})",
        )
    return mask, _misfit(picture, stored, tag, label, mask)


def _misfit(
    picture: str, stored: tuple[int, int], tag: int, label: str, mask: Mask
) -> _Broken | str | None:
    """Why a label map does not lie on its picture, which is of the size (H, W) before it is turned."""
    upright = turned_size(stored, tag)
    drawn_upright = mask.orientation == STORED and mask.size != stored
    if mask.size == upright and (mask.orientation == tag or drawn_upright):
        return None
    sizes = {mask.size, turned_size(mask.size, mask.orientation)}
    if mask.orientation == tag == STORED or sizes.isdisjoint((stored, upright)):
        return (
            f"{picture}: {sizes_differ(upright, mask.size)} ({label}){_way_out(upright, mask.size)}"
        )
    rule = _CANNOT_TELL if mask.size == upright else _AS_STORED
    example = f"{picture} ({tag}) with {label} ({mask.orientation})"
    return _Broken(f"{rule}. {_TURN}", example)


def _way_out(picture: tuple[int, int], label: tuple[int, int]) -> str:
    if not in_proportion(picture, label):
        return ""
    return "; --data.resize-labels (--resize-labels for `data` and `evaluate`) resizes it"
