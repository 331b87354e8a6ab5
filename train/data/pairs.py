"""Pairs of pictures and label maps in a folder: which arrangements are understood, and its splits."""

import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from deeplab_jax.images import SUFFIXES
from train.data.dataset import DataError, Part, a_few

ARRAY = ".npy"
"""Label maps may be numpy arrays too."""

LISTS = "ImageSets/Segmentation"
"""Where PASCAL VOC, and what is made like it, lists the names of each split."""

HELD_OUT = 10
"""One in so many examples is held out where a folder has one split only."""

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test", "testing")
IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages", "leftImg8bit")
LABELS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "annot", "ann_dir"),
    *("segmentation", "segmentations", "seg", "ground_truth", "groundtruth", "gt"),
    *("SegmentationClass", "SegmentationClassRaw", "SegmentationClassAug", "gtFine"),
)
IMAGE_ENDS = ("_leftImg8bit", "_image", "_img")
LABEL_ENDS = (
    *("_gtFine_labelTrainIds", "_gtFine_labelIds", "_labelTrainIds", "_labelIds"),
    *("_labels", "_label", "_masks", "_mask", "_segmentation", "_seg", "_gt", "_annotation", "_L"),
)
IMAGE_START = re.compile(
    r"^(images?|imgs?|im|pictures?|photos?|frames?|inputs?|rgb)([_-]|(?=\d))", re.IGNORECASE
)
LABEL_START = re.compile(
    r"^(labels?|masks?|segmentations?|seg|gt|annotations?|annot|targets?)([_-]|(?=\d))",
    re.IGNORECASE,
)
LAYOUTS = """\
  PATH/train/images/a.jpg, PATH/train/labels/a.png   (and val/...; or masks, annotations, ...)
  PATH/images/train/a.jpg, PATH/labels/train/a.png   (or img_dir and ann_dir, leftImg8bit and gtFine)
  PATH/train/a.jpg, PATH/train_masks/a.png           (or trainannot, ...)
  PATH/train/a.jpg, PATH/train/a_mask.png            (or _label, ...)
  and the same without train and val: PATH/images, PATH/labels (or JPEGImages, SegmentationClass, ...;
  then ImageSets/Segmentation/train.txt and val.txt may list the names of the splits)
  Instead of label maps: COCO's JSON (annotations.json, annotations/instances_train.json, ...), labelme's
  JSON beside the pictures, or YOLO's text with polygons (labels/train/a.txt and data.yaml).
  The files of a pair share their name, but for such ends (a_mask) or beginnings (img_a, mask_a)."""

T = TypeVar("T")

Unpaired = Literal["stop", "skip"]
"""What to do about pictures without label map, and label maps without picture."""

Pair = tuple[Path, Path]
"""The files of a picture and of its label map."""


class NoPairsError(DataError):
    """A folder has no pictures with label maps."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Pairs of files; see `dataset.Encoded`.

    Attributes:
      root: what names are relative to.
      pairs: the picture and the label map of each example.
    """

    root: Path
    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def open(self, index: int, *parts: Part) -> tuple[BinaryIO, ...]:
        """The files of an example."""
        return tuple(self._path(index, part).open("rb") for part in parts)

    def name(self, index: int, part: Part = "image") -> str:
        """The path of the picture, or of the label map."""
        return str(self._path(index, part).relative_to(self.root))

    def _path(self, index: int, part: Part) -> Path:
        return self.pairs[index][0 if part == "image" else 1]


def find_splits(
    root: Path, problems: list[str], alone: list[str]
) -> tuple[dict[str, Files], tuple[str, ...]]:
    """The pairs of "train" and of "val" in a folder, and what was assumed; see `LAYOUTS`.

    Where there are pairs, adds to `problems` what is wrong, and to `alone` all pictures without label map
    and the other way round.

    Raises:
      NoPairsError: there is no pair.
    """
    folders, lists = _find(root), _lists(root)
    only = set() if "val" in folders else set().union(*lists.values())
    missing: list[str] = []
    unpaired: list[str] = []
    splits = {
        split: _pairs(root, *both, only, missing, unpaired) for split, both in folders.items()
    }
    if not any(splits.values()):
        raise _no_pairs(root, missing + unpaired)
    problems += missing
    alone += unpaired
    notes: tuple[str, ...] = ()
    if only:
        pairs = splits["train"]
        splits = {k: tuple(p for p in pairs if p[0].stem in names) for k, names in lists.items()}
    elif "val" not in splits:
        splits, note = hold_out(splits["train"], lambda pair: pair[0], problems)
        notes = (note,)
    return {split: Files(root, pairs) for split, pairs in splits.items()}, notes


def _find(root: Path) -> dict[str, Pair]:
    """The folder of pictures and the folder of label maps of each split, the same where they mix."""

    @functools.cache
    def folders_in(folder: Path) -> dict[str, Path]:
        with os.scandir(folder) as entries:
            return {e.name: Path(e.path) for e in entries if e.is_dir() and e.name[0] != "."}

    def child(folder: Path | None, names: Iterable[str]) -> Path | None:
        children = folders_in(folder) if folder else {}
        spelt = {name.casefold(): path for name, path in children.items()} | children
        found = (spelt.get(name) or spelt.get(name.casefold()) for name in names)
        return next(filter(None, found), None)

    images, labels = child(root, IMAGES), child(root, LABELS)
    arrangements: tuple[Callable[[str], tuple[Path | None, Path | None]], ...] = (
        lambda split: tuple(child(child(root, [split]), words) for words in (IMAGES, LABELS)),
        lambda split: tuple(child(folder, [split]) for folder in (images, labels)),
        lambda split: (
            child(root, [split, *_joined(split, IMAGES)]),
            child(root, _joined(split, LABELS)),
        ),
        lambda split: (child(root, [split]),) * 2,
    )
    for below in arrangements:
        train, val = (
            next((both for split in names if all(both := below(split))), None)
            for names in (TRAIN, VAL)
        )
        if train:
            return {"train": train} | ({"val": val} if val else {})
    return {"train": (images, labels) if images and labels else (root, root)}


