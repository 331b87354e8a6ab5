"""What label maps in a folder mean: ids, colours, black and white; and what is refused or said of them."""

import io

import numpy as np
import pytest
from PIL import Image

from train.data import DataError, open_dataset
from train.data.class_table import from_names, pack, parse_labels, read_classes
from train.data.masks import ByColours, ByIds, decode_label
from train.data_command import data_command

SIZE = (6, 8)
RED, GREEN, BLACK, WHITE = (200, 0, 0), (0, 200, 0), (0, 0, 0), (255, 255, 255)


def save(path, image, kind=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, kind, **options)


def grey(*ids, size=SIZE):
    return Image.fromarray(np.resize(np.array(ids, np.uint8), size))


def coloured(*colours, mode="RGB"):
    return Image.fromarray(np.resize(np.array(colours, np.uint8), (*SIZE, len(colours[0]))), mode)


def palette(ids, colours):
    image = grey(*ids)
    image.putpalette([value for colour in colours for value in colour])
    return image


def one_bit(*ids):
    return grey(*(255 * i for i in ids)).convert("1", dither=Image.Dither.NONE)


def folder(root, *label_maps, classes=None, name="{}.png", **options):
    """A folder whose label maps are those given; the last one is the split for validation."""
    for n, label_map in enumerate(label_maps):
        split = "val" if n == len(label_maps) - 1 else "train"
        pixels = np.random.default_rng(n).integers(0, 255, (*SIZE, 3), np.uint8)
        save(root / split / f"images/{n}.png", pixels)
        save(root / split / "labels" / name.format(n), label_map, **options)
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return f"folder:{root}"


def opened(*arguments, **options):
    """Class names, the labels of the first example's first row, and the notes."""
    keys = ("class_names", "labels")
    asked = {key: options.pop(key) for key in keys if key in options}
    data = open_dataset(folder(*arguments, **options), **asked)
    return data.class_names, data.train[0]["label"][0].tolist(), data.notes


def refusal(*arguments, **options):
    with pytest.raises(DataError) as error:
        opened(*arguments, **options)
    return str(error.value)


# ---------------------------------------------------------------------------- black and white

BLACK_AND_WHITE = {
    "in each": (grey(0, 255), grey(255, 0)),
    "one each": (grey(0), grey(255), grey(0, 255)),
    "val is black": (grey(0, 255), grey(0)),
    "some of one bit": (grey(0, 255), one_bit(0, 1), one_bit(0)),
    "white in 8 bits, black in one": (grey(255), one_bit(0)),
    "some with a palette of black and white": (palette((0, 1), [BLACK, WHITE]), grey(0, 255)),
    "palette": (palette((0, 255), [BLACK] * 255 + [RED]),) * 2,
}


@pytest.mark.parametrize("maps", BLACK_AND_WHITE.values(), ids=BLACK_AND_WHITE)
@pytest.mark.parametrize("classes", [None, "ground\nroad\n"])
def test_in_label_maps_of_0_and_255_alone_255_is_class_1(tmp_path, maps, classes):
    data = open_dataset(folder(tmp_path, *maps, classes=classes))
    assert data.class_names == (("ground", "road") if classes else ("background", "foreground"))
    assert any(f"255 is taken for class 1, {data.class_names[1]}" in note for note in data.notes)
    for n, label_map in enumerate(maps[:-1]):
        expected = np.asarray(label_map) > 0
        np.testing.assert_array_equal(data.train[n]["label"], expected)


@pytest.mark.parametrize("classes", ["road\n", "ground\nroad\ncar\n"])
def test_0_and_255_are_not_another_number_of_classes(tmp_path, classes):
    error = refusal(tmp_path, grey(0, 255), grey(0), classes=classes)
    assert "0 and 255 alone, which are two classes, against" in error
    assert "--data.labels 0=background,255=foreground" in error


def test_beside_other_ids_255_is_ignored_and_that_is_said(tmp_path):
    names, label, notes = opened(tmp_path, grey(0, 1, 255, 1), grey(0))
    assert names == ("class 0", "class 1")
    assert label == [0, 1, 255, 1] * 2
    assert notes == ("Ignored pixels: 255 (12.5 %).",)


