"""Models on disk: nothing lost, nothing half written, and errors that say what is wrong."""

import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from deeplab_jax import checkpoint
from deeplab_jax.beside import folder_beside
from deeplab_jax.checkpoint import ModelError, load, save
from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.digests import ALGORITHM, digest_of
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.heads import DeepLabV3PlusConfig
from deeplab_jax.model import build, fill
from deeplab_jax.preprocessing import Preprocessing
from deeplab_jax.presets import PRESETS

# A head alone: all kinds of variables, and few of them.
CONFIG = Config(
    FeaturesConfig(high=6, low=4),
    DeepLabV3PlusConfig(rates=(1, 3), channels=4, low_channels=2),
    num_classes=3,
    class_names=("sky", "road", "été"),
    preprocessing=Preprocessing(size_multiple=16),
)
NAMES = ["model", "model.safetensors"]


def make(config=CONFIG, seed=0):
    """A model none of whose values is a default."""
    model = fill(build(config), nnx.Rngs(seed))
    generator = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        variable[...] = jnp.asarray(generator.standard_normal(variable.shape), jnp.float32)
    return model


def values(model):
    return {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}


def assert_same(ours, theirs):
    ours, theirs = values(ours), values(theirs)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path])


def tree(folder):
    """Every file below `folder`, hidden ones too, and what is in it."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_the_same_after_save_and_load(name, tmp_path):
    model = make()
    path = save(model, tmp_path / "not" / "there" / name)
    assert path == tmp_path / "not" / "there" / name
    loaded = load(str(path))
    assert type(loaded) is type(model)
    assert loaded.config == CONFIG
    assert_same(loaded, model)
    (tmp_path / "other").touch()
    assert path.is_dir() or path.stat().st_mode == (tmp_path / "other").stat().st_mode
    # And nothing else is left beside it.
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_network_is_the_same_after_save_and_load(name, tmp_path):
    config = PRESETS["lraspp_mobilenet_v3_small"].override(width=0.5)
    model = make(config)
    loaded = load(save(model, tmp_path / name))
    assert loaded.config == config
    assert_same(loaded, model)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_is_in_eval_mode_and_on_one_device(name, tmp_path):
    loaded = load(save(make(), tmp_path / name))
    high, low = jnp.ones((1, 2, 3, 6)), jnp.ones((1, 5, 7, 4))
    before = values(loaded)
    loaded(high, low)  # in training mode it would ask for rngs
    assert loaded.aspp.dropout.deterministic
    assert loaded.aspp.project.bn.use_running_average
    assert all((before[path] == value).all() for path, value in values(loaded).items())
    devices = {d for leaf in jax.tree.leaves(nnx.state(loaded)) for d in leaf.devices()}
    assert len(devices) == 1


@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_what_it_computes_in_and_not_what_it_is_stored_in(name, tmp_path):
    path = save(make(PRESETS["lraspp_mobilenet_v3_small"].override(width=0.5)), tmp_path / name)
    loaded = load(path, dtype=jnp.bfloat16)
    assert loaded.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(loaded))} == {jnp.dtype("float32")}


def test_both_forms_can_be_read_without_this_package(tmp_path):
    model = make()
    save(model, tmp_path / "model")
    header = json.loads((tmp_path / "model" / "config.json").read_text())
    assert header["format"] == 1
    assert header["config"]["class_names"] == ["sky", "road", "été"]
    save(model, tmp_path / "model.safetensors")
    arrays = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        arrays["head.aspp.branches.0.conv.kernel"], model.aspp.branches[0].conv.kernel[...]
    )
    np.testing.assert_array_equal(arrays["head.decoder.low.bn.var"], model.decoder.low.bn.var[...])


# ---------------------------------------------------------------------------- overwriting


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_replaced_only_when_asked_to(name, tmp_path):
    old, new = make(seed=0), make(seed=1)
    path = save(old, tmp_path / name)
    with pytest.raises(ModelError, match="exists: pass overwrite=True"):
        save(new, path)
    assert_same(load(path), old)
    save(new, path, overwrite=True)
    assert_same(load(path), new)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def foreign(kind, tmp_path):
    """Something that is no model of ours; the last three nearly look like one."""
    path = tmp_path / ("theirs.safetensors" if kind == "safetensors" else "theirs")
    if kind == "safetensors":
        save_file({"weight": np.zeros(3, np.float32)}, path)
    elif kind == "file":
        path.write_text("theirs")
    else:
        path.mkdir()
        (path / "precious.bin").write_text("theirs")
        if kind == "transformers folder":
            (path / "config.json").write_text("{}")
        if kind == "weights folder":
            (path / "weights").mkdir()
    return path


FOREIGN = ["file", "folder", "transformers folder", "weights folder", "safetensors"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_model_is_never_replaced(kind, tmp_path):
    path = foreign(kind, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ModelError, match="exists: choose another name"):
        save(make(), path, overwrite=True)
    assert tree(tmp_path) == before


def test_a_place_where_nothing_can_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("theirs")
    for path in (tmp_path / "file" / "model", tmp_path / "file" / "a" / "model.safetensors"):
        with pytest.raises(ModelError, match="file is not a folder that you may write to"):
            save(make(), path)


def test_a_model_without_a_config_cannot_be_saved(tmp_path):
    model = make()
    model.config = None
    with pytest.raises(ModelError, match="has no config; make it with create"):
        save(model, tmp_path / "model")
    with pytest.raises(ModelError, match="a SegmentationModel can be saved, got ASPP"):
        save(model.aspp, tmp_path / "model")
    assert tree(tmp_path) == {}


# ---------------------------------------------------------------------------- crashes


class Crash(Exception):
    pass


def crash_in_the_middle(monkeypatch):
    """Lets both writers write something and then fail."""
    write_folder = checkpoint._write_folder

    def folder(model, path):
        write_folder(model, path)
        shutil.rmtree(path / "weights")
        raise Crash

    def file(model, path):
        path.write_bytes(b"half")
        raise Crash

    monkeypatch.setattr(checkpoint, "_write_folder", folder)
    monkeypatch.setattr(checkpoint, "_write_file", file)


def crash_in_the_last_step(monkeypatch):
    """Lets the new model be written in full, and fails where it should take its place."""
    rename = Path.rename

    def fail(self, target):
        if self.name == "new":
            raise Crash
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(checkpoint.os, "replace", lambda old, new: fail(Path(old), new))


@pytest.mark.parametrize("crash", [crash_in_the_middle, crash_in_the_last_step])
@pytest.mark.parametrize("name", NAMES)
def test_a_crash_leaves_nothing_behind(name, crash, tmp_path, monkeypatch):
    crash(monkeypatch)
    with pytest.raises(Crash):
        save(make(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crash", [crash_in_the_middle, crash_in_the_last_step])
@pytest.mark.parametrize("name", NAMES)
def test_a_crash_keeps_the_old_model_whole(name, crash, tmp_path, monkeypatch):
    old = make(seed=0)
    path = save(old, tmp_path / name)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        crash(patch)
        with pytest.raises(Crash):
            save(make(seed=1), path, overwrite=True)
    assert tree(tmp_path) == before
    assert_same(load(path), old)


# ---------------------------------------------------------------------------- errors


KILLED = """
import os, pathlib, sys
from deeplab_jax.beside import folder_beside
places = map(pathlib.Path, sys.argv[1:])
with folder_beside(next(places)), folder_beside(next(places)):
    os._exit(9)
