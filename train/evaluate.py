"""Evaluation of a model on pictures with labels, at their own size."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from deeplab_jax.images import find_images, read_image
from deeplab_jax.predict import predict
from train.metrics import IGNORE_LABEL, confusion_matrix


class LabelError(ValueError):
    """Pictures and labels that do not fit together; the message lists all that is wrong."""


def find_pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Pictures of the folder `images` with the label PNGs of the same name in `labels`.

    Raises LabelError, listing them, for pictures without labels and labels without a picture.
    """
    pictures = {path.stem: path for path in find_images([images])}
    masks = {path.stem: path for path in sorted(labels.glob("*.png"))}
    problems = [
        f"{path} has no {labels / stem}.png" for stem, path in pictures.items() if stem not in masks
    ]
    problems += [f"{path} has no picture" for stem, path in masks.items() if stem not in pictures]
    if problems:
        raise LabelError("every picture needs its labels:\n  " + "\n  ".join(problems))
    return [(path, masks[stem]) for stem, path in pictures.items()]


def read_labels(path: Path) -> np.ndarray:
    """Class ids `[H, W]` of a grey or palette PNG; its pixels are the ids, the palette only looks.

    Raises LabelError for a picture in colour, and for a file that is none.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "I", "I;16", "1"):
                raise LabelError(
                    f"{path} must be a grey or palette PNG of class ids, got {image.mode}"
                )
            return np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise LabelError(f"{path} is not a picture: {error}") from error


def evaluate(
    model: nnx.Module,
    pairs: Sequence[tuple[Path, Path]],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """The confusion matrix int64 `[classes, classes]` over whole pictures; label 255 is ignored.

    Args:
      model: from `load`, `create` or the porter.
      pairs: picture and label files, see `find_pairs`.
      scales, flip: see `deeplab_jax.predict`.
      progress: called with the number of pictures done.

    Raises:
      LabelError: for labels of another size than their picture, and ids above the classes.
      ImageError: for a file that is no picture.
    """
    classes = model.config.num_classes
    total = np.zeros((classes, classes), np.int64)
    for done, (picture_file, label_file) in enumerate(pairs, 1):
        picture, labels = read_image(picture_file), read_labels(label_file)
        if labels.shape != picture.shape[:2]:
            raise LabelError(
                f"{label_file} is {labels.shape[1]} x {labels.shape[0]}, its picture "
                f"{picture.shape[1]} x {picture.shape[0]}"
            )
        if odd := sorted({*np.unique(labels).tolist()} - {*range(classes), IGNORE_LABEL}):
            raise LabelError(
                f"{label_file} has the ids {odd[:10]}; the model's classes are 0 to {classes - 1}, and "
                f"{IGNORE_LABEL} is ignored"
            )
        ids = predict(model, picture, scales=scales, flip=flip)
        total += np.asarray(confusion_matrix(labels, ids, classes))
        progress(done)
    return total
