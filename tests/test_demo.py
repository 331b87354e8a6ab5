"""The page of `deeplab demo`: what it does, the page as it is served, and the folder of a Space."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import deeplab_jax
from deeplab_jax import Config, ResNetConfig, build, demo, load, save
from deeplab_jax.heads import FCNConfig
from deeplab_jax.images import ImageError
from deeplab_jax.model import fill


@pytest.fixture(scope="module")
def model():
    config = Config(
        ResNetConfig(18, output_stride=32),
        FCNConfig(channels=8),
        3,
        class_names=("road", "sky", "car"),
    )
    return fill(build(config), nnx.Rngs(0))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


FOUND = demo.Segmented(
    np.full((10, 10, 3), 200, np.uint8),
    np.repeat([0, 1, 1, 1, 2], 20).astype(np.uint8).reshape(10, 10),
    0.123,
)
COLORS = np.array([[0, 0, 0], [0, 0, 255], [255, 0, 0]], np.uint8)
LEGEND = demo.Legend(("road", "sky", "car"), COLORS)


def test_a_picture_is_segmented_as_predict_does_it(model, picture):
    found = demo.segment(model, picture)
    np.testing.assert_array_equal(found.ids, deeplab_jax.predict(model, picture))
    assert found.shrunk_from is None
    assert demo.told(found).startswith(f"**{found.seconds:.2f} s** on cpu for 64 x 48 pixels.")


def test_a_large_picture_is_shrunk_and_the_page_says_so(model, picture):
    found = demo.segment(model, picture, largest=32)
    assert found.ids.shape == (24, 32)
    assert "for 32 x 24 pixels, shrunk from 64 x 48." in demo.told(found)


def test_classes_are_listed_by_area_with_names_shares_and_colours():
    assert FOUND.classes == [1, 0, 2]
    assert LEGEND.choices(FOUND) == [("sky 60.0 %", 1), ("road 20.0 %", 0), ("car 20.0 %", 2)]
    first = re.search(
        r"nth-of-type\(1\) span::before { background: (.*?) }", LEGEND.swatches(FOUND)
    )
    assert first[1] == "rgb(0, 0, 255)"


def test_a_class_that_is_off_is_not_tinted_and_the_others_are():
    drawn = np.asarray(LEGEND.draw(FOUND, 0.5, shown=[0, 2]))
    assert (drawn[FOUND.ids == 1] == 200).all()
    assert (drawn[FOUND.ids == 2] != 200).any(axis=-1).all()
    assert (COLORS == [[0, 0, 0], [0, 0, 255], [255, 0, 0]]).all()


def test_opacity_is_that_of_the_tint():
    clear, full = (np.asarray(LEGEND.draw(FOUND, alpha, [0, 1, 2])) for alpha in (0, 1))
    assert (clear == 200).all()
    assert (full[FOUND.ids == 2] == [255, 0, 0]).all()


def test_the_page_is_for_rgb_models_alone():
    config = Config(ResNetConfig(18, in_channels=4), FCNConfig(channels=8), 3)
    with pytest.raises(ValueError, match="this model takes 4 bands of uint8"):
        demo.page(build(config))


def test_pictures_are_not_shrunk_to_nothing(model):
    with pytest.raises(demo.DemoError, match="largest must be at least 32 pixels, got 0"):
        demo.page(model, largest=0)


def test_without_gradio_there_is_one_sentence(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(demo.DemoError, match=r"pip install 'deeplab-jax\[app\]'"):
        demo.page(model)


# ---- served


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """The address of a page in a process of its own: Gradio's imports warn of others' old code.

    SIGTERM ends it, and it leaves no temporary files.
    """
    folder, temporary = (tmp_path_factory.mktemp(name) for name in ("served", "temporary"))
    save(model, folder / "model.safetensors")
    words = ["-c", "from deeplab_jax.__main__ import main; main()", "demo", "model.safetensors"]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment() | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield re.search(r"http://\S+", process.stdout.readline())[0]
    assert list(temporary.glob("deeplab_demo.*"))
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    process.stdout.close()
    assert not list(temporary.glob("deeplab_demo.*"))


def environment():
    return os.environ | {"PYTHONPATH": str(Path(demo.__file__).parent.parent), "XLA_FLAGS": ""}


def test_the_served_page_segments_and_loads_nothing_from_elsewhere(
    served, model, picture, tmp_path
):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    with urllib.request.urlopen(served) as answer:
        text = answer.read().decode()
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(\w+:)?//[^"]*"', text)
    assert loaded == []
    assert '"analytics_enabled":false' in text.replace(" ", "")
    with contextlib.closing(Client(served, verbose=False, download_files=tmp_path)) as client:
        overlay, classes, _, taken, mask = client.predict(
            handle_file(picture), 0.5, api_name="/segment"
        )
        cut = tmp_path / "cut.png"
        cut.write_bytes(picture.read_bytes()[:500])
        with pytest.raises(AppError, match=r"^damaged, cannot be decoded"):
            client.predict(handle_file(cut), 0.5, api_name="/segment")
        text_file = tmp_path / "text.png"
        text_file.write_text("no picture")
        with pytest.raises(AppError, match=r"^not a picture"):
            client.predict(handle_file(text_file), 0.5, api_name="/segment")
    with Image.open(mask["value"]) as image:
        ids = np.asarray(image)
    assert (ids == deeplab_jax.predict(model, picture)).mean() > 0.999
    with Image.open(overlay) as image:
        assert image.size == (64, 48)
    assert {label.split()[0] for label, _ in classes["choices"]} <= {"road", "sky", "car"}
    assert "64 x 48 pixels" in taken


# ---- a Space


def test_a_space_has_its_model_and_an_app_that_serves_it(model, tmp_path, monkeypatch):
    folder = tmp_path / "spaces" / "street"
    demo.write_space(model, "runs/camvid", folder, title='Streets: "wet" and dry')
    assert {path.name for path in folder.iterdir()} == {
        "app.py",
        "requirements.txt",
        "README.md",
        "model.safetensors",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["street"]
    assert (folder / "requirements.txt").read_text() == "deeplab-jax[app]\n"
    front = (folder / "README.md").read_text().split("---\n")[1]
    assert 'title: "Streets: \\"wet\\" and dry"\nsdk: gradio\n' in front
    served = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(demo, "page", lambda model, **options: (model.config, options))
    monkeypatch.setattr(demo, "launch", lambda page, **options: served.append((page, options)))
    exec((folder / "app.py").read_text(), {})
    (((config, options), address),) = served
    assert config == load("model.safetensors").config == model.config
    assert options == {"title": 'Streets: "wet" and dry', "largest": demo.LARGEST}
    assert address == {"host": "0.0.0.0"}


def test_a_model_on_the_hub_is_named_in_a_space_and_not_copied(model, tmp_path):
    demo.write_space(model, "hf://you/camvid@v1", tmp_path / "space")
    assert not (tmp_path / "space" / "model.safetensors").exists()
    assert "load('hf://you/camvid@v1')" in (tmp_path / "space" / "app.py").read_text()
    assert (tmp_path / "space" / "requirements.txt").read_text() == "deeplab-jax[app,hub]\n"


def test_a_folder_that_is_there_does_not_become_a_space(model, tmp_path):
    with pytest.raises(demo.DemoError, match="exists: choose another folder"):
        demo.write_space(model, "runs/camvid", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_none_is_an_error(model, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match="not a picture"):
        demo.segment(model, tmp_path / "text.png")
