"""Training and evaluation of models with a sigmoid: of a foreground, and of several labels."""

import dataclasses
import json
from pathlib import PurePath

import numpy as np
import own_backbone  # noqa: F401 (registers a small one)
import pytest
from PIL import Image

from deeplab_jax import load, predict, save
from deeplab_jax.model import named_variables, with_values
from train import __main__ as command
from train import loop
from train.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig
from train.data import AugmentConfig, DataError, augment, open_dataset
from train.data_command import data_command, pack_command
from train.loss import LossConfig
from train.model import make_model

SIDE = 64
COLOURS = np.array([(90, 90, 90), (220, 60, 40), (40, 80, 220)])


def write_pictures(folder, classes, count=16):
    """Rectangles of each class but the first, in its colour, on grey; the first rows are ignored."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        label = np.zeros((SIDE, SIDE), np.uint8)
        for c in range(1, len(classes)):
            y, x = 8 * rng.integers(0, 4, 2)
            label[y : y + 32, x : x + 32] = c
        noise = rng.integers(-30, 30, (SIDE, SIDE, 3))
        Image.fromarray((COLOURS[label] + noise).astype(np.uint8)).save(folder / f"images/{i}.png")
        label[:4] = 255
        Image.fromarray(label).save(folder / f"labels/{i}.png")
    (folder / "classes.txt").write_text("\n".join(classes))
    return folder


def config_of(folder, run, **fields):
    return TrainConfig(
        run=run,
        data=DataConfig(f"folder:{folder}", threads=2),
        augment=AugmentConfig(crop=(SIDE, SIDE)),
        model=ModelConfig("fcn_stripes4", activation="sigmoid", output_stride=8),
        optim=OptimConfig("adamw", learning_rate=1e-2, warmup_steps=3),
        steps=40,
        batch_size=8,
        log_to=(),
        evaluation=EvaluationConfig(every=20),
        **fields,
    )


def scores_in(folder):
    return json.loads((folder / "scores.json").read_text())


def evaluate(monkeypatch, capsys, run):
    """The scores that the command prints and writes, of the data that the run was trained on."""
    out = run.parent / "scores"
    monkeypatch.setattr("sys.argv", ["deeplab-train", "evaluate", str(run), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 0
    return capsys.readouterr().out, scores_in(out)


def held_out(run):
    """The pictures of validation and their label maps."""
    names = [image["name"] for image in scores_in(run / "evaluation")["images"]]
    folder = run.parent / "data"
    for name in names:
        path = folder / "images" / PurePath(name).name
        yield np.asarray(Image.open(path)), np.asarray(Image.open(folder / "labels" / path.name))


def iou(label, prediction):
    return (label & prediction).sum() / (label | prediction).sum()


# ---------------------------------------------------------------------------- a foreground


@pytest.fixture(scope="module")
def binary(tmp_path_factory, compiled_once):
    """The finished run of a foreground."""
    place = tmp_path_factory.mktemp("binary")
    folder = write_pictures(place / "data", ("ground", "roof"))
    config = config_of(folder, place / "run", loss=LossConfig(dice=1.0))
    assert loop.train(config) == loop.FINISHED
    return config


def test_a_foreground_is_learnt_and_scored_as_it_is_predicted(binary):
    model = load(binary.run)
    assert model.config.num_classes == 1
    assert model.config.class_names == ("ground", "roof")
    log = (binary.run / "log.txt").read_text()
    assert "One channel (sigmoid): roof is the foreground, ground the background." in log
    scores = scores_in(binary.run / "evaluation")
    assert scores["miou"] == scores["classes"][1]["iou"] > 0.8  # .88 when this was written
    assert scores["mean_dice"] == pytest.approx(2 * scores["miou"] / (1 + scores["miou"]))
    ((picture, label),) = held_out(binary.run)
    kept = label != 255
    found = iou(label[kept] == 1, predict(model, picture)[kept] == 1)
    # Batch norms are folded, or not: rounding decides where a logit is about 0.
    assert found == pytest.approx(scores["miou"], abs=1e-3)
    assert {p.name for p in (binary.run / "evaluation").glob("*.jpg")} == {"worst_1.jpg"}


def test_the_command_prints_the_foreground_first(binary, monkeypatch, capsys):
    said, scores = evaluate(monkeypatch, capsys, binary.run)
    assert said.index("roof is the foreground") < said.index("\n roof") < said.index("\n ground")
    assert scores["confusion"] == scores_in(binary.run / "evaluation")["confusion"]


def test_a_run_that_was_stopped_ends_with_the_weights_of_an_undisturbed_one(
    binary, tmp_path, monkeypatch
):
    config = dataclasses.replace(binary, run=tmp_path / "run")
    steps_left = iter([False] * 9 + [True])
    monkeypatch.setattr(loop.StopSignal, "__call__", lambda self: next(steps_left))
    assert loop.train(config) == loop.STOPPED
    monkeypatch.undo()
    assert loop.train(config) == loop.FINISHED
    expected = named_variables(load(binary.run))
    for name, variable in named_variables(load(config.run)).items():
        np.testing.assert_array_equal(variable[...], expected[name][...], err_msg=name)


def start_of(run, classes, **fields):
    config = ModelConfig("fcn_stripes4", init=run / "model", **fields)
    return make_model(config, classes, seed=1, data_shards=1)


def test_a_foreground_s_model_stays_one_for_two_classes_and_becomes_another_when_asked(binary):
    further = start_of(binary.run, ("soil", "leaf"))
    assert further.model.config.activation == "sigmoid"
    assert further.model.config.class_names == ("soil", "leaf")
    assert further.origin.endswith("all weights")
    others = {
        "three classes": start_of(binary.run, ("a", "b", "c")),
        "two, by softmax": start_of(binary.run, ("a", "b"), activation="softmax"),
        "two labels": start_of(binary.run, ("a", "b", "c"), activation="sigmoid"),
    }
    for asked, other in others.items():
        channels = int(asked.startswith("three")) + 2
        assert other.model.config.num_classes == channels
        assert other.model.config.multilabel == (asked == "two labels")
        assert other.origin.endswith("new weights in head")
        for name, value in further.params.items():
            if "classifier" not in name:
                np.testing.assert_array_equal(other.params[name], value, err_msg=name)


def test_a_softmax_becomes_a_foreground_and_keeps_what_fits(binary, tmp_path):
    two = start_of(binary.run, ("a", "b"), activation="softmax")
    save(with_values(two.model, two.params | two.stats), tmp_path / "model")
    assert start_of(tmp_path, ("a", "b")).model.config.activation == "softmax"
    start = start_of(tmp_path, ("a", "b"), activation="sigmoid")
    assert start.params["head.classifier.kernel"].shape[-1] == 1
    assert start.origin.endswith("new weights in head")
    name = "head.conv.conv.kernel"
    np.testing.assert_array_equal(start.params[name], two.params[name])
    # Of as many channels, which would be each for the class after its own.
    labels = start_of(tmp_path, ("a", "b", "c"), activation="sigmoid")
    name = "head.classifier.kernel"
    assert labels.params[name].shape == two.params[name].shape
    assert labels.origin.endswith("new weights in head")


# ---------------------------------------------------------------------------- several labels


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The finished run of two labels."""
    place = tmp_path_factory.mktemp("several")
    folder = write_pictures(place / "data", ("ground", "roof", "pool"))
    config = config_of(folder, place / "run")
    assert loop.train(config) == loop.FINISHED
    return config


