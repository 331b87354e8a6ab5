"""Folders of pictures and label maps: every layout opens, and all that is wrong is in one error."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deeplab_jax.images import read_image
from train.data import DataError, open_dataset
from train.data.dataset import DecodedSource, in_proportion
from train.data.masks import decode_label
from train.data.pairs import Files
from train.data.pictures import RGB
from train.data_command import data_command


def picture(path, size=(8, 6), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def label_map(path, ids=(0, 1, 2, 255), size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(ids, np.uint8), size[::-1])).save(path)


LAYOUTS = {
    "split, then kind": ("{split}/images/{n}.jpg", "{split}/labels/{n}.png"),
    "split, then kind, other words": ("{split}/imgs/{n}.png", "{split}/masks/{n}.png"),
    "kind, then split": ("img_dir/{split}/{n}.jpg", "ann_dir/{split}/{n}.png"),
    "annot beside": ("{split}/{n}.png", "{split}annot/{n}.png"),
    "masks beside": ("{split}/{n}.jpg", "{split}_masks/{n}.png"),
    "both beside": ("{split}-images/{n}.jpg", "{split}-labels/{n}.png"),
    "split last": ("images_{split}/{n}.jpg", "masks_{split}/{n}.png"),
    "capitals": ("{split}/Images/{n}.jpg", "{split}/Masks/{n}.png"),
    "mixed": ("{split}/{n}.jpg", "{split}/{n}_mask.png"),
    "Cityscapes": (
        "leftImg8bit/{split}/ulm/{n}_leftImg8bit.png",
        "gtFine/{split}/ulm/{n}_gtFine_labelIds.png",
    ),
}
ONE_SPLIT = {
    "two folders": ("images/{n}.jpg", "labels/{n}.png"),
    "VOC": ("JPEGImages/{n}.jpg", "SegmentationClass/{n}.png"),
    "mixed": ("{n}.jpg", "{n}_label.png"),
    "folders below": ("images/a/{n}.jpg", "masks/a/{n}.png"),
    "ends of both": ("images/{n}_image.jpg", "labels/{n}_seg.png"),
    "beginnings": ("Images/img_{n}.jpg", "Masks/mask_{n}.png"),
    "beginnings without a line": ("images/Image1{n}.jpg", "labels/Label1{n}.png"),
    "beginnings, mixed": ("img-{n}.jpg", "mask-{n}.png"),
    "the end of one, the beginning of the other": ("{n}_img.jpg", "gt_{n}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_with_splits(tmp_path, layout):
    image, label = LAYOUTS[layout]
    for split, names in (("train", "abc"), ("val", "de")):
        for n in names:
            picture(tmp_path / image.format(split=split, n=n), seed=ord(n))
            label_map(tmp_path / label.format(split=split, n=n))
    data = open_dataset(f"folder:{tmp_path}")
    assert (len(data.train), len(data.val)) == (3, 2)
    assert data.class_names == ("class 0", "class 1", "class 2")
    assert data.train.name(1) == image.format(split="train", n="b")
    expected = read_image(tmp_path / image.format(split="val", n="e"))
    np.testing.assert_array_equal(data.val[1]["image"], expected)
    assert data.val[1]["label"][0].tolist() == [0, 1, 2, 255] * 2
    assert data.val.size(1) == (6, 8)


@pytest.mark.parametrize("layout", ONE_SPLIT, ids=str)
def test_one_split_is_cut_in_two_always_the_same_way(tmp_path, layout):
    image, label = ONE_SPLIT[layout]
    for n in range(20):
        picture(tmp_path / image.format(n=f"p{n:02d}"))
        label_map(tmp_path / label.format(n=f"p{n:02d}"))
    data, again = open_dataset(f"folder:{tmp_path}"), open_dataset(f"folder:{tmp_path}")
    assert (len(data.train), len(data.val)) == (18, 2)
    names = [[source.name(i) for i in range(len(source))] for source in (data.train, data.val)]
    assert names[1] == [again.val.name(i) for i in range(2)]
    assert len({*names[0], *names[1]}) == 20


def test_the_maps_of_the_first_kind_are_taken_and_the_others_left(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / f"leftImg8bit/{split}/ulm/a_leftImg8bit.png")
        for kind, ids in (("labelIds", (7, 8)), ("labelTrainIds", (0, 1)), ("color", (50, 60))):
            label_map(tmp_path / f"gtFine/{split}/ulm/a_gtFine_{kind}.png", ids)
    assert open_dataset(f"folder:{tmp_path}").num_classes == 2


def test_the_end_of_a_name_means_nothing_where_names_agree(tmp_path):
    for name in ("room_L", "room_mask", "room"):
        picture(tmp_path / f"images/{name}.jpg")
        label_map(tmp_path / f"labels/{name}.png")
    data = open_dataset(f"folder:{tmp_path}")
    assert len(data.train) + len(data.val) == 3


def test_folders_that_are_hidden_hold_no_pictures(tmp_path):
    for n in "abc":
        picture(tmp_path / f"images/{n}.jpg")
        label_map(tmp_path / f"masks/{n}.png")
    picture(tmp_path / "images/.ipynb_checkpoints/a-checkpoint.jpg")
    label_map(tmp_path / ".trash/masks/d.png")
    data = open_dataset(f"folder:{tmp_path}")
    assert len(data.train) + len(data.val) == 3
    assert any("1 of 3 examples are held out" in note for note in data.notes)


def test_two_label_maps_of_one_picture_are_refused(tmp_path):
    for n in "ab":
        picture(tmp_path / f"images/{n}.jpg")
        label_map(tmp_path / f"masks/{n}.png")
    label_map(tmp_path / "masks/b.tif", ids=(0,))
    with pytest.raises(
        DataError, match=r"masks/b.png and masks/b.tif are label maps of one picture"
    ):
        open_dataset(f"folder:{tmp_path}")


def test_annotations_that_are_not_read_are_mentioned(tmp_path):
    picture(tmp_path / "images/a.jpg")
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(
        DataError,
        match=r"(?s)a.jpg has no label map.*annotations.json are not of a form that is read",
    ):
        open_dataset(f"folder:{tmp_path}")


def test_lists_as_voc_has_them_say_what_is_in_the_splits(tmp_path):
    for name in "abcd":  # d has no label map and is in no list
        picture(tmp_path / f"JPEGImages/{name}.jpg")
    for name in "abc":
        label_map(tmp_path / f"SegmentationClass/{name}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\na\n")
    (lists / "val.txt").write_text("b\n")
    data = open_dataset(f"folder:{tmp_path}")
    names = [[source.name(i) for i in range(len(source))] for source in (data.train, data.val)]
    assert names == [["JPEGImages/a.jpg", "JPEGImages/c.jpg"], ["JPEGImages/b.jpg"]]
    (lists / "val.txt").write_text("b\nd\nz\n")
    with pytest.raises(DataError) as error:
        open_dataset(f"folder:{tmp_path}")
    assert "d.jpg has no label map" in str(error.value)
    assert "z, in ImageSets/Segmentation, has neither" in str(error.value)


def test_class_names_come_from_a_file_or_are_given(tmp_path):
    for n in range(3):
        picture(tmp_path / f"images/{n}.jpg")
        label_map(tmp_path / f"labels/{n}.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\n")
    assert open_dataset(f"folder:{tmp_path}").class_names == ("sky", "road", "car")
    given = ("a", "b", "c", "d")
    assert open_dataset(f"folder:{tmp_path}", class_names=given).class_names == given


def test_all_that_does_not_fit_is_in_one_error(tmp_path):
    for n in ("good", "small", "high", "lonely", "broken", "coloured"):
        picture(tmp_path / f"train/images/{n}.jpg")
    label_map(tmp_path / "train/labels/good.png")
    label_map(tmp_path / "train/labels/small.png", size=(4, 6))
    label_map(tmp_path / "train/labels/high.png", ids=(0, 7, 9))
    label_map(tmp_path / "train/labels/widow.png")
    picture(tmp_path / "train/labels/coloured.png")
    label_map(tmp_path / "train/labels/broken.png")
    (tmp_path / "train/images/broken.jpg").write_bytes(b"no picture")
    picture(tmp_path / "val/images/alone.jpg")
    label_map(tmp_path / "val/labels/alone.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    with pytest.raises(DataError) as error:
        open_dataset(f"folder:{tmp_path}")
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    for part in (
        "1 of 6 label maps are in colour, where grey or palette pictures would hold class ids: "
        "train/labels/coloured.png",
        "train/labels/high.png (7, 9): these labels are none of the 3 classes, nor 255",
        "train/images/lonely.jpg has no label map",
        "train/labels/widow.png has no picture",
        "train/images/small.jpg: the picture is 8 x 6, its label map 4 x 6 (train/labels/small.png)",
        "train/images/broken.jpg cannot be read",
    ):
        assert sum(part in line for line in lines) == 1, part


def test_a_long_list_is_cut_and_says_how_much_more_there_is(tmp_path):
    for n in range(30):
        picture(tmp_path / f"images/{n}.jpg")
    label_map(tmp_path / "labels/0.png")
    with pytest.raises(DataError, match="and 10 more"):
        open_dataset(f"folder:{tmp_path}")


def test_a_folder_that_is_none_says_what_would_be(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(f"folder:{tmp_path / 'missing'}")
    with pytest.raises(DataError, match="PATH/train/images/a"):
        open_dataset(f"folder:{tmp_path}")


def test_an_unreadable_file_is_named_when_it_is_read(tmp_path):
    for n in range(2):
        picture(tmp_path / f"images/{n}.jpg", size=(64, 64))
        label_map(tmp_path / f"labels/{n}.png", size=(64, 64))
    data = open_dataset(f"folder:{tmp_path}")
    path = tmp_path / data.train.name(0)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=data.train.name(0)):
        data.train[0]
    (tmp_path / data.val.name(0).replace("images", "labels").replace("jpg", "png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"labels/\d.png cannot be read"):
        data.val[0]
    path.unlink()
    with pytest.raises(DataError, match="FileNotFoundError"):
        data.train[0]


# ---------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    + [("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "I;16")]
    + [("TIFF", mode) for mode in ("RGB", "L", "CMYK")],
)
def test_training_sees_the_pixels_that_prediction_sees(tmp_path, kind, mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (20, 30, 4), np.uint8), "RGBA")
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65535, (20, 30)).astype(np.uint16))
    image = image if mode == "I;16" else image.convert(mode)
    path = tmp_path / "a"
    image.save(path, kind)
    np.testing.assert_array_equal(RGB.decode(io.BytesIO(path.read_bytes())), read_image(path))


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, at its end", "PNG, XMP", "TIFF", "WEBP"])
def test_the_camera_s_orientation_is_applied(tmp_path, kind, tag):
    exif, options = Image.Exif(), {}
    exif[0x0112] = tag
    if kind == "PNG, XMP":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", f'<a tiff:Orientation="{tag}"/>')
    else:
        options["exif"] = exif
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    path = tmp_path / "images/a"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path, kind.partition(",")[0], **options)
    if kind == "PNG, at its end":
        head, exif_chunk, rest = re.split(
            rb"(....eXIf.*)(?=....IDAT)", path.read_bytes(), flags=re.S
        )
        path.write_bytes(head + rest[:-12] + exif_chunk + rest[-12:])
    np.testing.assert_array_equal(RGB.decode(io.BytesIO(path.read_bytes())), read_image(path))
    label_map(tmp_path / "labels/a.png", size=(30, 20) if tag < 5 else (20, 30))
    files = Files(tmp_path, ((path, tmp_path / "labels/a.png"),))
    source = DecodedSource(files, decode_label)
    assert source.size(0) == source[0]["image"].shape[:2] == ((20, 30) if tag < 5 else (30, 20))


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_label_maps_are_ids_whatever_the_palette_says(mode):
    ids = np.resize(np.array([0, 1] if mode == "1" else [0, 1, 7, 255], np.uint8), (5, 8))
    if mode == "P":
        image = Image.fromarray(ids).convert("P")
        image.putdata(ids.ravel().tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    elif mode == "1":
        image = Image.fromarray(ids * 255).convert("1")
    else:
        image = Image.fromarray(ids.astype(np.uint16) if mode == "I;16" else ids)
    file = io.BytesIO()
    image.save(file, "PNG")
    label = decode_label(file)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, ids)


def test_ids_above_255_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(file, "PNG")
    with pytest.raises(DataError, match=r"0\.\.255, got 0\.\.300"):
        decode_label(file)


@pytest.mark.parametrize(
    ("kind", "lost", "damaged"),
    [
        ("png", 1000, True),
        ("png", 12, False),  # IEND alone
        ("jpg", 1000, True),
        ("jpg", 2, True),  # the end mark, without which a decoder cannot tell that it has all
        ("jpg", -3, False),  # more than the picture, as some cameras write
    ],
)
def test_pictures_that_lack_pixels_are_found_before_training(tmp_path, kind, lost, damaged):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("a", "b"):
        label_map(tmp_path / f"labels/{name}.png", (0, 1), (64, 64))
        path = tmp_path / f"images/{name}.{kind}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:-lost] if lost > 0 else data + bytes(-lost))
    if not damaged:
        assert open_dataset(f"folder:{tmp_path}").class_names == ("class 0", "class 1")
        return
    with pytest.raises(DataError, match=rf"images/b\.{kind} cannot be read.*truncated"):
        open_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("content", "words"), [(b"\n", "it is empty"), (b"\xff", "in UTF-8")])
def test_a_list_of_a_split_without_names_is_an_error(tmp_path, split, content, words):
    for name in ("a", "b"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
        label_map(tmp_path / f"SegmentationClass/{name}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for other in ("train", "val"):
        (lists / f"{other}.txt").write_bytes(content if other == split else b"a\nb\n")
    with pytest.raises(DataError, match=rf"{split}\.txt must .*{words}"):
        open_dataset(f"folder:{tmp_path}")


# ---------------------------------------------------------------------------- on request


def test_what_is_alone_is_left_out_on_request(tmp_path):
    for n in range(4):
        picture(tmp_path / f"images/{n}.jpg")
    for n in (*range(3), 9):
        label_map(tmp_path / f"labels/{n}.png")
    with pytest.raises(DataError, match=r"fit together \(--data\.unpaired skip, --unpaired skip"):
        open_dataset(f"folder:{tmp_path}")
    data = open_dataset(f"folder:{tmp_path}", unpaired="skip")
    assert len(data.train) + len(data.val) == 3
    left_out = "Left out: images/3.jpg has no label map, labels/9.png has no picture."
    assert left_out in data.notes
    with pytest.raises(DataError, match="unpaired and resize_labels can be given for folder"):
        open_dataset("shapes", unpaired="skip")


def test_label_maps_of_another_size_are_resized_on_request(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / split / "images/a.png", size=(16, 12))
        label_map(tmp_path / split / "labels/a.png", ids=(0, 1, 2), size=(8, 6))
    with pytest.raises(DataError, match=r"its label map 8 x 6 .*; --data\.resize-labels"):
        open_dataset(f"folder:{tmp_path}")
    data = open_dataset(f"folder:{tmp_path}", resize_labels=True)
    label = data.train[0]["label"]
    np.testing.assert_array_equal(label, np.kron(data.train.label(0), np.ones((2, 2), np.uint8)))
    label_map(tmp_path / "val/labels/a.png", ids=(0, 1, 2), size=(8, 8))
    with pytest.raises(DataError, match="its label map 8 x 8, in another proportion"):
        open_dataset(f"folder:{tmp_path}", resize_labels=True)


def test_sizes_are_in_proportion_if_they_are_but_for_rounding():
    for one, other in (((480, 360), (240, 180)), ((375, 500), (94, 125)), ((720, 960), (361, 480))):
        assert in_proportion(one, other)
        assert in_proportion(other, one)
    assert not in_proportion((480, 360), (360, 480))
    assert not in_proportion((480, 360), (240, 190))


def test_the_data_command_finds_pictures_that_are_in_both_splits(tmp_path, capsys):
    for split, seeds in (("train", (1, 2, 3)), ("val", (4, 2))):
        for seed in seeds:
            picture(tmp_path / split / f"images/{split}{seed}.png", seed=seed)
            label_map(tmp_path / split / f"labels/{split}{seed}.png")
    assert data_command(f"folder:{tmp_path}", sheet=tmp_path / "sheet.png") == 0
    said = capsys.readouterr().out
    assert "Warning: 1 of the 2 pictures for validation are for training too" in said
    assert "val/images/val2.png is train/images/train2.png" in said
