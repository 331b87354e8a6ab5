"""Augmentation: label and picture stay together, what is not seen is ignored, draws follow the seed."""

import cv2
import numpy as np
import pytest

from train.data import AugmentConfig, augment

FILL = (7, 8, 9)


def blocks(height, width, cell=16):
    """Labels in blocks of random ids, and a picture whose pixels are the label."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (-(-height // cell), -(-width // cell)))
    label = np.kron(ids, np.ones((cell, cell), int))[:height, :width].astype(np.uint8)
    return np.repeat(label[..., None] * 50, 3, axis=-1), label


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": (0.3, 0.45)}, {"scales": (2.0,)}, {"rotation": 30.0}, {"flip": 1.0}],
    ids=str,
)
def test_the_label_moves_with_the_picture(options):
    rows, columns = np.mgrid[:90, :120]
    label = (rows + columns).astype(np.uint8)
    image = np.repeat(label[..., None], 3, axis=-1)
    config = AugmentConfig(crop=(65, 81), fill=FILL, **options)
    for seed in range(20):
        image_out, label_out = augment(image, label, config, np.random.default_rng(seed))
        assert image_out.shape == (65, 81, 3)
        assert label_out.shape == (65, 81)
        # At the edges of a turned picture the fill colour is mixed in.
        inside = np.zeros(label_out.shape, bool)
        inside[2:-2, 2:-2] = cv2.erode((label_out != 255).astype(np.uint8), np.ones((5, 5)))[
            2:-2, 2:-2
        ]
        apart = (image_out[..., 0].astype(int) - label_out)[inside]
        # Along both sides the nearest pixel is up to half a pixel, or 1 in value, off; both are rounded,
        # and of a pixel at half size four are one. On average nothing: half a pixel's shift would be 0.5.
        assert np.abs(apart).max() <= 3
        assert abs(apart.mean()) < 0.2


def test_at_scale_one_the_crop_is_a_part_of_the_picture():
    image, label = blocks(40, 50)
    image = np.random.default_rng(1).integers(0, 255, image.shape, np.uint8)
    config = AugmentConfig(crop=(20, 30), scale=(1.0, 1.0), flip=0.0)
    seen = set()
    for seed in range(50):
        out, out_label = augment(image, label, config, np.random.default_rng(seed))
        ((top, left),) = np.argwhere((image[:21, :21] == out[0, 0]).all(-1))
        np.testing.assert_array_equal(out, image[top : top + 20, left : left + 30])
        np.testing.assert_array_equal(out_label, label[top : top + 20, left : left + 30])
        seen.add((top, left))
    assert len(seen) > 30


def test_a_mirror_image_is_exact_and_as_frequent_as_said():
    image, label = blocks(20, 30, cell=5)
    config = AugmentConfig(crop=(20, 30), scale=(1.0, 1.0), flip=0.25)
    mirrored = 0
    for seed in range(200):
        out, out_label = augment(image, label, config, np.random.default_rng(seed))
        if np.array_equal(out_label, label[:, ::-1]):
            np.testing.assert_array_equal(out, image[:, ::-1])
            mirrored += 1
        else:
            np.testing.assert_array_equal(out, image)
    assert 30 < mirrored < 70  # 50 expected, 6 is a standard deviation


def test_what_a_small_picture_does_not_fill_is_ignored_and_has_the_mean_colour():
    image, label = blocks(30, 40)
    config = AugmentConfig(crop=(50, 60), scale=(0.5, 0.5), fill=FILL)
    image, label = augment(image, label, config, np.random.default_rng(0))
    assert (label[:15, :20] != 255).all()
    for empty in (np.s_[15:], np.s_[:, 20:]):
        assert (label[empty] == 255).all()
        assert (image[empty] == FILL).all()


def test_rows_are_padded_to_a_multiple():
    image, label = blocks(40, 50)
    config = AugmentConfig(crop=(33, 33), scale=(1.0, 1.0), fill=FILL)
    plain = augment(image, label, config, np.random.default_rng(0))
    image, label = augment(image, label, config, np.random.default_rng(0), height_multiple=4)
    assert label.shape == (36, 33)
    np.testing.assert_array_equal(image[:33], plain[0])
    assert (label[33:] == 255).all()
    assert (image[33:] == FILL).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale": (0.5, 1.0), "scale_step": 0.25}, {32, 48, 64}),
        ({"scales": (0.75, 1.0, 1.0, 1.5)}, {48, 64, 96}),
    ],
    ids=["step", "set"],
)
def test_factors_are_drawn_from_a_grid_or_a_set(options, expected):
    image, label = blocks(64, 64)
    config = AugmentConfig(crop=(128, 128), **options)
    heights = {
        int((augment(image, label, config, np.random.default_rng(seed))[1][:, 0] != 255).sum())
        for seed in range(60)
    }
    assert heights == expected


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "blur"])
def test_colours_change_and_labels_do_not(name):
    image, label = blocks(40, 50)
    image = np.random.default_rng(1).integers(0, 255, image.shape, np.uint8)
    plain = AugmentConfig(crop=(50, 60), scale=(1.0, 1.0), flip=0.0)
    changed = AugmentConfig(
        crop=(50, 60), scale=(1.0, 1.0), flip=0.0, **{name: 0.5 + (name == "blur") / 2}
    )
    differing = []
    for seed in range(8):
        expected = augment(image, label, plain, np.random.default_rng(seed))
        out = augment(image, label, changed, np.random.default_rng(seed))
        np.testing.assert_array_equal(out[1], expected[1])
        np.testing.assert_array_equal(out[0][40:], expected[0][40:])  # padding keeps its colour
        differing.append((out[0][:40, :50] != expected[0][:40, :50]).mean())
    assert np.median(differing) > 0.5


def test_the_generator_alone_decides():
    image, label = blocks(64, 64)
    config = AugmentConfig(crop=(33, 33), rotation=10.0, hue=0.1, blur=0.5)
    before = image.copy(), label.copy()
    first, again, other = (
        augment(image, label, config, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_all_that_is_wrong_with_a_config_is_said_at_once():
    with pytest.raises(ValueError, match=r"crop .*0 x 1|crop must") as error:
        AugmentConfig(crop=(0, 5), scale=(2.0, 1.0), scales=(0.0,), flip=2.0, hue=0.7)
    for name in ("crop", "scale ", "scales", "flip", "hue"):
        assert name in str(error.value)


# ---------------------------------------------------------------------------- a user's own


def inverting():
    """A step as people write one, see `AugmentConfig.extra`."""

    def step(image, label, rng):
        return 255 - image, np.where(label == 2, rng.integers(3, 5), label).astype(np.uint8)

    return step


def cutting():
    return lambda image, label, rng: (image[1:], label[1:])


def test_a_step_of_ones_own_comes_last():
    image, label = np.full((9, 9, 3), 30, np.uint8), np.full((9, 9), 2, np.uint8)
    config = AugmentConfig(crop=(9, 9), scale=(1.0, 1.0), extra=f"{__name__}:inverting")
    views = [augment(image, label, config, np.random.default_rng(seed)) for seed in range(8)]
    assert all((view == 225).all() for view, _ in views)
    assert {int(labels[0, 0]) for _, labels in views} == {3, 4}  # it draws from the same generator


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("inverting", "augment.extra takes module:factory"),
        ("nowhere:step", "augment.extra nowhere:step cannot be made: ModuleNotFoundError"),
        ("builtins:int", r"must give a function \(image, label, rng\), got 0"),
    ],
)
def test_what_is_no_step_is_an_error_before_training(extra, words):
    with pytest.raises(ValueError, match=words):
        AugmentConfig(extra=extra)


def test_a_step_that_changes_sizes_is_an_error():
    config = AugmentConfig(crop=(9, 9), scale=(1.0, 1.0), extra=f"{__name__}:cutting")
    image, label = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)
    with pytest.raises(
        ValueError, match=r"must keep the image uint8 \[9, 9, 3\], it gave uint8 \[8"
    ):
        augment(image, label, config, np.random.default_rng(0))
