"""Confusion matrix and scores against counting by hand."""

import jax
import numpy as np
import pytest

from train.metrics import confusion_matrix, scores


def test_counts_pixels_by_label_and_prediction():
    labels = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)
    predictions = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    expected = [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 3), expected)


def test_label_255_is_ignored():
    labels = np.array([0, 255, 255, 1], np.uint8)
    predictions = np.array([0, 0, 1, 0], np.uint8)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 2), [[1, 0], [1, 0]])


def test_equals_numpy_on_random_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 21, (2, 33, 47)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    predictions = rng.integers(0, 21, labels.shape).astype(np.uint8)
    expected = np.zeros((21, 21), np.int64)
    kept = labels < 21
    np.add.at(expected, (labels[kept], predictions[kept]), 1)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 21), expected)


def test_one_program_serves_all_batches_of_a_shape():
    labels = np.zeros((2, 5), np.uint8)
    before = confusion_matrix._cache_size()
    confusion_matrix(labels, labels, 7)
    confusion_matrix(labels + 1, labels, 7)
    assert confusion_matrix._cache_size() == before + 1
    jax.clear_caches()


def test_classes_that_never_occur_are_left_out_of_the_means():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    result = scores(confusion)
    assert result.iou[:2] == pytest.approx([3 / 4, 4 / 5])
    assert np.isnan(result.iou[2])
    assert result.miou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert result.mean_accuracy == pytest.approx((3 / 4 + 1) / 2)
    assert result.pixel_accuracy == pytest.approx(7 / 8)


def test_a_class_that_is_only_predicted_counts_as_zero():
    result = scores(np.array([[1, 1], [0, 0]]))
    assert result.iou[1] == 0
    assert result.miou == pytest.approx(0.25)
    assert np.isnan(result.accuracy[1])


def test_no_pixel_at_all_has_no_score():
    assert np.isnan(scores(np.zeros((2, 2))).miou)
