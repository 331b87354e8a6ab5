"""Every kind of file that is read, damaged in every way: the same result, or one sentence."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import own_backbone  # noqa: F401 (registers a small one)
import pytest
import torch
from damage import DAMAGES, Damage, swap
from flax import nnx
from judge import SAME, SET_ASIDE, judge
from PIL import Image
from safetensors.torch import save_file

from deeplab_jax import create, load, save
from deeplab_jax.images import read_image
from deeplab_jax.model import named_variables
from port.read import read as read_checkpoint
from train.checkpoint import Checkpoints, set_aside_damaged
from train.config import CheckpointConfig
from train.data import open_dataset
from train.data_command import prepare_command

# What Orbax leaves behind where one of several reads fails; `quiet` keeps it from the commands.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

Read = Callable[[Path], Any]


def values(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(v[...]) for name, v in named_variables(model).items()}


# ---------------------------------------------------------------------------- what is made


def model_file(folder: Path) -> Path:
    return save(create("fcn_stripes4", rngs=nnx.Rngs(0)), folder / "model.safetensors")


def model_folder(folder: Path) -> Path:
    return save(create("fcn_stripes4", rngs=nnx.Rngs(0)), folder / "model")


def checkpoint(folder: Path) -> Path:
    state = {"weights": jax.random.normal(jax.random.key(0), (40, 50)), "step": np.int32(2)}
    with Checkpoints(folder / "run" / "checkpoints", CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {"miou": 0.5})
    return folder / "run"


def state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layer{i}.weight": torch.randn(8, 9) for i in range(3)}


def torch_zip(folder: Path) -> Path:
    torch.save({"state_dict": state_dict(), "epoch": 3}, folder / "a.pth")
    return folder / "a.pth"


def torch_legacy(folder: Path) -> Path:
    torch.save(state_dict(), folder / "a.pth", _use_new_zipfile_serialization=False)
    return folder / "a.pth"


def other_safetensors(folder: Path) -> Path:
    save_file(state_dict(), folder / "a.safetensors")
    return folder / "a.safetensors"


def labelled_folder(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, kind in ((s, k) for s in ("train", "val") for k in ("images", "labels")):
        (folder / "data" / split / kind).mkdir(parents=True)
        for i in range(2):
            shape = (20, 30, 3) if kind == "images" else (20, 30)
            pixels = rng.integers(0, 256 if kind == "images" else 3, shape, np.uint8)
            Image.fromarray(pixels).save(folder / "data" / split / kind / f"{i}.png")
    (folder / "data" / "classes.txt").write_text("sky\nroad\ncar\n")
    return folder / "data"


def prepared(folder: Path) -> Path:
    source = labelled_folder(folder)
    raw = folder / "raw" / "camvid"
    for split in ("train", "val", "test"):
        for kind, to in (("images", split), ("labels", f"{split}annot")):
            shutil.copytree(source / split.replace("test", "val") / kind, raw / to)
    prepare_command("camvid", source=(raw,), data_dir=folder / "tfds")
    return folder / "tfds"


def picture(ending: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"a{ending}", **options)
        return folder / f"a{ending}"

    return make


# ---------------------------------------------------------------------------- how it is read


def read_model(path: Path) -> Any:
    model = load(path)
    return model.config, values(model)


def read_run(run: Path) -> Any:
    """What a resumed run begins with; a step before the last tells that the last was set aside."""
    set_aside_damaged(run / "checkpoints")
    with Checkpoints(run / "checkpoints", CheckpointConfig()) as checkpoints:
        state = checkpoints.restore_as_saved(checkpoints.latest())
    return jax.tree.map(np.asarray, state)


def read_data(name: str, data_dir: Path | None = None) -> Any:
    data = open_dataset(name, data_dir=data_dir)
    examples = [source[i] for source in (data.train, data.val) for i in range(len(source))]
    return data.class_names, [(e["image"], e["label"]) for e in examples]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file or folder.

    Attributes:
      make: writes one into a folder, and returns its path.
      read: as a command does.
      parts: of a folder, the files that are damaged.
      unnoticed: damage that nothing tells: all but what makes nonsense where there is no checksum.
    """

    make: Callable[[Path], Path]
    read: Read
    parts: str = "*"
    unnoticed: tuple[Damage, ...] = ()


def read_prepared(path: Path) -> Any:
    return read_data("camvid", path)


def tensors(path: Path) -> Any:
    return read_checkpoint(path).tensors


KINDS = {
    "model.safetensors": Kind(model_file, read_model),
    "model folder": Kind(model_folder, read_model),
    "checkpoint of a run": Kind(checkpoint, read_run),
    ".pth": Kind(torch_zip, tensors),
    ".pth before torch 1.6": Kind(torch_legacy, tensors, unnoticed=DAMAGES),
    "safetensors of others": Kind(other_safetensors, tensors, unnoticed=DAMAGES),
    "folder of pictures and label maps": Kind(
        labelled_folder, lambda path: read_data(f"folder:{path}"), "*.png", unnoticed=(swap,)
    ),
    "prepared data, records": Kind(prepared, read_prepared, "*.array_record*", unnoticed=(swap,)),
    "prepared data, descriptions": Kind(prepared, read_prepared, "*.json", unnoticed=DAMAGES),
    "PNG": Kind(picture(".png"), read_image),
    "JPEG": Kind(picture(".jpg"), read_image, unnoticed=DAMAGES),
    "WebP": Kind(picture(".webp", lossless=True), read_image, unnoticed=DAMAGES),
    "TIFF": Kind(picture(".tif"), read_image, unnoticed=DAMAGES),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The path of each kind as it should be, and what is read of it."""
    found = {}

    def of(kind: str) -> tuple[Path, Any]:
        if kind not in found:
            path = KINDS[kind].make(tmp_path_factory.mktemp("whole"))
            found[kind] = path, KINDS[kind].read(path)
        return found[kind]

    return of


@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.long_faults)])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_said_or_changes_nothing(kind, times, made, tmp_path, capfd, tally):
    whole, expected = made(kind)
    rng = np.random.default_rng(times)
    for number in range(times * len(DAMAGES)):
        path = tmp_path / str(number) / whole.name
        path.parent.mkdir()
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, path)
        parts = sorted(path.rglob(KINDS[kind].parts))
        files = [p for p in parts if p.is_file() and p.stat().st_size]
        file = files[rng.integers(len(files))] if whole.is_dir() else path
        damage = DAMAGES[number % len(DAMAGES)]
        damage(file, rng)
        where = f"{damage.__name__} of {file.relative_to(path.parent)}"
        try:
            outcome = judge(
                lambda path=path: KINDS[kind].read(path),
                expected,
                capfd,
                is_noticed=damage not in KINDS[kind].unnoticed,
            )
        except BaseException as error:
            error.add_note(where)
            raise
        if outcome == SAME and (path / "damaged").exists():
            outcome = SET_ASIDE
        tally(f"damaged: {kind}", outcome)
        shutil.rmtree(path.parent)
