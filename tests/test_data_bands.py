"""Data sets of pictures with any bands: opened, measured, augmented, trained on and evaluated."""

import cv2
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from deeplab_jax import create, load, save, with_input_channels
from deeplab_jax.bands import open_tiff
from deeplab_jax.model import with_values
from train.config import DataConfig, ModelConfig
from train.data import (
    AugmentConfig,
    DataError,
    augment,
    eval_batches,
    open_dataset,
    plan_evaluation,
)
from train.data.dataset import Dataset
from train.data.pictures import ByBand
from train.data.statistics import Statistics, measure
from train.evaluate_command import check_pictures
from train.model import make_model

RNG = np.random.default_rng(0)
NODATA = -99


def folder(root, kind="uint16", bands=5, examples=4, size=(20, 24)):
    """Pictures whose last band is 100 times the label; the others are noise."""
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / split / part).mkdir(parents=True)
        for i in range(examples):
            label = (np.indices(size).sum(0) + 3 * i) // 7 % 3
            pixels = RNG.uniform(1, 255, (bands, *size)).astype(kind)
            pixels[-1] = 100 * label
            if kind == "float32":
                pixels[:, :2, :3] = NODATA
            shape = {"height": size[0], "width": size[1], "count": bands, "dtype": kind}
            nodata = {"nodata": NODATA} if kind == "float32" else {}
            path = root / split / "images" / f"{i}.tif"
            with open_tiff(path, "w", **shape, **nodata) as file:
                file.write(pixels)
            Image.fromarray(label.astype(np.uint8)).save(root / split / "labels" / f"{i}.png")
    return f"folder:{root}"


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_bands_of_a_folder_lie_on_their_labels(tmp_path, kind):
    data = open_dataset(folder(tmp_path, kind), bands="all")
    assert (data.pictures.channels, data.pictures.pixels, data.pictures.bands) == (5, kind, None)
    example = data.train[1]
    assert example["image"].dtype == kind
    assert data.train.size(1) == (20, 24)
    seen = example["label"] != 255
    np.testing.assert_array_equal(example["image"][seen][:, 4], 100 * example["label"][seen])
    # What has no data is not learned from.
    assert (~seen).sum() == (6 if kind == "float32" else 0)


def test_chosen_bands_are_read_in_their_order(tmp_path):
    name = folder(tmp_path)
    data, every = (open_dataset(name, bands=bands) for bands in ((5, 1), "all"))
    np.testing.assert_array_equal(data.val[0]["image"], every.val[0]["image"][..., [4, 0]])
    with pytest.raises(DataError, match="has 5 bands, band 6 is asked for"):
        open_dataset(name, bands=(6,))
    with pytest.raises(DataError, match="bands must be numbers from 1 on"):
        open_dataset(name, bands=(0,))
    with pytest.raises(DataError, match=r"bands can be given for folder:PATH and webdataset:"):
        open_dataset("shapes", bands="all")


def test_pictures_that_are_not_rgb_are_an_error_that_names_the_option(tmp_path):
    with pytest.raises(DataError, match=r"and 3 more: .*--data\.bands all \(--bands") as error:
        open_dataset(folder(tmp_path))
    assert str(error.value).count("--data.bands") == 1


def test_pictures_with_other_bands_than_the_first_are_listed(tmp_path):
    name = folder(tmp_path)
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(tmp_path / "val" / "images" / "2.tif")
    with pytest.raises(DataError, match=r"2\.tif cannot be read: has 1 band, where 5 bands"):
        open_dataset(name, bands="all")


def test_statistics_are_those_of_all_pixels_that_have_data(tmp_path):
    data = open_dataset(folder(tmp_path, "float32"), bands="all")
    pixels = np.concatenate([data.train[i]["image"].reshape(-1, 5) for i in range(4)])
    found = measure(data.train)
    # The sums are in float64; NumPy's own mean of float32 rounds in between.
    np.testing.assert_allclose(found.mean, np.nanmean(pixels.astype(np.float64), 0), rtol=1e-9)
    np.testing.assert_allclose(found.std, np.nanstd(pixels.astype(np.float64), 0), rtol=1e-9)


