"""Full disks and folders that may not be written to: one sentence, and what was there is whole."""

import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import own_backbone  # noqa: F401 (registers a small one)
import pytest
from flax import nnx
from judge import REFUSED, judge
from PIL import Image

from deeplab_jax import create, load, save
from deeplab_jax.folder import predict_folder
from deeplab_jax.model import named_variables
from train import loop
from train.config import CheckpointConfig, DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from train.data import AugmentConfig

NOBODY = 65534


@pytest.fixture
def full_disk():
    """A function after which no file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tree(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("most", [0, 500, 5_000])
@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_model_that_does_not_fit_leaves_the_one_before(
    name, most, tmp_path, full_disk, capfd, tally
):
    model = create("fcn_stripes4", rngs=nnx.Rngs(0))
    path = save(model, tmp_path / name)
    before = tree(tmp_path)
    other = create("fcn_stripes4", rngs=nnx.Rngs(1))

    def write() -> None:
        full_disk(most)
        try:
            save(other, path, overwrite=True)
        finally:
            full_disk(resource.RLIM_INFINITY)

    assert judge(write, None, capfd) == REFUSED
    tally("full disk: model", REFUSED)
    assert tree(tmp_path) == before
    load(path)


def test_masks_that_do_not_fit_are_said_and_not_half_there(tmp_path, full_disk, capfd, tally):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = create("fcn_stripes4", rngs=nnx.Rngs(0))

    def write() -> None:
        full_disk(100)
        try:
            predict_folder(model, [tmp_path / "a.png"], tmp_path / "out", progress=False)
        finally:
            full_disk(resource.RLIM_INFINITY)

    assert judge(write, None, capfd) == REFUSED
    assert list((tmp_path / "out").iterdir()) == []
    tally("full disk: masks", REFUSED)


def config_in(folder: Path) -> TrainConfig:
    """Of a short run, with its pictures in the folder too."""
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (32, 32, 3)), ("labels", (32, 32))):
        for i in range(4):
            path = folder / "data" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 2, shape, np.uint8)).save(path)
    return TrainConfig(
        run=folder / "run",
        data=DataConfig(f"folder:{folder / 'data'}", threads=2),
        augment=AugmentConfig(crop=(32, 32)),
        model=ModelConfig("fcn_stripes4"),
        steps=4,
        batch_size=8,
        log_to=(),
        checkpoint=CheckpointConfig(every=1),
        evaluation=EvaluationConfig(every=100),
    )


def values(path: Path) -> dict[str, bytes]:
    return {n: np.asarray(v[...]).tobytes() for n, v in named_variables(load(path)).items()}


def train_on_a_full_disk(config: TrainConfig, most: int, full_disk, capfd) -> str:
    """What comes of a run of whose files none can be larger."""

    def run() -> None:
        full_disk(most)
        try:
            assert loop.train(config) == loop.FINISHED
        finally:
            full_disk(resource.RLIM_INFINITY)

    return judge(run, None, capfd)


def test_a_run_that_cannot_even_begin_says_so(tmp_path, full_disk, capfd, tally):
    assert train_on_a_full_disk(config_in(tmp_path), 700, full_disk, capfd) == REFUSED
    tally("full disk: run", REFUSED)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    config = config_in(tmp_path_factory.mktemp("undisturbed"))
    assert loop.train(config) == loop.FINISHED
    return values(config.run)


@pytest.mark.long_faults
@pytest.mark.parametrize("most", [0, 300, 700, 2_000, 8_000, 30_000])
def test_a_run_that_did_not_fit_goes_on_where_there_is_room(
    most, tmp_path, full_disk, capfd, tally, undisturbed
):
    config = config_in(tmp_path)
    assert train_on_a_full_disk(config, most, full_disk, capfd) == REFUSED
    tally("full disk: run", REFUSED)
    assert loop.train(config) == loop.FINISHED
    assert values(config.run) == undisturbed


@pytest.fixture
def read_only():
    """A folder in which nobody can write, who this process is meanwhile."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config_in(folder)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        yield folder
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_folder_that_may_not_be_written_to_is_said(read_only, capfd, tally):
    model = create("fcn_stripes4", rngs=nnx.Rngs(0))
    config = TrainConfig(run=read_only / "run", data=DataConfig(f"folder:{read_only / 'data'}"))
    for write in (
        lambda: save(model, read_only / "model"),
        lambda: save(model, read_only / "model.safetensors"),
        lambda: loop.train(config),
    ):
        assert judge(write, None, capfd) == REFUSED
        tally("read-only folder", REFUSED)
    assert {path.name for path in read_only.iterdir()} == {"data"}
