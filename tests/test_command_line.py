"""The commands as a user types them: status, messages, and what they leave behind."""

import json
import zipfile

import jax
import numpy as np
import platformdirs
import pytest
import torch
import torchvision
from PIL import Image

import deeplab_jax
from deeplab_jax import __main__ as deeplab
from deeplab_jax import load
from deeplab_jax.command import keep_compiled_programs
from deeplab_jax.command import run as run_command
from deeplab_jax.images import read_image
from deeplab_jax.ops import has_onednn
from port import __main__ as deeplab_port


def run(main, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    path = tmp_path_factory.mktemp("torch") / "lraspp.pth"
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def ported(checkpoint, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    out = tmp_path_factory.mktemp("jax") / "lraspp"
    names = out.parent / "names.txt"
    names.write_text("road\nsky\n\ncar\ntree\n")
    report = out.parent / "reports" / "report.json"
    arguments = (checkpoint, out, "--class-names", names, "--report", report)
    assert run(deeplab_port.main, patch, *arguments) == 0
    patch.undo()
    return out


def test_port_verifies_saves_and_reports(ported):
    model = load(ported)
    assert model.config.class_names == ("road", "sky", "car", "tree")
    report = json.loads((ported.parent / "reports" / "report.json").read_text())
    assert report["ok"]
    assert report["argmax_agreement"] >= 0.9999
    assert report["layers"][-1]["path"] == "logits"
    assert {path.name for path in ported.parent.iterdir()} == {"lraspp", "names.txt", "reports"}


def test_port_refuses_to_overwrite_unless_told(checkpoint, ported, monkeypatch, capsys):
    assert run(deeplab_port.main, monkeypatch, checkpoint, ported, "--no-verified") == 2
    assert "--overwrite" in capsys.readouterr().err
    arguments = (checkpoint, ported, "--no-verified", "--overwrite")
    assert run(deeplab_port.main, monkeypatch, *arguments) == 0


def test_port_exits_with_1_and_saves_nothing_where_the_models_differ(
    checkpoint, tmp_path, monkeypatch, capsys
):
    # the same names and shapes, another graph: its last stage is not dilated
    code = (
        "import torchvision\n"
        "def make():\n"
        "    from torchvision.models import mobilenetv3\n"
        "    from torchvision.models.segmentation import lraspp\n"
        "    return lraspp._lraspp_mobilenetv3(mobilenetv3.mobilenet_v3_large(), 4)\n"
    )
    (tmp_path / "other_stride.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    status = run(
        deeplab_port.main, monkeypatch, checkpoint, "out", "--against", "other_stride:make"
    )
    assert status == 1
    assert "first layer that differs is backbone.blocks.12" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.pth",), "missing.pth"),
        (("{checkpoint}", "--layout", "nosuch"), "layout must be one of"),
        (("{checkpoint}", "--output-stride", "12"), "must be 8, 16 or 32, got 12"),
        (("{checkpoint}", "--set", "nosuch=1"), "no such field: nosuch"),
        (("{checkpoint}", "--set", "nosuch"), "name=value"),
        (("{checkpoint}", "--against", "nosuch"), "module:factory"),
        (("{checkpoint}", "--against", "nosuch:f"), "cannot be made: ModuleNotFoundError"),
        (("{checkpoint}", "--against", "json:loads"), "cannot be made: TypeError"),
        (("{checkpoint}", "--against", "os:getcwd"), "must give a torch.nn.Module, got str"),
        (("{checkpoint}", "--against", "torch.nn:Flatten"), "does not take this checkpoint"),
        (("{checkpoint}", "--no-verified", "--report", "report.json"), "compares nothing"),
        (("{checkpoint}", "--images", "nosuch"), "no such file"),
        (("{checkpoint}", "--mean", "0.5"), "a value for each of the 3 channels, got (0.5,)"),
        (("{checkpoint}", "--std", "1", "1", "0"), "std's must be above 0"),
        (("{checkpoint}", "--report", "{checkpoint}/report.json"), "is not a folder that you may"),
        (("{checkpoint}", "--class-names", "{checkpoint}"), "a class per line"),
    ],
)
def test_bad_use_of_port_ends_with_status_2_and_leaves_nothing(
    arguments, message, checkpoint, tmp_path, monkeypatch, capsys
):
    source, *options = (a.format(checkpoint=checkpoint) for a in arguments)
    monkeypatch.chdir(tmp_path)
    assert run(deeplab_port.main, monkeypatch, source, "out", *options) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_port_names_all_pictures_that_are_none(checkpoint, tmp_path, monkeypatch, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "good.png")
    for name in ("one.jpg", "two.png"):
        (pictures / name).write_text("no picture")
    out = tmp_path / "out"
    assert run(deeplab_port.main, monkeypatch, checkpoint, out, "--images", pictures) == 2
    error = capsys.readouterr().err
    assert "one.jpg: not a picture" in error
    assert "two.png: not a picture" in error
    assert not out.exists()


def test_a_truncated_checkpoint_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    assert not zipfile.is_zipfile(cut)
    assert run(deeplab_port.main, monkeypatch, cut, tmp_path / "out") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pth"]


