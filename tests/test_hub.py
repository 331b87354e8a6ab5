"""Models on the hub, which is a server in this process: pushed, loaded, described, and refused."""

import json
import socket

import huggingface_hub
import numpy as np
import pytest
from flax import nnx
from hub_server import TOKEN, hub_server, use
from huggingface_hub import constants
from own_backbone import StripesConfig
from PIL import Image

from deeplab_jax import Config, ModelError, ResNetConfig, build, hub, load, save
from deeplab_jax import __main__ as deeplab
from deeplab_jax.card import Training, card, scores_from, training_from
from deeplab_jax.checkpoint import files_of
from deeplab_jax.digests import ALGORITHM
from deeplab_jax.heads import DeepLabV3PlusConfig, FCNConfig
from deeplab_jax.hub import HubError
from deeplab_jax.model import fill, named_variables
from deeplab_jax.push import PushError, push
from train import __main__ as train

CLASSES = ("road", "a|b", "sky")


def model(seed=0, names=CLASSES):
    return fill(
        build(Config(StripesConfig(), FCNConfig(channels=8), 3, class_names=names)), nnx.Rngs(seed)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(model(), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return save(model(1), tmp_path_factory.mktemp("models") / "other.safetensors")


@pytest.fixture
def served(tmp_path, monkeypatch):
    with hub_server(tmp_path / "cache", monkeypatch) as found:
        yield found


def in_repository(folder):
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def with_wrong_digest(folder):
    """The config.json of a model folder whose weights are not those that were saved."""
    config = json.loads((folder / "config.json").read_text())
    return json.dumps(config | {ALGORITHM: "0" * 32}).encode()


def assert_same(a, b):
    assert a.config == b.config
    for name, variable in named_variables(a).items():
        np.testing.assert_array_equal(variable[...], named_variables(b)[name][...], err_msg=name)


def command(main, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def evaluation(**fields):
    """A scores.json, as a run writes it."""
    rows = [
        {"name": name, "iou": 0.5 + n / 10, "accuracy": 0.75, "boundary": None}
        for n, name in enumerate(CLASSES)
    ]
    means = {"miou": 0.61234, "mean_accuracy": 0.75, "pixel_accuracy": 0.875, "mean_boundary": None}
    return {"run": "runs/x", "step": 40, **means, "classes": rows, "images": [{}] * 7} | fields


def run_of(folder, at, scores, steps=40):
    """The folder of a training run whose model is a given one."""
    for name, data in in_repository(folder).items():
        (at / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (at / "model" / name).write_bytes(data)
    (at / "checkpoints").mkdir()
    (at / "evaluation").mkdir()
    config = {"data": {"name": "folder:/home/alice/CamVid"}, "model": {"init": "/home/alice/lite0"}}
    (at / "config.json").write_text(json.dumps(config))
    (at / "environment.json").write_text(json.dumps({"steps": steps}))
    (at / "evaluation" / "scores.json").write_text(json.dumps(scores))
    return at


# ---------------------------------------------------------------------------- there and back


def test_a_pushed_model_is_loaded_to_the_bit_and_replaced_in_one_commit(served, folder, other):
    push(folder, "hf://me/roads", message="The first", licence="mit")
    stored = served.repositories["me/roads"]
    assert_same(load("hf://me/roads"), load(folder))
    assert stored.files().keys() == {".gitattributes", "README.md", *files_of(folder)}
    assert not stored.private
    push(other, "hf://me/roads")  # a file becomes a folder
    assert_same(load("hf://me/roads"), load(other))
    assert stored.messages[1:] == ["The first", "Push a model of deeplab_jax"]
    assert len([name for name in stored.files() if "commit_success" in name]) == 1
    old = {name for name in files_of(folder) if "/d/" in name}
    assert not old & stored.files().keys()  # of the weights that were there, none is left


def test_a_branch_is_made_from_the_main_one_and_loaded_by_its_name(served, folder, other):
    push(folder, "hf://me/roads")
    pushed = push(other, "hf://me/roads", revision="v2")
    assert pushed.repository == "hf://me/roads@v2"
    assert_same(load("hf://me/roads@v2"), load(other))
    assert_same(load("hf://me/roads"), load(folder))
    assert_same(load(f"hf://me/roads@{pushed.commit}"), load(other))
    push(folder, "hf://me/roads", revision="v2")
    assert_same(load("hf://me/roads@v2"), load(folder))
    assert "hf://me/roads@v2" in served.repositories["me/roads"].files("v2")["README.md"].decode()


def test_a_safetensors_file_at_the_root_is_a_model_too(served, other):
    served.store("me/file", {"any.safetensors": other.read_bytes(), "deep/x.safetensors": b"no"})
    assert_same(load("hf://me/file"), load(other))


def test_the_commands_take_a_repository(served, folder, tmp_path, monkeypatch, capsys):
    served.store("me/roads", in_repository(folder))
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "labels").mkdir()
    pixels = np.random.default_rng(0).integers(0, 3, (32, 32), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).convert("RGB").save(tmp_path / "data" / "images" / name)
        Image.fromarray(pixels).save(tmp_path / "data" / "labels" / name)
    url, data = "hf://me/roads", tmp_path / "data"
    out = tmp_path / "out"
    assert command(deeplab.main, monkeypatch, "check", url) == 0
    assert command(deeplab.main, monkeypatch, "summary", url, "--size", 32, 32) == 0
    assert command(deeplab.main, monkeypatch, "predict", url, data / "images", "--out", out) == 0
    assert (out / "a.png").is_file()
    arguments = ("evaluate", url, "--data", f"folder:{data}", "--split", "all", "--out", out)
    assert command(train.main, monkeypatch, *arguments) == 0
    assert json.loads((out / "scores.json").read_text())["model"].endswith("me/roads")
    said = capsys.readouterr()
    assert "model is whole" in said.out
    assert "backbone.late" in said.out


def test_a_damaged_copy_is_found_by_check(served, folder, monkeypatch, capsys):
    served.store("me/roads", in_repository(folder) | {"config.json": with_wrong_digest(folder)})
    assert command(deeplab.main, monkeypatch, "check", "hf://me/roads") == 1
    assert "model is damaged" in capsys.readouterr().out


# ---------------------------------------------------------------------------- the card


def test_the_card_of_a_run_has_its_scores_and_no_path_of_the_machine(served, folder, tmp_path):
    run = run_of(folder, tmp_path / "run", evaluation())
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.JPEG")
    picture = tmp_path / "mine.JPEG"
    assert push(run, "hf://me/roads", private=True, licence="mit", picture=picture).notes == ()
    stored = served.repositories["me/roads"]
    assert stored.private
    assert stored.files()["picture.jpg"] == picture.read_bytes()
    text = stored.files()["README.md"].decode()
    found = huggingface_hub.ModelCard(text)
    assert found.data.library_name == "deeplab_jax"
    assert found.data.pipeline_tag == "image-segmentation"
    assert found.data.license == "mit"
    measured = {r.metric_name: (r.metric_type, r.metric_value) for r in found.data.eval_results}
    assert measured == {"mIoU": ("mean_iou", 0.6123), "pixel accuracy": ("accuracy", 0.875)}
    assert {r.dataset_name for r in found.data.eval_results} == {"CamVid"}
    assert "![Pictures and what the model makes of them](picture.jpg)" in text
    assert "| 1 | a\\|b | 0.6000 | 0.7500 | - |" in text
    assert "mIoU 0.6123" in text
    assert "7 images of CamVid (split val, step 40)" in text
    assert "on CamVid, 40 steps, from the weights of `lite0`" in text
    assert "alice" not in text
    assert "--plugin own_backbone" in text


def test_the_card_of_a_binary_model_says_whose_iou_it_is_and_has_dice():
    row = {"iou": 0.5, "dice": 2 / 3, "accuracy": 0.75, "boundary": None}
    rows = [{"name": name} | row for name in ("ground", "leaf")]
    scores = scores_from(evaluation(classes=rows, mean_dice=2 / 3, data="folder:leaves"))
    config = Config(ResNetConfig(18), FCNConfig(), 1, class_names=("ground", "leaf"))
    text = card(config, "hf://me/leaves", parameters=1, scores=scores)
    assert "IoU of the foreground 0.6123, Dice 0.6667, pixel accuracy 0.8750" in text
    assert "| 1 | leaf | 0.5000 | 0.6667 | 0.7500 | - |" in text
    (found, _) = huggingface_hub.ModelCard(text).data.eval_results
    assert (found.metric_name, found.metric_type) == ("IoU of the foreground", "mean_iou")


def test_the_card_of_several_labels_says_what_is_predicted():
    config = Config(ResNetConfig(18), FCNConfig(), 2, None, activation="sigmoid")
    text = card(config, "hf://me/leaves", parameters=1)
    assert "2 labels. Their names are not recorded" in text
    assert 'predict(model, "photo.jpg")  # [H, W, 2], which labels every pixel has' in text


def test_what_is_not_known_is_said():
    config = Config(ResNetConfig(50, output_stride=8), DeepLabV3PlusConfig())
    text = card(config, "hf://me/roads@v1", parameters=1234567)
    assert "21 classes. Their names are not recorded" in text
    assert "No scores are recorded" in text
    assert "Where the weights come from is not recorded" in text
    assert "has not stated a licence" in text
    assert "backbone: `resnet50`\n" in text
    assert "output stride: 8" in text
    assert "1,234,567" in text
    assert 'load("hf://me/roads@v1")' in text
    config = Config(ResNetConfig(50, multi_grid=(1, 2, 4)), DeepLabV3PlusConfig(channels=128))
    other = card(config, "hf://me/roads", parameters=1)
    assert "backbone: `resnet50`, `multi_grid=(1, 2, 4)`\n" in other
    assert "head: `deeplabv3plus`, `channels=128`\n" in other
    found = huggingface_hub.ModelCard(text)
    assert found.data.license is None
    assert found.data.eval_results is None
    assert "--plugin" not in text


def test_scores_of_an_unknown_data_set_are_no_metadata():
    config = Config(ResNetConfig(18), FCNConfig(), 3)
    text = card(config, "hf://me/roads", parameters=1, scores=scores_from(evaluation()))
    assert "a data set whose name is not recorded" in text
    assert huggingface_hub.ModelCard(text).data.eval_results is None
    named = scores_from(evaluation(data="tfds:voc/2012", split="train", flip=True, scales=[1, 1.5]))
    text = card(config, "hf://me/roads", parameters=1, scores=named)
    assert "tfds:voc/2012 (split train, step 40, scales 1 1.5, flip)" in text


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("camvid", "camvid"),
        ("tfds:voc/2012", "tfds:voc/2012"),
        ("folder:/home/alice/CamVid", "CamVid"),
        ("hf:org/roads", "hf:org/roads"),
        ("hf:/home/alice/roads", "roads"),
        ("hf:../alice/roads", "roads"),
        ("webdataset:/home/alice/{train,val}.tar", "{train,val}.tar"),
    ],
)
def test_the_place_of_the_data_on_this_machine_is_not_told(data, named):
    config = {"data": {"name": data}, "model": {"init": None}}
    assert training_from(config).dataset == named


def test_training_from_a_model_of_the_hub_names_it():
    config = {"data": {"name": "shapes"}, "model": {"init": "hf:/me/roads"}}
    assert training_from(config) == Training("shapes", "hf://me/roads")
    assert training_from(config | {"model": {"init": None}}).origin is None


@pytest.mark.parametrize(
    ("scores", "note"),
    [
        (evaluation(step=20), "are of another model"),
        (evaluation(classes=[]), "are of another model"),
        ({"miou": 0.5}, "is damaged"),
    ],
)
def test_scores_that_are_not_the_models_are_left_out(scores, note, served, folder, tmp_path):
    pushed = push(run_of(folder, tmp_path / "run", scores), "hf://me/roads")
    assert note in pushed.notes[0]
    text = served.repositories["me/roads"].files()["README.md"].decode()
    assert "No scores are recorded" in text
    assert "on CamVid, from" in text


def test_a_card_of_somebodys_own_stays_unless_told(served, folder, monkeypatch, capsys, tmp_path):
    own = {"README.md": b"# My roads\n"}
    served.store("me/roads", own)
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    arguments = ("push", folder, "hf://me/roads", "--picture", tmp_path / "p.png")
    assert command(deeplab.main, monkeypatch, *arguments) == 0
    assert "--overwrite-card replaces it" in capsys.readouterr().out
    files = served.repositories["me/roads"].files()
    assert files["README.md"] == own["README.md"]
    assert "picture.png" not in files
    assert_same(load("hf://me/roads"), load(folder))
    assert command(deeplab.main, monkeypatch, *arguments, "--overwrite-card") == 0
    assert "picture.png" in served.repositories["me/roads"].files()["README.md"].decode()
    assert command(deeplab.main, monkeypatch, *arguments[:3]) == 0  # of our own it is written anew
    assert "picture.png" not in served.repositories["me/roads"].files()["README.md"].decode()


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://me/none", r"hf://me/none is not found: check the name .* `hf auth login`"),
        ("hf://me/roads@v9", r"hf://me/roads@v9: the repository has no such branch"),
        ("hf://me/secret", "hf://me/secret is not found"),
        ("hf://roads", "is hf://USER/NAME or hf://USER/NAME@REVISION, got hf://roads"),
        ("hf://me/roads/weights", "is hf://USER/NAME or"),
        ("hf://me/..roads", "is no name that a repository can have"),
    ],
)
def test_what_is_not_there_is_one_sentence(url, message, served, folder, monkeypatch):
    served.store("me/roads", in_repository(folder))
    served.store("me/secret", in_repository(folder), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_ofSomebodyElse")
    with pytest.raises(HubError, match=message):
        load(url)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b'{"encoder_name": "resnet34"}', "pytorch_model.bin": b"\0"},
        {"pytorch_model.bin": b"\0"},
        {"config.json": b"[]", "README.md": b"", "model.safetensors": b"\0" * 9},
        {"model.safetensors": b"\0" * 9},
        {"README.md": b""},
    ],
)
def test_another_librarys_model_is_for_deeplab_port(files, served, folder):
    served.store("them/smp", files)
    with pytest.raises(ModelError, match=r"hf://them/smp@main has no .* `deeplab-port hf://them/"):
        load("hf://them/smp@main")
    assert not [line for line in served.requests if "pytorch_model" in line]
    if "config.json" in files:
        with pytest.raises(PushError, match="is not overwritten: choose another name"):
            push(folder, "hf://them/smp")
        assert served.writes == []


