"""Evaluation of whole images against `predict` and counting; the command `deeplab-train evaluate`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from deeplab_jax import Config, Preprocessing, ResNetConfig, build, predict, save
from deeplab_jax.heads import DeepLabV3Config, FCNConfig
from deeplab_jax.model import fill, named_variables
from train import __main__ as command
from train.config import MeshConfig
from train.data import DataError, Dataset
from train.evaluate import Evaluator, _Total
from train.evaluate_command import check_classes, open_for_model
from train.metrics import boundary_scores
from train.output_stride import with_output_stride
from train.sharding import make_mesh

CLASSES = 3
SIZES = ((24, 30), (24, 30), (17, 30), (24, 30), (20, 21))


class Pictures:
    """Random examples of `SIZES`; see `Source`."""

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = rng.integers(0, CLASSES, SIZES[index]).astype(np.uint8)
        label[:2] = 255
        return {"image": rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8), "label": label}

    def label(self, index):
        return self[index]["label"]

    def name(self, index):
        return f"picture {index}"

    def size(self, index):
        return SIZES[index]


class Foreground(Pictures):
    """The same with two classes."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        label = example["label"]
        return example | {"label": np.where(label == 255, label, label > 0).astype(np.uint8)}


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    num_classes: int = CLASSES
    # A mean that zero padding after normalisation is not black by, and sides that need some.
    preprocessing: Preprocessing = Preprocessing((0.5, 0.3, 0.4), (0.2, 0.2, 0.2), size_multiple=8)
    multilabel: bool = False

    @property
    def activation(self) -> str:
        return "sigmoid" if self.num_classes == 1 or self.multilabel else "softmax"


class Tiny(nnx.Module):
    """A convolution 5x5 and the mean of what it sees, so that every pixel of padding counts."""

    def __init__(self, seed=0):
        self.config = TinyConfig()
        kernel = np.random.default_rng(seed).normal(size=(5, 5, 3, CLASSES)).astype(np.float32)
        self.kernel = nnx.Param(jnp.asarray(kernel))
        self.dropout = nnx.Dropout(0.5)  # which raises in training mode

    def __call__(self, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, self.kernel[...], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return self.dropout(y + 9 * y.mean((1, 2), keepdims=True))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(space=2), jax.devices()[:4])


def values_of(model, mesh):
    values = {name: variable[...] for name, variable in named_variables(model).items()}
    return jax.device_put(values, NamedSharding(mesh, P()))


def confusion_of(predictions, source, classes=CLASSES):
    expected = np.zeros((classes, classes), np.int64)
    for index, ids in enumerate(predictions):
        label = source.label(index)
        np.add.at(expected, (label[label != 255], ids[label != 255]), 1)
    return expected


@pytest.mark.parametrize(
    "options",
    [{}, {"scales": (0.75, 1.0), "flip": True}, {"tile": 16}],
    ids=["plain", "looks", "windows"],
)
def test_every_image_is_seen_as_predict_sees_it(mesh, options):
    model, source = Tiny(), Pictures()
    seen = []
    evaluation = Evaluator(model, source, mesh, **options)(
        values_of(model, mesh), progress=seen.append
    )
    predictions = [predict(model, source[i]["image"], **options) for i in range(len(source))]
    np.testing.assert_array_equal(evaluation.confusion, confusion_of(predictions, source))
    assert seen[-1] == len(source)


@pytest.mark.parametrize("options", [{}, {"scales": (0.75, 1.0), "flip": True}])
def test_one_channel_is_scored_as_background_and_foreground(mesh, options):
    class Binary(Tiny):
        def __call__(self, x):
            return super().__call__(x)[..., :1]

    model, source = Binary(), Foreground()
    model.config = TinyConfig(num_classes=1)
    evaluation = Evaluator(model, source, mesh, **options)(values_of(model, mesh))
    predictions = [predict(model, source[i]["image"], **options) for i in range(len(source))]
    assert {0, 1} == {*np.unique(np.concatenate([ids.ravel() for ids in predictions]))}
    np.testing.assert_array_equal(
        evaluation.confusion, confusion_of(predictions, source, classes=2)
    )


@dataclasses.dataclass
class OneLabel(Pictures):
    """The same with one label alone, a class but the first."""

    number: int

    def label(self, index):
        ids = super().label(index)
        return np.where(ids == 255, ids, ids == self.number + 1).astype(np.uint8)


