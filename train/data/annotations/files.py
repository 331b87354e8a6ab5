"""Where annotation files and their pictures are, and which split they are of."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.data.annotations.classes import Classes
from train.data.annotations.drawn import Example
from train.data.dataset import DataError
from train.data.pairs import IMAGES, TRAIN, VAL, visible_files

MOST_BYTES = 4 * 2**30
"""Of a JSON file, which is read whole."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What the annotations of a folder say.

    Attributes:
      code: whose form they are of, for people.
      origin: the files, for people.
      classes: that the label maps are drawn in.
      splits: the examples of "train" and, where names tell, of "val".
    """

    code: str
    origin: str
    classes: Classes
    splits: Mapping[str, tuple[Example, ...]]


def read_json_files(root: Path) -> dict[Path, Any]:
    """What every JSON file below a folder holds; hidden ones are left out.

    Raises:
      DataError: one cannot be read.
    """
    files = (path for path in visible_files(root) if path.suffix.lower() == ".json")
    return {path: _read(path) for path in files}


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} is larger than {MOST_BYTES >> 30} GiB: cut it into several")
        return json.loads(path.read_text("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def split_of(path: Path, root: Path) -> str:
    """ "val" where a part of the path names that split, as in `annotations/instances_val2017.json`."""
    words = [
        "".join(c if c.isalpha() else " " for c in part).casefold().split()
        for part in path.relative_to(root).with_suffix("").parts
    ]
    flat = {word for part in words for word in part}
    return "val" if flat & set(VAL) and not flat & set(TRAIN) else "train"


def picture_folders(root: Path, annotation: Path) -> list[Path]:
    """The folders in which the pictures of an annotation file may be, the likeliest first.

    They are beside it, in `images`, or in the folder of its split.
    """
    beside = annotation.parent
    split = [word for word in _alphanumeric(annotation.stem) if word.startswith((*TRAIN, *VAL))]
    folders = [beside, *(beside / word for word in IMAGES), *(beside.parent / w for w in IMAGES)]
    folders += [root, *(root / word for word in (*IMAGES, *split))]
    folders += [root / word / part for word in IMAGES for part in (*split, beside.name)]
    inside = root.resolve()
    return [
        folder
        for folder in dict.fromkeys(folders)
        if folder.is_dir() and folder.resolve().is_relative_to(inside)
    ]


def locate(root: Path, folders: list[Path], name: str) -> Path | None:
    """The picture of that name in one of the folders; None where it is in none, or outside of `root`."""
    for folder in folders:
        for candidate in (folder / name, folder / Path(name).name):
            if candidate.is_file() and candidate.resolve().is_relative_to(root.resolve()):
                return candidate
    return None


def _alphanumeric(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text).split()
