"""Confusion matrix, boundaries and scores against counting by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train.metrics import (
    BOUNDARY_TOLERANCE,
    _count_by_product,
    boundary_scores,
    confusion_matrix,
    label_confusions,
    scores,
)


def test_counts_pixels_by_label_and_prediction():
    labels = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)
    predictions = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    expected = [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 3), expected)


def test_label_255_is_ignored():
    labels = np.array([0, 255, 255, 1], np.uint8)
    predictions = np.array([0, 0, 1, 0], np.uint8)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 2), [[1, 0], [1, 0]])


def test_label_255_is_ignored_however_many_classes_there_are():
    labels = np.array([254, 255, 256], np.uint16)
    found = np.asarray(confusion_matrix(labels, labels, 300))
    assert found[[254, 255, 256], [254, 255, 256]].tolist() == [1, 0, 1]
    assert found.sum() == 2


def test_equals_numpy_on_random_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 21, (2, 33, 47)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    predictions = rng.integers(0, 21, labels.shape).astype(np.uint8)
    expected = np.zeros((21, 21), np.int64)
    kept = labels < 21
    np.add.at(expected, (labels[kept], predictions[kept]), 1)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 21), expected)


@pytest.mark.parametrize("length", [1, 5, 9, 121])
def test_counting_on_a_tpu_equals_counting_elsewhere(length):
    values = np.random.default_rng(0).integers(0, length + 1, 1000)
    counts = _count_by_product(jnp.asarray(values, jnp.int32), length)
    np.testing.assert_array_equal(counts, np.bincount(values, minlength=length + 1)[:-1])


def test_a_sharded_batch_is_counted_where_it_lies():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 5, (2, 8, 6, 7)).astype(np.uint8)
    put = NamedSharding(mesh, P("data"))
    sharded = [jax.device_put(x, put) for x in (labels, predictions)]

    def count(labels, predictions):
        per_image = jax.vmap(lambda a, b: confusion_matrix(a, b, 5))(labels, predictions)
        return per_image.sum(0)

    compiled = jax.jit(count).lower(*sharded).compile()
    np.testing.assert_array_equal(compiled(*sharded), confusion_matrix(labels, predictions, 5))
    assert "all-gather" not in compiled.as_text()


def test_one_program_serves_all_batches_of_a_shape():
    labels = np.zeros((2, 5), np.uint8)
    before = confusion_matrix._cache_size()
    confusion_matrix(labels, labels, 7)
    confusion_matrix(labels + 1, labels, 7)
    assert confusion_matrix._cache_size() == before + 1
    jax.clear_caches()


def scores_of(confusion):
    return scores(confusion, np.zeros(len(confusion)), np.zeros(len(confusion)))


def test_classes_that_never_occur_are_left_out_of_the_means():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    result = scores_of(confusion)
    assert result.iou[:2] == pytest.approx([3 / 4, 4 / 5])
    assert np.isnan(result.iou[2])
    assert result.miou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert result.mean_accuracy == pytest.approx((3 / 4 + 1) / 2)
    assert result.pixel_accuracy == pytest.approx(7 / 8)


def test_a_class_that_is_only_predicted_counts_as_zero():
    result = scores_of(np.array([[1, 1], [0, 0]]))
    assert result.iou[1] == 0
    assert result.miou == pytest.approx(0.25)
    assert np.isnan(result.accuracy[1])


def test_no_pixel_at_all_has_no_score():
    assert np.isnan(scores_of(np.zeros((2, 2))).miou)


def test_the_means_of_a_binary_model_are_of_its_foreground():
    result = scores(np.array([[6, 1], [2, 3]]), np.array([1.0, 0.5]), np.array([2, 2]), first=1)
    assert result.iou == pytest.approx([6 / 9, 3 / 6])
    assert result.dice == pytest.approx([12 / 15, 6 / 9])
    means = result.miou, result.mean_dice, result.mean_accuracy, result.mean_boundary
    assert means == pytest.approx((3 / 6, 6 / 9, 3 / 5, 0.25))
    assert result.pixel_accuracy == pytest.approx(9 / 12)


def test_labels_are_counted_and_scored_each_for_itself():
    labels = np.array([[1, 0], [1, 1], [0, 255], [0, 0]], np.uint8)
    predictions = np.array([[1, 1], [0, 1], [0, 1], [0, 0]], np.uint8)
    confusion = label_confusions(labels, predictions)
    np.testing.assert_array_equal(confusion, [[[2, 0], [1, 1]], [[1, 1], [0, 1]]])
    result = scores(confusion, np.zeros(2), np.zeros(2))
    assert result.iou == pytest.approx([1 / 2, 1 / 2])
    assert result.dice == pytest.approx([2 / 3, 2 / 3])
    assert result.accuracy == pytest.approx([1 / 2, 1])
    assert result.pixel_accuracy == pytest.approx(5 / 7)


# ---------------------------------------------------------------------------- boundaries

CLASSES = 4


def boundaries(labels, predictions, size=None):
    size = np.array(size or labels.shape, np.int32)
    score, there = boundary_scores(labels, predictions, jnp.asarray(size), CLASSES)
    return np.where(there, score, np.nan)


def boundaries_by_hand(labels, predictions):
    """Pixel by pixel, in the words of the paper."""
    height, width = labels.shape
    tolerance = BOUNDARY_TOLERANCE * math.hypot(height, width)

    def boundary(ids, c):
        found = []
        for y, x in np.argwhere(ids == c):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width]
            if labels[y, x] != 255 and any(
                labels[p] != 255 and ids[p] != ids[y, x] for p in inside
            ):
                found.append((y, x))
        return np.array(found).reshape(-1, 2)

    def share(of, near):
        if not len(of) or not len(near):
            return 0
        distance = np.linalg.norm(of[:, None] - near[None], axis=-1).min(1)
        return (distance <= tolerance).mean()

    result = np.full(CLASSES, np.nan)
    for c in range(CLASSES):
        drawn, wanted = boundary(predictions, c), boundary(labels, c)
        if len(drawn) or len(wanted):
            p, r = share(drawn, wanted), share(wanted, drawn)
            result[c] = 2 * p * r / (p + r) if p + r else 0
    return result


def blobs(seed):
    """Random labels `[150, 180]` in patches, whose tolerance is 1.76 pixels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (15, 18)).astype(np.uint8).repeat(10, 0).repeat(10, 1)


