"""Data sets whose labels are polygons or run lengths in JSON or text."""

import base64
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from train.data import DataError, open_dataset
from train.data.annotations.coco import run_lengths
from train.data.annotations.drawn import Box, Polygon

H, W = 24, 40
LEFT = [0, 0, 20, 0, 20, 24, 0, 24]
CORNER = [0, 0, 10, 0, 10, 12, 0, 12]


def picture(path: Path, size=(H, W), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)


def write(path: Path, tree) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def coco(names, segmentations=(LEFT,), categories=((7, "thing"),), **more):
    """A document of COCO's: each picture has an annotation per segmentation, of the categories in turn."""
    images = [{"id": i, "file_name": n, "height": H, "width": W} for i, n in enumerate(names)]
    annotations = [
        {
            "id": 100 * i + k,
            "image_id": i,
            "category_id": categories[k % len(categories)][0],
            "segmentation": part if isinstance(part, dict) else [part],
            "area": 100 - k,
        }
        | more
        for i in range(len(names))
        for k, part in enumerate(segmentations)
    ]
    listed = [{"id": i, "name": name} for i, name in categories]
    return {"images": images, "annotations": annotations, "categories": listed}


def labels(root: Path, **options) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, and the label map of the first training example."""
    data = open_dataset(f"folder:{root}", data_dir=None, **{"class_names": None} | options)
    return data.class_names, data.train[0]["label"]


def refusal(root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        labels(root, **options)
    return str(caught.value)


# ---------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("seed", range(20))
def test_a_pixel_is_inside_a_polygon_if_its_centre_is(seed):
    rng = np.random.default_rng(seed)
    points = (rng.random((rng.integers(3, 9), 2)) * [1.4 * W, 1.4 * H] - [0.2 * W, 0.2 * H]).astype(
        "f4"
    )
    label = np.zeros((H, W), np.uint8)
    Polygon(points).paint(label, 3)
    for y in range(H):
        for x in range(W):
            # the even-odd rule, edge by edge
            inside = False
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
                if (y0 > y + 0.5) != (y1 > y + 0.5):
                    inside ^= x + 0.5 < x0 + (y + 0.5 - y0) / (y1 - y0) * (x1 - x0)
            assert label[y, x] == 3 * inside


def test_a_rectangle_has_the_pixels_between_its_sides_and_no_more():
    label = np.zeros((H, W), np.uint8)
    Polygon(np.float32([[2, 3], [10, 3], [10, 7], [2, 7]])).paint(label, 1)
    assert label.sum() == 8 * 4
    assert label[3:7, 2:10].all()


@pytest.mark.parametrize("points", [[[-9, -9], [-5, -9], [-5, -5]], [[3, 3], [9, 3], [5, 3]]])
def test_what_is_outside_or_has_no_area_draws_nothing(points):
    label = np.zeros((H, W), np.uint8)
    Polygon(np.float32(points)).paint(label, 1)
    assert not label.any()


def test_a_mask_that_reaches_over_the_edge_is_cut():
    label = np.zeros((H, W), np.uint8)
    Box(-2, H - 3, np.ones((9, 9), bool)).paint(label, 1)
    assert label.sum() == 7 * 3
    assert label[H - 3 :, :7].all()


def test_run_lengths_go_down_the_columns_in_both_forms():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:5] = True
    counts = [11, 3, 2, 3, 2, 3, 11]
    np.testing.assert_array_equal(run_lengths(counts, (5, 7)), mask)
    # what pycocotools makes of the same mask
    np.testing.assert_array_equal(run_lengths(";320009", (5, 7)), mask)
    with pytest.raises(ValueError, match="must cover 5 x 7 pixels, got 3"):
        run_lengths([1, 2], (5, 7))


# ---------------------------------------------------------------------------- COCO


def test_one_file_of_cocos_is_a_data_set_with_examples_held_out(tmp_path):
    names = [f"{i}.png" for i in range(4)]
    for name in names:
        picture(tmp_path / "images" / name)
    write(tmp_path / "annotations.json", coco(names))
    data = open_dataset(f"folder:{tmp_path}", data_dir=None, class_names=None)
    assert data.class_names == ("background", "thing")
    assert (len(data.train), len(data.val)) == (3, 1)
    label = data.train[0]["label"]
    assert label[:, :20].all()
    assert not label[:, 20:].any()
    assert "COCO's annotations (annotations.json)" in data.notes[0]
    assert "held out" in data.notes[1]


@pytest.mark.parametrize(
    ("pictures", "files"),
    [
        ("{}2017", ("annotations/instances_train2017.json", "annotations/instances_val2017.json")),
        ("images/{}", ("annotations/train.json", "annotations/val.json")),
        ("{}", ("train/_annotations.coco.json", "valid/_annotations.coco.json")),
        ("{}/images", ("train/annotations.json", "val/annotations.json")),
    ],
    ids=["cocos own", "images", "roboflow", "per split"],
)
def test_splits_are_told_by_names_and_pictures_are_found(pictures, files, tmp_path):
    for file, n in zip(files, (3, 2), strict=True):
        split = next(word for word in ("train", "valid", "val") if word in file)
        for i in range(n):
            picture(tmp_path / pictures.format(split) / f"{split}{i}.png")
        write(tmp_path / file, coco([f"{split}{i}.png" for i in range(n)]))
    data = open_dataset(f"folder:{tmp_path}", data_dir=None, class_names=None)
    assert (len(data.train), len(data.val)) == (3, 2)
    assert data.val[0]["label"].sum() == 20 * H


def test_small_instances_lie_over_large_ones_and_categories_are_in_the_order_of_their_ids(tmp_path):
    names = [f"{i}.png" for i in range(2)]
    for name in names:
        picture(tmp_path / name)
    # the small one comes first in the file, and has the larger id
    tree = coco(names, (CORNER, LEFT), ((9, "small"), (4, "large")))
    for annotation in tree["annotations"]:
        annotation["area"] = 120 if annotation["category_id"] == 9 else 480
    write(tmp_path / "all.json", tree)
    found, label = labels(tmp_path)
    assert found == ("background", "large", "small")
    assert label[0, 0] == 2
    assert label[20, 0] == 1
    assert label[0, 30] == 0


def test_run_lengths_are_drawn(tmp_path):
    names = [f"{i}.png" for i in range(2)]
    for name in names:
        picture(tmp_path / name)
    counts = [5 * H, 3 * H, (W - 8) * H]
    write(tmp_path / "a.json", coco(names, ({"size": [H, W], "counts": counts},)))
    _, label = labels(tmp_path)
    assert label[:, 5:8].all()
    assert label.sum() == 3 * H


def test_names_may_be_given_and_then_all_must_be_there(tmp_path):
    names = [f"{i}.png" for i in range(2)]
    for name in names:
        picture(tmp_path / name)
    write(tmp_path / "a.json", coco(names, (CORNER, LEFT), ((9, "cat"), (4, "dog"))))
    assert labels(tmp_path, class_names=("background", "cat", "dog", "cow"))[0][3] == "cow"
    (tmp_path / "classes.txt").write_text("cat\ncow\n")
    message = refusal(tmp_path)
    assert "annotations have the names dog, which classes.txt does not list" in message


def test_pictures_that_are_not_there_and_boxes_alone_are_refused(tmp_path):
    names = [f"{i}.png" for i in range(3)]
    for name in names[1:]:
        picture(tmp_path / name)
    write(tmp_path / "a.json", coco(names))
    assert f"a.json names pictures that are not in {tmp_path}: 0.png" in refusal(tmp_path)
    picture(tmp_path / names[0])
    write(tmp_path / "a.json", coco(names, segmentation=[], bbox=[0, 0, 9, 9]))
    assert "a.json has boxes alone and no segmentation" in refusal(tmp_path)


def test_a_picture_outside_of_the_folder_is_not_opened(tmp_path):
    picture(tmp_path / "secret.png")
    picture(tmp_path / "data" / "a.png")
    write(tmp_path / "data" / "a.json", coco(["a.png", "../secret.png"]))
    assert "names pictures that are not in" in refusal(tmp_path / "data")


def test_a_file_that_is_not_quite_cocos_is_one_sentence(tmp_path):
    picture(tmp_path / "a.png")
    tree = coco(["a.png"])
    del tree["images"][0]["file_name"]
    write(tmp_path / "a.json", tree)
    message = refusal(tmp_path)
    assert "annotations of COCO's form that are not quite so: KeyError: 'file_name'" in message
    write(tmp_path / "a.json", coco(["a.png"], ({"size": [H, W], "counts": [3]},)))
    assert f"run lengths must cover {H} x {W} pixels, got 3" in refusal(tmp_path)


# ---------------------------------------------------------------------------- labelme


def labelme(name: str, *shapes) -> dict:
    return {"shapes": list(shapes), "imagePath": name, "imageHeight": H, "imageWidth": W}


def shape(label: str, points, kind: str = "polygon", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind} | more


def test_labelmes_files_beside_the_pictures_are_a_data_set(tmp_path):
    half = shape("cat", [[0, 0], [20, 0], [20, H], [0, H]])
    strip = shape("__ignore__", [[20, 0], [40, 0], [40, 2], [20, 2]])
    for i in range(3):
        picture(tmp_path / f"{i}.jpg")
        write(tmp_path / f"{i}.json", labelme(f"..\\raw\\{i}.jpg", half, strip))
    names, label = labels(tmp_path)
    assert names == ("background", "cat")
    assert (label[:, :20] == 1).all()
    assert (label[:2, 20:] == 255).all()
    assert not label[2:, 20:].any()


def test_labelmes_other_shapes_have_the_area_that_they_show(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.eye(4) > 0).save(png, "PNG")
    shapes = [
        shape("box", [[12, 10], [2, 3]], "rectangle"),
        shape("disc", [[25, 12], [25, 17]], "circle"),
        shape("mask", [[34, 2], [37, 5]], "mask", mask=base64.b64encode(png.getvalue()).decode()),
        shape("line", [[0, 0], [39, 20]], "linestrip"),
    ]
    for i in range(2):
        picture(tmp_path / "images" / f"{i}.png")
        write(tmp_path / "annotations" / f"{i}.json", labelme(f"{i}.png", *shapes))
    names, label = labels(tmp_path)
    assert names == ("background", "box", "disc", "line", "mask")
    assert (label[3:10, 2:12] == 1).all()
    disc = np.zeros((H, W), np.uint8)
    cv2.circle(disc, (25, 12), 5, 1, -1)
    assert abs(int((label == 2).sum()) - np.pi * 25) < 3  # pixels against the area of the disc
    assert not (label == 3).any()  # a line has no area
    np.testing.assert_array_equal(label[2:6, 34:38] == 4, np.eye(4) > 0)


# ---------------------------------------------------------------------------- YOLO


def yolo(root: Path, line: str = "1 0 0 .5 0 .5 1 0 1") -> None:
    for split in ("train", "val"):
        for i in range(2):
            picture(root / "images" / split / f"{i}.png")
        text = root / "labels" / split / "0.txt"
        text.parent.mkdir(parents=True)
        text.write_text(line + "\n")
    (root / "data.yaml").write_text("train: images/train\nnames:\n  0: cat\n  1: dog\n")


def test_yolos_polygons_are_a_data_set_and_a_picture_without_text_is_background(tmp_path):
    yolo(tmp_path)
    data = open_dataset(f"folder:{tmp_path}", data_dir=None, class_names=None)
    assert data.class_names == ("background", "cat", "dog")
    first, second = (data.train[i]["label"] for i in range(2))
    assert (first[:, :20] == 2).all()
    assert not first[:, 20:].any()
    assert not second.any()


def test_pictures_in_yolos_hidden_folders_are_no_background(tmp_path):
    yolo(tmp_path)
    before = len(open_dataset(f"folder:{tmp_path}", data_dir=None, class_names=None).train)
    hidden = tmp_path / "images" / "train" / ".thumbnails"
    hidden.mkdir()
    picture(hidden / "0.png")
    data = open_dataset(f"folder:{tmp_path}", data_dir=None, class_names=None)
    assert len(data.train) == before


def test_boxes_between_yolos_polygons_are_refused_by_their_lines(tmp_path):
    yolo(tmp_path)
    (tmp_path / "labels" / "train" / "0.txt").write_text(
        "0 0 0 .5 0 .5 1\n0 .5 .5 .1 .1\n7 0 0 1 0 1 1\n"
    )
    message = refusal(tmp_path)
    assert "lines 2, 3 are not" in message
    assert "boxes are no segmentation" in message


# ---------------------------------------------------------------------------- other files


def test_json_of_no_known_form_is_named(tmp_path):
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", {"hello": 1})
    message = refusal(tmp_path)
    assert "a.json are not of a form that is read" in message
    (tmp_path / "a.json").write_text("{")
    assert "a.json is not JSON" in refusal(tmp_path)


CVAT = "# label:color_rgb:parts:actions\nsky:0,0,9::\nroad:9,0,0::\n"


@pytest.mark.parametrize(
    ("file", "text", "values"),
    [
        ("labelmap.txt", CVAT, [(0, 0, 9), (9, 0, 0)]),
        ("train/_classes.csv", "Pixel Value, Class\n0, sky\n1, road\n", [0, 1]),
    ],
    ids=["CVAT", "Roboflow"],
)
def test_the_class_tables_of_other_tools_are_read(file, text, values, tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / split / "images" / "0.png")
        label = np.array(values, np.uint8)[np.arange(H * W).reshape(H, W) % 2]
        (tmp_path / split / "labels").mkdir()
        Image.fromarray(label).save(tmp_path / split / "labels" / "0.png")
    (tmp_path / file).write_text(text)
    names, label = labels(tmp_path)
    assert names == ("sky", "road")
    assert label.mean() == 0.5
