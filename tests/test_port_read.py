"""`port.read`: what it opens, what it takes off, and what it refuses and how it says so."""

import argparse
import builtins
import collections
import datetime
import functools
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from port import unpickle
from port.read import CheckpointError, StateDict, read

RNG = np.random.default_rng(0)
WEIGHT = torch.from_numpy(RNG.standard_normal((3, 2, 2), dtype=np.float32))
BIAS = torch.from_numpy(RNG.standard_normal(3, dtype=np.float32))


def weights(prefix: str = "", shift: float = 0.0) -> dict[str, torch.Tensor]:
    """A state dict of two tensors, with `prefix` before their names and `shift` added."""
    return {f"{prefix}conv.weight": WEIGHT + shift, f"{prefix}bn.bias": BIAS + shift}


def check(found: StateDict, shift: float = 0.0) -> None:
    """Asserts that `found` is `weights(shift=shift)`, in order."""
    assert list(found.tensors) == ["conv.weight", "bn.bias"]
    for array, tensor in zip(found.tensors.values(), (WEIGHT, BIAS), strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, (tensor + shift).numpy())


def save(tree: object, path: Path, zipped: bool = True) -> Path:
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(source: object, **options: bool) -> str:
    """The message with which `read` refuses."""
    with pytest.raises(CheckpointError) as caught:
        read(source, **options)
    return str(caught.value)


# ---- files ----


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.tar", "a.bin", "a.safetensors", "a"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_is_known_by_its_content_whatever_its_name(tmp_path, kind, name):
    path = tmp_path / name
    if kind == "safetensors":
        save_file(dict(reversed(weights().items())), path)
        found = read(path).tensors  # the format sorts names
        check(StateDict({name: found[name] for name in weights()}, ()))
    else:
        check(read(str(save(weights(), path, zipped=kind == "zip"))))


def test_a_folder_gives_its_one_model_file(tmp_path):
    save(weights(shift=1), tmp_path / "other.bin")
    save(weights(), tmp_path / "pytorch_model.bin")
    check(read(tmp_path))


def test_of_a_folder_with_both_of_a_hubs_files_the_safe_one_is_read_and_that_is_said(tmp_path):
    save(weights(shift=1), tmp_path / "pytorch_model.bin")
    save_file(weights(), tmp_path / "model.safetensors")
    found = read(tmp_path)
    np.testing.assert_array_equal(found.tensors["bn.bias"], BIAS)
    assert found.dropped == ("pytorch_model.bin: model.safetensors beside it is read",)


def test_a_folder_with_one_checkpoint_of_any_name_gives_it(tmp_path):
    save(weights(), tmp_path / "epoch_3.pth")
    (tmp_path / "log.txt").write_text("epoch 3")
    check(read(tmp_path))


@pytest.mark.parametrize("names", [(), ("epoch_3.pth", "epoch_4.pth")])
def test_a_folder_of_which_no_one_file_is_meant_is_refused_with_what_it_has(names, tmp_path):
    for name in names:
        save(weights(), tmp_path / name)
    message = refusal(tmp_path)
    assert "or one checkpoint alone" in message
    assert str(list(names)) in message
    assert "Pass the path" in message


def shards(folder: Path, **index) -> Path:
    """A folder as Hugging Face's libraries cut up a large model."""
    save_file({"conv.weight": WEIGHT}, folder / "model-00001-of-00002.safetensors")
    save_file({"bn.bias": BIAS}, folder / "model-00002-of-00002.safetensors")
    places = {
        "conv.weight": "model-00001-of-00002.safetensors",
        "bn.bias": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places} | index))
    return folder