def test_labels_are_learnt_each_for_itself_and_scored_as_they_are_predicted(
    several, monkeypatch, capsys
):
    model = load(several.run)
    assert model.config.multilabel
    assert model.config.class_names == ("roof", "pool")
    log = (several.run / "log.txt").read_text()
    assert "2 labels (sigmoid), each for itself: roof, pool; ground is none of them." in log
    scores = scores_in(several.run / "evaluation")
    assert [row["name"] for row in scores["classes"]] == ["roof", "pool"]
    ((picture, label),) = held_out(several.run)
    kept, labels = label != 255, predict(model, picture)
    for number, row in enumerate(scores["classes"]):
        assert row["iou"] > 0.6  # .75 and .81 when this was written
        found = iou(label[kept] == number + 1, labels[kept][:, number] == 1)
        assert found == pytest.approx(row["iou"], abs=1e-3)  # as above
    assert scores["miou"] == pytest.approx(np.mean([row["iou"] for row in scores["classes"]]))
    said, again = evaluate(monkeypatch, capsys, several.run)
    assert "2 labels (sigmoid)" in said
    assert again["confusion"] == scores["confusion"]
    names = {path.name for path in (several.run.parent / "scores").iterdir()}
    assert names == {"scores.json", "confusion.png", "worst_1.jpg"}


