"""Segmentation metrics: sums on the device, added up over batches, divided once at the end."""

import dataclasses
import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

IGNORE_LABEL = 255

BOUNDARY_TOLERANCE = 0.0075
"""Of the image's diagonal: how far apart two boundaries may be that are taken for the same."""


# ---------------------------------------------------------------------------- counting


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
    cell = labels * num_classes + predictions
    counts = _count(cell, _is_class(labels, num_classes), num_classes**2)
    return counts.reshape(num_classes, num_classes)


def label_confusions(labels: jax.Array, predictions: jax.Array) -> jax.Array:
    """Of each label, pixels without and with it (row) that were predicted without and with it (column).

    Args:
      labels: `[..., labels]`: 0, 1, or `IGNORE_LABEL`, which is left out.
      predictions: 0 or 1, in the same shape.

    Returns:
      int32 `[labels, 2, 2]`, see `confusion_matrix`.
    """
    axes = tuple(range(labels.ndim - 1))
    counts = [
        [((labels == t) & (predictions == p)).sum(axes, dtype=jnp.int32) for p in (0, 1)]
        for t in (0, 1)
    ]
    return jnp.moveaxis(jnp.array(counts), -1, 0)


@functools.partial(jax.jit, static_argnames="num_classes")
def boundary_scores(
    labels: jax.Array, predictions: jax.Array, size: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """The boundary F-score of each class in an image, BF of Csurka et al. 2013 (BMVC).

    The harmonic mean of the shares of predicted boundary pixels that are near one of the same class in
    the labels, and of labelled ones that are near a predicted one: within `BOUNDARY_TOLERANCE` of the
    diagonal. Pixels of a class beside another one are its boundary. Between pixels of which one is
    ignored there is none, in labels or prediction, so that nothing is said of borders that were left
    unlabelled, as most are in PASCAL VOC.

    Args:
      labels: integers `[H, W]`, as in `confusion_matrix`.
      predictions: class ids `[H, W]`.
      size: (H, W) of the image, without padding.
      num_classes: length of the result.

    Returns:
      The scores, float32 `[num_classes]`, 0 where there is none, and which classes have one: those with
      a boundary in the labels or the prediction. Sum both over images and divide.
    """
    valid = _is_class(labels, num_classes)
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    farthest = BOUNDARY_TOLERANCE * math.hypot(*labels.shape)
    tolerance = BOUNDARY_TOLERANCE * jnp.linalg.norm(size.astype(jnp.float32))
    drawn, wanted = _boundary(predictions, valid), _boundary(labels, valid)

    def share(
        ids: jax.Array, boundary: jax.Array, others: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of the boundary pixels of each class those near one of `others`, and how many there are."""
        near = _near(ids, others, tolerance, farthest)
        found = _count(ids, boundary & near, num_classes).astype(jnp.float32)
        count = _count(ids, boundary, num_classes)
        return found / jnp.maximum(count, 1).astype(jnp.float32), count

    precision, drawn_count = share(predictions, drawn, jnp.where(wanted, labels, -1))
    recall, wanted_count = share(labels, wanted, jnp.where(drawn, predictions, -1))
    total = precision + recall
    score = 2 * precision * recall / jnp.where(total > 0, total, 1)
    return score, (drawn_count > 0) | (wanted_count > 0)


def label_boundaries(
    labels: jax.Array, predictions: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same of each label, against the pixels without it: `[H, W, labels]` as in `label_confusions`."""

    def of_one(both: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        score, there = boundary_scores(*both, size, 2)
        return score[1], there[1]

    # One after the other: the boundaries of all at once would take the memory of as many images.
    return jax.lax.map(of_one, (jnp.moveaxis(labels, -1, 0), jnp.moveaxis(predictions, -1, 0)))


def _is_class(labels: jax.Array, num_classes: int) -> jax.Array:
    return (labels >= 0) & (labels < num_classes) & (labels != IGNORE_LABEL)


def _count(values: jax.Array, counted: jax.Array, length: int) -> jax.Array:
    """How often each of 0 .. `length` - 1 is among the values that count, int32 `[length]`."""
    values = jnp.where(counted, values, length).ravel()
    # A TPU scatters one value after the other; a CPU takes 40 to 600 times as long for the product.
    return jax.lax.platform_dependent(
        values,
        tpu=functools.partial(_count_by_product, length=length),
        default=lambda v: jnp.bincount(v, length=length + 1)[:-1],
    )


def _count_by_product(values: jax.Array, length: int) -> jax.Array:
    """Of each value 0 .. `length`: one-hot in two digits, whose product is a matrix of counts."""
    base = math.isqrt(length) + 1
    digits = (values // base, values % base)
    high, low = ((digit[:, None] == jnp.arange(base)).astype(jnp.int8) for digit in digits)
    counts = jnp.einsum("ph,pl->hl", high, low, preferred_element_type=jnp.int32)
    return counts.ravel()[:length]


def _boundary(ids: jax.Array, valid: jax.Array) -> jax.Array:
    """Pixels of `[H, W]` with another class above, below, left or right; both of them valid."""
    below = (ids[1:] != ids[:-1]) & valid[1:] & valid[:-1]
    right = (ids[:, 1:] != ids[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    return (
        jnp.pad(below, ((0, 1), (0, 0)))
        | jnp.pad(below, ((1, 0), (0, 0)))
        | jnp.pad(right, ((0, 0), (0, 1)))
        | jnp.pad(right, ((0, 0), (1, 0)))
    )


def _near(ids: jax.Array, others: jax.Array, tolerance: jax.Array, farthest: float) -> jax.Array:
    """Whether a pixel of `others` with the same id is within `tolerance`, which is `farthest` at most."""
    radius = int(farthest)
    span = range(-radius, radius + 1)
    offsets = [(dy, dx) for dy in span for dx in span if math.hypot(dy, dx) <= farthest]
    distances = [math.hypot(*offset) for offset in offsets]
    ids, others = ids.astype(jnp.int16), others.astype(jnp.int16)
    padded = jnp.pad(others, radius, constant_values=-1)

    # Looking at each offset is cheaper than dilating the boundary of each class.
    def look(index: jax.Array, near: jax.Array) -> jax.Array:
        dy, dx = jnp.asarray(offsets)[index] + radius
        moved = jax.lax.dynamic_slice(padded, (dy, dx), ids.shape)
        return near | ((moved == ids) & (jnp.asarray(distances)[index] <= tolerance))

    return jax.lax.fori_loop(0, len(offsets), look, jnp.zeros(ids.shape, bool))


# ---------------------------------------------------------------------------- scores


Counts = TypeVar("Counts", np.ndarray, jax.Array)


def tallies(confusion: Counts) -> tuple[Counts, Counts, Counts]:
    """Of each class or label the pixels that were found, that have it, and that were predicted to.

    Args:
      confusion: `[classes, classes]` of classes, `[labels, 2, 2]` of labels each for itself.
    """
    if confusion.ndim == 3:
        return confusion[:, 1, 1], confusion[:, 1].sum(-1), confusion[:, :, 1].sum(-1)
    return confusion.diagonal(), confusion.sum(1), confusion.sum(0)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the sums over a split say.

    Attributes:
      iou: intersection over union of each class; NaN for one that is neither labelled nor predicted.
      dice: Dice coefficient of each class, which is the F1 score of its pixels; NaN likewise.
      accuracy: share of each class's pixels that were found; NaN for one that is not labelled.
      boundary: boundary F-score of each class, the mean over the images in which it has one.
      first: the first class that the next four are of: 1 of a binary model, whose foreground it is.
      miou: mean of `iou` over the classes that occur.
      mean_dice: mean of `dice` over the same.
      mean_accuracy: mean of `accuracy` over the classes that are labelled.
      mean_boundary: mean of `boundary` over the classes that have one.
      pixel_accuracy: share of all pixels, and of all labels of each pixel, that were right.
    """

    iou: np.ndarray
    dice: np.ndarray
    accuracy: np.ndarray
    boundary: np.ndarray
    first: int
    miou: float
    mean_dice: float
    mean_accuracy: float
    mean_boundary: float
    pixel_accuracy: float


def scores(
    confusion: np.ndarray,
    boundary_sum: np.ndarray,
    boundary_count: np.ndarray,
    *,
    first: int = 0,
) -> Scores:
    """The scores of sums over images.

    Args:
      confusion: `[classes, classes]`, row = label, column = prediction, see `confusion_matrix`; or
        `[labels, 2, 2]`, see `label_confusions`.
      boundary_sum, boundary_count: `[classes]`, see `boundary_scores`; or `[labels]`.
      first: the first class that mean scores are of, see `targets.first_scored`.
    """
    confusion = np.asarray(confusion, np.float64)
    found, labelled, predicted = tallies(confusion)
    iou = _ratio(found, labelled + predicted - found)
    dice = _ratio(2 * found, labelled + predicted)
    accuracy = _ratio(found, labelled)
    boundary = _ratio(boundary_sum, boundary_count)
    right = confusion.trace(axis1=-2, axis2=-1).sum()
    return Scores(
        iou=iou,
        dice=dice,
        accuracy=accuracy,
        boundary=boundary,
        first=first,
        miou=_mean(iou[first:]),
        mean_dice=_mean(dice[first:]),
        mean_accuracy=_mean(accuracy[first:]),
        mean_boundary=_mean(boundary[first:]),
        pixel_accuracy=float(_ratio(right, confusion.sum())),
    )


def image_scores(confusion: jax.Array, first: int = 0) -> tuple[jax.Array, jax.Array]:
    """(mIoU over the classes that occur, pixel accuracy) of an image, see `scores`.

    mIoU is 1 where none is there and none was predicted; accuracy is NaN without a labelled pixel.
    """
    confusion = confusion.astype(jnp.float32)
    found, labelled, predicted = (tally[first:] for tally in tallies(confusion))
    union = labelled + predicted - found
    occur = (union > 0).sum(dtype=jnp.float32)
    iou = (found / jnp.maximum(union, 1)).sum()
    right = confusion.trace(axis1=-2, axis2=-1).sum()
    return jnp.where(occur > 0, iou / jnp.maximum(occur, 1), 1), right / confusion.sum()


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