@pytest.mark.parametrize("options", [{}, {"flip": True, "tile": 16}], ids=["plain", "windows"])
def test_several_labels_are_scored_each_for_itself(mesh, options):
    class Labels(Tiny):
        def __call__(self, x):
            return super().__call__(x)[..., :2]

    model, source = Labels(), Pictures()
    model.config = TinyConfig(num_classes=2, multilabel=True)
    evaluator = Evaluator(model, source, mesh, **options)
    evaluation = evaluator(values_of(model, mesh))
    predictions = [predict(model, source[i]["image"], **options) for i in range(len(source))]
    for label in (0, 1):
        alone = OneLabel(label)
        ids = [prediction[..., label] for prediction in predictions]
        expected = confusion_of(ids, alone, classes=2)
        np.testing.assert_array_equal(evaluation.confusion[label], expected)
        boundaries = [
            boundary_scores(alone.label(i), ids[i], jnp.asarray(SIZES[i], jnp.int32), 2)
            for i in range(len(source))
        ]
        expected = np.mean([score[1] for score, there in boundaries if there[1]])
        assert evaluation.scores.boundary[label] == pytest.approx(expected, rel=1e-6)
    (example,) = evaluator.examples(values_of(model, mesh), evaluation.images[:1])
    np.testing.assert_array_equal(example.prediction, predictions[example.score.index])


def test_an_image_without_foreground_is_right_where_none_is_found(mesh):
    class Nothing(Tiny):
        def __call__(self, x):
            return super().__call__(x)[..., :1] * 0 - 1

    class Empty(Pictures):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example | {"label": np.where(example["label"] == 255, 255, 0).astype(np.uint8)}

    model = Nothing()
    model.config = TinyConfig(num_classes=1)
    evaluation = Evaluator(model, Empty(), mesh)(values_of(model, mesh))
    assert {image.miou for image in evaluation.images} == {1.0}
    assert np.isnan(evaluation.scores.miou)  # of no pixel at all nothing is said


def test_values_are_those_that_are_given_and_images_come_worst_first(mesh):
    model, other, source = Tiny(0), Tiny(1), Pictures()
    evaluator = Evaluator(model, source, mesh)
    evaluation = evaluator(values_of(other, mesh))
    predictions = [predict(other, source[i]["image"]) for i in range(len(source))]
    np.testing.assert_array_equal(evaluation.confusion, confusion_of(predictions, source))
    assert [image.miou for image in evaluation.images] == sorted(
        image.miou for image in evaluation.images
    )
    for image in evaluation.images:
        label, ids = source.label(image.index), predictions[image.index]
        kept = label != 255
        assert image.name == f"picture {image.index}"
        assert image.accuracy == pytest.approx((label == ids)[kept].mean())
        pairs = [((label == c)[kept], (ids == c)[kept]) for c in range(CLASSES)]
        ious = [(a & b).sum() / (a | b).sum() for a, b in pairs if (a | b).any()]
        assert image.miou == pytest.approx(np.mean(ious))

    chosen = [evaluation.images[i] for i in (4, 0, 2)]
    for image, example in zip(
        chosen, evaluator.examples(values_of(other, mesh), chosen), strict=True
    ):
        assert example.score == image
        np.testing.assert_array_equal(example.prediction, predictions[image.index])
        np.testing.assert_array_equal(example.image, source[image.index]["image"])
        np.testing.assert_array_equal(example.label, source.label(image.index))


@dataclasses.dataclass(frozen=True)
class OfManySizes(Pictures):
    """All but the last are large enough for a canvas."""

    sizes: tuple[tuple[int, int], ...] = (
        (70, 90),
        (88, 90),
        (96, 100),
        (65, 70),
        (70, 90),
        (30, 30),
    )

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = rng.integers(0, CLASSES, self.sizes[index]).astype(np.uint8)
        return {"image": rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8), "label": label}

    def size(self, index):
        return self.sizes[index]


@pytest.mark.parametrize("options", [{}, {"scales": (1.0, 1.25), "flip": True}])
def test_images_of_many_sizes_share_programs_and_are_seen_as_predict_sees_them(mesh, options):
    traced = []

    class Counted(Tiny):
        def __call__(self, x):
            traced.append(x.shape)
            return super().__call__(x)

    model, source = Counted(), OfManySizes()
    evaluator = Evaluator(model, source, mesh, **options)
    evaluation = evaluator(values_of(model, mesh))
    # Once for all that share a canvas, and for each view of the last.
    assert len(traced) == 1 + (4 if options else 1)
    compiled = evaluator._on_canvas()._cache_size()
    evaluator.examples(values_of(model, mesh), evaluation.images[:3])
    assert evaluator._on_canvas()._cache_size() == compiled == 1  # and nothing for examples
    predictions = [predict(model, source[i]["image"], **options) for i in range(len(source))]
    np.testing.assert_array_equal(evaluation.confusion, confusion_of(predictions, source))
    chosen = evaluation.images[::3]
    examples = Evaluator(model, source, mesh, **options).examples(values_of(model, mesh), chosen)
    for image, example in zip(chosen, examples, strict=True):
        np.testing.assert_array_equal(example.prediction, predictions[image.index])