def test_a_model_in_several_files_is_read_by_its_index(tmp_path):
    check(read(shards(tmp_path)))
    check(read(tmp_path / "model.safetensors.index.json"))
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert read(tmp_path).settings == {"a": 1}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": None}, "must have a weight_map"),
        ({"weight_map": {"a": "b.safetensors"}}, "not beside it: b.safetensors"),
        ({"weight_map": {"a": "../model.safetensors"}}, r"not beside it: \.\./model"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "that its files lack: a"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(index, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read(shards(tmp_path, **index))


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    shards(tmp_path / "model")
    name = "model-00001-of-00002.safetensors"
    (tmp_path / "model" / name).rename(tmp_path / name)  # where somebody else's file may be
    places = {"conv.weight": f"../{name}", "bn.bias": "model-00002-of-00002.safetensors"}
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert f"not beside it: ../{name}" in refusal(index)


@pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: {"model": tree}])
def test_a_state_dict_for_each_part_of_a_network_is_one(wrap):
    tree = wrap({"conv": {"weight": WEIGHT}, "bn": {"bias": BIAS}, "epoch": 3, "name": "x"})
    found = read(tree)
    check(found)
    assert {"epoch", "name"} <= {*found.dropped}


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    message = refusal(tmp_path / "gone.pth")
    assert "gone.pth" in message
    assert "no such file" in message


def test_torch_zip_arrays_are_views_of_the_mapped_file(tmp_path):
    path = save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    array = read(path).tensors["a"]
    assert not array.flags.owndata
    address = array.ctypes.data
    ranges = [line.split()[0].split("-") for line in open_maps() if line.rstrip().endswith("a.pth")]
    assert any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


def test_safetensors_arrays_are_views_of_the_mapped_file(tmp_path):
    save_file({"a": torch.zeros(1 << 20)}, tmp_path / "a.safetensors")
    array = read(tmp_path / "a.safetensors").tensors["a"]
    base = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def open_maps() -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the maps of a process can be listed on Linux only")
    return maps.read_text().splitlines()


def test_writing_into_an_array_leaves_the_file_alone(tmp_path):
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        (save if path.suffix == ".pth" else save_file)(weights(), path)
        before = path.read_bytes()
        read(path).tensors["bn.bias"][:] = 7
        assert path.read_bytes() == before


