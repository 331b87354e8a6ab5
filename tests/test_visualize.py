"""Palettes, label files and overlays."""

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import visualize
from deeplab_jax.visualize import (
    IGNORED_COLOR,
    PALETTES,
    colorize,
    overlay,
    palette,
    save_labels,
)

# ---------------------------------------------------------------------------- palettes


def test_voc_colors():
    colors = palette(21)
    assert colors.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for i, color in known.items():
        assert tuple(colors[i]) == color
    assert tuple(palette(256)[255]) == IGNORED_COLOR


@pytest.mark.parametrize("num_classes", [1, 2, 21, 150, 256, 257, 1000])
def test_no_two_classes_share_a_color(num_classes):
    colors = palette(num_classes)
    assert colors.shape == (num_classes, 3)
    assert len(np.unique(colors, axis=0)) == num_classes
    neighbours = np.abs(np.diff(colors.astype(int), axis=0)).sum(axis=1)
    assert (neighbours > 50).all()


def test_black_is_the_background_s_alone():
    assert palette(2, ("background", "cat"))[0].max() == 0
    colors = palette(256, ("wall", *map(str, range(255))))
    assert colors[:255].any(axis=1).all()
    np.testing.assert_array_equal(colors[:100], palette(256)[1:101])


def test_known_names_have_their_data_set_s_colors_in_any_order_and_spelling():
    assert palette(2, ("SignSymbol", "sky")).tolist() == [[192, 128, 128], [128, 128, 128]]
    road_and_car = palette(2, ("road", "car")).tolist()
    assert road_and_car == [[128, 64, 128], [0, 0, 142]]  # as Cityscapes' own scripts have them
    names = tuple(PALETTES["cityscapes"])[::-1]
    np.testing.assert_array_equal(palette(19, names), list(PALETTES["cityscapes"].values())[::-1])


# ---------------------------------------------------------------------------- labels


def test_colorize():
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    colors = palette(3)
    expected = [[colors[0], colors[1]], [colors[2], IGNORED_COLOR]]
    np.testing.assert_array_equal(colorize(labels, colors), expected)
    np.testing.assert_array_equal(colorize(labels, palette(256))[1, 1], palette(256)[255])


def test_colorize_names_ids_without_a_color():
    with pytest.raises(ValueError, match=r"below the 3 colours .* got 3, 7$"):
        colorize(np.array([[0, 3], [7, 255]], np.uint8), palette(3))
    with pytest.raises(ValueError, match=r"got 300$"):
        colorize(np.array([[300]], np.uint16), palette(300))


@pytest.mark.parametrize("num_classes", [2, 11, 21, 256])
def test_saved_labels_are_the_ids_and_show_colors(tmp_path, num_classes):
    labels = np.arange(num_classes, dtype=np.uint8).reshape(1, -1)
    labels = np.concatenate([labels, np.full_like(labels, 255)])
    save_labels(tmp_path / "a.png", labels, palette(num_classes))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown, colorize(labels, palette(num_classes)))


def test_saved_labels_of_many_classes_are_16_bit(tmp_path):
    labels = np.arange(1000, dtype=np.uint16).reshape(10, 100)
    save_labels(tmp_path / "a.png", labels, palette(1000))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_labels_are_not_saved_where_they_would_change(tmp_path):
    with pytest.raises(ValueError, match=r"saved as \.png.*a\.jpg"):
        save_labels(tmp_path / "a.jpg", np.zeros((2, 2), np.uint8), palette(2))


# ---------------------------------------------------------------------------- overlay


def test_overlay_tints_classes_and_leaves_black_ones_clear():
    image = np.full((20, 20, 3), 100, np.uint8)
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    shown = np.asarray(overlay(image, labels, palette(2), legend=False))
    assert (shown[:, :10] == 100).all()
    assert (shown[:, 11:] == (114, 50, 50)).all()  # halfway to (128, 0, 0)
    assert (shown[:, 10] == (125, 10, 10)).all()  # its outline, nine tenths of the way
    np.testing.assert_array_equal(overlay(image, labels, palette(2), alpha=0, legend=False), image)


@pytest.mark.parametrize("size", [(1, 1), (30, 40), (1500, 20), (20, 1500), (480, 640)])
@pytest.mark.parametrize("num_classes", [1, 21, 1000])
def test_the_legend_hides_nothing_of_the_picture(size, num_classes):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.integers(0, num_classes, size).astype(np.uint16)
    names = [f"a class of a rather long name, number {i}" for i in range(num_classes)]
    options = {"labels": labels, "colors": palette(num_classes)}
    plain = overlay(Image.fromarray(image), **options, legend=False)
    assert plain.size == size[::-1]
    whole = np.asarray(overlay(image, **options, class_names=names))
    np.testing.assert_array_equal(whole[: size[0], : size[1]], plain)
    assert whole.size > plain.width * plain.height * 3
    assert len(np.unique(whole[size[0] :].reshape(-1, 3), axis=0)) > 3 or size[0] > 2 * size[1]


def test_the_legend_lists_what_is_there_by_area():
    labels = np.array([[2] * 6 + [1] * 3 + [255]], np.uint8)
    entries, rest = visualize._legend_entries(visualize._areas(labels), 3, ("a", "b", "c"))
    assert entries == [(2, "c", "60.0 %"), (1, "b", "30.0 %"), (255, "ignored", "10.0 %")]
    assert rest == 0
    labels = np.arange(50, dtype=np.uint8).repeat(2)[:99].reshape(1, -1)
    entries, rest = visualize._legend_entries(visualize._areas(labels), 50, None)
    assert [name for _, name, _ in entries] == [f"class {i}" for i in range(20)]
    assert rest == 30


def test_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"got \[4, 4, 3\] for \[4, 5\]"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), palette(2))