def test_boundary_scores_equal_the_paper_s_words():
    labels = blobs(0)
    predictions = np.where(blobs(1) == 0, np.roll(labels, 1, axis=1), labels)
    predictions[:40] = np.roll(labels[:40], 3, axis=0)
    labels[100:130, 50:90] = 255
    expected = boundaries_by_hand(labels, predictions)
    assert np.isnan(expected[3])
    assert (expected[:3] < 0.99).all()
    np.testing.assert_allclose(boundaries(labels, predictions), expected, rtol=1e-6)


def test_a_boundary_within_the_tolerance_is_right_and_beyond_it_is_not():
    labels = np.zeros((150, 180), np.uint8)
    labels[:, 90:] = 1
    off_by_one, off_by_two = np.roll(labels, 1, axis=1), np.roll(labels, 2, axis=1)
    off_by_one[:, 0] = off_by_two[:, :2] = 0
    np.testing.assert_array_equal(boundaries(labels, off_by_one)[:2], 1)
    np.testing.assert_array_equal(boundaries(labels, off_by_two)[:2], 0)


def test_padding_changes_no_boundary_score():
    labels, predictions = blobs(0), blobs(1)
    padded = np.full((400, 300), 255, np.uint8)
    padded[:150, :180] = labels
    shown = np.zeros_like(padded)
    shown[:150, :180] = predictions
    np.testing.assert_array_equal(
        boundaries(padded, shown, size=(150, 180)), boundaries(labels, predictions)
    )


def test_boundary_scores_are_means_over_the_images_that_have_one():
    result = scores(np.eye(3), np.array([1.5, 0, 0]), np.array([2, 4, 0]))
    np.testing.assert_array_equal(result.boundary, [0.75, 0, np.nan])
    assert result.mean_boundary == pytest.approx(0.375)


def test_a_class_without_boundary_has_no_score():
    labels = np.full((20, 30), 2, np.uint8)
    assert np.isnan(boundaries(labels, labels)).all()