def test_1_here_and_255_there_may_be_one_class(tmp_path):
    maps = (grey(0, 1), grey(0, 255), grey(0))
    _, label, notes = opened(tmp_path / "ids", *maps)
    assert label == [0, 1] * 4
    assert 'labels "0=class 0,1=class 1,255=class 1"' in notes[-1]
    assert len(opened(tmp_path / "ignored", *maps, grey(1, 255))[2]) == 1


def test_one_bit_is_0_and_1(tmp_path):
    assert opened(tmp_path, one_bit(0, 1), one_bit(0))[:2] == (("class 0", "class 1"), [0, 1] * 4)


# ---------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (
            (0, 100, 200, 200),
            ("0 (25.0 %), 100 (25.0 %), 200 (50.0 %)", "0=background,100=class_100"),
        ),
        ((0, 128), ("0 (50.0 %), 128 (50.0 %)", "0=background,128=class_128 ")),
        ((0, 128, 255, 0), ("255 (25.0 %)", "128=class_128,255=ignored")),
        ((1, 2, 3), ("1=class_1,2=class_2",)),
        ((0, 1, 2, 7), ("7 (25.0 %)", "classes.txt, one id=name per line")),
        ((0,), ("two classes at least", "0 (100.0 %)")),
        ((0, 0), ("are they the right files",)),
        ((3, 255), ("two classes at least, besides 255",)),
        (range(0, 250, 6), ("and 30 more", "smeared edges")),
    ],
)
def test_ids_with_gaps_and_without_names_are_refused_with_the_ways_out(tmp_path, ids, words):
    error = refusal(tmp_path, grey(*ids), grey(*ids))
    assert [word for word in words if word not in error] == []


@pytest.mark.parametrize("as_file", [False, True])
def test_labels_say_which_id_is_which_class(tmp_path, as_file):
    labels = "200=car, 0=the ground,100=car,7=ignored"
    options = {"classes": labels.replace(",", "\n")} if as_file else {"labels": labels}
    names, label, notes = opened(tmp_path, grey(0, 100, 200, 7), grey(255, 0), **options)
    assert names == ("car", "the ground")
    assert label == [1, 0, 0, 255] * 2
    assert "Merged as car: 100, 200." in notes
    assert "Ignored pixels: 255 (25.0 %), 7 (12.5 %)." in notes


def test_labels_may_name_255_and_take_the_place_of_a_file(tmp_path):
    options = {"labels": "0=a,255=b,3=c", "classes": "x\ny\n"}
    names, label, notes = opened(tmp_path, grey(0, 255), grey(255), **options)
    assert (names, label) == (("a", "b", "c"), [0, 1] * 4)
    assert any("classes.txt is not used" in note for note in notes)
    assert "Warning: no label map has a pixel of c." in notes
    with pytest.raises(DataError, match="either class_names or labels"):
        open_dataset(f"folder:{tmp_path}", labels="0=a,1=b", class_names=("a", "b"))


def test_an_id_that_is_not_listed_is_refused_naming_the_label_maps(tmp_path):
    error = refusal(tmp_path, grey(0, 1), grey(0, 9, 12), labels="0=a,1=b")
    assert "val/labels/1.png (9, 12): these labels are not listed in labels" in error
    error = refusal(tmp_path, grey(0, 1), grey(0, 9, 12), classes="a\nb\n")
    assert "val/labels/1.png (9, 12): these labels are none of the 2 classes, nor 255" in error


def test_classes_without_a_pixel_are_said(tmp_path):
    names, _, notes = opened(tmp_path, grey(0, 2), grey(0), classes="a\nb\nc\nd\n")
    assert names == ("a", "b", "c", "d")
    assert notes == ("Warning: no label map has a pixel of b, d.",)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("", "must be like 0=background"),
        ("road", "'road' is not ID=NAME"),
        ("0=a,1=", "'1=' is not ID=NAME"),
        ("0=a,-1=b", "'-1=b' is not ID=NAME"),
        ("0=a,256=b", "the id 256 is above 255"),
        ("0=a,1=b,0=c", "the id 0 occurs twice"),
    ],
)
def test_labels_that_are_none_say_what_is_wrong(labels, words):
    with pytest.raises(DataError, match=words):
        parse_labels(labels)


