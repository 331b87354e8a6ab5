"""Any folder of pictures and label maps as a data set."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from deeplab_jax.orientation import STORED, orientation, stored_size, turned_size
from train.data.class_table import CLASS_FILE, ClassTable, from_names, parse_labels, read_classes
from train.data.dataset import (
    DataError,
    Dataset,
    DecodedSource,
    a_few,
    in_threads,
    sizes_differ,
    unreadable,
)
from train.data.labelling import settle
from train.data.masks import LossyLabel, Mask, read_mask
from train.data.pairs import Files, find_splits

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


def open_folder(
    root: Path,
    *,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
    name: str | None = None,
) -> Dataset:
    """The data set in a folder.

    Pictures and label maps are told apart by the folders they are in, see `pairs.LAYOUTS`, or else by
    their names, as in `a.jpg`, `a_mask.png`. Where there is no split for validation, one example in
    `pairs.HELD_OUT` is, always the same.

    The pixels of grey and palette label maps are ids, 255 is ignored. Label maps of 0 and 255 alone have
    two classes. A classes.txt in the folder, or `labels`, names classes, and maps ids or colours to
    them, see `class_table.read_classes`; where it lists colours, palettes go by theirs too. Without
    names, the ids must be 0, 1, 2, ... Whatever was assumed is in the data set's `notes`.

    Args:
      root: the folder.
      class_names: of the ids 0, 1, ..., instead of a classes.txt.
      labels: the class of each id, such as "0=background,100=road,200=car", instead of both; see
        `class_table.parse_labels`.
      name: that the data set goes by.

    Raises:
      DataError: the folder is none of the layouts; or listing all pictures without label map and the
        other way round, pairs that differ in size or orientation, files that cannot be read, lossy
        label maps, ids and colours whose class is not clear, and palettes that differ.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    table = _table(root, class_names, labels)
    missing: list[str] = []
    splits, notes = find_splits(root, missing)
    masks, broken, wrong = _look_at_all(splits.values())
    unclear: list[str] = []
    labelling = settle(masks, table, unclear) if masks else None
    if problems := [*broken, *unclear, *missing, *wrong]:
        raise DataError.listing(f"{root}: pictures and label maps must fit together:", problems)
    sources = {split: DecodedSource(files, labelling.decode) for split, files in splits.items()}
    return Dataset(
        name or f"folder:{root}",
        labelling.names,
        sources["train"],
        sources["val"],
        notes=(*_unused(root, bool(class_names or labels)), *notes, *labelling.notes),
    )


def _table(
    root: Path, class_names: tuple[str, ...] | None, labels: str | None
) -> ClassTable | None:
    if labels is not None and class_names:
        raise DataError("give either class_names or labels, which names the classes too, not both")
    if labels is not None:
        return parse_labels(labels)
    return from_names(class_names) if class_names else read_classes(root / CLASS_FILE)


def _unused(root: Path, named: bool) -> tuple[str, ...]:
    there = named and (root / CLASS_FILE).is_file()
    return (f"{CLASS_FILE} is not used: the classes are named otherwise.",) if there else ()


def _look_at_all(splits: Iterable[Files]) -> tuple[dict[str, Mask], list[str], list[str]]:
    """All label maps by name; what is wrong with many examples alike; and with single ones."""
    masks: dict[str, Mask] = {}
    alike: dict[str, list[str]] = defaultdict(list)
    wrong: list[str] = []
    for files in splits:
        looked = in_threads(functools.partial(_look, files), len(files), "checking label maps")
        for index, (mask, problem) in enumerate(looked):
            if mask:
                masks[files.name(index, "label")] = mask
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


def _look(files: Files, index: int) -> tuple[Mask | None, _Broken | str | None]:
    """A label map, if it can be read, and what is wrong with it or with its picture."""
    picture, label = (files.name(index, part) for part in ("image", "label"))
    try:
        (file,) = files.open(index, "label")
        with file:
            mask = read_mask(file)
    except LossyLabel as error:
        return None, _Broken(str(error), label)
    except Exception as error:  # damaged files make decoders raise nearly anything
        return None, unreadable(label, error)
    try:
        (file,) = files.open(index, "image")
        with file, Image.open(file) as image:
            tag = orientation(image)
            stored = stored_size(image, tag)
    except Exception as error:
        return mask, unreadable(picture, error)
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
        return f"{picture}: {sizes_differ(upright, mask.size)} ({label})"
    rule = _CANNOT_TELL if mask.size == upright else _AS_STORED
    example = f"{picture} ({tag}) with {label} ({mask.orientation})"
    return _Broken(f"{rule}. {_TURN}", example)
