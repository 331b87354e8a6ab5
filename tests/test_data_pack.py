"""Data sets of any kind, copied into ArrayRecord files."""

import json

import numpy as np
import pytest
from PIL import Image

from train.data import DataError, open_dataset, prepare
from train.data_command import pack_command

NOISE = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
TRIANGLE = [0, 0, 8, 0, 0, 6]


def save(path, pixels=NOISE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def pack(tmp_path, name, **options):
    assert pack_command(name, "roads", data_dir=tmp_path / "packed", **options) == 0
    return open_dataset("tfds:roads", data_dir=tmp_path / "packed")


def assert_same(one, other):
    assert one.class_names == other.class_names
    for mine, theirs in ((one.train, other.train), (one.val, other.val)):
        assert [mine.name(i) for i in range(len(mine))] == [
            theirs.name(i) for i in range(len(theirs))
        ]
        for index in range(len(mine)):
            a, b = mine[index], theirs[index]
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["label"], b["label"])


def test_annotations_of_coco_are_drawn_once(tmp_path, capsys):
    names = [f"{i}.png" for i in range(4)]
    images = [{"id": i, "file_name": n, "height": 7, "width": 9} for i, n in enumerate(names)]
    shape = {"category_id": 3, "segmentation": [TRIANGLE], "area": 24}
    annotations = [shape | {"id": i, "image_id": i} for i in range(4)]
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "roof"}],
    }
    for name in names:
        save(tmp_path / "coco" / name)
    (tmp_path / "coco" / "_annotations.coco.json").write_text(json.dumps(document))
    original = open_dataset(f"folder:{tmp_path / 'coco'}")
    packed = pack(tmp_path, f"folder:{tmp_path / 'coco'}")
    assert_same(packed, original)
    assert packed.class_names == ("background", "roof")
    printed = capsys.readouterr().out
    assert "3 examples for training and 1 for validation" in printed
    assert "--data.name tfds:roads" in printed


def test_pictures_keep_their_bytes_unless_readers_would_differ(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    folder = tmp_path / "roads"
    save(folder / "images" / "plain.jpg")
    save(folder / "images" / "turned.jpg", exif=turned)
    save(folder / "images" / "clear.png", np.dstack([NOISE, NOISE[..., 0]]))
    save(folder / "images" / "other.bmp")
    for name, size in {"plain": (7, 9), "turned": (9, 7), "clear": (7, 9), "other": (7, 9)}.items():
        save(
            folder / "masks" / f"{name}.png",
            np.full(size, 255, np.uint8) * np.eye(*size, dtype=np.uint8),
        )
    original = open_dataset(f"folder:{folder}", labels="0=road,255=line")
    packed = pack(tmp_path, f"folder:{folder}", labels="0=road,255=line")
    assert_same(packed, original)
    kept = {
        str(one.name(i)): one.picture_file(i) == other.picture_file(i)
        for one, other in ((packed.train, original.train), (packed.val, original.val))
        for i in range(len(one))
    }
    assert [name for name, same in kept.items() if same] == ["images/plain.jpg"]


def roads(folder):
    for name in "abcd":
        save(folder / "images" / f"{name}.jpg")
        save(folder / "masks" / f"{name}.png", np.eye(7, 9, dtype=np.uint8))
    return f"folder:{folder}"


def test_nothing_is_written_over_or_under_a_name_that_will_not_open(tmp_path):
    data = roads(tmp_path / "roads")
    with pytest.raises(DataError, match="small letters, digits and _"):
        pack_command(data, "My-Roads", data_dir=tmp_path / "packed")
    pack(tmp_path, data)
    with pytest.raises(DataError, match="roads is already there; to write it again, remove"):
        pack_command(data, "roads", data_dir=tmp_path / "packed")


def test_a_picture_that_breaks_meanwhile_is_named_and_nothing_is_left(tmp_path):
    dataset = open_dataset(roads(tmp_path / "roads"))
    file = tmp_path / "roads" / "images" / "a.jpg"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        prepare.pack(dataset, "roads", tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == []


def test_other_bands_than_rgb_are_refused(tmp_path):
    dataset = open_dataset(roads(tmp_path / "roads"), bands=(1, 2))
    with pytest.raises(DataError, match=r"only RGB pictures are copied.* have 2 bands"):
        prepare.pack(dataset, "roads", tmp_path / "packed")