def test_a_checkpoint_that_a_zip_program_compressed_is_not_read_as_noise(tmp_path):
    source = save(weights(), tmp_path / "plain.pth")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "a.pth", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    check(read(tmp_path / "a.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_of_training_scripts_are_passed_by(tmp_path, zipped):
    nested = collections.defaultdict(dict, weights())
    tree = {
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.Path("runs/a"), when=datetime.date(2020, 1, 2)
        ),
        "best": np.float64(0.5),
        "rng": np.random.RandomState(0).get_state(),
        "kinds": [np.dtype("f4"), np.arange(3), torch.__version__, torch.Size([2])],
        "order": collections.OrderedDict(a=1),
        "state_dict": nested,
    }
    found = read(save(tree, tmp_path / "a.pth", zipped))
    check(found)
    assert found.dropped == ("wrapper 'state_dict'", "args", "best", "rng", "kinds", "order")


def test_reading_leaves_torchs_own_list_of_safe_classes_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read(save(weights(), tmp_path / "a.pth"))
    refusal(save({"a": Hostile(tmp_path)}, tmp_path / "b.pth"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_torch_is_not_imported_for_safetensors_or_arrays(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    code = (
        "import sys, numpy; from port.read import read; read({'a': numpy.zeros(2)});"
        f"read({str(tmp_path / 'a.safetensors')!r}); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True)


# ---- files that are refused ----


class Hostile:
    """Pickles to a call that makes a file."""

    def __init__(self, folder: Path, call: object = os.system) -> None:
        self.made, self.call = folder / "made", call

    def __reduce__(self) -> tuple:
        touch = f"__import__('pathlib').Path({str(self.made)!r}).touch()"
        return self.call, (f"touch {self.made}" if self.call is os.system else touch,)


@pytest.mark.parametrize("call", [os.system, builtins.eval], ids=["os.system", "eval"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, zipped, call):
    hostile = Hostile(tmp_path, call)
    path = save({**weights(), "x": hostile}, tmp_path / "a.pth", zipped)
    message = refusal(path)
    assert not hostile.made.exists()
    assert ("system" if call is os.system else "eval") in message
    assert "Unpickling runs code" in message
    assert f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n" in message
    assert "torch.save(checkpoint.state_dict(), 'weights.pth')" in message
    torch.load(path, weights_only=False)  # proves that the file would have
    assert hostile.made.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path, protocol):
    hostile = Hostile(tmp_path)
    (tmp_path / "a.pth").write_bytes(pickle.dumps(hostile, protocol))
    message = refusal(tmp_path / "a.pth")
    assert not hostile.made.exists()
    assert "system" in message
    assert "Unpickling runs code" in message


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_of_arrays_is_read(tmp_path, protocol):
    # as detectron2's model zoo has them
    arrays = {name: tensor.numpy() for name, tensor in weights().items()}
    tree = {"model": arrays | {"order": np.asfortranarray(WEIGHT)}, "__author__": "a zoo"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(tree, protocol))
    found = read(tmp_path / "a.pkl")
    np.testing.assert_array_equal(found.tensors["conv.weight"], WEIGHT)
    np.testing.assert_array_equal(found.tensors["bn.bias"], BIAS)
    np.testing.assert_array_equal(found.tensors["order"], WEIGHT)
    assert found.dropped == ("wrapper 'model'", "__author__")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_trainers_own_objects_are_passed_by_without_their_packages(tmp_path, zipped):
    # mmengine's Runner keeps methods in its history, Lightning's users partial functions and configs.
    module = types.ModuleType("somebodys_trainer")
    source = "class History:\n    def smooth(self): ...\nclass Config(dict): ..."
    exec(source, module.__dict__)
    sys.modules["somebodys_trainer"] = module
    history, settings = module.History(), module.Config(lr=0.1)
    history.buffer, history.method = np.arange(3), history.smooth
    tree = {
        "state_dict": weights(),
        "message_hub": {"loss": history},
        "hyper_parameters": {"net": functools.partial(print, 1), "cfg": settings},
        "settings": settings,
    }
    path = save(tree, tmp_path / "a.ckpt", zipped)
    del sys.modules["somebodys_trainer"]
    found = read(path)
    check(found)
    assert "somebodys_trainer" not in sys.modules
    passed = ("message_hub", "hyper_parameters", "settings")
    assert found.dropped == ("wrapper 'state_dict'", *passed)


def test_an_object_between_the_weights_is_told_by_its_class(tmp_path):
    path = save(weights() | {"scale": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    assert read(path).dropped == ("scale: not a tensor (argparse.Namespace)",)


def test_a_function_of_torchs_cannot_be_changed_by_a_file(tmp_path):
    # BUILD sets attributes of whatever is on the stack, and a name may be a function of torch's.
    data = b"\x80\x02}(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
    data += b"N}X\x08\x00\x00\x00poisonedK\x01s\x86bu."
    (tmp_path / "a.pkl").write_bytes(data)
    refusal(tmp_path / "a.pkl")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "poisoned")


@pytest.mark.parametrize(
    "name",
    [
        "torch.load",
        "torch.compile",
        "torch.Tensor.map_",
        "torch.hub.load",
        "torch.nn.Module",
        "torch._utils._import_dotted_name",
        "torch._utils._rebuild_wrapper_subclass",
    ],
)
def test_of_torch_only_what_makes_tensors_is_called(name):
    found = unpickle.Unpickler(io.BytesIO()).find_class(*name.rsplit(".", 1))
    assert issubclass(found, unpickle.Foreign)
    assert found.name == name


@pytest.mark.parametrize(
    ("tensor", "fact"),
    [
        (torch.zeros(1).expand(10**6, 10**7), "claims 40000000000000 bytes where the file has 4"),
        (torch.zeros(3, device="meta"), "no data"),
    ],
    ids=["stride 0", "meta"],
)
def test_a_tensor_that_claims_more_than_the_file_has_is_refused(tmp_path, tensor, fact):
    assert fact in refusal(save(weights() | {"a": tensor}, tmp_path / "a.pth"))
    assert fact in refusal(weights() | {"a": tensor})


def test_mappings_thousands_deep_are_no_checkpoint(tmp_path):
    data = b"\x80\x02" + 5000 * b"}X\x05\x00\x00\x00model" + b"N" + 5000 * b"s" + b"."
    (tmp_path / "a.pkl").write_bytes(data)
    assert "must have tensors" in refusal(tmp_path / "a.pkl")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path, zipped):
    message = refusal(save(torch.nn.Linear(2, 2), tmp_path / "a.pth", zipped))
    assert "torch.nn.modules.linear.Linear" in message
    assert "whole pickled model" in message
    assert "state_dict()" in message


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    whole, path = tmp_path / "whole", tmp_path / "cut.pth"
    if kind == "safetensors":
        save_file(weights(), whole)
    else:
        save(weights(), whole, zipped=kind == "zip")
    data = whole.read_bytes()
    # the legacy format names its classes first: a cut there can make another name of one
    names_end = data.rindex(b"OrderedDict\n") + 12 if kind == "legacy" else 30
    for cut in sorted({1, 2, 5, 9, 12, 30, len(data) - 1, *range(0, len(data), len(data) // 40)}):
        path.write_bytes(data[:cut])
        message = refusal(path)
        assert "cut.pth" in message
        if cut > names_end:
            assert f"its {cut} bytes are cut or damaged" in message
            assert "Download it again" in message


def test_a_cut_is_reported_without_advice_to_switch_safety_off(tmp_path):
    data = save(weights(), tmp_path / "whole", zipped=False).read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) // 2])
    assert "weights_only" not in refusal(tmp_path / "a.pth")


LFS = b"version 1 of a git-lfs pointer\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (b"", ["empty", "download"]),
        (LFS, ["Git LFS pointer", "git lfs pull"]),
        (b"\n<!DOCTYPE html><html><title>403</title>", ["web page", "download the file itself"]),
        (b"<html><body>Sign in", ["web page"]),
        (b"epoch 3: loss 0.5\n", ["text", "epoch 3: loss 0."]),
        (b"\x1f\x8b\x08\x00" + bytes(40), ["packed", "unpack it"]),
        (bytes(257) + b"ustar\x0000" + bytes(248), ["packed", "unpack it"]),
        (b"\x93NUMPY\x01\x00" + bytes(99), ["one numpy array"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), ["HDF5", "Keras"]),
        (b"\x1c\x00\x00\x00TFL3" + bytes(99), ["TensorFlow Lite"]),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(99), ["ONNX"]),
        (b"\x08\x07\x12\x06mxnet2" + bytes(99), ["ONNX"]),
        (b"\x08\x01\x12\xa3\x07" + bytes(99), ["SavedModel"]),
        (b"\n\x08ResNet50\x1a\x04data" + bytes(99), ["Caffe"]),
        (b"\x82\xa6params\x81\xa4head" + bytes(99), ["msgpack", "Flax"]),
        (b"\x93WHAT\x01\x00" + bytes(99), ["no known kind", "\\x93WHAT"]),
    ],
    ids=[
        "empty",
        "lfs",
        "doctype",
        "html",
        "text",
        "gzip",
        "tar",
        "npy",
        "h5",
        "tflite",
        "onnx",
        "onnx-of-others",
        "saved-model",
        "caffe",
        "msgpack",
        "unknown",
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(tmp_path, data, facts):
    (tmp_path / "a.pth").write_bytes(data)
    message = refusal(tmp_path / "a.pth")
    assert "is not a checkpoint" in message
    for fact in ["a.pth", *facts]:
        assert fact in message


def test_a_config_of_lists_without_end_beside_a_checkpoint_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"config\.json must be a JSON object .*Fix it"):
        read(tmp_path)


def test_a_checkpoint_of_paddlepaddles_is_refused_by_its_name(tmp_path):
    tree = {"conv.weight": np.zeros(3, np.float32), "StructuredToParameterName@@": {"conv": "w_0"}}
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(tree, protocol=2))
    assert "PaddlePaddle" in refusal(tmp_path / "model.pdparams")


def test_a_zip_archive_of_other_things_is_refused_with_its_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    message = refusal(tmp_path / "a.pth")
    assert "readme.txt" in message
    assert "Unpack it" in message


def torchscript(path, make, **files):
    """Saves what `make` gives by torch.jit; `files` replace some of the archive's."""
    with warnings.catch_warnings():  # torch calls TorchScript deprecated
        warnings.simplefilter("ignore")
        torch.jit.save(make(), str(path))
    if files:
        with zipfile.ZipFile(path) as archive:
            contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, files.get(name.rpartition("/")[2].replace(".", "_"), data))
    return path


def network():
    """Parts in parts, a part under two names, and buffers."""
    inner = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    whole = torch.nn.Sequential(inner, torch.nn.Conv2d(3, 3, 1))
    whole.add_module("again", whole[1])
    return whole.eval()


@pytest.mark.parametrize(
    "make",
    [
        torch.jit.script,
        lambda net: torch.jit.trace(net, torch.zeros(1, 2, 3, 3, dtype=net[1].weight.dtype)),
    ],
    ids=["script", "trace"],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_a_torchscript_archive_gives_the_tensors_of_its_modules(tmp_path, make, kind):
    net = network().to(kind)
    path = torchscript(tmp_path / "a.pt", lambda: make(net))
    tensors = read(path).tensors
    state = {n: t for n, t in net.state_dict().items() if not n.endswith("batches_tracked")}
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensors[name], tensor.float().numpy())


def test_a_frozen_torchscript_archive_is_refused_as_its_weights_have_no_names(tmp_path):
    path = torchscript(tmp_path / "a.pt", lambda: torch.jit.freeze(torch.jit.script(network())))
    assert "no names, as torch.jit.freeze makes it" in refusal(path)


def test_a_torchscript_archive_that_runs_code_is_refused_and_does_not_run(tmp_path):
    ran = tmp_path / "ran"
    attack = f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()
    path = torchscript(tmp_path / "a.pt", lambda: torch.jit.script(network()), data_pkl=attack)
    assert "os.system" in refusal(path)
    assert not ran.exists()


def test_a_torchscript_archive_of_parts_without_end_is_refused(tmp_path):
    # Each of forty modules has the one before it twice.
    make = b"c__torch__\nM\n)\x81"
    doubled = b"".join(
        b"q%c0%s}(X\x01\0\0\0ah%cX\x01\0\0\0bh%cub" % (n, make, n, n) for n in range(40)
    )
    bomb = b"\x80\x02" + make + doubled + b"."
    path = torchscript(tmp_path / "a.pt", lambda: torch.jit.script(network()), data_pkl=bomb)
    assert "more than 100,000 parts" in refusal(path)


@pytest.mark.parametrize(
    ("tree", "got"),
    [
        ({"epoch": 3}, "'epoch' (int)"),
        ({"state_dict": {}}, "'state_dict' (dict)"),
        ([WEIGHT], "list"),
        ({}, "no tensors"),
    ],
)
def test_a_checkpoint_without_tensors_is_refused_with_what_it_has(tmp_path, tree, got):
    message = refusal(save(tree, tmp_path / "a.pth"))
    assert "a checkpoint must have tensors" in message
    assert got in message


def test_a_checkpoint_of_counters_alone_is_refused():
    message = refusal({"bn.num_batches_tracked": torch.tensor(3)})
    assert "must hold weights" in message
    assert "num_batches_tracked: 1 counters" in message


@pytest.mark.parametrize("source", [torch.nn.Linear(1, 1), 3, None])
def test_a_source_of_another_type_is_refused_by_its_type(source):
    message = refusal(source)
    assert "must be a path or a mapping" in message
    assert type(source).__name__ in message
    assert "model.state_dict()" in message


# ---- wrappers ----


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("state_dict",),
        ("model_state",),
        ("model_state_dict",),
        ("model",),
        ("net",),
        ("module",),
        ("ema",),
        ("state_dict_ema",),
        ("model", "state_dict"),
        ("net", "module", "model_state"),
    ],
    ids=".".join,
)
def test_wrappers_are_walked_through_and_named(path):
    tree = weights()
    for key in reversed(path):
        tree = {"epoch": 3, key: tree, "best": torch.tensor(0.5), "optimizer": {0: {"m": BIAS}}}
    found = read(tree)
    check(found)
    wrappers = tuple(f"wrapper {key!r}" for key in path)
    assert found.dropped == wrappers + ("epoch", "best", "optimizer") * len(path)


def test_a_mapping_that_holds_itself_is_walked_once():
    tree = {"model": weights()}
    tree["state_dict"] = tree
    check(read(tree))


def test_two_state_dicts_are_refused_with_both_names():
    message = refusal({"model": weights(), "net": {"state_dict": weights()}})
    assert "one state dict" in message
    assert "model (2 entries), net.state_dict (2 entries)" in message


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema"])
def test_plain_weights_are_taken_and_ema_only_when_asked(key):
    tree = {key: {"state_dict": weights("module.", shift=1)}, "model": weights(), "epoch": 1}
    plain = read(tree)
    check(plain)
    told = f"EMA weights '{key}.state_dict': --ema (in Python, ema=True) takes them"
    assert plain.dropped == ("wrapper 'model'", told, "epoch")
    averaged = read(tree, ema=True)
    check(averaged, shift=1)
    assert "plain weights 'model': leaving --ema out takes them" in averaged.dropped


@pytest.mark.parametrize("prefix", ["ema.", "ema.module.", "model_ema.", "ema_model.module."])
def test_ema_under_a_prefix_is_kept_apart_from_plain_weights(prefix):
    tree = {"state_dict": weights("model.") | weights(prefix, shift=1)}
    plain = read(tree)
    check(plain)
    told = f"2 EMA weights '{prefix.partition('.')[0]}.': --ema (in Python, ema=True) takes them"
    assert told in plain.dropped
    averaged = read(tree, ema=True)
    check(averaged, shift=1)
    assert "2 plain weights" in averaged.dropped


SWAPPED_ON_SAVING = {  # where `state_dict` is the moving average
    "mmengine": {"meta": {"epoch": 3}, "message_hub": {}, "ema_state_dict": weights("module.", 1)},
    "mmengine, cleaned": {"ema_state_dict": weights("module.", 1) | {"steps": torch.tensor(7)}},
    "lightning": {"current_model_state": weights(shift=1), "averaging_state": {"n_averaged": 4}},
}


@pytest.mark.parametrize("code", SWAPPED_ON_SAVING)
def test_where_plain_weights_and_average_are_swapped_on_saving_ema_means_the_average(code):
    tree = {"state_dict": weights()} | SWAPPED_ON_SAVING[code]
    check(read(tree, ema=True))
    plain = read(tree)
    check(plain, shift=1)
    assert "EMA weights 'state_dict': --ema (in Python, ema=True) takes them" in plain.dropped


def test_ema_weights_are_taken_where_there_are_no_others():
    check(read(weights("ema.module.")))
    check(read(weights("ema.module."), ema=True))


def test_a_part_of_the_network_called_ema_is_no_copy():
    tree = {"conv.weight": WEIGHT, "ema.gate.weight": WEIGHT, "ema.gate.bias": BIAS}
    assert list(read(tree).tensors) == list(tree)
    assert "no EMA weights" in refusal(tree, ema=True)


def test_ema_that_is_not_there_is_refused():
    message = refusal({"model": weights()}, ema=True)
    assert "no EMA weights" in message
    assert "Leave --ema (ema=True) out" in message


def test_the_counter_of_an_averaged_model_is_dropped(tmp_path):
    net = torch.nn.Sequential(collections.OrderedDict(conv=torch.nn.Linear(2, 2)))
    averaged = torch.optim.swa_utils.AveragedModel(net)
    found = read(save({"model_ema": averaged.state_dict()}, tmp_path / "a.pth"))
    assert list(found.tensors) == ["conv.weight", "conv.bias"]
    assert found.dropped == ("wrapper 'model_ema'", "n_averaged: 1 counters", "prefix 'module.'")


# ---- prefixes and names ----


@pytest.mark.parametrize(
    ("prefix", "lines"),
    [
        ("module.", ("prefix 'module.'",)),
        ("_orig_mod.", ("prefix '_orig_mod.'",)),
        ("model.", ("prefix 'model.'",)),
        ("module._orig_mod.", ("prefix 'module.'", "prefix '_orig_mod.'")),
        ("_orig_mod.module.", ("prefix '_orig_mod.'", "prefix 'module.'")),
        ("model.module.module.", ("prefix 'model.'", "prefix 'module.'", "prefix 'module.'")),
    ],
)
def test_prefixes_that_all_names_share_are_stripped(prefix, lines):
    found = read(weights(prefix))
    check(found)
    assert found.dropped == lines


@pytest.mark.parametrize("prefix", ["backbone.", "net.", "encoder.", "modules."])
def test_other_prefixes_stay(prefix):
    found = read(weights(prefix))
    assert list(found.tensors) == [f"{prefix}conv.weight", f"{prefix}bn.bias"]
    assert found.dropped == ()


def test_model_stays_where_other_names_lack_it():
    tree = {**weights("model."), "head.weight": WEIGHT}
    assert list(read(tree).tensors) == list(tree)


def test_module_is_stripped_from_some_names_and_said():
    found = read({"module.conv.weight": WEIGHT, "bn.bias": BIAS})
    check(found)
    assert found.dropped == ("prefix 'module.' (1 of 2 names)",)


def test_names_that_collide_once_stripped_are_refused_ten_of_them_listed():
    twice = {f"{prefix}{i:02}.w": BIAS for prefix in ("", "module.") for i in range(12)}
    message = refusal(twice)
    assert "'module.'" in message
    assert ", ".join(f"{i:02}.w" for i in range(10)) + "." in message
    assert "10.w" not in message


def test_batch_counters_are_dropped_and_counted(tmp_path):
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2))
    found = read(save(net.state_dict(), tmp_path / "a.pth"))
    assert list(found.tensors) == [n for n in net.state_dict() if "num_batches" not in n]
    assert found.dropped == ("num_batches_tracked: 2 counters",)