def test_augmentation_keeps_bands_and_labels_together():
    label = np.indices((60, 80)).sum(0) // 15 % 5
    for kind, bands in (("uint8", 1), ("uint8", 2), ("uint16", 5), ("float32", 9)):
        image = np.stack([label * (20 + band) for band in range(bands)], -1).astype(kind)
        config = AugmentConfig(crop=(70, 70), scale=(0.5, 2), rotation=20, fill=(7,) * bands)
        for seed in range(6):
            view, labels = augment(
                image, label.astype(np.uint8), config, np.random.default_rng(seed)
            )
            assert view.dtype == kind
            assert view.shape == (70, 70, bands)
            # But for the seam, where the rotated picture and the fill are interpolated.
            inside = cv2.erode((labels == 255).astype(np.uint8), np.ones((5, 5)), borderValue=1)
            assert (view[inside > 0] == 7).all()
            for band in range(bands):
                expected = labels * (20 + band)
                near = np.abs(view[..., band].astype(float) - expected) < 1
                # The others are between two classes, where pictures are interpolated.
                assert near[labels != 255].mean() > 0.6


def test_brightness_and_contrast_stay_in_the_range_of_the_type():
    config = AugmentConfig(crop=(16, 16), scale=(1, 1), brightness=0.5, contrast=0.5, flip=0)
    label = np.zeros((16, 16), np.uint8)
    image = RNG.integers(0, 65536, (16, 16, 4), np.uint16)
    seen = [augment(image, label, config, np.random.default_rng(s))[0] for s in range(8)]
    means = [view.mean() for view in seen]
    assert max(means) > 1.2 * min(means)
    order = np.argsort(image[..., 0], axis=None)
    for view in seen:  # had a number wrapped around, a bright pixel would be dark
        assert (np.diff(view[..., 0].ravel()[order].astype(np.int64)) >= 0).all()


def test_batches_have_the_type_of_the_pictures(tmp_path):
    data = open_dataset(folder(tmp_path, "float32"), bands="all")
    model = make(data).model
    plan = plan_evaluation(data.val, batch_size=3)
    batches = list(eval_batches(data.val, plan, images=model.config.preprocessing))
    assert [batch["image"].shape for batch in batches] == [(3, 20, 24, 5)] * 2
    assert {batch["image"].dtype.name for batch in batches} == {"float32"}
    assert batches[1]["index"].tolist() == [3, -1, -1]


# ---------------------------------------------------------------------------- the model


def make(data: Dataset, statistics=None, **config):
    config = ModelConfig("deeplabv3plus_mobilenet_v2", **config)
    measured = statistics or (lambda: measure(data.train))
    options = {"pictures": data.pictures, "statistics": measured}
    return make_model(config, data.class_names, seed=0, data_shards=1, **options)


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    path = tmp_path_factory.mktemp("rgb") / "model"
    save(create("deeplabv3plus_mobilenet_v2", num_classes=3, rngs=nnx.Rngs(1)), path)
    return path


def test_a_new_model_takes_what_was_measured(tmp_path):
    data = open_dataset(folder(tmp_path), bands=(2, 3, 5, 1))
    start = make(data)
    given, found = start.model.config.preprocessing, measure(data.train)
    assert (given.mean, given.std) == (found.mean, found.std)
    assert (given.pixels, given.bands) == ("uint16", (2, 3, 5, 1))
    assert start.params["backbone.stem.conv.kernel"].shape[2] == 4
    assert "4 bands of uint16: mean " in start.origin


def test_a_model_of_rgb_is_adapted_to_the_bands(tmp_path, rgb):
    data = open_dataset(folder(tmp_path), bands="all")
    start = make(data, init=rgb)
    name = "backbone.stem.conv.kernel"
    expected = with_input_channels(load(rgb), 5).backbone.stem.conv.kernel[...]
    np.testing.assert_array_equal(start.params[name], expected)
    assert start.model.config.preprocessing.mean == measure(data.train).mean


def test_given_statistics_count_and_a_models_own_are_kept(tmp_path, rgb):
    data = open_dataset(folder(tmp_path), bands="all")
    said = Statistics((0.1,) * 5, (0.2,) * 5)
    assert make(data, said).model.config.preprocessing.mean == (0.1,) * 5
    start = make(data, said)
    save(with_values(start.model, start.params | start.stats), tmp_path / "bands")
    again = make(data, lambda: pytest.fail("measured"), init=tmp_path / "bands")
    assert again.model.config.preprocessing == start.model.config.preprocessing
    with pytest.raises(ValueError, match=r"data\.mean and data\.std must be given together"):
        DataConfig(mean=(0.1,))


def test_a_model_is_not_evaluated_on_other_pictures(tmp_path, rgb):
    data = open_dataset(folder(tmp_path), bands="all")
    assert isinstance(data.pictures, ByBand)
    with pytest.raises(DataError, match=r"takes 3 bands of uint8, .* have 5 of uint16"):
        check_pictures(load(rgb).config.preprocessing, data.pictures)
    check_pictures(make(data).model.config.preprocessing, data.pictures)