def test_a_single_class_is_none(tmp_path):
    error = refusal(tmp_path, grey(0, 1), grey(0), labels="0=a,1=a")
    assert "two classes at least, got 1 class name" in error


def test_too_many_classes_are_refused():
    with pytest.raises(
        DataError, match=r"254 classes at most, .* got 255: .* give several ids one name"
    ):
        from_names([str(i) for i in range(255)])


# ---------------------------------------------------------------------------- lossy formats


@pytest.mark.parametrize("name", ["{}.jpg", "{}.png"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_is_no_label_map_whatever_its_name(tmp_path, name, mode):
    maps = [grey(0, 255).convert(mode)] * 2
    error = refusal(tmp_path, *maps, name=name, kind="JPEG", classes="a 0 0 0\nb 255 255 255\n")
    names = [f"{split}/labels/{name.format(n)}" for split, n in (("train", 0), ("val", 1))]
    assert f"{', '.join(names)}: a label map cannot be a JPEG, which is lossy" in error
    assert "as PNG" in error
    assert "-threshold 50%" in error


@pytest.mark.parametrize(
    ("kind", "options"), [("WEBP", {}), ("JPEG2000", {}), ("TIFF", {"compression": "jpeg"})]
)
def test_other_lossy_formats_are_refused_too(kind, options):
    file = io.BytesIO()
    grey(0, 1, size=(32, 32)).save(file, kind, **options)
    with pytest.raises(DataError, match="lossy"):
        decode_label(file)


# ---------------------------------------------------------------------------- colours


@pytest.mark.parametrize(
    "road", ["road 200 0 0", "road,200,0,0", "road\t200\t0\t0", "road: 200, 0, 0"]
)
def test_colours_are_classes_where_a_table_says_so(tmp_path, road):
    table = f"the ground 0 0 0\n{road}\n{road.replace('200', '100')}\nignored 0 200 0\n"
    maps = (coloured(RED, BLACK, GREEN, (100, 0, 0)), coloured(BLACK))
    names, label, notes = opened(tmp_path, *maps, classes=table)
    assert names == ("the ground", "road")
    assert label == [1, 0, 255, 1] * 2
    assert notes == ("Merged as road: 100 0 0, 200 0 0.", "Ignored pixels: 0 200 0 (12.5 %).")


@pytest.mark.parametrize(
    "label_map",
    [
        coloured((*RED, 255), (*BLACK, 0), mode="RGBA"),
        palette((1, 0), [BLACK, RED]),
        palette((0, 1), [RED, BLACK]),
    ],
    ids=["transparent", "palette", "another palette"],
)
def test_a_table_of_colours_is_for_palettes_and_transparent_colours_too(tmp_path, label_map):
    names, label, _ = opened(
        tmp_path, label_map, palette((0, 1), [BLACK, RED]), classes="a,0,0,0\nb,200,0,0"
    )
    assert (names, label) == (("a", "b"), [1, 0] * 4)


def test_greys_are_colours_if_the_table_has_them_all_and_else_ids(tmp_path):
    table = "white 255 255 255\nblack 0 0 0"
    assert opened(tmp_path, grey(0, 255), grey(0), classes=table)[:2] == (
        ("white", "black"),
        [1, 0] * 4,
    )
    names, label, notes = opened(tmp_path, grey(0, 1), grey(0), classes="a 1 2 3\nb 4 5 6")
    assert (names, label) == (("a", "b"), [0, 1] * 4)
    assert any("taken for ids" in note for note in notes)


def test_colours_without_a_table_are_listed_with_the_lines_to_write(tmp_path):
    maps = (coloured(RED, RED, RED, GREEN), coloured(BLACK, RED))
    error = refusal(tmp_path, *maps)
    assert "2 of 2 label maps are in colour" in error
    assert "200 0 0 (62.5 %), 0 0 0 (25.0 %), 0 200 0 (12.5 %)" in error
    lines = [line.strip() for line in error.splitlines()[-3:]]
    assert lines == ["class_0 200 0 0", "class_1 0 0 0", "class_2 0 200 0"]
    names, *_ = opened(tmp_path, *maps, classes="\n".join(lines))
    assert names == ("class_0", "class_1", "class_2")


def test_colours_that_a_table_lacks_are_listed(tmp_path):
    error = refusal(tmp_path, coloured(RED, GREEN), coloured(BLACK), classes="a 0 0 0\nb 200 0 0")
    assert "classes.txt does not list: 0 200 0 (25.0 %), in train/labels/0.png. Add a line" in error
    ids = palette((0, 1), [RED, GREEN])
    error = refusal(tmp_path, ids, ids, classes="a 0 0 0\nb 200 0 0")
    assert "Where the pixels are class ids, leave the colours out" in error


def test_smooth_colours_are_no_classes(tmp_path):
    smooth = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    assert "smeared edges" in refusal(tmp_path, smooth, smooth)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a 0 0 0\nb\n", "'b' is not like the others"),
        ("a 0 0 0\nb 0 0 256\n", "colours are 0..255, got .0, 0, 256."),
        ("a 0 0 0\nb 0 0 0\n", "the colour 0 0 0 occurs twice"),
        ("0=a\nb\n", "'b' is not like the others"),
        ("0=a\n0=b\n", "the id 0 occurs twice"),
        ("a\nroad\nroad\n", "'road' names the ids 1 and 2: .* with lines 1=road, 2=road"),
    ],
)
def test_a_file_of_classes_that_is_wrong_says_what_is_right(tmp_path, lines, words):
    (tmp_path / "classes.txt").write_text(lines)
    with pytest.raises(DataError, match=words):
        read_classes(tmp_path / "classes.txt")


