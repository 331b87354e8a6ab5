"""Class ids of pictures, with models so small that the right ids are known."""

import dataclasses
import io
import itertools
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import ExifTags, Image, ImageOps

from deeplab_jax import DeepLabV3, ResNet, ResNetConfig, images
from deeplab_jax.folder import Predicted, predict_folder
from deeplab_jax.images import ImageError, find_images, image_size, read_image, to_rgb
from deeplab_jax.layers import BatchNorm
from deeplab_jax.orientation import turned, turned_size
from deeplab_jax.predict import MANY, cuts, evaluator, predict
from deeplab_jax.preprocessing import Preprocessing, normalize
from deeplab_jax.results import output_names

MODULE = sys.modules["deeplab_jax.predict"]  # the package's attribute of that name is the function

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    num_classes: int = 3
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing = PLAIN
    multilabel: bool = False

    @property
    def activation(self) -> str:
        return "sigmoid" if self.num_classes == 1 or self.multilabel else "softmax"


class Brightest(nnx.Module):
    """Class = the brightest of a pixel's channels; more classes never win.

    Args:
      traced: is appended the shape of the images each time the model is traced.
    """

    def __init__(self, config: FakeConfig | None = None, traced: list | None = None):
        self.config = config or FakeConfig()
        kernel = np.full((3, self.config.num_classes), -1, np.float32)
        kernel[:, :3] = np.eye(3)
        self.kernel = nnx.Param(jnp.asarray(kernel))
        self.norm = BatchNorm(self.config.num_classes)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.traced = nnx.static(Ledger(traced if traced is not None else []))

    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        self.traced.shapes.append(x.shape)
        return self.dropout(self.norm(x @ self.kernel[...]))


class Ledger:
    """A list that is equal to itself alone, as what a graph holds must be hashable."""

    def __init__(self, shapes: list):
        self.shapes = shapes


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 `[*shape, 3]` without ties between channels."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.broadcast_to([10, 100, 200], (*shape, 3)), axis=-1).astype(np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> io.BytesIO:
    data = io.BytesIO()
    image.save(data, format, **options)
    data.seek(0)
    return data


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    Image.fromarray(pixels).save(path)
    return pixels


def ids_in(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


# ---------------------------------------------------------------------------- predict


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (2, 9, 4)])
def test_ids_are_the_model_s(shape):
    image = picture(*shape)
    ids = predict(Brightest(), image)
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, image.argmax(-1))


def test_file_and_pillow_image_are_what_their_pixels_are(tmp_path):
    image = save(tmp_path / "a.png", picture(6, 8))
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(predict(Brightest(), given), image.argmax(-1))


def test_normalisation_is_the_config_s():
    # Blue is brightest, but not once its mean is taken away.
    config = FakeConfig(preprocessing=Preprocessing(mean=(0.0, 0.0, 0.9), std=(1.0, 1.0, 1.0)))
    image = np.full((2, 2, 3), (100, 10, 200), np.uint8)
    assert (predict(Brightest(config), image) == 0).all()


def test_normalisation_is_to_0_and_1_and_then_by_mean_and_deviation():
    pixels = np.array([[[[0, 51, 255]]]], np.uint8)
    found = normalize(jnp.asarray(pixels), Preprocessing((0.5, 0.1, 0.0), (0.25, 0.5, 2.0)))
    # Three roundings of float32.
    np.testing.assert_allclose(found, [[[[-2.0, 0.2, 0.5]]]], rtol=1e-6)


def test_more_than_256_classes_are_uint16():
    class Last(Brightest):
        def __call__(self, x):
            return super().__call__(x) + 100 * jnp.arange(300, dtype=jnp.float32)

    ids = predict(Last(FakeConfig(num_classes=300)), picture(3, 4))
    assert ids.dtype == np.uint16
    assert (ids == 299).all()


class Foreground(nnx.Module):
    """One channel of logits: how much redder than 150 a pixel is."""

    config = FakeConfig(num_classes=1)

    def __call__(self, x):
        return 255 * x[..., :1] - 150


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (1.0, 1.0)}, {"tile": 20}])
def test_one_channel_is_foreground_where_its_probability_is_above_a_half(options):
    pixels = picture(30, 40)
    ids = predict(Foreground(), pixels, **options)
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, pixels[..., 0] > 150)