def test_entries_that_are_no_tensors_are_dropped_and_said():
    found = read({**weights(), "_metadata": {"version": 1}, "step": 3})
    check(found)
    assert found.dropped == ("_metadata: not a tensor (dict)", "step: not a tensor (int)")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\\x1b\[31mred\\x1b\]0;title\\x07\. The"),
        ("x" * 10_000_000, r"x{500}\.\.\. \(10,000,000 characters\)\. The"),
    ],
)
def test_names_that_no_code_gives_are_refused_and_shown_short_and_escaped(tmp_path, name, shown):
    save_file({name: torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=f"tensor names must be printable .* {shown}"
    ) as error:
        read(tmp_path / "a.safetensors")
    assert str(error.value).isprintable()


def test_what_is_left_out_is_told_short_and_escaped():
    dropped = read({"a": torch.zeros(2), "\x1b[31mred": 1, "x" * 10_000: 2}).dropped
    assert dropped[0].startswith(r"\x1b[31mred: not a tensor")
    assert dropped[1].endswith(" characters)")
    assert max(map(len, dropped)) < 600


def test_tensors_under_names_that_are_no_strings_are_refused():
    message = refusal({0: BIAS, "a": BIAS})
    assert "must be strings, got [0]" in message


# ---- tensors ----

FLOATS = ["float16", "bfloat16", "float32", "float64"]
OTHERS = ["bool", "uint8", "int8", "int16", "int32", "int64"]


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "mapping"])
def test_floats_become_float32_and_integers_stay(tmp_path, kind):
    tree = {name: torch.tensor([[0, 1, 3]], dtype=getattr(torch, name)) for name in FLOATS + OTHERS}
    if kind == "safetensors":
        save_file(tree, tmp_path / "a", metadata={"format": "pt"})
    elif kind != "mapping":
        save(tree, tmp_path / "a", zipped=kind == "zip")
    found = read(tree if kind == "mapping" else tmp_path / "a").tensors
    assert set(found) == set(tree)
    for name, array in found.items():
        assert array.dtype == (np.float32 if name in FLOATS else np.dtype(name))
        assert array.tolist() == [[False, True, True] if name == "bool" else [0, 1, 3]]


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_bfloat16_keeps_sign_subnormals_infinities_and_nan(tmp_path, kind):
    values = torch.tensor([-1.5, -0.0, 3e38, 1e-40, float("inf"), -float("inf"), float("nan")])
    tree = {"a": values.bfloat16()}
    (save if kind == "zip" else save_file)(tree, tmp_path / "a")
    expected = tree["a"].float().numpy()
    np.testing.assert_array_equal(read(tmp_path / "a").tensors["a"].view("u4"), expected.view("u4"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "mapping"])