def test_predict_writes_masks_and_names_the_picture_that_is_none(
    ported, tmp_path, monkeypatch, capsys
):
    photos, out = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 57, 3)).astype(np.uint8)).save(
        photos / "good.png"
    )
    (photos / "bad.png").write_text("no picture")
    assert run(deeplab.main, monkeypatch, "predict", ported, photos, "--out", out) == 2
    assert "bad.png" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text(f"{photos / 'good.png'}\n\n")
    listed = ("--files-from", tmp_path / "list.txt")
    assert run(deeplab.main, monkeypatch, "predict", ported, "--out", out, *listed) == 0
    assert "1 of 1 pictures are in" in (said := capsys.readouterr().err)
    assert "1 were there before" in said
    assert {path.name for path in out.iterdir()} == {"good.png", "good_overlay.jpg"}
    with Image.open(out / "good.png") as mask:
        assert mask.size == (57, 41)
        assert np.asarray(mask).max() < 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "nosuch", "x.png"), "does not exist"),
        (("predict", "{ported}", "nosuch.png"), "no such file"),
        (("predict", "{ported}"), "at least one picture"),
        (("predict", "{ported}", "demo", "--tile", "3"), "tile must be at least"),
        (("predict", "{ported}", "demo", "--scales", "1e9"), "at most 16"),
        (("predict", "{ported}", "demo", "--shard", "8/8"), "from 0/8 to 7/8, got 8/8"),
        (("predict", "{ported}", "demo", "--shard", "half"), "--shard must be I/N"),
        (("predict", "{ported}", "demo", "--probabilities", "0"), "of at least 1 class"),
        (("predict", "{ported}", "--files-from", "nosuch.txt"), "nosuch.txt cannot be read"),
        (("summary", "nosuch"), "neither a preset"),
    ],
)
def test_bad_use_of_deeplab_ends_with_status_2(
    arguments, message, ported, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = (argument.format(ported=ported) for argument in arguments)
    assert run(deeplab.main, monkeypatch, *arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error


def fails():
    raise ValueError("choose another")


def test_an_error_is_a_sentence_and_whoever_looks_for_a_bug_gets_the_traceback(monkeypatch, capsys):
    for value, traced in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("DEEPLAB_DEBUG", value)
        with pytest.raises(SystemExit) as ended:
            run_command(fails)
        assert ended.value.code == 2
        err = capsys.readouterr().err
        assert ("Traceback" in err) == traced
        assert err.endswith("error: choose another\n")


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


def test_summary_adds_up(monkeypatch, capsys):
    # torchvision's LR-ASPP has 3,221,538 parameters with 21 classes
    assert run(deeplab.main, monkeypatch, "summary", "lraspp_mobilenet_v3_large") == 0
    total = capsys.readouterr().out.splitlines()[-1]
    assert "3,221,538" in total


def test_summary_reads_a_model_folder(ported, monkeypatch, capsys):
    assert run(deeplab.main, monkeypatch, "summary", ported, "--size", "65", "97") == 0
    assert "backbone.blocks.14" in capsys.readouterr().out


@pytest.mark.parametrize("main", [deeplab.main, deeplab_port.main])
def test_version_names_what_results_depend_on(main, monkeypatch, capsys):
    assert run(main, monkeypatch, "--version") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"deeplab-jax {deeplab_jax.__version__} (jax {jax.__version__}, jaxlib ")
    assert f"torch {torch.__version__.partition('+')[0]}" in line


def test_list_names_the_presets(monkeypatch, capsys):
    assert run(deeplab.main, monkeypatch, "list") == 0
    assert "deeplabv3plus_resnet50" in capsys.readouterr().out


@pytest.mark.usefixtures("cache_settings")
@pytest.mark.parametrize("unless_slower", [False, True])
def test_compiled_programs_are_kept_in_the_users_cache_folder(unless_slower):
    keep_compiled_programs(unless_slower=unless_slower)
    folder = str(platformdirs.user_cache_path("deeplab_jax") / "compiled")
    expected = None if unless_slower and has_onednn() else folder
    assert jax.config.jax_compilation_cache_dir == expected


URL = "gs://bucket/some"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (deeplab.main, ("predict", "MODEL", URL)),
        (deeplab.main, ("predict", "MODEL", "demo", "--out", URL)),
    ],
)
def test_urls_are_refused_as_paths(
    command, arguments, checkpoint, ported, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    places = {"CHECKPOINT": checkpoint, "MODEL": ported}
    assert run(command, monkeypatch, *(places.get(a, a) for a in arguments)) == 2
    assert "must be a path on this machine, got gs://bucket/some" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_large_and_not_too_large_is_read_without_a_warning(tmp_path, monkeypatch):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 300
    )  # Pillow warns from here on, and refuses at 600
    with pytest.raises(SystemExit) as ended:  # warnings are errors in tests
        run_command(lambda: int(read_image(tmp_path / "a.png").shape != (20, 20, 3)))
    assert ended.value.code == 0
