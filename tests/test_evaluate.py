"""Pairs of pictures and labels, and the command `deeplab-train evaluate`."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from deeplab_jax import Config, ResNetConfig, build, predict, save
from deeplab_jax.heads import FCNConfig
from deeplab_jax.model import fill
from train import __main__ as command
from train.evaluate import LabelError, evaluate, find_pairs, read_labels
from train.metrics import scores


@pytest.fixture(scope="module")
def model():
    config = Config(ResNetConfig(18, output_stride=32), FCNConfig(), 3, class_names=("a", "b", "c"))
    return fill(build(config), nnx.Rngs(0))


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for name in ("one", "two"):
        pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{name}.png")
        ids = rng.integers(0, 3, (40, 50)).astype(np.uint8)
        ids[:3] = 255
        Image.fromarray(ids).save(labels / f"{name}.png")
    return images, labels


def test_a_model_that_is_always_right_scores_one(model, folders):
    images, labels = folders
    for path in images.iterdir():
        Image.fromarray(predict(model, path)).save(labels / path.name)
    assert scores(evaluate(model, find_pairs(images, labels))).pixel_accuracy == 1


def test_the_matrix_counts_every_pixel_that_is_not_ignored(model, folders):
    total = evaluate(model, find_pairs(*folders))
    assert total.sum() == 2 * 37 * 50


def test_unmatched_pictures_and_labels_are_listed_together(folders):
    images, labels = folders
    (labels / "one.png").rename(labels / "three.png")
    with pytest.raises(LabelError, match=r"(?s)one\.png has no .*three\.png has no picture"):
        find_pairs(images, labels)


def test_labels_of_another_size_are_refused(model, folders):
    images, labels = folders
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(labels / "two.png")
    with pytest.raises(LabelError, match=r"two\.png is 5 x 4, its picture 50 x 40"):
        evaluate(model, find_pairs(images, labels))


def test_labels_above_the_classes_are_refused(model, folders):
    images, labels = folders
    Image.fromarray(np.full((40, 50), 7, np.uint8)).save(labels / "one.png")
    with pytest.raises(LabelError, match=r"ids \[7\]; the model's classes are 0 to 2"):
        evaluate(model, find_pairs(images, labels))


def test_a_palette_png_gives_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    image.putpalette([value for i in range(256) for value in (i, 0, 255 - i)])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), [[0, 1], [2, 255]])


def test_labels_in_colour_are_refused(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "c.png")
    with pytest.raises(LabelError, match="grey or palette PNG of class ids, got RGB"):
        read_labels(tmp_path / "c.png")


def test_a_broken_label_file_is_refused(tmp_path):
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(LabelError, match="is not a picture"):
        read_labels(tmp_path / "b.png")


def test_the_command_prints_and_writes_the_scores(model, folders, tmp_path, monkeypatch, capsys):
    folder = save(model, tmp_path / "model")
    images, labels = map(str, folders)
    arguments = ["evaluate", str(folder), "--images", images, "--labels", labels]
    out = tmp_path / "out" / "scores.json"
    monkeypatch.setattr("sys.argv", ["deeplab-train", *arguments, "--json-file", str(out)])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 0
    assert "mean" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["iou"].keys() == {"a", "b", "c"}
    assert np.sum(written["confusion"]) == 2 * 37 * 50
    assert [p.name for p in out.parent.iterdir()] == ["scores.json"]


def test_bad_use_ends_with_status_2_and_no_traceback(tmp_path, monkeypatch, capsys):
    arguments = ["evaluate", str(tmp_path / "nothing"), "--images", "x", "--labels", "y"]
    monkeypatch.setattr("sys.argv", ["deeplab-train", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert "does not exist" in capsys.readouterr().err
