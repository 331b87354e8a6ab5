"""Annotations that are no label maps: polygons in JSON or text, a file per form."""

from pathlib import Path

from deeplab_jax.images import ImageError
from train.data.annotations import coco, labelme, yolo
from train.data.annotations.drawn import Drawn
from train.data.annotations.files import Found, read_json_files
from train.data.class_table import ClassTable
from train.data.dataset import DataError

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
    trees = read_json_files(root)
    for form in FORMS:
        try:
            found = form.find(root, trees, table, problems)
        except (DataError, ImageError):
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # anybody's JSON
            raise DataError(
                f"{root} has annotations of {form.CODE}'s form that are not quite so: "
                f"{type(error).__name__}: {error}"
            ) from error
        if found:
            return found
    return None
