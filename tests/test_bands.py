"""Pictures of any bands: what is read of files, and scenes that are segmented window by window."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rasterio import Affine

from deeplab_jax import Preprocessing, create, load, normalize, predict, save, scenes
from deeplab_jax.bands import BandReader, Layout, layout_of, open_tiff, read_picture, to_show
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.folder import predict_folder
from deeplab_jax.images import ImageError, read_image
from deeplab_jax.scenes import is_scene

RNG = np.random.default_rng(0)
FOUR = Preprocessing((0.3,) * 4, (0.2,) * 4, pixels="uint16")
NODATA = 0
GRID = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5e6)}


def tiff(path, pixels, **options):
    """Writes pixels `[H, W, C]` as a TIFF of C bands."""
    height, width, count = pixels.shape
    shape = {"width": width, "height": height, "count": count, "dtype": pixels.dtype}
    with open_tiff(path, "w", **shape, **(GRID | options)) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def numbers(*shape, kind=np.uint16):
    return RNG.uniform(1, 250, shape).astype(kind)


@pytest.fixture(scope="module")
def trained():
    made = create(
        "deeplabv3plus_mobilenet_v2",
        num_classes=5,
        in_channels=4,
        preprocessing=FOUR,
        rngs=nnx.Rngs(0),
    )
    made.eval()
    return made


@pytest.fixture(scope="module")
def model(trained):
    return fold_batch_norm(trained)  # as folders are done: one program for all of these tests


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_bands_of_a_tiff_are_read_as_they_are_stored(tmp_path, kind):
    pixels = numbers(20, 30, 6, kind=kind)
    path = tiff(tmp_path / "a.tif", pixels)
    assert layout_of(path) == Layout((20, 30), 6, np.dtype(kind).name)
    read = BandReader(6, np.dtype(kind).name).read(path)
    assert read.dtype == kind
    np.testing.assert_array_equal(read, pixels)
    some = BandReader(3, np.dtype(kind).name, bands=(5, 1, 1)).read(path)
    np.testing.assert_array_equal(some, pixels[..., [4, 0, 0]])


@pytest.mark.parametrize("kind", [np.int16, np.float64, np.int32])
def test_other_numbers_become_float32_and_no_data_becomes_nan(tmp_path, kind):
    pixels = numbers(8, 9, 2, kind=kind)
    pixels[2, 3, 1] = -999
    read = BandReader(2, "float32").read(tiff(tmp_path / "a.tif", pixels, nodata=-999))
    assert np.isnan(read[2, 3, 1])
    assert np.isnan(read).sum() == 1
    np.testing.assert_array_equal(read[..., 0], pixels[..., 0].astype(np.float32))


def test_the_pages_of_a_tiff_stack_are_bands(tmp_path):
    pages = [Image.fromarray(numbers(20, 30, kind=np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    read = BandReader(3, "uint8").read(tmp_path / "stack.tif")
    np.testing.assert_array_equal(read, np.stack(pages, axis=-1))


def test_the_four_channels_of_a_png_are_bands(tmp_path):
    pixels = numbers(12, 15, 4, kind=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        np.testing.assert_array_equal(BandReader(4, "uint8").read(file), pixels)
    Image.fromarray(pixels[..., 0]).convert("P").save(tmp_path / "p.png")
    with pytest.raises(ImageError, match="are no bands"):
        BandReader(1, "uint8").read(tmp_path / "p.png")


def test_rgb_is_read_as_people_see_it_unless_bands_are_asked_for(tmp_path):
    pixels = numbers(12, 15, 4, kind=np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 0] > 100)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "a.png", Preprocessing()), read_image(tmp_path / "a.png")
    )
    bands = read_picture(tmp_path / "a.png", Preprocessing(bands=(3, 2, 1)))
    np.testing.assert_array_equal(bands, pixels[..., [2, 1, 0]])


def test_other_bands_or_numbers_than_the_models_are_refused(tmp_path):
    path = tiff(tmp_path / "a.tif", numbers(8, 9, 3))
    with pytest.raises(ImageError, match=r"a.tif: has 3 bands, where 4 bands are taken"):
        BandReader(4, "uint16").read(path)
    with pytest.raises(ImageError, match="has 3 bands, band 7 is asked for"):
        BandReader(1, "uint16", bands=(7,)).size(path)
    with pytest.raises(ImageError, match="its numbers are uint16, where uint8 is taken"):
        BandReader(3, "uint8").read(path)


def test_a_small_file_that_claims_to_be_huge_is_refused(tmp_path):
    shape = {"width": 40_000, "height": 30_000, "count": 4, "dtype": "uint16"}
    options = {"tiled": True, "compress": "deflate", "sparse_ok": True}
    with open_tiff(tmp_path / "a.tif", "w", **shape, **options, **GRID):
        pass
    assert (tmp_path / "a.tif").stat().st_size < 10**6
    with pytest.raises(ImageError, match="too large to be read at once: 40000 x 30000 pixels"):
        BandReader(4, "uint16").read(tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"", b"II*\0 cut off", b"no picture"])
def test_what_is_no_picture_is_an_error_with_its_path(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.tif: "):
        BandReader(4, "uint16").read(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="no such file"):
        BandReader(4, "uint16").read(tmp_path / "b.tif")


def test_pixels_are_scaled_by_their_type_and_no_data_is_the_mean():
    for kind, full in (("uint8", 255), ("uint16", 65535), ("float32", 1)):
        given = Preprocessing((0.25,), (0.5,), pixels=kind)
        images = np.array([0, full], kind).reshape(1, 1, 2, 1)
        np.testing.assert_allclose(normalize(images, given).ravel(), [-0.5, 1.5], rtol=1e-6)
    images = np.array([np.nan, np.inf, 1], np.float32).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(normalize(images, given).ravel(), [0, 0, 1.5])


def test_bands_of_preprocessing_are_one_for_each_channel():
    with pytest.raises(
        ValueError, match=r"bands must be a number from 1 on for each of 3 channels"
    ):
        Preprocessing(bands=(1, 2))
    with pytest.raises(ValueError, match="bands must be"):
        Preprocessing(bands=(0, 1, 2))
    with pytest.raises(ValueError, match="pixels must be one of"):
        Preprocessing(pixels="int8")


def test_any_bands_can_be_looked_at():
    rgb = numbers(5, 6, 3, kind=np.uint8)
    assert to_show(rgb) is rgb
    dark = numbers(50, 60, 5)
    dark[..., 1] = 7  # the same everywhere
    shown = to_show(dark)
    assert shown.shape == (50, 60, 3)
    assert shown.dtype == np.uint8
    assert shown[..., 0].min() == 0
    assert shown[..., 0].max() == 255
    assert (to_show(np.full((4, 4, 1), np.nan, np.float32)) == 0).all()


# ---------------------------------------------------------------------------- models


def test_a_model_folder_keeps_what_its_pictures_are(tmp_path, trained):
    save(trained, tmp_path / "model")
    assert load(tmp_path / "model").config.preprocessing == FOUR


def test_prediction_takes_files_and_arrays_of_the_models_bands(tmp_path, model, monkeypatch):
    pixels = numbers(64, 96, 4)
    path = tiff(tmp_path / "a.tif", pixels, crs=None, transform=None)
    ids = predict(model, path)
    np.testing.assert_array_equal(ids, predict(model, pixels))
    with pytest.raises(ValueError, match=r"must be uint16 \[H, W, 4\]"):
        predict(model, pixels.astype(np.uint8))
    assert not is_scene(path)
    monkeypatch.setattr(scenes, "LARGE", 1000)
    assert is_scene(path)
    predict_folder(model, [path], tmp_path / "large", progress=False)
    with open_tiff(tmp_path / "large" / "a.tif") as labels:
        np.testing.assert_array_equal(labels.read(1), ids)
    monkeypatch.undo()
    predict_folder(model, [path], tmp_path / "out", progress=False)
    with Image.open(tmp_path / "out" / "a.png") as labels:
        np.testing.assert_array_equal(labels, ids)
    assert (tmp_path / "out" / "a_overlay.jpg").is_file()


# ---------------------------------------------------------------------------- scenes


@pytest.fixture
def scene(tmp_path):
    """A scene of which one corner has no data."""
    pixels = numbers(64, 96, 4)
    pixels[:20, :30] = NODATA
    return tiff(tmp_path / "scene.tif", pixels, nodata=NODATA)


def test_labels_of_a_scene_are_in_its_place_on_earth(tmp_path, model, scene):
    assert is_scene(scene)
    done = predict_folder(model, [scene], tmp_path / "out", progress=False)
    assert (done.written, done.failures) == (1, ())
    with open_tiff(tmp_path / "out" / "scene.tif") as out, open_tiff(scene) as source:
        assert (out.crs, out.transform, out.shape) == (source.crs, source.transform, source.shape)
        assert (out.count, out.dtypes, out.nodata) == (1, ("uint8",), 255)
        ids, colours = out.read(1), out.colormap(1)
        pixels = np.moveaxis(source.read(), 0, -1)
    expected = predict(model, pixels)
    expected[:20, :30] = 255
    np.testing.assert_array_equal(ids, expected)
    assert colours[1] == (128, 0, 0, 255)
    with Image.open(tmp_path / "out" / "scene_overlay.jpg") as overlay:
        assert overlay.height > 64  # the picture, and the legend beneath


def test_windows_of_a_scene_are_those_of_a_picture(tmp_path, model, scene):
    predict_folder(model, [scene], tmp_path / "out", tile=48, batch_size=2, progress=False)
    with open_tiff(tmp_path / "out" / "scene.tif") as out, open_tiff(scene) as source:
        ids, pixels = out.read(1), np.moveaxis(source.read(), 0, -1)
    expected = predict(model, pixels, tile=48)
    expected[:20, :30] = 255
    # Windows in a batch of two are summed in another order than alone: a tie in places.
    assert (ids == expected).mean() > 0.999


def test_a_scene_that_is_there_is_left_and_one_that_changed_is_done_again(tmp_path, model, scene):
    def run():
        done = predict_folder(model, [scene], tmp_path / "out", overlay=False, progress=False)
        return done.written, done.kept

    assert [run(), run()] == [(1, 0), (0, 1)]
    tiff(scene, numbers(64, 96, 4))
    assert run() == (1, 0)
    (tmp_path / "out" / "scene.tif").write_bytes(b"II*\0")
    assert run() == (1, 0)


def test_what_a_model_cannot_see_in_a_scene_is_an_error(tmp_path, model):
    paths = [
        tiff(tmp_path / "few.tif", numbers(40, 50, 2)),
        tiff(tmp_path / "bytes.tif", numbers(40, 50, 4, kind=np.uint8)),
    ]
    done = predict_folder(model, paths, tmp_path / "out", progress=False)
    few, wrong = map(str, done.failures)
    assert "few.tif: has 2 bands, where 4 bands are taken" in few
    assert "bytes.tif: its numbers are uint8, where uint16 is taken" in wrong
    assert not list((tmp_path / "out").glob("*"))
    done = predict_folder(
        model, [tiff(tmp_path / "a.tif", numbers(40, 50, 4))], tmp_path / "out", probabilities=2
    )
    assert "probabilities of a scene" in str(done.failures[0])


def test_an_rgb_scene_is_seen_in_its_colours(tmp_path):
    rgb = create("deeplabv3plus_mobilenet_v2", num_classes=3, rngs=nnx.Rngs(0))
    rgb.eval()
    rgb = fold_batch_norm(rgb)
    pixels = numbers(64, 70, 3, kind=np.uint8)
    opaque = np.dstack([pixels, np.full((64, 70), 255, np.uint8)])
    infrared = np.dstack([pixels, pixels[..., 0]])
    paths = [
        tiff(tmp_path / "rgb.tif", pixels, photometric="rgb"),
        tiff(tmp_path / "rgba.tif", opaque, photometric="rgb", alpha="yes"),
        tiff(tmp_path / "grey.tif", pixels[..., :1]),
        tiff(tmp_path / "infrared.tif", infrared, photometric="rgb", alpha="yes"),
        tiff(tmp_path / "words.tif", numbers(64, 70, 3)),
    ]
    done = predict_folder(rgb, paths, tmp_path / "out", overlay=False, progress=False)

    def ids(name):
        with open_tiff(tmp_path / "out" / f"{name}.tif") as out:
            return out.read(1)

    expected = predict(rgb, pixels)
    np.testing.assert_array_equal(ids("rgb"), expected)
    np.testing.assert_array_equal(ids("rgba"), expected)
    np.testing.assert_array_equal(ids("grey"), predict(rgb, np.repeat(pixels[..., :1], 3, axis=-1)))
    hidden, words = map(str, done.failures)
    assert "marked as transparency, but holds something else" in hidden
    assert "numbers of uint16, where the model takes RGB of 8 bits" in words
