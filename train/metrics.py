"""Segmentation metrics from a confusion matrix: count on the device, divide once at the end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

IGNORE_LABEL = 255


@functools.partial(jax.jit, static_argnames="num_classes")
def confusion_matrix(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    """Pixels of each label (row) that were predicted as each class (column).

    Args:
      labels: integers of any shape; `IGNORE_LABEL` and whatever else is no class is left out.
      predictions: class ids of the same shape.
      num_classes: side of the matrix.

    Returns:
      int32 `[num_classes, num_classes]`: sum matrices of many batches in int64 on the host.
    """
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    counted = (labels >= 0) & (labels < num_classes)
    cell = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    counts = jnp.bincount(cell.ravel(), length=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a confusion matrix says.

    Attributes:
      iou: intersection over union of each class; NaN for one that is neither labelled nor predicted.
      accuracy: share of each class's pixels that were found; NaN for one that is not labelled.
      miou: mean of `iou` over the classes that occur.
      mean_accuracy: mean of `accuracy` over the classes that are labelled.
      pixel_accuracy: share of all pixels that were right.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    miou: float
    mean_accuracy: float
    pixel_accuracy: float


def scores(confusion: np.ndarray) -> Scores:
    """The scores of a confusion matrix `[classes, classes]` (row = label, column = prediction)."""
    confusion = np.asarray(confusion, np.float64)
    right, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    iou = _ratio(right, labelled + predicted - right)
    accuracy = _ratio(right, labelled)
    return Scores(
        iou=iou,
        accuracy=accuracy,
        miou=_mean(iou),
        mean_accuracy=_mean(accuracy),
        pixel_accuracy=float(_ratio(right.sum(), labelled.sum())),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
