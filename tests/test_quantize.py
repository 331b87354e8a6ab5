"""Models in 8 bits: what they cost is measured, and too much is refused."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from PIL import Image

from deeplab_jax import create, normalize, save
from deeplab_jax.export import ExportError
from deeplab_jax.presets import named_config
from train.data import DataError
from train.quantize_command import _scores, quantize_command

SIZES = [(64, 80), (80, 64), (64, 80), (80, 64)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, and pictures labelled with what it says: "all" of them, and "sure" where it is."""
    root = tmp_path_factory.mktemp("world")
    model = create("fcn_resnet18", num_classes=3, rngs=nnx.Rngs(0))
    model.eval()
    save(model, root / "model")
    rng = np.random.default_rng(0)
    run = nnx.jit(lambda model, images: model(normalize(images, model.config.preprocessing)))
    for split in ("train", "val"):
        for number, (height, width) in enumerate(SIZES):
            coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
            image = np.asarray(Image.fromarray(coarse).resize((width, height)))
            logits = np.asarray(run(model, image[None]))[0]
            *_, second, best = np.sort(logits, -1).transpose(2, 0, 1)
            ids = logits.argmax(-1).astype(np.uint8)
            sure = np.where(best - second > np.median(best - second), ids, 255)
            for data, labels in (("all", ids), ("sure", sure)):
                for folder, pixels in (("images", image), ("masks", labels)):
                    path = root / data / folder / split / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels.astype(np.uint8)).save(path)
    for data in ("all", "sure"):
        (root / data / "classes.txt").write_text("a\nb\nc\n")
    return root


def quantize(world, out, data="sure", **options):
    return quantize_command(world / "model", out, data=f"folder:{world / data}", **options)


def run(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": image[None]})[0][0]


def test_a_model_in_8_bits_says_the_same_where_the_model_is_sure(world, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    assert quantize(world, out) == 0
    printed = capsys.readouterr().out
    assert "mIoU 1.000 in float32" in printed
    assert f"Written to {out}" in printed
    operators = {node.op_type for node in onnx.load(out).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    whole, small = map(float, re.search(r"([\d.]+) MB became ([\d.]+)\.", printed).groups())
    assert small < 0.3 * whole  # a quarter, and the scales
    for number in range(len(SIZES)):
        image, labels = (
            np.asarray(Image.open(world / "sure" / folder / "val" / f"{number}.png"))
            for folder in ("images", "masks")
        )
        right = run(out, image) == labels
        assert right[labels != 255].mean() > 0.98  # as the command says of IoU: a point at most


def test_what_costs_more_than_a_point_is_not_written(world, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    out.write_bytes(b"mine")
    assert quantize(world, out, "all", calibration=1, overwrite=True) == 1
    printed = capsys.readouterr().out
    assert "points of mIoU, more than 1: nothing was written" in printed
    assert out.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert quantize(world, out, "all", calibration=1, overwrite=True, force=True) == 0
    onnx.checker.check_model(out, full_check=True)


def test_bad_use_is_said_before_the_work(world, tmp_path):
    there = tmp_path / "there.onnx"
    there.touch()
    with pytest.raises(ValueError, match="exists; --overwrite replaces it"):
        quantize(world, there)
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        quantize(world, tmp_path / "model.xml")
    with pytest.raises(ValueError, match="--calibration must be at least 1, got 0"):
        quantize(world, tmp_path / "small.onnx", calibration=0)


def test_pictures_that_are_too_small_are_named(world, tmp_path):
    for folder in ("images", "masks"):
        for split in ("train", "val"):
            path = tmp_path / "tiny" / folder / split / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.eye(9, dtype=np.uint8)).save(path)
    (tmp_path / "tiny" / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(
        DataError, match=r"0.* is 9 x 9: the program takes images of 64 x 64 and more"
    ):
        quantize_command(world / "model", tmp_path / "m.onnx", data=f"folder:{tmp_path / 'tiny'}")


def test_without_a_labelled_pixel_nothing_is_written(world, tmp_path, capsys):
    for split in ("train", "val"):
        for folder, pixels in (
            ("images", np.zeros((64, 80, 3), np.uint8)),
            ("masks", np.full((64, 80), 255, np.uint8)),
        ):
            path = tmp_path / "none" / folder / split / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "none" / "classes.txt").write_text("a\nb\nc\n")
    out = tmp_path / "small.onnx"
    assert quantize_command(world / "model", out, data=f"folder:{tmp_path / 'none'}") == 1
    assert "No pixel has a label, so that there is no mIoU" in capsys.readouterr().out
    assert not out.exists()


def test_a_label_that_is_no_class_is_an_error():
    class Source(list):
        def name(self, index):
            return f"picture {index}"

    example = {"image": np.zeros((64, 64, 3), np.uint8), "label": np.full((64, 64), 3, np.uint8)}
    dataset = SimpleNamespace(val=Source([example]), overlapping=False)
    with pytest.raises(
        DataError, match="picture 0 has the label 3; the model's classes are 0 to 2"
    ):
        _scores([], dataset, named_config("fcn_resnet18").override(num_classes=3))


def test_without_nncf_one_sentence_says_what_to_install(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.delitem(sys.modules, "deeplab_jax.export.int8", raising=False)
    with pytest.raises(ExportError, match=r"nncf: pip install 'deeplab-jax\[int8\]'"):
        quantize(world, tmp_path / "small.onnx")


def test_nobody_is_told_of_the_use():
    """NNCF tells its makers, unless it takes itself to run in their tests."""
    environment = {name: value for name, value in os.environ.items() if name != "NNCF_CI"}
    code = (
        "import deeplab_jax.export.int8, nncf.telemetry.wrapper as wrapper\n"
        "assert not isinstance(wrapper.telemetry, wrapper.NNCFTelemetry)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True)
