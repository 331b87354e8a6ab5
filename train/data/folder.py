"""Any folder of pictures and label maps as a data set: finding pairs, checking them, splitting them."""

import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deeplab_jax.images import SUFFIXES
from train.data.dataset import (
    DataError,
    Dataset,
    DecodedSource,
    Part,
    in_threads,
    label_counts,
    not_classes,
    sizes_differ,
)
from train.metrics import IGNORE_LABEL

CLASS_FILE = "classes.txt"
LISTS = "ImageSets/Segmentation"
"""Where PASCAL VOC, and what is made like it, lists the names of each split."""

HELD_OUT = 10
"""One in so many examples is held out where a folder has one split only."""

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test", "testing")
IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages", "leftImg8bit")
LABELS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "ann_dir"),
    *("SegmentationClass", "SegmentationClassRaw", "SegmentationClassAug", "gtFine"),
)
IMAGE_ENDS = ("_leftImg8bit", "_image", "_img")
LABEL_ENDS = (
    *("_gtFine_labelTrainIds", "_gtFine_labelIds", "_labelTrainIds", "_labelIds"),
    *("_labels", "_label", "_masks", "_mask", "_segmentation", "_seg", "_gt", "_annotation", "_L"),
)
LAYOUTS = """\
  PATH/train/images/a.jpg, PATH/train/labels/a.png   (and val/...; or masks, annotations, ...)
  PATH/images/train/a.jpg, PATH/labels/train/a.png   (or img_dir and ann_dir, leftImg8bit and gtFine)
  PATH/train/a.jpg, PATH/trainannot/a.png
  PATH/train/a.jpg, PATH/train/a_mask.png            (or _label, ...)
  and the same without train and val: PATH/images, PATH/labels (or JPEGImages, SegmentationClass, ...;
  then ImageSets/Segmentation/train.txt and val.txt may list the names of the splits)"""