def test_weights_or_a_config_that_are_missing_or_newer_are_told(served, folder):
    config = (folder / "config.json").read_bytes()
    served.store("me/half", {"config.json": config})
    with pytest.raises(ModelError, match="hf://me/half has no model"):
        load("hf://me/half")
    newer = json.dumps(json.loads(config) | {"format": 99}).encode()
    served.store("me/newer", {"config.json": newer})
    with pytest.raises(ModelError, match="hf://me/newer was written by a newer version"):
        load("hf://me/newer")


def test_without_a_network_the_copy_is_used_where_there_is_one(served, folder, monkeypatch):
    served.store("me/roads", in_repository(folder))
    served.store("me/other", in_repository(folder))
    load("hf://me/roads")
    count = len(served.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(load("hf://me/roads"), load(folder))
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids the network, and no copy"):
        load("hf://me/other")
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE forbids the network\. Unset it"):
        push(folder, "hf://me/roads")
    assert len(served.requests) == count


def test_a_hub_that_is_down_or_gone_is_one_sentence(served, folder, monkeypatch, tmp_path):
    served.store("me/roads", in_repository(folder))
    load("hf://me/roads")
    served.gone = True
    assert_same(load("hf://me/roads"), load(folder))
    with pytest.raises(HubError, match=r"hf://me/other cannot be reached \(.*503.*Check the net"):
        load("hf://me/other")
    with socket.socket() as closed:
        closed.bind(("localhost", 0))  # and does not listen
        use(monkeypatch, f"http://localhost:{closed.getsockname()[1]}", tmp_path / "cache")
        assert_same(load("hf://me/roads"), load(folder))
        with pytest.raises(HubError, match=r"hf://me/other cannot be reached \(ConnectError"):
            load("hf://me/other")
        with pytest.raises(HubError, match="hf://me/roads: ConnectError"):
            push(folder, "hf://me/roads")


def test_a_damaged_model_is_refused_before_anything_is_asked(served, folder, tmp_path):
    copy = tmp_path / "model"
    for name, data in in_repository(folder).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    (copy / "config.json").write_bytes(with_wrong_digest(folder))
    with pytest.raises(ModelError, match="is damaged"):
        push(copy, "hf://me/roads")
    assert served.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "gs://b/x"}, "is pushed to hf://USER/NAME, got gs://b/x"),
        ({"to": "hf://me/x@v1"}, "hf://me/x --revision v1, got hf://me/x@v1"),
        ({"licence": "Apache 2"}, "such as apache-2.0, got 'Apache 2'"),
        ({"picture": "x.gif"}, r"must be a .jpg or .png file, got x.gif"),
        ({"picture": "x.png"}, "x.png"),
        ({"private": True}, "is there and public"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(options, message, served, folder):
    served.store("me/roads", {})
    with pytest.raises(ValueError, match=message):
        push(folder, **({"to": "hf://me/roads"} | options))
    assert served.writes == []


def test_who_may_not_write_is_told_and_no_token_is_shown(served, folder, monkeypatch, capsys):
    url = "hf://other/roads"
    assert command(deeplab.main, monkeypatch, "push", folder, url) == 2
    assert "may not be written to by you" in capsys.readouterr().err
    for token in ("hf_some\x01thing", "hf_ünlike", "odd\x01secret", ""):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "none")
        for arguments in (("push", folder, "hf://me/new"), ("check", "hf://me/roads")):
            assert command(deeplab.main, monkeypatch, *arguments) == 2
            said = "".join(capsys.readouterr())
            assert "hf://me/" in said or "`hf auth login`" in said
            for secret in (TOKEN, "thing", "nlike", "secret"):
                assert secret not in said
    assert "needs a token" not in said
    with pytest.raises(HubError, match="needs a token of the hub that may write: `hf auth login`"):
        push(folder, "hf://me/new")


def test_a_model_is_not_saved_to_the_hub_file_by_file(served):
    with pytest.raises(ModelError, match="`deeplab push FOLDER hf://me/roads`"):
        save(model(), "hf://me/roads")
    assert served.requests == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'deeplab-jax\[hub\]'"):
        load("hf://me/roads")


def test_other_paths_are_no_repositories():
    for path in ("gs://b/x", "hf/x", "model"):
        assert hub.repository_of(path) is None
    assert hub.repository_of("hf:/me/x@refs/pr/1") == hub.Repository("me/x", "refs/pr/1")
