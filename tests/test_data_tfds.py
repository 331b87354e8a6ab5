"""Prepared data sets: our builders on small copies of the real folders, and both of TFDS's formats."""

import contextlib
import errno
import gzip
import importlib
import json
import pickle
import struct
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image
from scipy.io import savemat

from train.data import DataError, augment, open_dataset
from train.data import prepare as preparing
from train.data import unpack as unpacking
from train.data.augment import AugmentConfig
from train.data.builders.shapes import SIZE, draw
from train.data.dataset import class_frequencies
from train.data.descriptions import DESCRIPTIONS
from train.data_command import data_command, prepare_command

SHAPE = (6, 8)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr("train.data.builders.shapes.EXAMPLES", {"train": 9, "validation": 4})


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SHAPE, 3), np.uint8)).save(path)


def label_map(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(ids, np.uint8), SHAPE)).save(path)


def names(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def labels(source, index=0):
    """The first ids of a label map."""
    return source.label(index).ravel()[:4].tolist()


# ---------------------------------------------------------------------------- shapes


def test_shapes_are_drawn_when_first_opened_and_kept(tmp_path, capfd, monkeypatch):
    data = open_dataset("shapes", data_dir=tmp_path)
    assert (len(data.train), len(data.val), data.num_classes) == (9, 4, 6)
    assert [source.name(3) for source in (data.train, data.val)] == [
        "train_0003",
        "validation_0003",
    ]
    for source, seed in ((data.train, 0), (data.val, 1)):
        image, label = draw(np.random.default_rng((seed, 3)))
        np.testing.assert_array_equal(source[3]["image"], image)
        np.testing.assert_array_equal(source[3]["label"], label)
        np.testing.assert_array_equal(source.label(3), label)
        assert source.size(3) == SIZE
    assert "ownload" not in "".join(capfd.readouterr())
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    monkeypatch.setattr(preparing, "prepare", None)  # not called again
    assert open_dataset("shapes", data_dir=tmp_path).train.name(0) == "train_0000"


def test_all_classes_of_shapes_are_common_enough_to_be_learnt():
    counts = sum(
        np.bincount(draw(np.random.default_rng(seed))[1].ravel(), minlength=6) for seed in range(60)
    )
    share = counts / counts.sum()
    assert 0.6 < share[0] < 0.9
    assert share[1:].min() > 0.02


def test_processes_that_prepare_at_once_end_with_one_whole_data_set(tmp_path, monkeypatch):
    found = []
    start = threading.Barrier(2)
    rename = preparing.os.rename

    def both_at_once(*paths):
        if paths[1] == tmp_path / "shapes" / "1.0.0":
            start.wait()
        rename(*paths)

    monkeypatch.setattr(preparing.os, "rename", both_at_once)
    threads = [
        threading.Thread(target=lambda: found.append(preparing.prepare("shapes.Shapes", tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "shapes" / "1.0.0"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert len(open_dataset("shapes", data_dir=tmp_path).train) == 9


# ---------------------------------------------------------------------------- reading


def to_tfrecord(folder, shards):
    """Rewrites a prepared data set as TFDS with TensorFlow would have: tfrecord, in several files."""
    file = folder / "dataset_info.json"
    info = json.loads(file.read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        (old,) = folder.glob(f"*-{split['name']}.array_record-*")
        records = ArrayRecordDataSource([old])
        parts = np.array_split(np.arange(len(records)), shards)
        split["shardLengths"] = [str(len(part)) for part in parts]
        for number, part in enumerate(parts):
            new = f"{info['name']}-{split['name']}.tfrecord-{number:05d}-of-{shards:05d}"
            with (folder / new).open("wb") as out:
                for index in part.tolist():
                    data = records[index]
                    out.write(struct.pack("<QI", len(data), 0) + data + struct.pack("<I", 0))
        old.unlink()
    file.write_text(json.dumps(info))


def test_tfrecord_files_give_what_array_record_files_give(tmp_path):
    data = open_dataset("shapes", data_dir=tmp_path)
    expected = [data.train[i] for i in range(9)]
    to_tfrecord(tmp_path / "shapes" / "1.0.0", shards=3)
    train = open_dataset("shapes", data_dir=tmp_path).train
    assert len(train) == 9
    for source in (train, pickle.loads(pickle.dumps(train))):
        for index in (8, 0, 5, 3, 1, 2, 4, 6, 7):
            np.testing.assert_array_equal(source[index]["image"], expected[index]["image"])
            np.testing.assert_array_equal(source[index]["label"], expected[index]["label"])
            assert source.name(index) == f"train_{index:04d}"


def test_a_tfrecord_file_that_is_cut_off_is_an_error(tmp_path):
    open_dataset("shapes", data_dir=tmp_path)
    to_tfrecord(tmp_path / "shapes" / "1.0.0", shards=1)
    (file,) = tmp_path.glob("shapes/1.0.0/*-train.tfrecord-*")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="cut off"):
        open_dataset("shapes", data_dir=tmp_path)


def test_sources_pickle_and_are_read_from_many_threads(tmp_path):
    train = open_dataset("shapes", data_dir=tmp_path).train
    expected = class_frequencies(train, 6)
    np.testing.assert_array_equal(class_frequencies(pickle.loads(pickle.dumps(train)), 6), expected)


def test_the_newest_version_is_read(tmp_path):
    open_dataset("shapes", data_dir=tmp_path)
    old, new = (tmp_path / "shapes" / version for version in ("9.0.0", "10.0.0"))
    (tmp_path / "shapes" / "1.0.0").rename(new)
    old.mkdir()
    (old / "dataset_info.json").write_text("{}")
    assert len(open_dataset("shapes", data_dir=tmp_path).train) == 9


# ---------------------------------------------------------------------------- builders


def camvid_segnet(root):
    for split in ("train", "val", "test"):
        picture(root / f"CamVid/{split}/0001.png")
        label_map(root / f"CamVid/{split}annot/0001.png", (0, 3, 10, 11))
    return [0, 3, 10, 255]


def camvid_folders(root):
    for split in ("train", "val"):
        picture(root / f"{split}/images/0001.jpg")
        label_map(root / f"{split}/labels/0001.png", (0, 3, 10, 255))
    return [0, 3, 10, 255]


def voc(root):
    voc = root / "VOCdevkit/VOC2012"
    for name in ("2007_000032", "2007_000033", "2008_000001", "2008_000002"):
        picture(voc / f"JPEGImages/{name}.jpg")
    for name in ("2007_000032", "2007_000033"):
        label_map(voc / f"SegmentationClass/{name}.png", (0, 15, 20, 255))
    names(voc / "ImageSets/Segmentation/train.txt", "2007_000032")
    names(voc / "ImageSets/Segmentation/val.txt", "2007_000033")
    return [0, 15, 20, 255]


def ade20k(root):
    for split in ("training", "validation"):
        picture(root / f"ADEChallengeData2016/images/{split}/ADE_1.jpg")
        label_map(root / f"ADEChallengeData2016/annotations/{split}/ADE_1.png", (0, 1, 2, 150))
    return [255, 0, 1, 149]


def coco_stuff(root):
    for split in ("train2017", "val2017"):
        picture(root / f"{split}/000000000009.jpg")
        label_map(root / f"stuffthingmaps/{split}/000000000009.png", (0, 12, 181, 255))
    return [0, 11, 170, 255]


def cityscapes(root):
    for split in ("train", "val"):
        picture(root / f"leftImg8bit/{split}/ulm/ulm_000000_000019_leftImg8bit.png")
        label_map(
            root / f"gtFine/{split}/ulm/ulm_000000_000019_gtFine_labelIds.png", (0, 7, 33, 29)
        )
    return [255, 0, 18, 255]


def pets(root):
    for name in ("Abyssinian_1", "beagle_2"):
        picture(root / f"images/{name}.jpg")
        label_map(root / f"annotations/trimaps/{name}.png", (1, 2, 3, 1))
    names(root / "annotations/trainval.txt", "Abyssinian_1 1 1 1")
    names(root / "annotations/test.txt", "beagle_2 5 2 1")
    return [1, 0, 255, 1]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("camvid", camvid_segnet),
        ("camvid", camvid_folders),
        ("voc2012", voc),
        ("ade20k", ade20k),
        ("coco_stuff", coco_stuff),
        ("cityscapes", cityscapes),
        ("oxford_iiit_pet", pets),
    ],
)
def test_builders_prepare_what_opens_under_their_name(tmp_path, name, make):
    expected = make(tmp_path / "raw")
    assert prepare_command(name, source=(tmp_path / "raw",), data_dir=tmp_path / "data") == 0
    data = open_dataset(name, data_dir=tmp_path / "data")
    assert data.class_names == DESCRIPTIONS[name].class_names
    for source in (data.train, data.val):
        assert len(source) == 1
        assert labels(source) == expected
        assert source[0]["image"].shape == (*SHAPE, 3)
        assert source.name(0)
    with pytest.raises(DataError, match="already prepared"):
        prepare_command(name, source=(tmp_path / "raw",), data_dir=tmp_path / "data")


def test_the_border_of_pets_can_be_a_class(tmp_path):
    pets(tmp_path)
    prepare_command("oxford_iiit_pet", source=(tmp_path,), data_dir=tmp_path / "data")
    data = open_dataset("oxford_iiit_pet_trimap", data_dir=tmp_path / "data")
    assert data.class_names == ("pet", "background", "border")
    assert labels(data.train) == [0, 1, 2, 0]


def test_trainaug_is_voc_s_train_and_sbd_s_without_voc_s_val(tmp_path):
    voc(tmp_path / "raw")
    folder = tmp_path / "raw/benchmark_RELEASE/dataset/cls"
    folder.mkdir(parents=True)
    for name in ("2007_000032", "2007_000033", "2008_000001", "2008_000002"):
        ids = np.resize(np.array([5, 6], np.uint8), SHAPE)
        savemat(folder / f"{name}.mat", {"GTcls": {"Segmentation": ids, "Boundaries": ids}})
    prepare_command("voc2012_aug", source=(tmp_path / "raw",), data_dir=tmp_path / "data")
    train = open_dataset("voc2012_aug", data_dir=tmp_path / "data").train
    assert [train.name(i) for i in range(3)] == ["2007_000032", "2008_000001", "2008_000002"]
    assert [labels(train, i) for i in range(3)] == [[0, 15, 20, 255], [5, 6, 5, 6], [5, 6, 5, 6]]
    assert len(open_dataset("voc2012", data_dir=tmp_path / "data").train) == 1


def test_trainaug_from_converted_label_maps(tmp_path):
    voc(tmp_path / "raw")
    for name in ("2007_000032", "2007_000033", "2008_000001"):
        label_map(tmp_path / f"raw/VOCdevkit/VOC2012/SegmentationClassAug/{name}.png", (1, 2))
    prepare_command("voc2012_aug", source=(tmp_path / "raw",), data_dir=tmp_path / "data")
    train = open_dataset("voc2012_aug", data_dir=tmp_path / "data").train
    assert [train.name(i) for i in range(len(train))] == ["2007_000032", "2008_000001"]


def test_a_split_that_was_not_prepared_says_so(tmp_path):
    voc(tmp_path / "raw")
    prepare_command("voc2012", source=(tmp_path / "raw",), data_dir=tmp_path / "data")
    with pytest.raises(DataError, match="without the split trainaug") as error:
        open_dataset("voc2012_aug", data_dir=tmp_path / "data")
    assert "deeplab-train prepare voc2012_aug --source" in str(error.value)


def test_archives_are_unpacked_and_not_left(tmp_path):
    pets(tmp_path / "raw")
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "raw/images", "images")
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as archive:
        for path in (tmp_path / "raw/annotations").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "raw"))
    sources = (tmp_path / "images.tar.gz", tmp_path / "annotations.zip")
    prepare_command("oxford_iiit_pet", source=sources, data_dir=tmp_path / "data")
    assert labels(open_dataset("oxford_iiit_pet", data_dir=tmp_path / "data").val) == [1, 0, 255, 1]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["oxford_iiit_pet"]