def test_a_list_of_names_may_ignore_several_ids(tmp_path):
    (tmp_path / "classes.txt").write_text("ignored\na\nb\nignored\n")
    assert read_classes(tmp_path / "classes.txt").ids == {0: 255, 1: 0, 2: 1, 3: 255}


def test_names_of_the_option_must_differ(tmp_path):
    with pytest.raises(DataError, match=r"class names must differ(?s:.*)'b' names the ids 1 and 2"):
        open_dataset(f"folder:{tmp_path}", class_names=("a", "b", "b"))


def test_a_file_of_classes_that_is_not_utf_8_is_named_with_the_way_out(tmp_path):
    (tmp_path / "classes.txt").write_bytes("Straße\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt must be text in UTF-8.* Save it as UTF-8"):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("decode", "label_map", "words"),
    [
        (ByIds({0: 0, 3: 1}), grey(0, 3, 7), "the labels 7 are neither classes nor ignored"),
        (
            ByColours({pack(*RED): 0}),
            coloured(RED, GREEN),
            "the colours 0 200 0 are neither classes",
        ),
        (ByColours({pack(*RED): 0}), palette((0, 1), [RED, GREEN]), "the colours 0 200 0"),
    ],
)
def test_what_no_table_lists_is_refused_when_it_is_read(decode, label_map, words):
    file = io.BytesIO()
    label_map.save(file, "PNG")
    with pytest.raises(DataError, match=words):
        decode(file)


# ---------------------------------------------------------------------------- palettes


def test_palettes_that_differ_in_a_colour_that_occurs_are_refused(tmp_path):
    maps = (palette((0, 1), [BLACK, RED]), palette((0, 1), [BLACK, GREEN]))
    error = refusal(tmp_path, *maps, classes="a\nb\n")
    assert "the palette must show" in error
    assert "the id 1 is 200 0 0 in train/labels/0.png and 0 200 0 in val/labels/1.png" in error
    assert "the id 0" not in error


def test_palettes_may_differ_in_colours_that_do_not_matter(tmp_path):
    unused = (palette((0, 1), [BLACK, RED, RED]), palette((0, 1), [BLACK, RED, GREEN]), grey(0, 1))
    assert opened(tmp_path / "unused", *unused)[0] == ("class 0", "class 1")
    borders = [[BLACK, RED] * 127 + [BLACK, colour] for colour in (RED, GREEN)]
    ignored = (palette((0, 1, 255), borders[0]), palette((0, 1, 255), borders[1]))
    assert opened(tmp_path / "ignored", *ignored)[0] == ("class 0", "class 1")