def test_several_looks_at_one_channel_average_probabilities_and_not_logits():
    class Lopsided(nnx.Module):
        config = FakeConfig(num_classes=1)

        def __call__(self, x):
            left = jnp.arange(x.shape[2]) < x.shape[2] // 2
            return jnp.broadcast_to(jnp.where(left, 9.0, -9.5)[:, None], (*x.shape[:3], 1))

    ids = predict(Lopsided(), picture(3, 4), flip=True)
    assert not ids.any()  # (.9999 + .00007) / 2 is just below a half


def test_a_folder_of_one_channel_has_masks_of_0_and_1_with_their_names(tmp_path):
    Image.fromarray(picture(8, 9)).save(tmp_path / "a.png")
    model = Foreground()
    model.config = FakeConfig(num_classes=1, class_names=("background", "leaf"))
    run_folder(model, [tmp_path / "a.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture(8, 9)[..., 0] > 150)
        assert image.getpalette()[:3] == [0, 0, 0]  # the background is clear
        assert any(image.getpalette()[3:6])


def test_the_model_stays_as_it_is_and_runs_in_evaluation_mode():
    model = Brightest()
    model.train()
    before = nnx.split(model)
    image = np.full((4, 4, 3), (10, 100, 200), np.uint8)
    # With statistics of the batch, every channel would be 0 and class 0 the first of the largest.
    assert (predict(model, image) == 2).all()
    after = nnx.split(model)
    assert before[0] == after[0]
    assert not model.norm.use_running_average
    np.testing.assert_array_equal(model.norm.mean[...], 0)


def test_new_weights_count_without_compiling_anew():
    model, image = Brightest(traced=(traced := [])), picture(4, 4)
    predict(model, image)
    model.kernel[...] = -model.kernel[...]
    np.testing.assert_array_equal(predict(model, image), image.argmin(-1))
    assert len(traced) == 1


def test_equal_shapes_compile_once():
    model = Brightest(traced=(traced := []))
    for seed in range(3):
        predict(model, picture(4, 6, seed=seed))
    assert traced == [(1, 4, 6, 3)]


def test_size_multiple_pads_after_normalisation_at_the_bottom_and_right():
    class Corner(Brightest):
        """Every pixel gets the class that the bottom right corner says."""

        def __call__(self, x):
            return super().__call__(jnp.broadcast_to(x[:, -1:, -1:] + x[:, :1, :1], x.shape))

    # Normalised, (0, 0, 255) is (-.5, -.5, .5); zeros at the corner leave it the decision.
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(1.0,) * 3, size_multiple=4)
    model = Corner(FakeConfig(preprocessing=preprocessing), traced := [])
    image = np.zeros((5, 6, 3), np.uint8)
    image[0, 0, 2] = image[-1, -1, 1] = 255
    image[-1, -1, 0] = 254
    ids = predict(model, image)
    assert ids.shape == (5, 6)
    assert (ids == 2).all()
    assert traced == [(1, 8, 8, 3)]


# ---------------------------------------------------------------------------- looks and windows


class Leaning(Brightest):
    """Says class 1 in the right half of whatever it sees, and class 0 in the left, less surely."""

    def __call__(self, x):
        right = jnp.arange(x.shape[2]) * 2 >= x.shape[2]
        logits = jnp.where(right[:, None], jnp.asarray([0.0, 3, 0]), jnp.asarray([1.0, 0, 0]))
        return super().__call__(x) * 0 + logits


def test_flip_averages_probabilities_with_the_mirror_image_s():
    image = picture(4, 6)
    np.testing.assert_array_equal(predict(Leaning(), image), [[0, 0, 0, 1, 1, 1]] * 4)
    # Class 1 has .91 in one look and .21 in the other, class 0 has .05 and .58.
    assert (predict(Leaning(), image, flip=True) == 1).all()


def test_scales_look_at_resized_pictures(tmp_path):
    model = Brightest(traced=(traced := []))
    image = np.repeat(np.repeat(picture(3, 4), 8, axis=0), 8, axis=1)
    ids = predict(model, image, scales=(0.5, 1.0, 1.75), flip=True)
    assert sorted(set(traced)) == [(1, 12, 16, 3), (1, 24, 32, 3), (1, 42, 56, 3)]
    assert len(traced) == 6
    assert ids.shape == (24, 32)
    np.testing.assert_array_equal(ids[4::8, 4::8], image[4::8, 4::8].argmax(-1))
    assert predict(model, picture(1, 1), scales=(0.25,)).shape == (1, 1)


@pytest.mark.parametrize("size", [(40, 50), (16, 100), (17, 16), (5, 7), (16, 16)])
def test_windows_give_what_the_whole_gives(size):
    image = picture(2, *size)
    model = Brightest(traced=(traced := []))
    ids = predict(model, image, tile=16)
    np.testing.assert_array_equal(ids, image.argmax(-1))
    assert traced == [(2, min(size[0], 16), min(size[1], 16), 3)]  # one program for all windows


def test_windows_cover_an_axis_once_and_overlap():
    tile = 32
    for size in range(1, 200):
        windows = cuts(size, tile)
        kept = [n for seen, keep in windows for n in range(size)[seen][keep]]
        assert kept == list(range(size))
        for (a, keep_a), (b, keep_b) in itertools.pairwise(windows):
            assert a.stop - b.start >= tile // 4
            assert tile - keep_a.stop >= tile // 8 <= keep_b.start


def test_a_picture_too_large_for_memory_is_cut_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(MODULE, "MEMORY_LIMIT", 40 * 40 * (1024 + 3 * 4))
    model = Brightest(traced=(traced := []))
    image = picture(60, 30)
    np.testing.assert_array_equal(predict(model, image), image.argmax(-1))
    assert traced == [(1, 32, 30, 3)]
    assert "windows of 32 x 32" in caplog.text
    assert predict(model, image, scales=(2,)).shape == (60, 30)
    assert "windows of 16 x 16" in caplog.text


def test_a_batch_too_large_for_memory_runs_in_equal_parts(monkeypatch):
    monkeypatch.setattr(MODULE, "MEMORY_LIMIT", 3 * 8 * 8 * (1024 + 3 * 4))
    model = Brightest(traced=(traced := []))
    image = picture(4, 8, 8)
    np.testing.assert_array_equal(predict(model, image), image.argmax(-1))
    assert traced == [(2, 8, 8, 3)]


def test_wrong_images_and_options_say_what_is_right():
    model = Brightest()
    with pytest.raises(ValueError, match=r"uint8 .*got float32 \[4, 4, 3\]"):
        predict(model, np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \[4, 4, 4\]"):
        predict(model, np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="must have pixels"):
        predict(model, np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"(?s)scales must be.*tile must be at least"):
        predict(model, picture(4, 4), scales=(), tile=3)
    rngs = nnx.Rngs(0)
    by_hand = DeepLabV3(ResNet(ResNetConfig(18), rngs=rngs), rngs=rngs)
    with pytest.raises(ValueError, match=r"has no config; .* or set model\.config"):
        predict(by_hand, picture(4, 4))


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("tag", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(tag):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = tag
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(turned(pixels, tag), expected)
    assert turned_size((4, 5), tag) == expected.shape[:2]


def test_exif_orientation_is_applied(tmp_path):
    pixels = picture(4, 6)
    for orientation, upright in {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a.png", "a.tif"):
            Image.fromarray(pixels).save(tmp_path / name, exif=exif)
            np.testing.assert_array_equal(read_image(tmp_path / name), upright)
        for name in ("a.jpg", "a.tif", "a.webp"):
            Image.fromarray(pixels).save(tmp_path / name, exif=exif)
            assert read_image(tmp_path / name).shape == upright.shape
        assert (
            image_size(tmp_path / "a.jpg") == image_size(tmp_path / "a.webp") == upright.shape[:2]
        )


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (Image.new("L", (3, 2), 77), (77, 77, 77)),
        (Image.new("1", (3, 2), 1), (255, 255, 255)),
        (Image.new("LA", (3, 2), (0, 51)), (204, 204, 204)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("RGBA", (3, 2), (9, 8, 7, 255)), (9, 8, 7)),
        (Image.fromarray(np.full((2, 3), 65535, np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((2, 3), 257 * 12 + 100, np.uint16)), (12, 12, 12)),
        (Image.fromarray(np.full((2, 3), 257 * 12, np.int32)), (12, 12, 12)),
        (Image.new("RGB", (3, 2), (1, 200, 30)).quantize(4), (1, 200, 30)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_every_kind_of_picture_becomes_rgb(image, color):
    pixels = images.to_rgb(image)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to(color, (2, 3, 3)))


@pytest.mark.parametrize("bands", [2, 4])
def test_a_band_of_a_tiff_that_is_no_transparency_is_refused_and_a_cut_out_is_not(bands, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, bands), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "infrared.tif")
    with pytest.raises(
        ImageError, match=rf"infrared.tif: a TIFF of {bands} bands whose last .*infrared"
    ):
        read_image(tmp_path / "infrared.tif")
    pixels[..., -1] = 255
    pixels[:5, :, -1], pixels[5, :, -1] = 0, 100  # transparent, and a soft edge
    Image.fromarray(pixels).save(tmp_path / "cut_out.tif")
    assert (read_image(tmp_path / "cut_out.tif")[:5] == 255).all()
    np.testing.assert_array_equal(read_image(tmp_path / "cut_out.tif")[6:, :, 0], pixels[6:, :, 0])


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[(255,) * 3, (10, 20, 30)]])


def test_of_an_animation_the_first_picture(tmp_path):
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif")[0, 0], (255, 0, 0))


def test_what_is_no_picture_says_why(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    whole = encoded(Image.fromarray(picture(64, 64))).getvalue()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "deep.tif")
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for somebody to write
    reasons = {
        "program.png": "not a picture in a format that is read",
        "pipe.png": "this is a pipe or a device",
        "text.jpg": "not a picture",
        "empty.png": "not a picture",
        "cut.png": "damaged",
        "none.png": "no such file",
        ".": "this is a folder",
        "float.tif": "whole numbers",
        "deep.tif": r"0\.\.65535, got 70000\.\.70000",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)
    save(tmp_path / "large.png", picture(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"large\.png: too large"):
        read_image(tmp_path / "large.png")


def test_a_cut_off_picture_is_damaged_where_pixels_are_missing_and_else_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(pixels)).getvalue()
    end = whole.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(whole[:end])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    (tmp_path / "a.png").write_bytes(whole[: end - 100])
    with pytest.raises(ImageError, match=r"a\.png: damaged"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_a_large_picture_is_never_whole_in_memory_in_two_forms(mode, monkeypatch):
    image = Image.new("RGBA", (3, 700), (9, 9, 9, 0)).convert(mode)
    converted, convert = [], Image.Image.convert

    def noting(self, *arguments):
        converted.append(self.height)
        return convert(self, *arguments)

    monkeypatch.setattr(Image.Image, "convert", noting)
    pixels = to_rgb(image)
    assert max(converted) <= 256
    assert pixels.shape == (700, 3, 3)
    assert (pixels == pixels[0, 0]).all()


def test_15_million_pixels_are_fine(tmp_path):
    Image.new("RGB", (5000, 3000)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (3000, 5000, 3)


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png", "c.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "inner.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.jpg")
    found = find_images([tmp_path / "b.PNG", tmp_path, tmp_path / "notes.txt"])
    assert [path.name for path in found] == ["b.PNG", "a.jpg", "c.tiff", "notes.txt"]


def test_folders_of_folders_are_looked_into_on_request(tmp_path):
    for name in ("a.png", "x/b.png", "x/y/c.png", "out/a.png", "x/.hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, picture(2, 2))
    (tmp_path / "x" / "round").symlink_to(tmp_path)
    found = find_images([tmp_path], recursive=True, leave_out=tmp_path / "out")
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.png", "x/b.png", "x/y/c.png"]
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"3 in its own folders: --recursive takes those"):
        find_images([tmp_path])


def test_find_images_lists_all_that_is_wrong(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(ImageError, match=r"(?s)inner: no picture.*gone\.jpg: no such file"):
        find_images([tmp_path / "inner", tmp_path / "gone.jpg"])


# ---------------------------------------------------------------------------- folders


def run_folder(model: nnx.Module, paths: list[Path], out: Path, **options: object) -> Predicted:
    alone = {"devices": jax.devices()[:1]}
    return predict_folder(model, paths, out, **{"progress": False, **alone, **options})


def test_folder_writes_ids_and_overlays_of_good_pictures_and_lists_bad_ones(tmp_path):
    out = tmp_path / "new" / "out"
    shapes = [(6, 8), (6, 8), (5, 9), (6, 8), (5, 9), (6, 8), (6, 8)]
    good = {
        tmp_path / f"{n}.png": save(tmp_path / f"{n}.png", picture(*shape, seed=n))
        for n, shape in enumerate(shapes)
    }
    (tmp_path / "text.png").write_text("hello")
    whole = encoded(Image.fromarray(picture(6, 8))).getvalue()
    (tmp_path / "cut.png").write_bytes(whole[:60])  # its header is whole
    paths = [tmp_path / "text.png", *good, tmp_path / "cut.png", tmp_path / "0.png"]
    model = Brightest(traced=(traced := []))
    done = run_folder(model, paths, out, batch_size=4, progress=True)
    failures = done.failures
    assert (done.written, done.kept) == (len(good), 0)
    assert [str(e).split(": ")[0] for e in failures] == [str(paths[0]), str(paths[-2])]
    for path, pixels in good.items():
        np.testing.assert_array_equal(ids_in(out / path.name), pixels.argmax(-1))
        overlay = read_image(out / f"{path.stem}_overlay.jpg")
        assert overlay.shape[0] > pixels.shape[0]
    assert len(list(out.iterdir())) == 2 * len(good)
    assert sorted(traced) == [(2, 5, 9, 3), (3, 6, 8, 3)]


def test_folder_without_overlays_or_progress(tmp_path, capfd):
    save(tmp_path / "a.jpg", picture(4, 4))
    run_folder(Brightest(), [tmp_path / "a.jpg"], tmp_path / "out", overlay=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]
    assert capfd.readouterr().err == ""


def test_folder_shrinks_overlays_that_jpeg_cannot_hold(tmp_path):
    pixels = save(tmp_path / "a.png", picture(2, 66000))
    run_folder(Brightest(), [tmp_path / "a.png"], tmp_path / "out")
    np.testing.assert_array_equal(ids_in(tmp_path / "out" / "a.png"), pixels.argmax(-1))
    assert read_image(tmp_path / "out" / "a_overlay.jpg").shape[1] == 65500


def test_folder_of_no_pictures_is_no_work(tmp_path):
    assert run_folder(Brightest(), [], tmp_path / "out") == Predicted(0, 0, ())


def test_folder_of_many_classes_is_16_bit(tmp_path):
    pixels = save(tmp_path / "a.png", picture(4, 4))
    run_folder(Brightest(FakeConfig(num_classes=300)), [tmp_path / "a.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), pixels.argmax(-1))


def test_folder_takes_pictures_whose_header_hides_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    flat, turned = picture(4, 6), picture(4, 6, seed=1)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    Image.fromarray(turned).save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / "flat.png", tmp_path / "turned.png"]
    assert not run_folder(Brightest(), paths, tmp_path / "out").failures
    np.testing.assert_array_equal(ids_in(tmp_path / "out" / "flat.png"), flat.argmax(-1))
    expected = np.rot90(turned, -1).argmax(-1)
    np.testing.assert_array_equal(ids_in(tmp_path / "out" / "turned.png"), expected)


def test_what_is_done_is_kept_and_what_has_changed_is_done_anew(tmp_path):
    paths, out = [tmp_path / f"{n}.png" for n in range(4)], tmp_path / "out"
    for n, path in enumerate(paths):
        save(path, picture(6, 8, seed=n))
    model = Brightest()

    def again(model: nnx.Module = model, **options: object) -> tuple[int, int]:
        done = run_folder(model, paths, out, **options)
        return done.written, done.kept

    assert again() == (4, 0)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert again() == (0, 4)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert again(redo=True) == (4, 0)
    pixels = save(paths[1], picture(6, 8, seed=9))
    (out / "2_overlay.jpg").unlink()  # as after a crash
    (out / "3.png").write_bytes((out / "3.png").read_bytes()[:90])
    assert again() == (3, 1)
    np.testing.assert_array_equal(ids_in(out / "1.png"), pixels.argmax(-1))
    for changed in ({"flip": True}, {"alpha": 0.7}, {"scales": (1.0, 2.0)}, {"probabilities": 2}):
        assert again(**changed) == (4, 0), changed
        assert again(**changed) == (0, 4), changed
    model.kernel[...] = -model.kernel[...]
    assert again(probabilities=2) == (4, 0)


def test_a_result_of_other_code_is_replaced(tmp_path):
    pixels = save(tmp_path / "a.png", picture(6, 8))
    (tmp_path / "out").mkdir()
    save(tmp_path / "out" / "a.png", np.zeros((6, 8), np.uint8))
    assert (
        run_folder(Brightest(), [tmp_path / "a.png"], tmp_path / "out", overlay=False).written == 1
    )
    np.testing.assert_array_equal(ids_in(tmp_path / "out" / "a.png"), pixels.argmax(-1))


def test_shards_are_all_pictures_once_under_the_names_of_the_whole(tmp_path):
    paths = []
    for n, name in enumerate(("left/a", "left/b", "right/a", "right/c", "right/d")):
        paths.append(tmp_path / f"{name}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        save(paths[-1], picture(4, 4, seed=n))
    counts = [
        run_folder(Brightest(), paths, tmp_path / "out", shard=(n, 3), overlay=False).written
        for n in range(3)
    ]
    assert sorted(counts) == [1, 2, 2]
    for n, path in enumerate(paths):
        found = ids_in(tmp_path / "out" / path.relative_to(tmp_path))
        np.testing.assert_array_equal(found, picture(4, 4, seed=n).argmax(-1))
    with pytest.raises(ValueError, match="from 0/3 to 2/3, got 3/3"):
        run_folder(Brightest(), paths, tmp_path / "out", shard=(3, 3))


def test_all_devices_share_the_pictures(tmp_path):
    assert len(jax.devices()) == 8
    pixels = {}
    for n in range(11):
        pixels[tmp_path / f"{n}.png"] = save(tmp_path / f"{n}.png", picture(6, 8, seed=n))
    model = Brightest(traced=(traced := []))
    predict_folder(model, list(pixels), tmp_path / "out", batch_size=8, progress=False)
    assert traced == [(8, 6, 8, 3)]
    for path, image in pixels.items():
        np.testing.assert_array_equal(ids_in(tmp_path / "out" / path.name), image.argmax(-1))
    run = evaluator(model, (1.0,), False, devices=jax.devices())
    assert run(np.stack(list(pixels.values())[:8])).ids.shape == (8, 6, 8)


@pytest.mark.parametrize("onednn", [False, True])
def test_the_weights_of_a_program_for_many_images_are_constants_on_cpu(onednn, monkeypatch):
    monkeypatch.setattr(MODULE, "has_onednn", lambda: onednn)
    model, images = Brightest(), picture(1, 4, 4)
    for count, constant in ((MANY - 1, False), (MANY, onednn)):
        run = evaluator(model, (1.0,), False, images=count)
        before = run(images).ids
        model.kernel[...] = -model.kernel[...]
        assert (run(images).ids == before).all() == constant


@pytest.mark.parametrize("devices", [1, 8])
def test_the_most_pictures_of_a_size_have_a_program_with_constants(tmp_path, monkeypatch, devices):
    monkeypatch.setattr(MODULE, "has_onednn", lambda: True)
    pixels = {}
    for n in range(MANY + 3):
        path = tmp_path / f"{n}.png"
        pixels[path] = save(path, picture(6 + 2 * (n < 3), 8, seed=n))
    options = {"overlay": False, "progress": False, "devices": jax.devices()[:devices]}
    predict_folder(Brightest(traced=(traced := [])), list(pixels), tmp_path / "out", **options)
    most, others = (64, 8) if devices == 8 else (8, 3)
    assert sorted(traced) == sorted([(most, 6, 8, 3), (others, 8, 8, 3)])
    for path, image in pixels.items():
        np.testing.assert_array_equal(ids_in(tmp_path / "out" / path.name), image.argmax(-1))


@pytest.mark.parametrize("options", [{}, {"tile": 16}, {"flip": True}])
def test_probabilities_are_the_softmax_of_the_logits(tmp_path, options):
    pixels = save(tmp_path / "a.png", picture(20, 24))
    logits = pixels / 255
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    half = 2.0**-11  # of float16, relative to numbers below 1
    run_folder(Brightest(), [tmp_path / "a.png"], tmp_path / "all", probabilities="all", **options)
    with np.load(tmp_path / "all" / "a_probabilities.npz") as kept:
        assert sorted(kept) == ["probabilities"]
        np.testing.assert_allclose(kept["probabilities"], expected, atol=half)
    run_folder(Brightest(), [tmp_path / "a.png"], tmp_path / "top", probabilities=2, **options)
    with np.load(tmp_path / "top" / "a_probabilities.npz") as kept:
        best = np.argsort(-expected, -1)[..., :2]
        np.testing.assert_array_equal(kept["classes"], best)
        assert kept["classes"].dtype == np.uint8
        np.testing.assert_allclose(
            kept["probabilities"], np.take_along_axis(expected, best, -1), atol=half
        )


def test_without_a_terminal_progress_is_a_line_now_and_then(tmp_path, capfd, monkeypatch):
    save(tmp_path / "a.png", picture(4, 4))
    save(tmp_path / "b.png", picture(5, 4))
    for between, words in ((0.0, "predicting: 1 of 2 images, "), (30.0, "")):
        monkeypatch.setattr("deeplab_jax.progress.BETWEEN_LINES", between)
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        run_folder(Brightest(), paths, tmp_path / f"out{between}", progress=True)
        assert words in (said := capfd.readouterr().err)
        assert bool(words) == bool(said)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], []),
        (["d/a.jpg", "d/b.png"], ["a", "b"]),
        (["d/a.jpg", "e/b.png"], ["a", "b"]),
        (["d/a.jpg", "d/a.png", "d/b.jpg"], ["a.jpg", "a.png", "b.jpg"]),
        (["d/a.jpg", "d/A.png"], ["a.jpg", "A.png"]),
        (["x/left/a.jpg", "x/right/a.jpg"], ["left/a", "right/a"]),
        (["x/left/a.jpg", "x/left/a.png", "x/a.jpg"], ["left/a.jpg", "left/a.png", "a.jpg"]),
    ],
)
def test_output_names_are_never_the_same(paths, names):
    assert output_names([Path(path) for path in paths]) == [Path(name) for name in names]


def test_same_names_in_two_folders(tmp_path):
    pixels = {}
    for n, side in enumerate(("left", "right")):
        (tmp_path / side).mkdir()
        pixels[side] = save(tmp_path / side / "a.png", picture(4, 4, seed=n))
    run_folder(Brightest(), [tmp_path / side / "a.png" for side in pixels], tmp_path / "out")
    for side, image in pixels.items():
        np.testing.assert_array_equal(ids_in(tmp_path / "out" / side / "a.png"), image.argmax(-1))


def test_results_do_not_go_among_the_pictures(tmp_path):
    pixels = save(tmp_path / "a.png", picture(4, 4))
    with pytest.raises(ValueError, match="where the pictures are"):
        run_folder(Brightest(), [tmp_path / "a.png"], tmp_path)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    with pytest.raises(ValueError, match="must be a folder"):
        run_folder(Brightest(), [tmp_path / "a.png"], tmp_path / "a.png")


def test_a_result_that_cannot_be_written_leaves_nothing_half_written(tmp_path, monkeypatch):
    save(tmp_path / "a.png", picture(4, 4))
    out = tmp_path / "out"
    run_folder(Brightest(), [tmp_path / "a.png"], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    save(tmp_path / "a.png", picture(9, 9))
    write_bytes = Path.write_bytes

    def disk_full(path: Path, data: bytes) -> int:
        write_bytes(path, bytes(data)[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        run_folder(Brightest(), [tmp_path / "a.png"], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_folder_options_are_checked_before_anything_happens(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at least 1, or None, got 0"):
        run_folder(Brightest(), [], tmp_path / "out", batch_size=0)
    assert not (tmp_path / "out").exists()