def test_more_pixels_than_32_bits_hold_are_counted():
    total = _Total(Pictures(), TinyConfig())
    most = np.full((CLASSES, CLASSES), 2**31 - 1, np.int32)
    one = np.ones(CLASSES, np.int32)
    images = {name: np.full(1, 0.5, np.float32) for name in ("miou", "accuracy")}
    images |= {"index": np.array([1], np.int32), "highest": np.array([0], np.uint8)}
    sums = {"confusion": most, "boundary_sum": one, "boundary_count": one} | images
    assert [total.add(sums), total.add(sums)] == [1, 2]
    assert (total.result().confusion == 2 * (2**31 - 1)).all()


def test_a_label_above_the_classes_is_refused_with_the_image_s_name(mesh):
    class Odd(Pictures):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            example["label"][5, 5] = 7 if index == 2 else 0
            return example

    model = Tiny()
    with pytest.raises(
        DataError, match="picture 2 has the label 7; the model's classes are 0 to 2"
    ):
        Evaluator(model, Odd(), mesh)(values_of(model, mesh))


def test_an_unreadable_image_stops_or_is_left_out(mesh):
    class Damaged(Pictures):
        def __getitem__(self, index):
            if index == 2:
                raise DataError("picture 2 cannot be read")
            return super().__getitem__(index)

    model = Tiny()
    with pytest.raises(DataError, match="picture 2 cannot be read"):
        Evaluator(model, Damaged(), mesh)(values_of(model, mesh))
    evaluation = Evaluator(model, Damaged(), mesh, unreadable="skip")(values_of(model, mesh))
    assert {image.index for image in evaluation.images} == {0, 1, 3, 4}


def test_wrong_options_are_refused(mesh):
    with pytest.raises(ValueError, match=r"(?s)scales.*tile must be at least"):
        Evaluator(Tiny(), Pictures(), mesh, scales=(), tile=3)
    with pytest.raises(
        ValueError, match=r"scales must be .* at most 16, .* got \(1000000000\.0,\)"
    ):
        Evaluator(Tiny(), Pictures(), mesh, scales=(1e9,))


# ---------------------------------------------------------------------------- the model and the data


def test_another_output_stride_keeps_the_weights_and_what_aspp_sees():
    for rates, expected in (((12, 24, 36), [24, 48, 72]), (None, [12, 24, 36])):
        config = Config(ResNetConfig(18), DeepLabV3Config(rates=rates, channels=8), CLASSES)
        model = fill(build(config), nnx.Rngs(0))
        finer = with_output_stride(model, 8)
        assert finer.config.backbone.output_stride == 8
        convolutions = [
            part.dilation
            for path, part in nnx.iter_modules(finer.head)
            if getattr(part, "dilation", 1) > 1
        ]
        assert convolutions == expected
        for name, variable in named_variables(model).items():
            np.testing.assert_array_equal(variable[...], named_variables(finer)[name][...])


def test_another_output_stride_samples_the_image_where_training_did():
    """Features at stride 32 are every fourth of those at 8, away from the image's edge."""
    config = Config(
        ResNetConfig(18, output_stride=32, first_block_dilation="same"), FCNConfig(), CLASSES
    )
    model = fill(build(config), nnx.Rngs(0))
    finer = with_output_stride(model, 8)
    model.eval()
    finer.eval()
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 576, 576, 3)), jnp.float32)
    coarse, fine = (np.asarray(m.features(image)["high"]) for m in (model, finer))
    np.testing.assert_allclose(fine[:, ::4, ::4][:, 8:10, 8:10], coarse[:, 8:10, 8:10], atol=1e-4)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (("a", "b", "c"), ("a", "b"), r"it has 3 \(a, b, c\), set has 2 \(a, b\)"),
        (None, ("a", "b"), r"it has 3 \(without names\)"),
        (
            ("a", "b", "c"),
            ("a", "C", "b"),
            "in the same order: its are a, b, c; those of set, a, C, b",
        ),
    ],
)
def test_other_classes_than_the_data_set_s_are_refused(model, data, message):
    config = Config(ResNetConfig(18), FCNConfig(), CLASSES, class_names=model)
    with pytest.raises(DataError, match=message):
        check_classes(config, Dataset("set", data, Pictures(), Pictures()))