# ---------------------------------------------------------------------------- orientation


def exif(tag):
    tags = Image.Exif()
    tags[0x0112] = tag
    return tags


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("tag", range(2, 9))
def test_a_tag_that_the_label_map_lacks_is_refused_unless_sizes_say_it_is_upright(
    tmp_path, kind, tag
):
    url = folder(tmp_path, grey(0, 1), grey(0))
    pixels = np.zeros((*SIZE, 3), np.uint8)
    save(tmp_path / "train/images/0.png", pixels, kind, exif=exif(tag))
    with pytest.raises(DataError) as error:
        open_dataset(url)
    told = str(error.value)
    assert f"train/images/0.png ({tag}) with train/labels/0.png (1): an orientation tag" in told
    assert ("only without it" if tag >= 5 else "do not tell") in told
    assert "exiftool -Orientation=" in told
    assert "mogrify -auto-orient" in told
    if tag >= 5:
        save(tmp_path / "train/labels/0.png", grey(0, 1, size=SIZE[::-1]))
        data = open_dataset(url)
        assert data.train.size(0) == data.train[0]["label"].shape == SIZE[::-1]


def test_sizes_of_squares_do_not_tell(tmp_path):
    url = folder(tmp_path, grey(0, 1, size=(6, 6)), grey(0))
    save(tmp_path / "train/images/0.png", np.zeros((6, 6, 3), np.uint8), "JPEG", exif=exif(6))
    with pytest.raises(DataError, match="sizes do not tell"):
        open_dataset(url)


def test_a_label_map_with_the_tag_of_its_picture_is_turned_with_it(tmp_path):
    url = folder(tmp_path, grey(0, 1), grey(0, 1))
    label_map = np.arange(48).reshape(SIZE).astype(np.uint8) % 2
    label_map[0, 0] = 255
    save(tmp_path / "train/images/0.png", np.zeros((*SIZE, 3), np.uint8), "JPEG", exif=exif(6))
    save(tmp_path / "train/labels/0.png", label_map, exif=exif(6))
    label = open_dataset(url).train[0]["label"]
    np.testing.assert_array_equal(label, np.rot90(label_map, -1))


@pytest.mark.parametrize("tag", [3, 6])
def test_a_label_map_with_a_tag_of_its_own_is_refused(tmp_path, tag):
    url = folder(tmp_path, grey(0, 1), grey(0))
    save(tmp_path / "train/labels/0.png", grey(0, 1), exif=exif(tag))
    with pytest.raises(
        DataError, match=rf"0.png \(1\) with train/labels/0.png \({tag}\): an orient"
    ):
        open_dataset(url)


# ---------------------------------------------------------------------------- commands


def test_the_data_command_prints_what_was_assumed(tmp_path, capsys):
    url = folder(tmp_path, grey(0, 100), grey(0))
    assert data_command(url, labels="0=a,100=b,3=c", sheet=tmp_path / "sheet.png") == 0
    assert "Warning: no label map has a pixel of c." in capsys.readouterr().out


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_arrays_are_label_maps(mixed, dtype, tmp_path):
    ids = (np.arange(48).reshape(6, 8) % 2).astype(dtype)
    for split in ("train", "val"):
        images, labels = (tmp_path / split / part for part in ("images", "labels"))
        labels = images if mixed else labels
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(images / "a.jpg")
        np.save(labels / "a.npy", ids)
    if mixed:  # the pictures and the arrays lie in one folder
        for split in ("train", "val"):
            (tmp_path / split / "images").rename(tmp_path / "aside")
            (tmp_path / split).rmdir()
            (tmp_path / "aside").rename(tmp_path / split)
    data = open_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(data.train[0]["label"], ids)


def test_an_array_that_is_no_label_map_is_refused_by_its_shape(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / f"{name}.png")
        np.save(tmp_path / "labels" / f"{name}.npy", np.zeros((6, 8), np.float32))
    with pytest.raises(DataError, match=r"must be whole numbers \[H, W\], got float32 \[6, 8\]"):
        open_dataset(f"folder:{tmp_path}")
