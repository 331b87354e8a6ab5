"""Annotations that are no label maps: polygons in JSON or text, a file per form."""

from pathlib import Path

from train.data.annotations import coco, labelme, yolo
from train.data.annotations.drawn import Drawn
from train.data.annotations.files import Found
from train.data.class_table import ClassTable

__all__ = ["Drawn", "Found", "find_annotations"]

FORMS = (coco, labelme, yolo)


def find_annotations(root: Path, table: ClassTable | None, problems: list[str]) -> Found | None:
    """The pictures of a folder with annotations of a form that we know; None where there are none.

    Args:
      table: names of the classes, where somebody has listed them.
      problems: what is wrong is added.

    Raises:
      DataError: a file of annotations cannot be read.
    """
    for form in FORMS:
        if found := form.find(root, table, problems):
            return found
    return None
