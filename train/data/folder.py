"""Any folder of pictures and label maps as a data set."""

from pathlib import Path

import numpy as np

from train.data.dataset import (
    DataError,
    Dataset,
    DecodedSource,
    in_threads,
    label_counts,
    not_classes,
    sizes_differ,
)
from train.data.pairs import find_splits
from train.metrics import IGNORE_LABEL

CLASS_FILE = "classes.txt"


def open_folder(
    root: Path, *, class_names: tuple[str, ...] | None = None, name: str | None = None
) -> Dataset:
    """The data set in a folder.

    Pictures and label maps (grey or palette) are told apart by the folders they are in, see
    `pairs.LAYOUTS`, or else by their names, as in `a.jpg`, `a_mask.png`. Where there is no split for
    validation, one example in `pairs.HELD_OUT` is, always the same. What was assumed is in the data set's
    `notes`.

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
    splits, notes = find_splits(root, problems)
    sources = {split: DecodedSource(files) for split, files in splits.items()}
    class_names = class_names or _read_classes(root / CLASS_FILE)
    found = [_check(source, class_names, problems) for source in sources.values()]
    if problems:
        raise DataError.listing(f"{root}: pictures and label maps must fit together:", problems)
    if class_names is None:
        class_names = tuple(f"class {i}" for i in range(_count_classes(root, found)))
    return Dataset(name or f"folder:{root}", class_names, sources["train"], sources["val"], notes)


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
