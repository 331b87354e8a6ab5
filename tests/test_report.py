"""What is shown of an evaluation."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from train.metrics import scores
from train.report import (
    Evaluation,
    Example,
    ImageScore,
    comparison,
    confusion_picture,
    table,
    to_json,
    write,
)

NAMES = ("sky", "road", "never")


def evaluation(images=4):
    confusion = np.array([[30, 10, 0], [5, 55, 0], [0, 0, 0]])
    result = scores(confusion, np.array([1.5, 0.5, 0]), np.array([2, 2, 0]))
    found = tuple(ImageScore(i, f"{i}.png", 0.1 * i, 0.2 * i) for i in range(images))
    return Evaluation(result, confusion, found)


def example(height, width):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (height, width)).astype(np.uint8)
    label[0] = 255
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Example(
        ImageScore(3, "folder/" * 30 + "name.png", 0.5, 0.75), image, label, 1 - label % 2
    )


def test_the_table_has_a_row_for_each_class():
    file = io.StringIO()
    Console(file=file, width=100).print(table(evaluation(), NAMES))
    rows = [line.split() for line in file.getvalue().splitlines()]
    assert ["sky", "0.6667", "0.8000", "0.7500", "0.7500", "40.00", "%"] in rows
    assert ["never", "-", "-", "-", "-", "0.00", "%"] in rows
    assert ["mean", "0.7262", "0.8400", "0.8333", "0.5000"] in rows
    assert ["all", "pixels", "0.8500"] in rows


def rows_of(evaluation, names):
    file = io.StringIO()
    Console(file=file, width=100).print(table(evaluation, names))
    return [line.split() for line in file.getvalue().splitlines()]


def test_the_foreground_comes_first_and_is_its_own_mean():
    confusion, nothing = np.array([[60, 10], [20, 30]]), np.zeros(2)
    result = scores(confusion, nothing, nothing, first=1)
    rows = rows_of(Evaluation(result, confusion, ()), ("ground", "leaf"))
    assert [row[0] for row in rows if row] == ["class", "leaf", "ground", "all"]
    assert rows[1] == ["leaf", "0.5000", "0.6667", "0.6000", "-", "41.67", "%"]


LABELS = np.array([[[50, 10], [5, 35]], [[98, 0], [2, 0]]])


def test_labels_have_the_share_of_all_pixels_that_has_them():
    result = scores(LABELS, np.zeros(2), np.zeros(2))
    rows = rows_of(Evaluation(result, LABELS, ()), ("wet", "dark"))
    assert rows[1] == ["wet", "0.7000", "0.8235", "0.8750", "-", "40.00", "%"]
    assert rows[2] == ["dark", "0.0000", "0.0000", "0.0000", "-", "2.00", "%"]
    assert rows[3] == ["mean", "0.3500", "0.4118", "0.4375", "-"]
    assert min(confusion_picture(LABELS, ("wet", "dark")).size) > 100


@pytest.mark.parametrize("size", [(20, 30), (400, 500), (1000, 500)])
def test_a_comparison_shows_labels_of_which_a_pixel_has_several(size):
    shown = example(*size)
    both = np.ones((*size, 2), np.uint8)
    both[:, : size[1] // 2] = 0
    shown = dataclasses.replace(shown, image=np.zeros_like(shown.image), prediction=both)
    picture = np.asarray(comparison(shown, ("wet", "dark"))).astype(int)
    height = 320 if size[0] == 20 else min(size[0], 720)
    width = picture.shape[1] // 3
    predicted = picture[height // 4, 2 * width + 4 : 3 * width - 4]
    assert (predicted[: width // 4] == 0).all()
    assert (predicted[-width // 4 :] > 0).any(-1).all()


def test_json_has_null_where_there_is_no_score():
    data = json.loads(to_json(evaluation(), NAMES, {"model": "m"}))
    assert data["model"] == "m"
    assert data["miou"] == pytest.approx(0.7262, abs=1e-4)
    undefined = dict.fromkeys(("iou", "dice", "accuracy", "boundary"))
    assert data["classes"][2] == {"name": "never"} | undefined
    assert data["images"][1]["name"] == "1.png"


def test_the_worst_and_the_best_are_shown_and_none_twice():
    extremes = evaluation(images=5).extremes(3)
    assert {name: score.index for name, score in extremes.items()} == {
        "worst_1": 0,
        "worst_2": 1,
        "worst_3": 2,
        "best_1": 4,
        "best_2": 3,
    }


@pytest.mark.parametrize("count", [3, 150])
def test_a_confusion_picture_has_a_readable_cell_for_each_class(count):
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 10, (count, count))
    confusion[1] = 0
    picture = confusion_picture(confusion, [f"class {i}" for i in range(count)])
    assert min(picture.size) >= 14 * count
    assert max(picture.size) < 3000


@pytest.mark.parametrize("size", [(20, 30), (400, 500), (1000, 500)])
def test_a_comparison_shows_the_image_label_and_prediction_side_by_side(size):
    picture = np.asarray(comparison(example(*size), NAMES)).astype(np.int32)
    image = example(*size).image
    factor = min(max(max(size), 320), 720) / max(size)
    assert picture.shape[1] >= 3 * round(size[1] * factor)
    if factor == 1:
        inner = picture[: size[0], : size[1] - 2]
        np.testing.assert_array_equal(inner, image[:, :-2])


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    arguments = (evaluation(), NAMES, {"best_1": example(20, 30)}, {})
    write(tmp_path, *arguments)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"scores.json", "confusion.png", "best_1.jpg"}

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, *arguments)
    assert {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name in before
    } == before
