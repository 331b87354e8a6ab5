"""labelme's JSON: a file with polygons beside each picture (github.com/wkentaro/labelme)."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from deeplab_jax.images import open_picture
from train.data.annotations.classes import Classes, classes_of
from train.data.annotations.drawn import Box, Example, Polygon, Region
from train.data.annotations.files import Found, locate, picture_folders, split_of
from train.data.class_table import ClassTable
from train.data.dataset import a_few

CODE = "labelme"
CORNERS = 64
"""Of the polygon that stands for a circle."""


def find(
    root: Path, trees: Mapping[Path, Any], table: ClassTable | None, problems: list[str]
) -> Found | None:
    """The pictures of all JSON files of labelme's form, `trees`; None where there is none.

    Labels are classes in the order of the alphabet, after the background. Shapes lie over those that are
    listed before them; points and lines, which have no area, are left out. Adds pictures that cannot be
    found to `problems`.
    """
    documents = {path: tree for path, tree in trees.items() if _is_labelme(tree)}
    if not documents:
        return None
    labels = sorted({str(s.get("label")) for t in documents.values() for s in t["shapes"]})
    classes = classes_of(labels, table, problems)
    splits: dict[str, list[Example]] = defaultdict(list)
    missing = []
    for path, tree in documents.items():
        name = PureWindowsPath(str(tree["imagePath"])).name  # of either kind of slash
        picture = locate(root, picture_folders(root, path), name)
        if picture is None:
            missing.append(f"{path.relative_to(root)} ({name})")
            continue
        regions = tuple(_regions(tree["shapes"], classes))
        splits[split_of(path, root)].append(Example(picture, path, regions, _size(tree)))
    if missing:
        problems.append(f"the pictures of these are not in {root}: {a_few(missing)}")
    origin = f"{len(documents)} JSON files"
    return Found(CODE, origin, classes, {split: tuple(found) for split, found in splits.items()})


def _is_labelme(tree: Any) -> bool:
    return (
        isinstance(tree, Mapping) and isinstance(tree.get("shapes"), list) and "imagePath" in tree
    )


def _size(tree: Mapping[str, Any]) -> tuple[int, int] | None:
    sides = tree.get("imageHeight"), tree.get("imageWidth")
    return (int(sides[0]), int(sides[1])) if all(sides) else None


def _regions(shapes: list[Mapping[str, Any]], classes: Classes) -> Iterator[tuple[int, Region]]:
    for shape in shapes:
        points = np.asarray(shape.get("points") or np.empty((0, 2)), np.float32)
        match shape.get("shape_type") or "polygon":
            case "polygon" if len(points) > 2:
                region: Region = Polygon(points)
            case "rectangle" if len(points) > 1:
                (left, top), (right, bottom) = points.min(0), points.max(0)
                corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
                region = Polygon(np.array(corners, np.float32))
            case "circle" if len(points) == 2:
                radius = np.hypot(*(points[1] - points[0]))
                angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
                region = Polygon(points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1))
            case "mask" if shape.get("mask"):
                left, top = np.floor(points.min(0)).astype(int).tolist()
                with open_picture(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
                    region = Box(left, top, np.asarray(image.convert("L")) > 0)
            case _:
                continue
        yield classes[str(shape.get("label"))], region
