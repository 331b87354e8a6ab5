"""Data sets of Hugging Face: saved to disk, in parquet, of the Hub; their columns, splits and classes."""

import json
import pickle
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from train.data import DataError, descriptions, open_dataset
from train.data.dataset import class_frequencies
from train.data_command import data_command
from train.evaluate_command import open_for_model

SHAPE = (6, 8)
PICTURE = datasets.Image()
IDS = datasets.List(datasets.List(datasets.Value("int32")))
NAMED_IDS = datasets.List(datasets.List(datasets.ClassLabel(names=["sky", "road", "car"])))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(index):
    return Image.fromarray(np.full((*SHAPE, 3), index, np.uint8))


def label_map(ids=(0, 1, 2, 255)):
    return np.resize(np.array(ids, np.uint8), SHAPE)


def rows(count=3, ids=(0, 1, 2, 255), **features):
    """A split whose pictures are known by their grey, and whose label maps are all the same."""
    features = features or {"image": PICTURE, "label": PICTURE}
    label = label_map(ids)

    def values(name, feature):
        if feature == PICTURE:
            grey = name.casefold().startswith(("image", "pixel", "left"))
            return [picture(i) if grey else Image.fromarray(label) for i in range(count)]
        if feature == datasets.Value("string"):
            return [f"frame {i}" for i in range(count)]
        return [0] * count if feature == datasets.Value("int64") else [label.tolist()] * count

    columns = {name: values(name, feature) for name, feature in features.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def save(folder, splits=("train", "validation"), **options):
    datasets.DatasetDict({split: rows(**options) for split in splits}).save_to_disk(folder)
    return f"hf:{folder}"


def first_ids(source):
    return source.label(0).ravel()[:4].tolist()


def test_what_was_saved_to_disk_is_read_where_it_is(tmp_path):
    data = open_dataset(save(tmp_path / "data"))
    assert data.class_names == ("class 0", "class 1", "class 2")
    for source in (data.train, pickle.loads(pickle.dumps(data.val))):
        assert len(source) == 3
        assert first_ids(source) == [0, 1, 2, 255]
        assert source.size(1) == SHAPE
        for index in (2, 0, 1):
            np.testing.assert_array_equal(source[index]["image"], np.asarray(picture(index)))
    assert data.val.name(1) == "validation[1]"
    assert "pictures are image, label maps are label." in data.notes[0]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-0", "data/val-0"),
            6,
        ),
        (("train/0", "validation/0", "validation/1"), 3),
    ],
)
def test_parquet_files_are_of_the_split_that_their_path_names(tmp_path, files, expected):
    for number, file in enumerate(files):
        path = tmp_path / "roads" / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows(2 if "val" in file and not number % 2 else 3).to_parquet(path)
    data = open_dataset(f"hf:{tmp_path / 'roads'}")
    assert len(data.train) == expected
    assert len(data.val) == {6: 3, 3: 5}[expected]
    np.testing.assert_array_equal(data.train[2]["image"], np.asarray(picture(2)))


def test_parquet_that_knows_of_no_pictures_is_read_too(tmp_path):
    table = rows().cast_column("image", datasets.Image(decode=False))
    table = table.cast_column("label", datasets.Image(decode=False))
    plain = {
        "image": [row["bytes"] for row in table["image"]],
        "label": [row["bytes"] for row in table["label"]],
    }
    datasets.Dataset.from_dict(plain).to_parquet(tmp_path / "0.parquet")
    data = open_dataset(f"hf:{tmp_path}")
    assert (len(data.train), len(data.val)) == (2, 1)
    assert "1 of 3 examples of train are held out" in " ".join(data.notes)


def test_one_split_alone_is_for_training(tmp_path):
    rows(count=4).save_to_disk(tmp_path / "data")
    assert len(open_dataset(f"hf:{tmp_path / 'data'}").train) == 3


# ---------------------------------------------------------------------------- columns


def test_columns_are_found_by_name_and_names_by_theirs(tmp_path):
    text = datasets.Value("string")
    name = save(
        tmp_path / "data", pixel_values=PICTURE, semantic_segmentation=PICTURE, file_name=text
    )
    data = open_dataset(name)
    assert data.train.name(1) == "frame 1"
    assert "label maps are semantic_segmentation, names are file_name" in data.notes[0]
    capitals = open_dataset(save(tmp_path / "other", Image=PICTURE, Mask=PICTURE))
    assert "pictures are Image, label maps are Mask." in capitals.notes[0]


def test_several_candidates_or_none_list_the_columns_and_keys_choose(tmp_path):
    name = save(
        tmp_path / "data",
        image=PICTURE,
        left=PICTURE,
        mask=PICTURE,
        label=PICTURE,
        weather=IDS,
    )
    with pytest.raises(DataError) as error:
        open_dataset(name)
    for word in ("--data.keys", "mask, label may be", "left: Image(", "weather: List("):
        assert word in str(error.value)
    data = open_dataset(name, keys="left, mask")
    assert first_ids(data.train) == [0, 1, 2, 255]
    for keys, words in {
        "left,masks": "no feature 'masks'",
        "weather,mask": "weather has no pictures",
        "left,mask,weather": "weather is neither text nor a number",
    }.items():
        with pytest.raises(DataError, match=words):
            open_dataset(name, keys=keys)
    with pytest.raises(DataError, match="none may be the picture and none may be the label map"):
        open_dataset(save(tmp_path / "other", left=PICTURE, what=datasets.Value("int64")))


