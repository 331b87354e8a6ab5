"""Models, data and locks in buckets, of which fsspec has one in memory; runs are in `test_train_loop`."""

import json

import fsspec
import numpy as np
import platformdirs
import pytest
from flax import nnx
from PIL import Image

from deeplab_jax import Config, ResNetConfig, buckets, build, load, save
from deeplab_jax.checkpoint import ModelError
from deeplab_jax.heads import FCNConfig
from deeplab_jax.model import fill, named_variables
from train.data import open_dataset
from train.lock import LockError, only_run_in
from train.place import place_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and no file in memory from another test."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return tmp_path / "cache"


def model(seed=0):
    config = Config(ResNetConfig(18, output_stride=32), FCNConfig(channels=8), 3)
    return fill(build(config), nnx.Rngs(seed))


def assert_same(a, b):
    for name, variable in named_variables(a).items():
        np.testing.assert_array_equal(variable[...], named_variables(b)[name][...], err_msg=name)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("gs://b/x", "gs://b/x"),
        ("gs:/b/x/", "gs://b/x"),
        ("s3://b", "s3://b"),
        ("/gs/b", None),
        ("C:/runs", None),
        ("a:b", None),
        (None, None),
    ],
)
def test_what_is_a_url(path, url):
    assert buckets.url_of(path) == url


def test_a_copy_is_what_is_there_and_fetched_once(monkeypatch):
    files = fsspec.filesystem("memory")
    for name in ("a.txt", "d/b.txt", "d/e/c.txt"):
        files.pipe_file(f"/bucket/folder/{name}", name.encode())
    fetched = []
    get_file = type(files).get_file
    monkeypatch.setattr(
        type(files),
        "get_file",
        lambda self, *a, **k: fetched.append(a[0]) or get_file(self, *a, **k),
    )
    copy = buckets.local_copy("memory://bucket/folder")
    assert copy.name == "folder"
    assert {p.read_text() for p in copy.rglob("*.txt")} == {"a.txt", "d/b.txt", "d/e/c.txt"}
    assert len(fetched) == 3
    files.pipe_file("/bucket/folder/d/b.txt", b"changed")
    files.rm_file("/bucket/folder/a.txt")
    again = buckets.local_copy("memory://bucket/folder/")
    assert again == copy
    assert {p.name: p.read_text() for p in copy.rglob("*.txt")} == {
        "b.txt": "changed",
        "c.txt": "d/e/c.txt",
    }
    assert len(fetched) == 4
    assert buckets.local_copy("memory://bucket/folder/d/b.txt").read_text() == "changed"


def test_what_is_not_there_and_what_leads_elsewhere_is_refused(tmp_path):
    with pytest.raises(buckets.BucketError, match="memory://bucket/none: no such file or folder"):
        buckets.local_copy("memory://bucket/none")
    with pytest.raises(buckets.BucketError, match="nosuch://b/x is no URL that can be opened"):
        buckets.local_copy("nosuch://b/x")
    for name in ("../x", "/x", ""):
        with pytest.raises(buckets.BucketError, match="leads elsewhere"):
            buckets._inside(tmp_path, name)


def test_a_missing_package_is_named(monkeypatch):
    def none(url):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", none)
    with pytest.raises(
        buckets.BucketError, match=r"gs:// needs .* pip install 'deeplab-jax\[gcs\]'"
    ):
        load("gs://bucket/model")


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_model_is_saved_read_and_replaced(name):
    url = f"memory://bucket/models/{name}"
    save(first := model(0), url)
    assert_same(load(url), first)
    with pytest.raises(ModelError, match=rf"{url} exists: pass overwrite=True"):
        save(model(1), url)
    save(second := model(1), url, overwrite=True)
    assert_same(load(url), second)
    kept = fsspec.filesystem("memory").find(f"/bucket/models/{name}")
    assert len({path.split("/")[4] for path in kept if "weights" in path}) <= 1


def test_a_model_whose_saving_was_cut_short_leaves_the_one_before(monkeypatch):
    url = "memory://bucket/model"
    save(first := model(0), url)

    def cut(folder, url, names, *, last):
        upload(folder, url, [name for name in names if name != last][:2])
        raise OSError("the network is gone")

    upload = buckets.upload
    monkeypatch.setattr(buckets, "upload", cut)
    with pytest.raises(OSError, match="network is gone"):
        save(model(1), url, overwrite=True)
    assert_same(load(url), first)


def test_what_is_no_model_is_not_replaced():
    fsspec.filesystem("memory").pipe_file("/bucket/thing/config.json", b'{"architectures": []}')
    with pytest.raises(ModelError, match="exists: choose another name"):
        save(model(), "memory://bucket/thing", overwrite=True)


@pytest.mark.parametrize("name", ["..", "../other", "/etc", "weights/..", 7])
def test_a_config_that_names_weights_elsewhere_is_refused_and_nothing_is_removed(name, tmp_path):
    url = "memory://bucket/models/mine"
    save(model(0), url)
    save(model(1), "memory://bucket/models/other")
    files = fsspec.filesystem("memory")
    config = "/bucket/models/mine/config.json"
    files.pipe_file(config, json.dumps(json.loads(files.cat(config)) | {"weights": name}).encode())
    before = files.find("/bucket")
    with pytest.raises(ModelError, match=r"the config of .* cannot be read"):
        load(url)
    with pytest.raises(ModelError, match="exists: choose another name"):
        save(model(2), url, overwrite=True)
    assert files.find("/bucket") == before


def test_of_a_run_the_model_is_taken_and_nothing_else(cache):
    save(made := model(), "memory://bucket/run/model")
    fsspec.filesystem("memory").pipe_file("/bucket/run/checkpoints/5/big", b"0" * 1000)
    assert_same(load("memory://bucket/run"), made)
    assert not list(cache.rglob("big"))
    fsspec.filesystem("memory").pipe_file("/bucket/other/checkpoints/5/big", b"0")
    with pytest.raises(ModelError, match="is a run that has not ended"):
        load("memory://bucket/other")


def test_a_folder_of_data_is_copied(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for n in range(12):
            picture = np.full((4, 5, 3) if part == "images" else (4, 5), n % 2, np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / part / f"{n}.png")
    fsspec.filesystem("memory").put(str(tmp_path / "data"), "/bucket/data", recursive=True)
    dataset = open_dataset("folder:memory://bucket/data", class_names=("a", "b"))
    assert len(dataset.train) + len(dataset.val) == 12


def test_a_run_in_a_bucket_is_locked():
    waits = []

    def wait(seconds):
        waits.append(seconds)

    url = "memory://bucket/run"
    with (
        only_run_in(url, beat=0.05),
        pytest.raises(LockError, match=rf"{url} is being written by another run, process"),
        only_run_in(url, beat=0.3),
    ):
        pass
    with only_run_in(url, sleep=wait):  # nothing is left
        assert buckets.exists(f"{url}/.lock")
    assert not waits
    alive = {"host": "other", "kernel": "other", "pid": 1, "since": "then"}
    buckets.write_text(f"{url}/.lock", json.dumps(alive))
    with only_run_in(url, sleep=wait):  # no heartbeat comes
        pass
    assert sum(waits) == pytest.approx(75)


def test_a_run_cannot_be_where_orbax_writes_no_checkpoints():
    with (
        pytest.raises(
            ValueError, match=r"run must be a folder or gs://BUCKET/\.\.\., got s3://b/r"
        ),
        place_of("s3://b/r"),
    ):
        pass