def test_scalars_and_empty_tensors_keep_their_shape(tmp_path, kind):
    tree = {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3)}
    if kind == "safetensors":
        save_file(tree, tmp_path / "a")
    elif kind != "mapping":
        save(tree, tmp_path / "a", zipped=kind == "zip")
    found = read(tree if kind == "mapping" else tmp_path / "a").tensors
    assert found["scalar"].shape == ()
    assert found["scalar"] == 2
    assert found["empty"].shape == (0, 3)


def test_a_mapping_of_tensors_or_arrays_is_read_without_a_copy():
    array = np.ones((2, 3), np.float32)
    parameter = torch.nn.Parameter(torch.ones(4))
    found = read({"a": array, "b": parameter}).tensors
    assert np.shares_memory(found["a"], array)
    assert found["b"].ctypes.data == parameter.data_ptr()


def test_arrays_of_half_precision_and_foreign_byte_order_become_native_float32():
    found = read(
        {"a": np.array([1, 2], ">f4"), "b": np.array([3], "f2"), "c": np.array([4], ">i4")}
    )
    for name, values in {"a": [1, 2], "b": [3], "c": [4]}.items():
        assert found.tensors[name].dtype == (np.int32 if name == "c" else np.float32)
        assert found.tensors[name].dtype.isnative
        assert found.tensors[name].tolist() == values