"""


def test_what_a_killed_save_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    path = tmp_path / "model"
    command = [sys.executable, "-c", KILLED, path, tmp_path / "other"]
    assert subprocess.run(command, check=False).returncode == 9
    left, other = sorted(tmp_path.iterdir(), key=lambda p: p.name.startswith(".other"))
    elsewhere = shutil.copytree(left, tmp_path / ".model.elsewhere")
    (elsewhere / "lock").write_text("another machine's kernel")
    (unknown := tmp_path / ".model.unknown").mkdir()
    with folder_beside(path) as in_use:
        save(make(), path)
        assert {*tmp_path.iterdir()} == {path, in_use, elsewhere, unknown, other}
    assert {*tmp_path.iterdir()} == {path, elsewhere, unknown, other}


def test_what_is_not_there_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelError, match="missing does not exist"):
        load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("file", "theirs is not a model: "),
        ("folder", r"must hold config.json and weights/\. .* `deeplab-port CHECKPOINT FOLDER`"),
        ("transformers folder", "must hold config.json and weights/"),
        ("weights folder", "must hold config.json and weights/"),
        ("safetensors", "its header has no config.*`deeplab-port`"),
    ],
)
def test_what_is_no_model_cannot_be_loaded(kind, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        load(foreign(kind, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe\xff",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": "one", "config": {}}',
        b'{"format": 1, "config": {}}',
        b'{"format": 1, "config": {"backbone": {"kind": "vgg"}, "head": {"kind": "fcn"}}}',
        b'{"format": 1, "config": {"num_classes": {}}}',
        b"[" * 200_000,
    ],
)
def test_a_broken_config_is_an_error_that_names_the_path(text, tmp_path):
    path = tmp_path / "model"
    (path / "weights").mkdir(parents=True)
    (path / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"the config of .*model cannot be read: "):
        load(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_future_format_asks_for_an_upgrade(name, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        path = save(make(), tmp_path / name)
    with pytest.raises(ModelError, match=r"newer version \(format 2, .* 1\): upgrade deeplab-jax"):
        load(path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_an_error(keep, tmp_path):
    path = save(make(), tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="is not a model: "):
        load(path)


def test_a_folder_that_lost_its_weights_is_an_error(tmp_path):
    path = save(make(), tmp_path / "model")
    shutil.rmtree(path / "weights")
    (path / "weights").mkdir()
    with pytest.raises(ModelError, match=r"the weights of .* cannot be read"):
        load(path)


def test_only_what_is_wrong_with_files_makes_weights_unreadable():
    # Reads that Orbax leaves behind disturb the tests after this one: see test_train_checkpoint for a
    # file that is really cut short.
    wrapped = Exception("while reading")
    wrapped.__cause__ = ValueError("OUT_OF_RANGE")
    assert checkpoint.why_unreadable(wrapped) is wrapped.__cause__
    missing = OSError("no file")
    assert checkpoint.why_unreadable(missing) is missing
    assert checkpoint.why_unreadable(RuntimeError("out of memory")) is None
    assert checkpoint.why_unreadable(Exception("no cause")) is None
    with pytest.raises(AttributeError) as ours:  # a mistake of ours is no damage
        _ = CONFIG.no_such_field
    assert checkpoint.why_unreadable(ours.value) is None


OTHERS = {
    "another shape": dataclasses.replace(CONFIG, num_classes=4, class_names=None),
    "more of them": CONFIG.override(rates=(1, 3, 5), channels=4),
    "fewer of them": CONFIG.override(decoder_convs=1),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_those_of_the_config_are_an_error(name, other, tmp_path, monkeypatch):
    model = make(OTHERS[other])
    model.config = CONFIG
    with pytest.raises(
        ModelError, match="cannot be saved, as its variables are not those of its con"
    ):
        save(model, tmp_path / name)
    assert not tree(tmp_path)
    monkeypatch.setattr(checkpoint, "_check_loadable", lambda model: None)
    path = save(model, tmp_path / name)
    with pytest.raises(ModelError, match="not those of its config: ") as error:
        load(path)
    if other == "another shape":
        assert "decoder.classifier.kernel" in str(error.value)


# ---------------------------------------------------------------------------- damage


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << position % 8
    path.write_bytes(data)


@pytest.mark.parametrize("back", [1, 50, 333, 700])
def test_a_flipped_bit_among_the_weights_of_a_file_is_an_error(back, tmp_path):
    path = save(make(), tmp_path / "model.safetensors")
    flip(path, path.stat().st_size - back)
    with pytest.raises(ModelError, match=r"model.safetensors is damaged: .* Copy or port it again"):
        load(path)


def test_a_flipped_bit_in_the_config_of_a_file_is_an_error(tmp_path):
    path = save(make(), tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes().replace(b"0.485", b"0.585"))
    with pytest.raises(ModelError, match="damaged"):
        load(path)


# Where a name is damaged, Orbax refuses the tree while it still reads, and what comes back finds its loop
# closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_anywhere_in_the_weights_of_a_folder_is_no_other_model(tmp_path):
    model = make()
    path = save(model, tmp_path / "model")
    (largest,) = sorted(
        (p for p in (path / "weights").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )[-1:]
    whole, caught = largest.read_bytes(), 0
    for position in range(len(whole) // 20, len(whole), len(whole) // 10):
        flip(largest, position)
        try:
            assert_same(load(path), model)  # what nothing reads may be damaged
        except ModelError:
            caught += 1
        largest.write_bytes(whole)
    assert caught > 5


def test_names_and_shapes_are_part_of_the_digest():
    one, other = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    digests = [
        digest_of(weights, "text")
        for weights in (
            {"a": one, "b": other},
            {"b": one, "c": other},
            {"a": one.reshape(3, 2), "b": other},
            {"a": one.view(np.int32), "b": other},
        )
    ]
    assert len({*digests}) == len(digests)
    assert digest_of({"b": other, "a": one}, "text") == digests[0]
    assert digest_of({"a": one, "b": other}, "texts") != digests[0]


@pytest.mark.parametrize("elsewhere", ["../other/weights", "weights/../../other/weights", "/tmp"])
def test_weights_outside_of_the_folder_are_refused(elsewhere, tmp_path):
    save(make(), tmp_path / "other")
    path = save(make(), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"weights": elsewhere}))
    with pytest.raises(ModelError, match="weights must be the name of a folder in it, got"):
        load(path)


@pytest.mark.parametrize("name", NAMES)
def test_swapped_weights_of_equal_shape_are_an_error(name, tmp_path, monkeypatch):
    path = save(make(seed=1), tmp_path / name)
    monkeypatch.setattr(checkpoint, "digest_of", lambda *_, **__: "0" * 64)
    with pytest.raises(ModelError, match="damaged"):
        load(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_keeps_a_sha256_is_checked_by_that(name, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as before:
        before.setattr(checkpoint, "ALGORITHM", "sha256")
        before.setattr(checkpoint, "digest_of", functools.partial(digest_of, algorithm="sha256"))
        path = save(make(), tmp_path / name)
        content = path if path.is_file() else path / "config.json"
        assert b"sha256" in content.read_bytes()
    assert_same(load(path), make())
    assert not caplog.messages
    digest = next(iter(re.findall(rb'"sha256": ?"(\w+)"', content.read_bytes())))
    content.write_bytes(content.read_bytes().replace(digest, b"0" * 64))
    with pytest.raises(ModelError, match="by the sha256 kept with them"):
        load(path)


def test_a_folder_from_before_digests_loads_with_a_line_and_class_names_may_be_edited(
    tmp_path, caplog
):
    path = save(make(), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    del config[ALGORITHM]
    config["config"]["class_names"] = ["sky", "road", "summer"]
    (path / "config.json").write_text(json.dumps(config))
    assert load(path).config.class_names == ("sky", "road", "summer")
    assert caplog.messages == [
        f"{path} keeps no digest of its weights: damage would not be noticed"
    ]


# ---------------------------------------------------------------------------- what cannot be loaded


@dataclasses.dataclass(frozen=True)
class OwnConfig:
    kind: ClassVar[str] = "own"
    in_channels: int = 3


def test_a_backbone_that_load_does_not_know_is_not_saved(tmp_path):
    model = make()
    model.config = dataclasses.replace(CONFIG, backbone=OwnConfig())
    with pytest.raises(ModelError, match=r"cannot be saved, as `load` .* 'own'"):
        save(model, tmp_path / "model")
    assert not tree(tmp_path)


def test_a_folded_model_is_not_saved(tmp_path):
    with pytest.raises(ModelError, match="folded"):
        save(fold_batch_norm(fill(build(CONFIG), nnx.Rngs(0))), tmp_path / "model")
    assert not tree(tmp_path)
