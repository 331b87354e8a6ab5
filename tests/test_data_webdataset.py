"""WebDataset's tar files: pairs by their endings, splits by the names of the tars, and what is wrong."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from train.data import DataError, open_dataset
from train.data.webdataset import expand
from train.data_command import data_command

SHAPE = (6, 8)


def encoded(pixels, form):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def picture(index, form="PNG"):
    return encoded(np.full((*SHAPE, 3), index, np.uint8), form)


def label_map(ids=(0, 1, 2, 255)):
    return encoded(np.resize(np.array(ids, np.uint8), SHAPE), "PNG")


def pair(index, key=None, image="jpg", label="seg.png"):
    """The members of an example whose picture is known by its grey."""
    form = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}[image.lower()]
    key = key or f"{index:03d}"
    return {f"{key}.{image}": picture(index, form), f"{key}.{label}": label_map()}


def tar(path, *members, form=tarfile.GNU_FORMAT):
    """Writes a tar of dicts of names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as out:
        for name, data in (item for each in members for item in each.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def roads(folder, splits=("train", "val"), count=3):
    for split in splits:
        for shard in range(2):
            examples = [pair(10 * shard + i, f"a/{shard}{i}") for i in range(count)]
            tar(folder / f"{split}-{shard:03d}.tar", *examples)
    return folder


def test_examples_are_read_from_the_tars_in_any_order(tmp_path):
    data = open_dataset(f"webdataset:{roads(tmp_path)}")
    assert data.class_names == ("class 0", "class 1", "class 2")
    for source in (data.train, pickle.loads(pickle.dumps(data.val))):
        assert len(source) == 6
        for index, grey in ((5, 12), (0, 0), (3, 10), (4, 11)):
            example = source[index]
            np.testing.assert_array_equal(example["image"], np.full((*SHAPE, 3), grey))
            assert example["label"][0, :4].tolist() == [0, 1, 2, 255]
        assert source.size(2) == SHAPE
    assert data.val.name(4) == "val-001.tar/a/11.jpg"
    assert data.notes[0] == "Read from 2 tar files for train, 2 tar files for val."
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"{split}-00{n}.tar" for split in ("train", "val") for n in range(2))
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{train,val}-{000..001}.tar", (6, 6)),
        ("{train-{000..001},val-000}.tar", (6, 3)),
        ("train-{000..001}.tar", (5, 1)),
        ("train-001.tar", (2, 1)),
    ],
)
def test_braces_are_what_a_shell_makes_of_them(tmp_path, pattern, expected):
    data = open_dataset(f"webdataset:{roads(tmp_path)}/{pattern}")
    assert (len(data.train), len(data.val)) == expected


def test_nested_braces_give_each_path_once():
    assert expand("{t-{08..10},v}.tar") == ["t-08.tar", "v.tar", "t-09.tar", "t-10.tar"]


def test_folders_name_splits_too_and_classes_are_beside_the_tars(tmp_path):
    for split in ("training", "valid", "test"):
        tar(tmp_path / split / "0.tar", pair(1))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    data = open_dataset(f"webdataset:{tmp_path}")
    assert data.val.name(0) == "valid/0.tar/001.jpg"
    assert data.class_names == ("sky", "road", "car")
    data = open_dataset(f"webdataset:{tmp_path}", labels="0=rest,1=rest,2=car")
    assert data.train.label(0)[0, :4].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("jpeg", "mask.png"),
        ("webp", "label.png"),
        ("png", "seg.png"),
        ("jpg", "png"),
        ("JPG", "PNG"),
    ],
)
def test_endings_that_make_a_pair(tmp_path, image, label):
    rest = {"001.json": b"{}", "001.txt": b"a road", "._001.jpg": b"of a Mac", "README": b""}
    for split in ("train", "val"):
        tar(tmp_path / f"{split}.tar", pair(1, image=image, label=label), rest)
    data = open_dataset(f"webdataset:{tmp_path}")
    assert len(data.train) == 1
    np.testing.assert_array_equal(data.train[0]["image"], np.full((*SHAPE, 3), 1))