def _joined(split: str, words: tuple[str, ...]) -> Iterator[str]:
    """The names of a split's folder: train_masks, train-masks, trainmasks, masks_train, ..."""
    for word in words:
        for first, second in ((split, word), (word, split)):
            yield from (f"{first}{between}{second}" for between in ("_", "-", ""))


def _lists(root: Path) -> dict[str, set[str]]:
    """The names that VOC lists for each split; none where there are no lists.

    Raises:
      DataError: a list is not text, or empty.
    """
    files = {split: root / LISTS / f"{split}.txt" for split in ("train", "val")}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {split: _listed(file) for split, file in files.items()}


def _listed(file: Path) -> set[str]:
    try:
        names = {*file.read_text("utf-8").split()}
    except UnicodeDecodeError as error:
        raise DataError(f"{file} must be text in UTF-8: {error}. Save it as UTF-8") from error
    if not names:
        raise DataError(
            f"{file} must list the names of its split, it is empty: fill it, or remove both lists, "
            "and examples are held out for validation"
        )
    return names


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, by name, without what is hidden."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, file) for file in sorted(files) if not file.startswith("."))


def _pairs(
    root: Path,
    images: Path,
    labels: Path,
    only: set[str],
    problems: list[str],
    alone: list[str],
) -> tuple[Pair, ...]:
    """The pictures of one folder with their label maps in another; adds what is left over to `alone`.

    If there are names in `only`, it is about those alone.
    """
    maps, pictures = (
        [path for path in visible_files(folder) if path.suffix.lower() in suffixes]
        for folder, suffixes in ((labels, (*SUFFIXES, ARRAY)), (images, SUFFIXES))
    )
    end, start = "", None
    if images == labels or not {p.stem for p in maps}.intersection(p.stem for p in pictures):
        # Of several kinds of map per picture, as in Cityscapes, the first kind that there is.
        ends = (end for end in LABEL_ENDS if any(path.stem.endswith(end) for path in maps))
        end = next(ends, "")
        start = None if end else LABEL_START
    if images == labels:
        ends_of_maps = LABEL_ENDS if end else ()
        of_maps = {p for p in maps if p.suffix == ARRAY or _cut(p.stem, ends_of_maps, start)}
        maps = [path for path in maps if path in of_maps]
        pictures = [path for path in pictures if path not in of_maps]
    maps = [path for path in maps if path.stem.endswith(end)]
    if only:
        maps, pictures = ([p for p in paths if p.stem in only] for paths in (maps, pictures))
        missing = only.difference(path.stem for path in (*maps, *pictures))
        problems += [f"{name}, in {LISTS}, has neither" for name in sorted(missing)]
    by_key: dict[Path, Path] = {}
    for path in maps:
        stem = path.stem.removesuffix(end)
        stem = start.sub("", stem) if start else stem
        other = by_key.setdefault(path.relative_to(labels).parent / stem, path)
        if other != path:
            both = " and ".join(str(p.relative_to(root)) for p in (other, path))
            problems.append(f"{both} are label maps of one picture: remove one of them")
    pairs = []
    for picture in pictures:
        parent = picture.relative_to(images).parent
        for stem in (picture.stem, *_cut(picture.stem, IMAGE_ENDS, IMAGE_START)):
            if label := by_key.pop(parent / stem, None):
                pairs.append((picture, label))
                break
        else:
            alone.append(f"{picture.relative_to(root)} has no label map")
    alone += [f"{path.relative_to(root)} has no picture" for path in by_key.values()]
    return tuple(pairs)


def _cut(stem: str, ends: tuple[str, ...], start: re.Pattern[str] | None) -> tuple[str, ...]:
    """`stem` without the end, and without the beginning, that it has; () if it has neither."""
    cut = (*(stem.removesuffix(end) for end in ends), start.sub("", stem) if start else stem)
    return tuple(other for other in cut if other and other != stem)


def hold_out(
    examples: tuple[T, ...], picture: Callable[[T], Path], problems: list[str]
) -> tuple[dict[str, tuple[T, ...]], str]:
    """A split by names, so that it stays nearly the same when examples are added; and a note on it.

    Args:
      picture: the picture of an example.
      problems: that there is one example alone is added.
    """
    if len(examples) < 2:
        problems.append(
            f"training and validation need an example each, found {len(examples)} in all"
        )
    order = sorted(examples, key=lambda example: zlib.crc32(picture(example).name.encode()))
    val = {picture(example) for example in order[: max(1, len(examples) // HELD_OUT)]}
    splits = {
        "train": tuple(example for example in examples if picture(example) not in val),
        "val": tuple(example for example in examples if picture(example) in val),
    }
    note = (
        f"There is no split for validation: {len(splits['val'])} of {len(examples)} examples are held "
        "out for it, always the same."
    )
    return splits, note


def _no_pairs(root: Path, missing: list[str]) -> NoPairsError:
    notes = [f"{root} has no pictures with label maps. Make it one of\n{LAYOUTS}"]
    if missing:
        notes.append(f"Found: {a_few(missing)}.")
    if annotations := [
        str(p.relative_to(root))
        for p in visible_files(root)
        if p.suffix.lower() in (".json", ".xml")
    ]:
        notes.append(
            f"Annotations such as {a_few(annotations)} are not of a form that is read (COCO's, "
            "labelme's, YOLO's): draw their polygons as label maps, PNGs whose pixels are class ids."
        )
    return NoPairsError("\n".join(notes))