def test_weights_are_one_for_each_label(several, tmp_path):
    config = dataclasses.replace(
        several, run=tmp_path / "run", loss=LossConfig(class_weights=(1.0, 2.0, 3.0))
    )
    with pytest.raises(ValueError, match=r"each of the 2 classes of .* besides ground, got 3"):
        loop.train(config)
    config = dataclasses.replace(several, loss=LossConfig(class_weights="data"))
    dataset = open_dataset(config.data.name)
    pixels = np.bincount(np.concatenate([dataset.train.label(i).ravel() for i in range(15)]))[:3]
    weights = loop._class_weights(config, dataset, load(several.run).config)
    np.testing.assert_allclose(weights, [pixels.sum() / n - 1 for n in pixels[1:]], rtol=1e-6)


# ---------------------------------------------------------------------------- labels that overlap


def with_overlaps(folder, count=16):
    """Pictures with label maps `[H, W, 2]` of two rectangles, one over the other."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        labels = np.zeros((SIDE, SIDE, 2), np.uint8)
        for number in (0, 1):
            y, x = 8 * rng.integers(0, 4, 2)
            labels[y : y + 32, x : x + 32, number] = 1
        colours = np.where(labels[..., :1] == 1, (220, 60, 90), (90, 90, 90))
        colours[..., 1] += 120 * labels[..., 1]
        noise = rng.integers(-30, 30, (SIDE, SIDE, 3))
        Image.fromarray((colours + noise).astype(np.uint8)).save(folder / f"images/{i}.png")
        labels[:4, :, 0] = 255  # of one label alone it is not known
        np.save(folder / f"labels/{i}.npy", labels)
    return folder


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    """The finished run of two labels that overlap."""
    place = tmp_path_factory.mktemp("overlapping")
    folder = with_overlaps(place / "data")
    (folder / "classes.txt").write_text("roof\nwet\n")
    config = config_of(folder, place / "run", loss=LossConfig(class_weights="data"))
    augment = dataclasses.replace(config.augment, rotation=5.0)
    config = dataclasses.replace(config, augment=augment)
    assert loop.train(config) == loop.FINISHED
    return config


def test_a_pixel_may_have_both_labels(overlapping, monkeypatch, capsys):
    model = load(overlapping.run)
    assert model.config.class_names == ("roof", "wet")
    scores = scores_in(overlapping.run / "evaluation")
    dataset = open_dataset(overlapping.data.name)
    assert dataset.overlapping
    example = dataset.val[0]
    labels = predict(model, example["image"])
    assert (labels.all(-1) & (example["label"] == 1).all(-1)).any()
    for number, row in enumerate(scores["classes"]):
        assert row["iou"] > 0.5
        kept = example["label"][..., number] != 255
        found = iou(example["label"][kept][:, number] == 1, labels[kept][:, number] == 1)
        assert found == pytest.approx(row["iou"], abs=1e-3)  # as above
    _, again = evaluate(monkeypatch, capsys, overlapping.run)
    assert again["confusion"] == scores["confusion"]


def test_a_data_set_of_overlaps_is_shown_as_it_is(overlapping, tmp_path, capsys):
    assert data_command(overlapping.data.name, examples=2, sheet=tmp_path / "sheet.png") == 0
    said = capsys.readouterr().out
    assert "A pixel may have several of 2 labels: roof, wet." in said
    rows = [line.split() for line in said.splitlines()]
    dataset = open_dataset(overlapping.data.name)
    labels = np.stack([dataset.train.label(i) for i in range(15)])
    for number, name in enumerate(("roof", "wet")):
        there, without = (np.count_nonzero(labels[..., number] == n) for n in (1, 0))
        (row,) = (row for row in rows if row[:1] == [name])
        assert row[1] == f"{100 * there / (there + without):.2f}"
        assert row[-1] == f"{without / there:.2f}"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > SIDE


def test_a_data_set_of_overlaps_is_not_copied_as_one_of_classes(overlapping, tmp_path):
    with pytest.raises(DataError, match="one class for a pixel are copied"):
        pack_command(overlapping.data.name, "overlaps", data_dir=tmp_path)


def test_a_softmax_has_no_labels_that_overlap(overlapping, tmp_path):
    model = dataclasses.replace(overlapping.model, activation="softmax")
    config = dataclasses.replace(overlapping, run=tmp_path / "run", model=model)
    with pytest.raises(ValueError, match="activation must be sigmoid for label maps in which"):
        loop.train(config)


@pytest.mark.parametrize("count", [2, 6])
def test_each_label_is_augmented_as_it_would_be_alone(count):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 40, 3), np.uint8)
    labels = rng.integers(0, 2, (30, 40, count)).astype(np.uint8)
    config = AugmentConfig(crop=(36, 28), scale=(0.8, 1.5), rotation=30.0)
    for seed in range(3):
        seen, together = augment(image, labels, config, np.random.default_rng(seed))
        assert together.shape == (36, 28, count)
        for number in range(count):
            alone = np.ascontiguousarray(labels[..., number])
            same, label = augment(image, alone, config, np.random.default_rng(seed))
            np.testing.assert_array_equal(seen, same)
            # OpenCV turns another number of bands by another program: rounding decides in a middle.
            assert (together[..., number] == label).mean() > 0.99


@pytest.mark.parametrize(
    ("arrays", "names", "message"),
    [
        (
            [(4, 4, 2), (4, 4, 3)],
            None,
            r"the same labels in all label maps: most have 2, others are",
        ),
        ([(4, 4, 2), (4, 4)], None, r"most have 2, others are labels/b.npy \(ids\)$"),
        ([(4, 4), (4, 4, 2)], None, r"most have ids, others are labels/b.npy \(2\)$"),
        ([(4, 4, 2), (4, 4, 2)], ("a", "b", "c", "d"), r"the 2 labels .* take a name each"),
    ],
)
def test_arrays_of_labels_that_do_not_fit_are_refused(tmp_path, arrays, names, message):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name, shape in zip("ab", arrays, strict=True):
        Image.new("RGB", (4, 4)).save(tmp_path / f"images/{name}.png")
        np.save(tmp_path / f"labels/{name}.npy", np.ones(shape, np.uint8))
    with pytest.raises(DataError, match=message):
        open_dataset(f"folder:{tmp_path}", class_names=names)


def test_arrays_of_other_numbers_are_no_labels(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"images/{name}.png")
        np.save(tmp_path / f"labels/{name}.npy", np.full((4, 4, 3), 7, np.uint8))
    with pytest.raises(DataError, match=r"1 where a pixel has a label.* got 7 in \[4, 4, 3\]"):
        open_dataset(f"folder:{tmp_path}")
    for name in "ab":
        np.save(tmp_path / f"labels/{name}.npy", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="no label map has a 1"):
        open_dataset(f"folder:{tmp_path}")