@pytest.mark.parametrize(
    "ids", [NAMED_IDS, datasets.Array2D(SHAPE, "uint8")], ids=["list", "array"]
)
def test_a_label_map_may_be_an_array(tmp_path, ids):
    data = open_dataset(save(tmp_path / "data", ids=(0, 1, 2), image=PICTURE, mask=ids))
    np.testing.assert_array_equal(data.train[0]["label"], label_map((0, 1, 2)))
    named = ids is NAMED_IDS
    assert data.class_names == (
        ("sky", "road", "car") if named else ("class 0", "class 1", "class 2")
    )


def test_a_row_without_a_picture_is_named(tmp_path):
    features = datasets.Features({"image": PICTURE, "label": PICTURE})
    label = Image.fromarray(label_map())
    table = datasets.Dataset.from_dict(
        {"image": [picture(0), None, picture(2)], "label": [label] * 3}, features=features
    )
    table.save_to_disk(tmp_path / "data")
    with pytest.raises(DataError, match=r"train\[1\] cannot be read: there is nothing in this row"):
        open_dataset(f"hf:{tmp_path / 'data'}")


# ---------------------------------------------------------------------------- classes


def test_classes_are_named_beside_the_data(tmp_path):
    name = save(tmp_path / "data")
    listed = {"0": "sky", "1": "road", "2": "car"}
    (tmp_path / "data" / "id2label.json").write_text(json.dumps(listed))
    assert open_dataset(name).class_names == ("sky", "road", "car")
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\n")
    assert open_dataset(name).class_names == ("a", "b", "c")
    data = open_dataset(name, labels="0=rest,1=rest,2=car")
    assert data.class_names == ("rest", "car")
    np.testing.assert_array_equal(class_frequencies(data.train, 2), [72, 36])


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ('{"0": "sky", "1": "road"}', r"\(2\).*not listed in id2label.json"),
        ("[1, 2]", "must be JSON of ids and names"),
        ('{"sky": "0"}', "must be JSON of ids and names"),
        ("{}", "it is empty"),
    ],
)
def test_an_id2label_that_does_not_fit_is_an_error(tmp_path, listed, words):
    name = save(tmp_path / "data")
    (tmp_path / "data" / "id2label.json").write_text(listed)
    with pytest.raises(DataError, match=words):
        open_dataset(name)


# ---------------------------------------------------------------------------- what cannot be had


def test_a_data_set_of_the_hub_is_asked_for_by_name_and_config(tmp_path, monkeypatch):
    from train.data import huggingface

    asked = []

    def load(name, config):
        asked.append((name, config))
        return datasets.DatasetDict({"train": rows(), "test": rows()})

    def listed(dataset, file, repo_type):
        path = tmp_path / file
        path.write_text('{"0": "sky", "1": "road", "2": "car"}')
        asked.append((dataset, file, repo_type))
        return str(path)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface.huggingface_hub, "hf_hub_download", listed)
    data = open_dataset("hf:org/roads:night")
    assert asked == [("org/roads", "night"), ("org/roads", "id2label.json", "dataset")]
    assert data.class_names == ("sky", "road", "car")
    assert "The split for validation is test." in data.notes


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Couldn't reach the Hub"), "go online once .* hf:PATH"),
        (datasets.exceptions.DatasetNotFoundError("no"), "no data set on the Hub .*hf auth login"),
        (RuntimeError("Dataset scripts are no longer supported"), "saved with save_to_disk"),
        (ValueError("Config name is missing."), "hf:ORG/NAME:CONFIG"),
    ],
)
def test_what_the_hub_does_not_give_is_said_with_the_way_out(monkeypatch, error, words):
    def load(name, config):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=words):
        open_dataset("hf:org/roads")


def test_folders_and_names_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(f"hf:{tmp_path / 'none'}")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"have parquet files; .* folder:PATH"):
        open_dataset(f"hf:{tmp_path / 'pictures'}")
    (tmp_path / "pictures" / "0.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"the parquet files in .* cannot be read"):
        open_dataset(f"hf:{tmp_path / 'pictures'}")
    with pytest.raises(DataError, match=r"must be hf:ORG/NAME\[:CONFIG\]"):
        open_dataset("hf:a/b/c")


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "train.data.huggingface", None)
    with pytest.raises(DataError, match=r"pip install 'deeplab-jax\[datasets\]'"):
        descriptions.open_dataset("hf:org/roads")


# ---------------------------------------------------------------------------- commands


def test_the_data_command_shows_it(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert data_command(save(tmp_path / "data"), class_names=("a", "b", "c"), sheet=sheet) == 0
    assert "3 examples, all 8 x 6" in capsys.readouterr().out
    assert sheet.exists()


def test_a_model_is_evaluated_on_what_it_was_trained_on(tmp_path):
    name = save(tmp_path / "data", image=PICTURE, left=PICTURE, mask=PICTURE)
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    trained = {"name": name, "labels": "2=car,0=rest,1=rest", "keys": "left,mask"}
    (run / "config.json").write_text(json.dumps({"data": trained}))
    data = open_for_model(name, None, None, None, run / "model", ("car", "rest"))
    assert data.class_names == ("car", "rest")
    assert first_ids(data.val) == [1, 1, 0, 255]
