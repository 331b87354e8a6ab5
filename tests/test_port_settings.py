"""Options that weights cannot tell: read from a config.json beside them, or said to be assumed."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from references import quick_comparison, randomise, without_weights
from safetensors.torch import save_file
from test_command_line import run
from torch import nn
from torchvision.models import segmentation

from deeplab_jax.predict import predict
from deeplab_jax.preprocessing import Preprocessing
from port import CheckpointError, load_torch, verify
from port.__main__ import main
from port.convert import convert

OPTIONS = {
    "encoder_output_stride": 8,
    "decoder_atrous_rates": (6, 12, 18),
    "decoder_aspp_dropout": 0.25,
    "decoder_channels": 32,
}


def smp_model(name: str = "DeepLabV3Plus", **options) -> nn.Module:
    options = {"encoder_weights": None, "classes": 3} | options
    make = without_weights(lambda: getattr(smp, name)("resnet18", **options))
    return randomise(make, (2, 3, 48, 64))


pytestmark = pytest.mark.filterwarnings(
    # smp prefers its newer tu-tf_*, whose checkpoints have other names
    "ignore:`timm-` encoders are deprecated:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def _quick_comparison():
    with quick_comparison():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of smp's own `save_pretrained`."""
    folder = tmp_path_factory.mktemp("smp")
    smp_model(**OPTIONS).save_pretrained(folder)
    return folder


def edited(saved: Path, folder: Path, **options) -> Path:
    """A copy of the folder with other options in its config.json; None takes one away."""
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    told = json.loads((saved / "config.json").read_text()) | options
    told = {name: value for name, value in told.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


# ---------------------------------------------------------------------------- smp


@pytest.mark.parametrize("name", ["DeepLabV3", "DeepLabV3Plus"])
def test_what_smp_saved_is_what_is_built(name, tmp_path):
    module = smp_model(name, **OPTIONS)
    module.save_pretrained(tmp_path)
    conversion = convert(tmp_path)
    config = conversion.model.config
    assert config.backbone.output_stride == 8
    assert config.head.rates == (6, 12, 18)
    assert config.head.dropout == 0.25
    assert conversion.assumed == ("preprocessing",)
    rng = np.random.default_rng(0)
    report = verify(conversion.model, module, rng.standard_normal((1, 48, 64, 3), np.float32))
    assert report.ok
    # The defaults are far from it: nothing would show without the file.
    untold = load_torch(module.state_dict())
    assert not verify(untold, module, rng.standard_normal((1, 48, 64, 3), np.float32)).ok


def test_what_the_user_says_comes_before_smps_file(saved):
    config = load_torch(saved, output_stride=16, rates=(1, 2, 3)).config
    assert config.backbone.output_stride == 16
    assert config.head.rates == (1, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_depth": 4}, "encoder_depth is 4, and we can only do 5"),
        ({"upsampling": 2}, "upsampling is 2, and we can only do 4"),
        ({"encoder_name": None}, "is not segmentation_models_pytorch's"),
        ({"decoder_atrous_rates": [6, 12]}, "of another shape"),
        ({"encoder_name": "tu-resnetaa50"}, "tu-resnetaa50, which averages or blurs before each"),
    ],
)
def test_options_of_smp_that_we_cannot_do_are_refused(options, message, saved, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        load_torch(edited(saved, tmp_path, **options))


TENSORFLOWS, OWN = ("same", 1e-3), ("symmetric", 1e-5)
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("encoder", "told", "untold", "mean"),
    [
        ("tu-tf_efficientnet_b0", TENSORFLOWS, OWN, Preprocessing.mean),
        ("tu-efficientnet_b0", OWN, OWN, Preprocessing.mean),
        # smp's own name, and of timm's two that look alike it is the one born in TensorFlow
        ("timm-mobilenetv3_small_100", TENSORFLOWS, TENSORFLOWS, HALF),
        ("tu-mobilenetv3_small_100", OWN, TENSORFLOWS, Preprocessing.mean),
        # of which there are no other weights
        ("tu-tf_mobilenetv3_small_minimal_100", TENSORFLOWS, TENSORFLOWS, HALF),
    ],
)
def test_smps_name_of_the_encoder_tells_padding_epsilon_and_statistics(
    encoder, told, untold, mean, tmp_path
):
    make = without_weights(
        lambda: smp.DeepLabV3Plus(encoder, encoder_weights=None, decoder_channels=32)
    )
    module = randomise(make)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    options = {
        "encoder_name": encoder,
        "encoder_output_stride": 16,
        "_model_class": "DeepLabV3Plus",
    }
    (tmp_path / "config.json").write_text(json.dumps(options))
    conversion = convert(tmp_path)
    config = conversion.model.config
    assert (config.backbone.padding, config.backbone.norm_epsilon) == told
    assert config.preprocessing == Preprocessing(mean, config.preprocessing.std, 16)
    # smp's own is dilated in one way before version 0.5 and in another since.
    either = ("first_block_dilation",) if encoder.startswith("timm-mobilenetv3") else ()
    assert conversion.assumed == ("rates", "preprocessing", *either)
    bare = convert(module.state_dict())
    backbone = bare.model.config.backbone
    assert (backbone.padding, backbone.norm_epsilon) == untold
    assert {"padding", "norm_epsilon"} < set(bare.assumed)


