"""TensorFlow's formats compute what the model does, in processes that know nothing of it."""

import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deeplab_jax import create, predict
from deeplab_jax.export import ExportError, Interface, export

FIXED = {"size": (70, 66), "batch": 2}

# What has operations of its own: dilated and grouped convolutions, attention, SAME padding, upsampling.
PRESETS = [
    "deeplabv3plus_mobilenet_v2",
    "lraspp_mobilenet_v3_small",
    "fcn_mit_b0",
    "fcn_regnety_002",
]


@pytest.fixture(scope="module", autouse=True)
def _tensorflow():
    for package in ("tensorflow", "ai_edge_litert"):
        pytest.importorskip(
            package, reason="needs pip install 'deeplab-jax[tensorflow]'", exc_type=ImportError
        )


def model_of(preset):
    return create(preset, num_classes=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("preset", PRESETS)
def test_tflite_gives_the_logits(tmp_path, preset):
    written = export(model_of(preset), tmp_path / "model.tflite", Interface(**FIXED))
    assert written.error < 1e-5  # as of every format in float32
    assert written.compared == ((2, 70, 66, 3),)


@pytest.mark.parametrize("name", ["model.tflite", "model.savedmodel"])
def test_pixels_in_and_classes_out_without_this_package(tmp_path, name):
    model = model_of("deeplabv3_resnet18")
    images = np.random.default_rng(0).integers(0, 256, (2, 70, 66, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    interface = Interface(images="pixels", output="classes", **FIXED)
    usage = export(model, tmp_path / name, interface).usage
    lines = [
        "import sys, numpy",
        f"images = numpy.load({str(tmp_path / 'images.npy')!r})",
        usage,
        "assert 'deeplab_jax' not in sys.modules",
        f"numpy.save({str(tmp_path / 'ids.npy')!r}, numpy.asarray(output))",
    ]
    subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(lines)], check=True)
    ids = np.load(tmp_path / "ids.npy")
    assert ids.dtype == np.uint8
    assert (ids == predict(model, images)).mean() > 0.999  # rounding decides where two are alike


def test_erf_is_within_its_rounding():
    from deeplab_jax.export.tensorflow_program import _erf

    x = np.linspace(-6, 6, 10_001, dtype=np.float32)
    exact = [math.erf(value) for value in x.tolist()]
    # Measured: 2.3e-7, two units in the last place of 1.
    np.testing.assert_allclose(_erf(jnp.asarray(x)), exact, rtol=0, atol=3e-7)


def test_half_precision_halves_the_file(tmp_path):
    model, interface = model_of("lraspp_mobilenet_v3_small"), Interface(**FIXED)
    sizes = [
        export(model, tmp_path / f"{dtype}.tflite", interface, dtype=dtype).path.stat().st_size
        for dtype in ("float32", "float16")
    ]
    assert 0.5 < sizes[1] / sizes[0] < 0.6


@pytest.mark.parametrize("fixed", [{}, {"size": (64, 64)}, {"batch": 1}])
def test_free_sizes_are_refused_with_the_flags_that_fix_them(tmp_path, fixed):
    with pytest.raises(ExportError, match="--size 512 512 --batch 1"):
        export(model_of("fcn_resnet18"), tmp_path / "model.tflite", Interface(**fixed))
    assert not list(tmp_path.iterdir())


def test_what_is_not_converted_is_one_sentence(tmp_path, monkeypatch):
    from deeplab_jax.export.tflite import tensorflow

    def refuse(converter):
        raise RuntimeError("no such operation\nin line 7")

    monkeypatch.setattr(tensorflow.lite.TFLiteConverter, "convert", refuse)
    with pytest.raises(
        ExportError, match=r"does not convert this model to TFLite: no such operation$"
    ):
        export(model_of("fcn_resnet18"), tmp_path / "model.tflite", Interface(**FIXED))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_never_replaced(tmp_path):
    (tmp_path / "model.savedmodel").mkdir()
    with pytest.raises(
        ExportError, match=r"model\.savedmodel is a folder, which is never replaced"
    ):
        export(
            model_of("fcn_resnet18"),
            tmp_path / "model.savedmodel",
            Interface(**FIXED),
            overwrite=True,
        )