def test_what_is_missing_in_a_source_is_listed_and_nothing_is_left(tmp_path):
    voc(tmp_path / "raw")
    with pytest.raises(DataError, match="there is no") as error:
        prepare_command(
            "voc2012", source=(tmp_path / "a.tar", tmp_path / "b"), data_dir=tmp_path / "data"
        )
    assert "a.tar" in str(error.value)
    assert "/b" in str(error.value)
    for file in (tmp_path / "raw").rglob("2007_000032.*"):
        file.unlink()
    with pytest.raises(DataError, match="there is no") as error:
        prepare_command("voc2012", source=(tmp_path / "raw",), data_dir=tmp_path / "data")
    assert "2007_000032.jpg" in str(error.value)
    assert "2007_000032.png" in str(error.value)
    with pytest.raises(DataError, match="annotations/trimaps"):
        prepare_command("oxford_iiit_pet", source=(tmp_path / "raw",), data_dir=tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.rar"])
def test_a_file_that_is_no_whole_archive_is_an_error(tmp_path, name):
    voc(tmp_path / "raw")
    with tarfile.open(tmp_path / "whole", "w:gz") as archive:
        archive.add(tmp_path / "raw", "raw")
    (tmp_path / name).write_bytes((tmp_path / "whole").read_bytes()[:700])
    with pytest.raises(DataError, match="zip or tar archive, and whole"):
        prepare_command("voc2012", source=(tmp_path / name,), data_dir=tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def member(name, **fields):
    found = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(found, field, value)
    return found


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "through a link", "device"])
def test_an_archive_writes_nothing_outside(tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    members = {
        "parent": [member("../outside/made")],
        "absolute": [member(f"{outside}/made")],
        "link": [member("made", type=tarfile.SYMTYPE, linkname=f"{outside}/made")],
        "through a link": [
            member("link", type=tarfile.SYMTYPE, linkname="../outside"),
            member("link/made"),
        ],
        "device": [member("made", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    }[kind]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for info in members:
            archive.addfile(info)
    with contextlib.suppress(unpacking.ArchiveError):  # or what is absolute is taken as relative
        unpacking.unpack(tmp_path / "a.tar", tmp_path / "into")
    assert list(outside.iterdir()) == []
    assert not any(path.is_symlink() for path in (tmp_path / "into").rglob("*"))


def flip_bit(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def encrypted(path):
    """Marked as encrypted, which is all that is looked at."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    flip_bit(path, path.read_bytes().index(b"PK\x01\x02") + 8)


def of_unknown_compression(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    flip_bit(path, path.read_bytes().index(b"PK\x01\x02") + 10)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.txt", bytes(unpacking.ALWAYS_ALLOWED + 1))


def bomb_behind_the_end(path):
    """A tar of nothing, and zeros after it."""
    path.write_bytes(gzip.compress(bytes(2 * unpacking.ALWAYS_ALLOWED), 1))


def with_a_wrong_checksum(path):
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    flip_bit(path, -8)


def with_a_damaged_header(path):
    with tarfile.open(path, "w") as archive:
        for name in ("a.txt", "b.txt"):
            archive.addfile(tarfile.TarInfo(name))
    flip_bit(path, tarfile.BLOCKSIZE)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (encrypted, "a.zip", "is encrypted .*unpack it yourself and pass the folder"),
        (of_unknown_compression, "a.zip", "compressed in a way .* pass the folder"),
        (bomb, "a.zip", "100 times its size or 64 MiB.*unpack it yourself and pass the folder"),
        (bomb_behind_the_end, "a.tgz", "100 times its size or 64 MiB"),
        (with_a_wrong_checksum, "a.tgz", "and whole: CRC check failed"),
        (with_a_damaged_header, "a.tar", "and whole: a header is damaged: bad checksum"),
    ],
)
def test_an_archive_that_cannot_be_unpacked_says_why(tmp_path, make, name, words):
    make(tmp_path / name)
    with pytest.raises(DataError, match=words) as error:
        prepare_command("voc2012", source=(tmp_path / name,), data_dir=tmp_path / "data")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_disk_that_is_full_is_not_blamed_on_the_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(OSError, match=r"^\[Errno \d+\] No space left on device$"):
        prepare_command("voc2012", source=(tmp_path / "a.zip",), data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n", "train.txt must list the examples .* it is empty"),
        (b"\xff", "train.txt must be a text"),
    ],
)
def test_a_list_of_no_examples_is_an_error(tmp_path, content, words):
    voc(tmp_path / "raw")
    (tmp_path / "raw/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        prepare_command("voc2012", source=(tmp_path / "raw",), data_dir=tmp_path / "data")


def test_a_split_without_examples_is_an_error(tmp_path):
    ade20k(tmp_path / "raw")
    (tmp_path / "raw/ADEChallengeData2016/images/validation/ADE_1.jpg").unlink()
    with pytest.raises(DataError, match=r"every split must have an example(?s:.*)validation"):
        prepare_command("ade20k", source=(tmp_path / "raw",), data_dir=tmp_path / "data")


@pytest.mark.parametrize("mat", ["empty", "cut", "of other things"])
def test_a_label_map_of_sbd_that_is_damaged_is_named(tmp_path, mat):
    voc(tmp_path / "raw")
    path = tmp_path / "raw/cls/2008_000001.mat"
    path.parent.mkdir()
    name = "other" if mat == "of other things" else "GTcls"
    savemat(path, {name: {"Segmentation": np.zeros(SHAPE, np.uint8)}})
    path.write_bytes(path.read_bytes()[: {"empty": 0, "cut": 150}.get(mat)])
    with pytest.raises(DataError, match=r"2008_000001\.mat must be a label map .*fetch it anew"):
        prepare_command("voc2012_aug", source=(tmp_path / "raw",), data_dir=tmp_path / "data")


# ---------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_hold_together(name):
    description = DESCRIPTIONS[name]
    assert sorted(description.label_map.values()) == list(range(len(description.class_names)))
    assert len(set(description.class_names)) == len(description.class_names)
    module, builder = description.builder.split(".")
    builder = getattr(importlib.import_module(f"train.data.builders.{module}"), builder)
    assert description.keys == builder.KEYS
    assert builder.name == description.prepared.split("/")[0]
    assert bool(description.get) == bool(description.sources)


def test_sizes_of_the_well_known_lists():
    counts = {name: len(description.class_names) for name, description in DESCRIPTIONS.items()}
    assert counts == {
        "shapes": 6,
        "camvid": 11,
        "oxford_iiit_pet": 2,
        "oxford_iiit_pet_trimap": 3,
        "cityscapes": 19,
        "voc2012": 21,
        "voc2012_aug": 21,
        "ade20k": 150,
        "coco_stuff": 171,
    }


@pytest.mark.parametrize("name", [name for name in DESCRIPTIONS if name != "shapes"])
def test_a_missing_data_set_says_how_to_get_it(tmp_path, name):
    with pytest.raises(DataError) as error:
        open_dataset(name, data_dir=tmp_path)
    *_, command = str(error.value).splitlines()
    sources = " ".join(DESCRIPTIONS[name].sources)
    assert command == f"deeplab-train prepare {name} --source {sources} --data-dir {tmp_path}"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match=r"shapes, camvid, .*folder:PATH"):
        open_dataset("camvit")


# ---------------------------------------------------------------------------- looking


def test_without_a_name_the_data_sets_are_listed(tmp_path, capsys):
    open_dataset("shapes", data_dir=tmp_path)
    assert data_command(data_dir=tmp_path) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].endswith(str(tmp_path))
    rows = dict(line.split(maxsplit=1) for line in printed)
    assert rows["shapes"].split() == ["6", "prepared"]
    assert rows["ade20k"].split() == ["150", "not", "prepared"]
    assert rows.keys() >= DESCRIPTIONS.keys()


def test_the_data_command_prints_tables_and_writes_pictures_beside_their_labels(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    config = AugmentConfig(crop=(48, 64))
    assert (
        data_command("shapes", data_dir=tmp_path / "data", sheet=sheet, augment=config, examples=4)
        == 0
    )
    printed = capsys.readouterr().out
    assert "9 examples, all 128 x 96" in printed
    assert "triangle" in printed
    with Image.open(sheet) as image:
        assert image.width == 2 * 3 * 64 + 6
        assert image.height > 2 * 48 + 6  # the legend is beneath
        pixels = np.asarray(image)
    data = open_dataset("shapes", data_dir=tmp_path / "data")
    rng = np.random.default_rng(0)
    picked = rng.choice(9, 4, replace=False)
    example = data.train[int(picked[0])]
    first, _ = augment(example["image"], example["label"], config, rng)
    np.testing.assert_array_equal(pixels[:48, :64], first)


def test_the_sheet_leaves_out_the_padding_of_a_crop_larger_than_all_pictures(tmp_path):
    sheet = tmp_path / "sheet.png"
    assert data_command("shapes", data_dir=tmp_path / "data", sheet=sheet, examples=4) == 0
    with Image.open(sheet) as image:  # two columns of picture, overlay and labels, 128 x 96 each
        assert image.width == 2 * 3 * 128 + 6
        assert 2 * 96 + 6 < image.height < 3 * 96  # the legend is beneath
