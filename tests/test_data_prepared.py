"""Any data set of TFDS: its features, splits and classes, from what is prepared in a folder."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from train import __main__ as command
from train.config import DataConfig, TrainConfig
from train.data import DataError, open_dataset
from train.data_command import data_command
from train.evaluate_command import open_for_model

SHAPE = (6, 8)
MASK = tfds.features.Image(shape=(None, None, 1))
PICTURE = tfds.features.Image(shape=(None, None, 3))
NAMED = tfds.features.LabeledImage(labels=["sky", "road", "car"], shape=(None, None, 1))
NAME = tfds.features.Text()
FORMAT = tfds.core.FileFormat.ARRAY_RECORD


def prepare(data_dir, *, splits=("train", "validation"), ids=(0, 1, 2, 255), count=2, **features):
    """Prepares the data set `roads`, with `count` examples per split; returns its features."""
    features = features or {"image": PICTURE, "mask": MASK, "file_name": NAME}

    class Roads(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = ()

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Roads.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            label = Image.fromarray(np.resize(np.array(ids, np.uint8), SHAPE))
            for index in range(count):
                picture = Image.fromarray(np.full((*SHAPE, 3), index, np.uint8))
                values = {
                    name: (label if feature.shape[-1] == 1 else picture)
                    if isinstance(feature, tfds.features.Image)
                    else index
                    if not isinstance(feature, tfds.features.Text)
                    else f"frame {index}"
                    for name, feature in features.items()
                }
                yield index, values

    builder = Roads(data_dir=data_dir, file_format=FORMAT)
    builder.download_and_prepare(file_format=FORMAT)


def first_ids(source):
    return source.label(0).ravel()[:4].tolist()


def test_an_image_and_a_label_map_need_no_options(tmp_path):
    prepare(tmp_path)
    data = open_dataset("tfds:roads", data_dir=tmp_path)
    assert data.class_names == ("class 0", "class 1", "class 2")
    for source in (data.train, data.val):
        assert len(source) == 2
        assert first_ids(source) == [0, 1, 2, 255]
        assert source.name(1) == "frame 1"
        assert source.size(1) == SHAPE
        np.testing.assert_array_equal(source[1]["image"], np.full((*SHAPE, 3), 1))
    notes = " ".join(data.notes)
    assert "pictures are image, label maps are mask, names are file_name" in notes
    assert "names no classes" in notes


def test_classes_are_named_by_the_feature_unless_options_do(tmp_path):
    prepare(tmp_path, image=PICTURE, mask=NAMED)
    names = {
        "feature": open_dataset("tfds:roads", data_dir=tmp_path).class_names,
        "class_names": open_dataset(
            "tfds:roads", data_dir=tmp_path, class_names=("a", "b", "c")
        ).class_names,
    }
    assert names == {"feature": ("sky", "road", "car"), "class_names": ("a", "b", "c")}
    data = open_dataset("tfds:roads", data_dir=tmp_path, labels="2=car,0=rest,1=rest")
    assert data.class_names == ("car", "rest")
    assert first_ids(data.val) == [1, 1, 0, 255]


def test_a_label_map_that_knows_how_many_classes_there_are(tmp_path):
    mask = tfds.features.LabeledImage(labels=5, shape=(None, None, 1))
    prepare(tmp_path, image=PICTURE, mask=mask)
    data = open_dataset("tfds:roads", data_dir=tmp_path)
    assert data.class_names == tuple(f"class {i}" for i in range(5))


@pytest.mark.parametrize(
    ("features", "options", "words"),
    [
        ({"image": PICTURE, "mask": NAMED}, {}, "(7): these labels are not listed in the feature"),
        ({"image": PICTURE, "mask": MASK}, {}, "0=background,1=class_1,7=class_7"),
        ({"image": PICTURE, "mask": MASK}, {"class_names": ("a", "b")}, "none of the 2 classes"),
        ({"image": PICTURE, "mask": MASK}, {"labels": "0=a,1=b"}, "train[0] (7), train[1] (7)"),
    ],
)
def test_ids_that_are_no_class_are_refused(tmp_path, features, options, words):
    prepare(tmp_path, ids=(0, 1, 7, 255), **features)
    with pytest.raises(DataError) as error:
        open_dataset("tfds:roads", data_dir=tmp_path, **options)
    assert words in str(error.value)
    assert "classes.txt" not in str(error.value)


def test_keys_choose_among_several_features(tmp_path):
    features = {"left": PICTURE, "right": PICTURE, "mask": MASK, "number": np.int64}
    prepare(
        tmp_path,
        **{n: tfds.features.Scalar(f) if f is np.int64 else f for n, f in features.items()},
    )
    with pytest.raises(DataError) as error:
        open_dataset("tfds:roads", data_dir=tmp_path)
    for word in ("--data.keys", *features):
        assert word in str(error.value)
    data = open_dataset("tfds:roads", data_dir=tmp_path, keys="right, mask, number")
    assert [data.train.name(i) for i in range(2)] == ["0", "1"]
    data = open_dataset("tfds:roads", data_dir=tmp_path, keys="left,mask")
    assert [data.val.name(i) for i in range(2)] == ["validation[0]", "validation[1]"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("image", "must be IMAGE,LABEL"),
        ("image,mask,file_name,more", "must be IMAGE,LABEL"),
        ("image,masks", "no feature 'masks'"),
        ("image,file_name", "file_name is not an image"),
        ("image,image", "image has 3 channels: a label map has one"),
        ("image,mask,mask", "mask is neither text nor a number"),
    ],
)
def test_keys_that_do_not_fit_list_the_features(tmp_path, keys, words):
    prepare(tmp_path)
    with pytest.raises(DataError) as error:
        open_dataset("tfds:roads", data_dir=tmp_path, keys=keys)
    assert words in str(error.value)
    assert "file_name: Text" in str(error.value)


def test_names_that_occur_twice_hide_no_label_map(tmp_path):
    prepare(tmp_path, ids=(0, 1, 9), count=3)
    with pytest.raises(DataError, match=r"frame 0 \(9\).*frame 0 \(validation\[0\]\) \(9\)"):
        open_dataset("tfds:roads", data_dir=tmp_path, labels="0=a,1=b")


# ---------------------------------------------------------------------------- splits and versions


@pytest.mark.parametrize(
    ("splits", "count", "expected", "note"),
    [
        (("train", "test"), 2, (2, 2), "The split for validation is test."),
        (("train", "test", "validation"), 2, (2, 2), ""),
        (("train",), 21, (19, 2), "2 of 21 examples of train are held out"),
        (("train",), 3, (2, 1), "1 of 3 examples of train are held out"),
    ],
)
def test_validation_is_a_split_or_is_held_out(tmp_path, splits, count, expected, note):
    prepare(tmp_path, splits=splits, count=count)
    data = open_dataset("tfds:roads", data_dir=tmp_path)
    assert (len(data.train), len(data.val)) == expected
    names = [source.name(i) for source in (data.train, data.val) for i in range(len(source))]
    if len(splits) == 1:
        assert len({*names}) == count
    assert note in " ".join(data.notes)
    assert ("The split" in " ".join(data.notes)) == ("The split" in note)


@pytest.mark.parametrize(("splits", "count"), [(("test",), 2), (("train",), 1)])
def test_too_little_to_train_on_is_an_error(tmp_path, splits, count):
    prepare(tmp_path, splits=splits, count=count)
    with pytest.raises(DataError, match=r"must have a split train|need an example each"):
        open_dataset("tfds:roads", data_dir=tmp_path)


def test_a_config_and_a_version_are_found(tmp_path):
    prepare(tmp_path)
    (tmp_path / "roads" / "1.0.0").rename(tmp_path / "moved")
    (tmp_path / "roads" / "night").mkdir()
    (tmp_path / "moved").rename(tmp_path / "roads" / "night" / "1.0.0")
    for name in ("roads/night", "roads/night:1.0.0"):
        assert open_dataset(f"tfds:{name}", data_dir=tmp_path).name == f"tfds:{name}"
    for name in ("roads", "roads:1.0.0", "roads/night:2.0.0", "streets"):
        with pytest.raises(DataError, match=r"Prepared there:\n  tfds:roads/night:1\.0\.0"):
            open_dataset(f"tfds:{name}", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["", "../roads", "roads:latest", "a/b/c"])
def test_what_names_no_data_set_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"must be tfds:NAME\[/CONFIG\]\[:VERSION\]"):
        open_dataset(f"tfds:{name}", data_dir=tmp_path)


def test_a_data_set_in_another_format_or_damaged_says_so(tmp_path):
    prepare(tmp_path)
    file = tmp_path / "roads" / "1.0.0" / "dataset_info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"fileFormat": "parquet"}))
    with pytest.raises(DataError, match="array_record or tfrecord, got parquet"):
        open_dataset("tfds:roads", data_dir=tmp_path)
    file.write_text("{}")
    with pytest.raises(DataError, match="not a data set that TFDS can read"):
        open_dataset("tfds:roads", data_dir=tmp_path)


def test_keys_are_for_records_alone(tmp_path):
    for name in (f"folder:{tmp_path}", "camvid"):
        with pytest.raises(DataError, match="keys can be given for tfds:, hf:, webdataset: only"):
            open_dataset(name, data_dir=tmp_path, keys="image,mask")


# ---------------------------------------------------------------------------- commands


def test_the_data_command_shows_it(tmp_path, capsys):
    prepare(tmp_path / "data", image=PICTURE, mask=NAMED)
    sheet = tmp_path / "sheet.png"
    assert data_command("tfds:roads", data_dir=tmp_path / "data", sheet=sheet) == 0
    printed = capsys.readouterr().out
    assert "2 examples, all 8 x 6" in printed
    assert "road" in printed
    assert sheet.exists()


def test_bad_keys_end_the_command_with_status_2(tmp_path, monkeypatch, capsys):
    prepare(tmp_path)
    words = ["data", "tfds:roads", "--data-dir", str(tmp_path), "--keys", "image,masks"]
    monkeypatch.setattr("sys.argv", ["deeplab-train", *words])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert "no feature 'masks'" in capsys.readouterr().err


def test_a_model_is_evaluated_on_what_it_was_trained_on(tmp_path):
    prepare(tmp_path, image=PICTURE, other=PICTURE, mask=MASK)
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    trained = {"name": "tfds:roads", "labels": "2=car,0=rest,1=rest", "keys": "other,mask"}
    (run / "config.json").write_text(json.dumps({"data": trained}))
    data = open_for_model("tfds:roads", tmp_path, None, None, run / "model", ("car", "rest"))
    assert data.class_names == ("car", "rest")
    assert first_ids(data.val) == [1, 1, 0, 255]
    assert data.notes[0] == "Ids are the classes that they were in training: 2=car,0=rest,1=rest."
    other = open_for_model("tfds:roads", tmp_path, "0=a,1=b,2=c", "image,mask", run / "model", None)
    assert other.class_names == ("a", "b", "c")


def test_keys_are_part_of_a_runs_config():
    assert TrainConfig(data=DataConfig("tfds:roads", keys="image,mask")).data.keys == "image,mask"