def test_one_channel_has_the_two_classes_of_a_data_set():
    config = Config(ResNetConfig(18), FCNConfig(), 1, class_names=("leaf",))
    check_classes(config, Dataset("set", ("background", "leaf"), Pictures(), Pictures()))
    with pytest.raises(DataError, match=r"it has 2 \(background, leaf\), set has 3"):
        check_classes(config, Dataset("set", ("a", "b", "c"), Pictures(), Pictures()))


def test_classes_may_be_spelt_otherwise():
    config = Config(ResNetConfig(18), FCNConfig(), 2, class_names=("sign_symbol", "car"))
    for names in (("SignSymbol", "Car"), ("sign", "vehicle")):
        check_classes(config, Dataset("set", names, Pictures(), Pictures()))


# ---------------------------------------------------------------------------- the classes of training


def test_ids_are_what_they_were_in_the_run_of_the_model(data, tmp_path):
    model, names = tmp_path / "run/model", ("a", "b", "c")
    model.mkdir(parents=True)
    ids = Pictures().label(0)

    def classes_of_ids(labels=None):
        dataset = open_for_model(f"folder:{data}", None, labels, None, model, names)
        label = dataset.train.label(0)
        return [int(label[ids == i][0]) for i in range(3)], dataset

    order, dataset = classes_of_ids()
    assert (order, dataset.class_names) == ([0, 1, 2], names)
    assert "the model's are used: a, b, c." in dataset.notes[0]

    trained = {"data": {"name": f"folder:{data}", "labels": "1=a,0=b,2=c"}}
    (tmp_path / "run/config.json").write_text(json.dumps(trained))
    order, dataset = classes_of_ids()
    assert (order, dataset.class_names) == ([1, 0, 2], names)
    assert "in training: 1=a,0=b,2=c." in dataset.notes[0]

    (data / "classes.txt").write_text("x\ny\nz\n")  # which the run did not use either
    assert classes_of_ids()[0] == [1, 0, 2]
    assert classes_of_ids("0=a,2=b,1=c")[0] == [0, 2, 1]

    elsewhere = {"data": {"name": f"folder:{tmp_path}", "labels": "1=a,0=b,2=c"}}
    (tmp_path / "run/config.json").write_text(json.dumps(elsewhere))
    order, dataset = classes_of_ids()
    assert (order, dataset.class_names) == ([0, 1, 2], ("x", "y", "z"))


# ---------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    config = Config(ResNetConfig(18, output_stride=32), FCNConfig(), 3, class_names=("a", "b", "c"))
    return save(fill(build(config), nnx.Rngs(0)), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def data(tmp_path):
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (tmp_path / "data" / split / part).mkdir(parents=True)
        for index in range(3):
            example = Pictures()[index]
            for part, folder in (("image", "images"), ("label", "labels")):
                image = Image.fromarray(example[part])
                image.save(tmp_path / "data" / split / folder / f"{index}.png")
    return tmp_path / "data"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["deeplab-train", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


def test_the_command_prints_and_writes_all_there_is(
    model_folder, data, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "new" / "out"
    arguments = ("--data", f"folder:{data}", "--out", out, "--examples", 2)
    assert run(monkeypatch, model_folder, *arguments) == 0
    assert "mean" in capsys.readouterr().out
    written = json.loads((out / "scores.json").read_text())
    assert [row["name"] for row in written["classes"]] == ["a", "b", "c"]
    assert np.sum(written["confusion"]) == sum(
        (Pictures().label(index) != 255).sum() for index in range(3)
    )
    assert len(written["images"]) == 3
    files = {"scores.json", "confusion.png", "worst_1.jpg", "worst_2.jpg", "best_1.jpg"}
    assert {path.name for path in out.iterdir()} == files


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [("nothing", "folder:x", "does not exist"), (None, "nothing", "the data set must be one of")],
)
def test_bad_use_ends_with_status_2_and_no_traceback(
    model, data, message, model_folder, tmp_path, monkeypatch, capsys
):
    model = tmp_path / model if model else model_folder
    assert run(monkeypatch, model, "--data", data) == 2
    assert message in " ".join(capsys.readouterr().err.split())