@dataclasses.dataclass(frozen=True)
class Files:
    """Pairs of files; see `dataset.Encoded`.

    Attributes:
      root: what names are relative to.
      pairs: the picture and the label map of each example.
    """

    root: Path
    pairs: tuple[tuple[Path, Path], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def open(self, index: int, *parts: Part) -> tuple[BinaryIO, ...]:
        """The files of an example."""
        files = dict(zip(("image", "label"), self.pairs[index], strict=True))
        return tuple(files[part].open("rb") for part in parts)

    def name(self, index: int) -> str:
        """The path of the picture."""
        return str(self.pairs[index][0].relative_to(self.root))


def open_folder(
    root: Path, *, class_names: tuple[str, ...] | None = None, name: str | None = None
) -> Dataset:
    """The data set in a folder.

    Pictures and label maps (grey or palette) are told apart by the folders they are in, see `LAYOUTS`,
    or else by the ends of their names, as in `a.jpg`, `a_mask.png`. Where there is no split for
    validation, one example in `HELD_OUT` is, always the same.

    Args:
      root: the folder.
      class_names: of the labels 0, 1, ...; None reads `classes.txt` in the folder, a name a line; where
        there is none either, the classes are 0 up to the highest label.
      name: that the data set goes by.

    Raises:
      DataError: the folder is none of the layouts; or listing all pictures without label map and the
        other way round, pairs that differ in size, files that cannot be read and labels above the
        classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    problems: list[str] = []
    folders, lists = _find(root), _lists(root)
    only = set() if "val" in folders else set().union(*lists.values())
    splits = {split: _pairs(root, *both, only, problems) for split, both in folders.items()}
    if not any(splits.values()) and not problems:
        raise DataError(f"{root} has no pictures with label maps. Make it one of\n{LAYOUTS}")
    if only:
        pairs = splits["train"]
        splits = {k: tuple(p for p in pairs if p[0].stem in names) for k, names in lists.items()}
    elif "val" not in splits:
        splits = _hold_out(splits["train"], problems)
    sources = {split: DecodedSource(Files(root, pairs)) for split, pairs in splits.items()}
    class_names = class_names or _read_classes(root / CLASS_FILE)
    found = [_check(source, class_names, problems) for source in sources.values()]
    if problems:
        raise DataError.listing(f"{root}: pictures and label maps must fit together:", problems)
    if class_names is None:
        class_names = tuple(f"class {i}" for i in range(_count_classes(root, found)))
    return Dataset(name or f"folder:{root}", class_names, sources["train"], sources["val"])


# ---------------------------------------------------------------------------- finding


def _find(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folder of pictures and the folder of label maps of each split, the same where they mix."""
    images, labels = _child(root, IMAGES), _child(root, LABELS)
    for below in (
        lambda split: _both(_child(root / split, IMAGES), _child(root / split, LABELS)),
        lambda split: _both(images and images / split, labels and labels / split),
        lambda split: _both(root / split, root / f"{split}annot"),
        lambda split: _both(root / split, root / split),
    ):
        train, val = (
            next((both for split in names if (both := below(split))), None)
            for names in (TRAIN, VAL)
        )
        if train:
            return {"train": train} | ({"val": val} if val else {})
    return {"train": _both(images, labels) or (root, root)}


def _lists(root: Path) -> dict[str, set[str]]:
    """The names that VOC lists for each split; none where there are no lists."""
    files = {split: root / LISTS / f"{split}.txt" for split in ("train", "val")}
    there = all(file.is_file() for file in files.values())
    return {split: {*file.read_text().split()} for split, file in files.items()} if there else {}


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _both(images: Path | None, labels: Path | None) -> tuple[Path, Path] | None:
    both = images and labels and images.is_dir() and labels.is_dir()
    return (images, labels) if both else None


def _pictures(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in sorted(files):
            path = Path(parent, file)
            if path.suffix.lower() in SUFFIXES and not file.startswith("."):
                yield path


def _pairs(
    root: Path, images: Path, labels: Path, only: set[str], problems: list[str]
) -> tuple[tuple[Path, Path], ...]:
    """The pictures of one folder with their label maps in another; adds what is left to `problems`.

    If there are names in `only`, it is about those alone.
    """
    maps = list(_pictures(labels))
    pictures = list(_pictures(images))
    end = ""
    if images == labels or not {p.stem for p in maps}.intersection(p.stem for p in pictures):
        # Of several kinds of map per picture, as in Cityscapes, the first kind that there is.
        ends = (end for end in LABEL_ENDS if any(path.stem.endswith(end) for path in maps))
        end = next(ends, "")
    if images == labels:
        maps = maps if end else []
        pictures = [path for path in pictures if not _cut(path.stem, LABEL_ENDS)]
    maps = [path for path in maps if path.stem.endswith(end)]
    if only:
        maps, pictures = ([p for p in paths if p.stem in only] for paths in (maps, pictures))
        missing = only.difference(path.stem for path in (*maps, *pictures))
        problems += [f"{name}, in {LISTS}, has neither" for name in sorted(missing)]
    by_key = {path.relative_to(labels).parent / path.stem.removesuffix(end): path for path in maps}
    pairs = []
    for picture in pictures:
        parent = picture.relative_to(images).parent
        for stem in (picture.stem, _cut(picture.stem, IMAGE_ENDS)):
            if stem and (label := by_key.pop(parent / stem, None)):
                pairs.append((picture, label))
                break
        else:
            problems.append(f"{picture.relative_to(root)} has no label map")
    problems += [f"{path.relative_to(root)} has no picture" for path in by_key.values()]
    return tuple(pairs)


def _cut(stem: str, ends: tuple[str, ...]) -> str | None:
    """`stem` without the end that it has, None if it has none of them."""
    return next((stem.removesuffix(end) for end in ends if stem.endswith(end)), None)


def _hold_out(
    pairs: tuple[tuple[Path, Path], ...], problems: list[str]
) -> dict[str, tuple[tuple[Path, Path], ...]]:
    """A split by names, so that it stays nearly the same when examples are added."""
    if len(pairs) < 2:
        problems.append(
            f"training and validation need an example each, there are {len(pairs)} pairs"
        )
    order = sorted(pairs, key=lambda pair: zlib.crc32(pair[0].name.encode()))
    val = set(order[: max(1, len(pairs) // HELD_OUT)])
    return {
        "train": tuple(pair for pair in pairs if pair not in val),
        "val": tuple(pair for pair in pairs if pair in val),
    }


# ---------------------------------------------------------------------------- checking


def _read_classes(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip()) or None


def _check(
    source: DecodedSource, class_names: tuple[str, ...] | None, problems: list[str]
) -> np.ndarray:
    """Adds what is wrong with single examples to `problems`; pixels of each label, int64 `[256]`."""
    allowed = len(class_names) if class_names else IGNORE_LABEL

    def look(index: int) -> tuple[np.ndarray, str | None]:
        try:
            size, label = source.size(index), source.label(index)
        except DataError as error:
            return np.zeros(256, np.int64), str(error)
        counts = label_counts(label)
        if size != label.shape:
            return counts, f"{source.name(index)}: {sizes_differ(size, label.shape)}"
        if odd := not_classes(counts, allowed):
            return counts, (
                f"{source.name(index)}: the labels {', '.join(map(str, odd[:10]))} are none of the "
                f"{allowed} classes, nor {IGNORE_LABEL}, which is ignored"
            )
        return counts, None

    total = np.zeros(256, np.int64)
    for counts, problem in in_threads(look, len(source), "checking label maps"):
        total += counts
        if problem:
            problems.append(problem)
    return total


def _count_classes(root: Path, found: list[np.ndarray]) -> int:
    labels = np.flatnonzero(np.sum(found, axis=0)[:IGNORE_LABEL])
    if labels.size == 0 or labels.max() == 0:
        raise DataError(
            f"{root}: label maps must have two classes at least, these have the labels "
            f"{np.flatnonzero(np.sum(found, axis=0)).tolist()}, of which {IGNORE_LABEL} is ignored; where "
            "255 is meant as a class, write it as 1"
        )
    return int(labels.max()) + 1
