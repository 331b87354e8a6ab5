"""YOLO's text files: a line `class x y x y ...` per polygon, with coordinates as shares of the sides."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deeplab_jax.images import SUFFIXES, image_size
from train.data.annotations.classes import Classes, classes_of
from train.data.annotations.drawn import Example, Polygon
from train.data.annotations.files import Found, split_of
from train.data.class_table import ClassTable
from train.data.dataset import a_few
from train.data.pairs import visible_files

CODE = "YOLO"
SETTINGS = ("data.yaml", "dataset.yaml", "data.yml")
CORNERS_AT_LEAST = 3


def find(
    root: Path, trees: Mapping[Path, Any], table: ClassTable | None, problems: list[str]
) -> Found | None:
    """The pictures of a folder whose `images` have `labels` of text; None where there are none.

    Classes are those of data.yaml, after the background; without it they are numbered. A picture without
    a text file is background. Adds lines that are no polygons to `problems`.
    """
    del trees  # nothing of it is JSON
    pictures = [
        path
        for path in visible_files(root)
        if path.suffix.lower() in SUFFIXES and "images" in path.relative_to(root).parts[:-1]
    ]
    texts = {picture: _labels_of(picture, root) for picture in pictures}
    lines = {
        picture: text.read_text("utf-8").split("\n")
        for picture, text in texts.items()
        if text.is_file()
    }
    if not lines or not any(_is_polygon(line) for found in lines.values() for line in found):
        return None
    numbers = {int(line.split()[0]) for found in lines.values() for line in found if line.split()}
    names = _names(root) or tuple(f"class {n}" for n in range(max(numbers) + 1))
    classes = classes_of(names, table, problems)
    splits: dict[str, list[Example]] = defaultdict(list)
    for picture in pictures:
        example = _example(
            picture, texts[picture], lines.get(picture, []), names, classes, problems
        )
        splits[split_of(picture, root)].append(example)
    return Found(CODE, "labels", classes, {split: tuple(found) for split, found in splits.items()})


def _labels_of(picture: Path, root: Path) -> Path:
    """The text file of a picture: the same path with `labels` for `images`."""
    parts = list(picture.relative_to(root).with_suffix(".txt").parts)
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return root.joinpath(*parts)


def _is_polygon(line: str) -> bool:
    words = line.split()
    if len(words) < 1 + 2 * CORNERS_AT_LEAST or len(words) % 2 == 0 or not words[0].isdigit():
        return False
    try:
        [float(word) for word in words[1:]]
    except ValueError:
        return False
    return True


def _names(root: Path) -> tuple[str, ...]:
    """Those of data.yaml, a list or a mapping from numbers."""
    for file in SETTINGS:
        if (root / file).is_file():
            names = (yaml.safe_load((root / file).read_text("utf-8")) or {}).get("names") or ()
            found = (
                [name for _, name in sorted(names.items())] if isinstance(names, dict) else names
            )
            return tuple(map(str, found))
    return ()


def _example(
    picture: Path,
    text: Path,
    lines: list[str],
    names: tuple[str, ...],
    classes: Classes,
    problems: list[str],
) -> Example:
    height, width = image_size(picture)
    regions, wrong = [], []
    for number, line in enumerate(lines, 1):
        if not line.split():
            continue
        if not _is_polygon(line) or int(line.split()[0]) >= len(names):
            wrong.append(number)
            continue
        first, *numbers = line.split()
        points = np.array(numbers, np.float32).reshape(-1, 2) * np.float32([width, height])
        regions.append((classes[names[int(first)]], Polygon(points)))
    if wrong:
        problems.append(
            f"{text}: a line must be a class, 0 to {len(names) - 1}, and the x and y of at least "
            f"{CORNERS_AT_LEAST} corners (boxes are no segmentation); lines {a_few(wrong)} are not"
        )
    return Example(picture, text if text.is_file() else picture, tuple(regions), (height, width))