def test_tensors_that_are_not_contiguous_are_made_so(tmp_path):
    tensor = torch.arange(24.0).reshape(2, 3, 2, 2)
    views = {
        "transposed": tensor.transpose(0, 1),
        "channels_last": tensor.to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(5),
        "sliced": tensor[:, ::2],
    }
    arrays = {"fortran": np.asfortranarray(tensor[0, 0].numpy())}
    for found in (read(save(views, tmp_path / "a")), read(views | arrays)):
        for name, array in found.tensors.items():
            assert array.flags.c_contiguous
            np.testing.assert_array_equal(array, (views | arrays)[name])


def test_tensors_that_share_storage_are_all_read(tmp_path):
    tree = {"a": WEIGHT, "b": WEIGHT, "part": WEIGHT[1]}
    found = read(save(tree, tmp_path / "a.pth")).tensors
    for name, tensor in tree.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():  # torch calls quantised tensors deprecated
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (quantised, "qint8"),
        (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
        (lambda: torch.ones(2, dtype=torch.complex64), "complex64"),
        (lambda: torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda: np.ones(2, np.complex128), "complex128"),
        (lambda: np.array(["x"]), "str"),
    ],
    ids=["quantised", "sparse", "complex", "float8", "complex array", "strings"],
)
def test_tensors_that_are_no_dense_numbers_are_refused_by_name_and_kind(make, kind):
    message = refusal({**weights(), "odd.weight": make()})
    assert "odd.weight" in message
    assert kind in message
    assert "dense" in message
    assert "conv.weight" not in message


def test_safetensors_of_other_dtypes_are_refused_by_name_and_dtype(tmp_path):
    save_file({"odd.weight": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "a")
    assert "odd.weight (F8_E4M3)" in refusal(tmp_path / "a")


def test_safetensors_that_point_outside_the_file_are_refused(tmp_path):
    entry = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header = json.dumps(entry).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "cut or damaged" in refusal(tmp_path / "a")
