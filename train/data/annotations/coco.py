"""COCO's JSON: polygons and run lengths of instances, by category (Lin et al. 2014, cocodataset.org)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data.annotations.classes import Classes, classes_of
from train.data.annotations.drawn import Box, Example, Polygon, Region, largest_first
from train.data.annotations.files import Found, locate, picture_folders, split_of
from train.data.class_table import ClassTable
from train.data.dataset import a_few

CODE = "COCO"


def find(
    root: Path, trees: Mapping[Path, Any], table: ClassTable | None, problems: list[str]
) -> Found | None:
    """The examples of all JSON files of COCO's form, `trees`; None where there is none.

    Categories are classes in the order of their ids, after the background. Small instances lie over large
    ones. Adds pictures that cannot be found, and annotations that cannot be read, to `problems`.
    """
    documents = {path: tree for path, tree in trees.items() if _is_coco(tree)}
    if not documents:
        return None
    categories = {
        c["id"]: str(c["name"]) for tree in documents.values() for c in tree["categories"]
    }
    names = [name for _, name in sorted(categories.items())]
    classes = classes_of(names, table, problems)
    splits: dict[str, list[Example]] = defaultdict(list)
    for path, tree in documents.items():
        splits[split_of(path, root)] += _examples(root, path, tree, categories, classes, problems)
    origin = a_few([str(path.relative_to(root)) for path in documents])
    return Found(CODE, origin, classes, {split: tuple(found) for split, found in splits.items()})


def _is_coco(tree: Any) -> bool:
    keys = ("images", "annotations", "categories")
    return isinstance(tree, Mapping) and all(isinstance(tree.get(key), list) for key in keys)


def _examples(
    root: Path,
    path: Path,
    tree: Mapping[str, Any],
    categories: Mapping[int, str],
    classes: Classes,
    problems: list[str],
) -> Iterator[Example]:
    file = path.relative_to(root)
    of_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in tree["annotations"]:
        of_image[annotation.get("image_id")].append(annotation)
    folders, missing, boxes = picture_folders(root, path), [], 0
    for image in tree["images"]:
        picture = locate(root, folders, str(image["file_name"]))
        if picture is None:
            missing.append(str(image["file_name"]))
            continue
        size = (int(image["height"]), int(image["width"])) if "height" in image else None
        regions: list[tuple[float, int, Region]] = []
        for annotation in of_image[image["id"]]:
            name = categories.get(annotation.get("category_id"))
            if name is None:
                problems.append(f"{file}: {picture.name} has a category that is not listed")
                continue
            found = list(_regions(annotation.get("segmentation"), size))
            boxes += not found
            area = float(annotation.get("area") or 0)
            regions += [(area, classes[name], region) for region in found]
        yield Example(picture, path, largest_first(regions), size)
    if missing:
        problems.append(f"{file} names pictures that are not in {root}: {a_few(missing)}")
    if boxes and boxes == len(tree["annotations"]):
        problems.append(
            f"{file} has boxes alone and no segmentation: export it with polygons, or draw label maps"
        )


def _regions(segmentation: Any, size: tuple[int, int] | None) -> Iterator[Region]:
    if isinstance(segmentation, Mapping):
        yield Box(0, 0, run_lengths(segmentation["counts"], segmentation["size"]))
    for flat in segmentation if isinstance(segmentation, list) else ():
        if isinstance(flat, Sequence) and len(flat) >= 6:
            yield Polygon(np.asarray(flat, np.float32).reshape(-1, 2))


def run_lengths(counts: str | Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The bool mask `[H, W]` of runs down the columns, of which every other one is inside."""
    height, width = size
    runs = _unpacked(counts) if isinstance(counts, str | bytes) else list(counts)
    if sum(runs) != height * width:
        raise ValueError(f"run lengths must cover {height} x {width} pixels, got {sum(runs)}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def _unpacked(text: str | bytes) -> list[int]:
    """The run lengths of COCO's compressed form: five bits a character, differences from the third on."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