def test_long_and_hostile_names_are_names_and_no_paths(tmp_path):
    outside = tmp_path / "outside"
    for form, split in ((tarfile.PAX_FORMAT, "train"), (tarfile.GNU_FORMAT, "val")):
        keys = ("../outside", f"{outside}", f"{'long/' * 60}0", "\u00e9t\u00e9")
        tar(tmp_path / "data" / f"{split}.tar", *(pair(1, key) for key in keys), form=form)
    data = open_dataset(f"webdataset:{tmp_path / 'data'}")
    assert data.train.name(0) == "train.tar/../outside.jpg"
    assert len(data.train) == len(data.val) == 4
    for index in range(4):
        np.testing.assert_array_equal(data.train[index]["image"], data.val[index]["image"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# ---------------------------------------------------------------------------- what is wrong


def test_members_without_their_other_half_are_listed(tmp_path):
    more = {f"x{n}.jpg": picture(1, "JPEG") for n in range(7)}
    tar(tmp_path / "train.tar", pair(1), more, {"y.mask.png": label_map()})
    tar(tmp_path / "val.tar", pair(2))
    with pytest.raises(DataError) as error:
        open_dataset(f"webdataset:{tmp_path}")
    assert "train.tar: x0, x1, x2, x3, x4 and 2 more: no label map" in str(error.value)
    assert "train.tar: y: no picture" in str(error.value)


def test_of_several_pictures_or_label_maps_keys_choose(tmp_path):
    other = label_map((2, 2, 1, 1))
    for split in ("train", "val"):
        tar(tmp_path / f"{split}.tar", pair(1), {"001.mask.png": other})
    with pytest.raises(DataError, match=r"001 \(001.jpg, 001.seg.png, 001.mask.png\): several"):
        open_dataset(f"webdataset:{tmp_path}")
    data = open_dataset(f"webdataset:{tmp_path}", keys="jpg, .mask.png", labels="1=a,2=b")
    assert data.train.label(0)[0, :4].tolist() == [1, 1, 0, 0]
    with pytest.raises(DataError, match="keys of tars must be two endings"):
        open_dataset(f"webdataset:{tmp_path}", keys="jpg")
    for split in ("train", "val"):
        tar(tmp_path / f"{split}.tar", pair(1), pair(2, "001"))
    with pytest.raises(DataError, match="several pictures or label maps"):
        open_dataset(f"webdataset:{tmp_path}")


def test_compressed_tars_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "train.tar.gz"
    roads(tmp_path)
    path.write_bytes(gzip.compress((tmp_path / "train-000.tar").read_bytes()))
    with pytest.raises(DataError, match=r"train.tar.gz is compressed.*: gunzip it"):
        open_dataset(f"webdataset:{tmp_path}")


@pytest.mark.parametrize("damage", ["cut in a member", "cut in a header", "a bad header", "two"])
def test_damaged_tars_are_errors_and_lose_nothing_in_silence(tmp_path, damage):
    path = roads(tmp_path) / "train-001.tar"
    data = path.read_bytes()
    with tarfile.open(path) as opened:
        last = opened.getmembers()[-1]
    if damage == "cut in a member":
        data = data[: last.offset_data + 10]
    elif damage == "cut in a header":
        data = data[: last.offset + 100]
    elif damage == "a bad header":
        data = data[: last.offset + 150] + b"\xff" + data[last.offset + 151 :]
    else:
        data += data
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-001\.tar is damaged"):
        open_dataset(f"webdataset:{tmp_path}")


def test_a_tar_that_changes_while_it_is_read_names_the_example(tmp_path):
    data = open_dataset(f"webdataset:{roads(tmp_path)}")
    (tmp_path / "train-000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000\.tar/a/00\.jpg cannot be read"):
        data.train[0]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("none", "no such folder"),
        ("train-{000..002}.tar", r"not there:\n  .*train-002\.tar$"),
        ("train-{002..000}.tar", r"the range 002\.\.000 has no number"),
        ("empty", r"has no tar files; .* folder:PATH"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, pattern, words):
    roads(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        open_dataset(f"webdataset:{tmp_path}/{pattern}")


def test_the_data_command_shows_it(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert data_command(f"webdataset:{roads(tmp_path / 'data')}", sheet=sheet) == 0
    assert "6 examples, all 8 x 6" in capsys.readouterr().out
    assert sheet.exists()