@pytest.mark.parametrize("encoder", ["timm-efficientnet-b0", "efficientnet-b0", "tu-mnasnet_050"])
def test_what_smp_has_in_one_form_alone_is_not_assumed(encoder):
    make = without_weights(lambda: smp.DeepLabV3Plus(encoder, encoder_weights=None))
    assert convert(randomise(make).state_dict()).assumed == (
        "output_stride",
        "rates",
        "preprocessing",
    )


# ---------------------------------------------------------------------------- timm


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100", "mobilenetv3_small_100"])
def test_timms_file_tells_padding_epsilon_and_statistics(name, tmp_path):
    module = randomise(without_weights(lambda: timm.create_model(name)), (2, 3, 64, 96))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    told = {"architecture": name, "num_classes": 1000, "pretrained_cfg": statistics}
    (tmp_path / "config.json").write_text(json.dumps(told))
    conversion = convert(tmp_path)
    assert conversion.model.config.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert conversion.assumed == ("output_stride", "norm_momentum")
    x = np.random.default_rng(0).standard_normal((1, 64, 96, 3), np.float32)
    assert verify(conversion.model, module, x).ok
    assert verify(load_torch(module.state_dict()), module, x).ok == (not name.startswith("tf_"))


@pytest.mark.parametrize(
    ("name", "mean"), [("tf_mobilenetv3_small_minimal_100", 0.5), ("mobilenetv3_small_050", 0.485)]
)
def test_without_timms_file_statistics_are_those_of_its_default_weights(name, mean):
    module = randomise(without_weights(lambda: timm.create_model(name, num_classes=3)))
    assert convert(module.state_dict()).model.config.preprocessing.mean[0] == mean


def test_a_network_that_looks_like_another_is_refused_by_its_name(tmp_path):
    module = randomise(without_weights(lambda: timm.create_model("efficientnet_blur_b0")))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "efficientnet_blur_b0"}')
    with pytest.raises(CheckpointError, match="efficientnet_blur_b0, which blurs"):
        convert(tmp_path)


def test_a_file_that_no_layout_reads_is_told(tmp_path):
    make = functools.partial(segmentation.lraspp_mobilenet_v3_large, weights_backbone=None)
    torch.save(randomise(without_weights(make)).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"anything": 8}')
    assert any("config.json beside the weights" in line for line in convert(tmp_path).dropped)


# ---------------------------------------------------------------------------- what is assumed


def checkpoint(folder: Path, **options) -> Path:
    torch.save(smp_model(**options).state_dict(), folder / "a.pth")
    return folder / "a.pth"


def test_a_verification_ends_with_what_both_sides_assumed(tmp_path, monkeypatch, capsys):
    file, report = checkpoint(tmp_path), tmp_path / "report.json"
    assert run(main, monkeypatch, file, tmp_path / "out", "--report", report) == 0
    first, *_, last, saved = capsys.readouterr().out.strip().splitlines()
    assert "deeplabv3plus on resnet (resnet18), 3 classes" in first
    assert last.startswith(
        "Assumed on both sides, and so not verified: output_stride = 16; rates = "
    )
    assert saved.startswith("Saved ")
    assumed = json.loads(report.read_text())["assumed"]
    assert list(assumed) == ["output_stride", "rates", "preprocessing"]
    assert assumed["rates"] == [12, 24, 36]
    assert assumed["preprocessing"]["size_multiple"] == 16


def test_what_the_user_said_or_a_file_told_is_not_assumed(saved, tmp_path, monkeypatch, capsys):
    statistics = ("--mean", 0, 0, 0, "--std", 1, 1, 1)
    assert run(main, monkeypatch, saved, tmp_path / "a", *statistics) == 0
    assert "ssumed" not in capsys.readouterr().out
    options = ("--output-stride", 8, "--set", "rates=(6,12,18)", *statistics)
    assert run(main, monkeypatch, saved / "model.safetensors", tmp_path / "b", *options) == 0
    assert "ssumed" not in capsys.readouterr().out


def test_against_an_original_of_ones_own_only_the_images_statistics_are_assumed(
    tmp_path, monkeypatch, capsys
):
    file = checkpoint(tmp_path, encoder_output_stride=8)
    (tmp_path / "mine.py").write_text(
        "import segmentation_models_pytorch as smp\n"
        "def build(): return smp.DeepLabV3Plus('resnet18', 5, None, 8, classes=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = (file, tmp_path / "out", "--against", "mine:build")
    assert run(main, monkeypatch, *arguments) == 1  # at the default stride
    assert run(main, monkeypatch, *arguments, "--output-stride", 8) == 0
    out = capsys.readouterr().out
    assert "not verified: preprocessing = mean (0.485, 0.456, 0.406), std (0.229" in out


# ---------------------------------------------------------------------------- channels


def test_images_of_four_channels_are_assumed_to_be_scaled_only():
    make = without_weights(
        lambda: smp.DeepLabV3("resnet18", encoder_weights=None, classes=3, in_channels=4)
    )
    conversion = convert(randomise(make).state_dict())
    assert conversion.model.config.preprocessing == Preprocessing((0.0,) * 4, (1.0,) * 4, 8)
    assert "preprocessing" in conversion.assumed
    ids = predict(conversion.model, np.zeros((20, 30, 4), np.uint8))
    assert ids.shape == (20, 30)
