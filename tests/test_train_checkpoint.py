"""A run's checkpoints: which is the latest, and what is said of one that cannot be read."""

import functools
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.digests import ALGORITHM, damage, digest_of_file, has_digests
from train.checkpoint import CheckpointError, Checkpoints, misfits, set_aside_damaged
from train.config import CheckpointConfig
from train.optim import OptimConfig, make_optimizer
from train.steps import initial_state

DIGESTS = f"{ALGORITHM}.json"


@pytest.fixture
def folder(tmp_path):
    """With checkpoints of steps 1 and 2."""
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"weights": jnp.full(1000, step, jnp.float32)})
        checkpoints.wait()
    return folder


def restore(folder, count=1000):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"weights": jax.ShapeDtypeStruct((count,), jnp.float32, sharding=here)}
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        return checkpoints.restore(checkpoints.latest(), shapes)


def test_the_latest_comes_back(folder):
    np.testing.assert_array_equal(restore(folder)["weights"], np.full(1000, 2, np.float32))


def test_the_best_is_kept_after_a_resume_too(tmp_path):
    config = CheckpointConfig(keep=1, keep_best=1)
    for scores in ({1: 0.9, 2: 0.2}, {3: 0.4, 4: 0.3}):  # the second time after a resume
        with Checkpoints(tmp_path, config) as checkpoints:
            for step, miou in scores.items():
                checkpoints.save(step, {"weights": jnp.zeros(3)}, {"miou": miou})
            checkpoints.wait()
            steps = checkpoints.steps()
    assert steps == [1, 4]


def test_one_whose_files_are_cut_short_is_named_with_the_way_out(folder):
    for file in (folder / "2").rglob("d/*"):
        os.truncate(file, 10)
    with pytest.raises(CheckpointError, match=r"/2 cannot be read: .* resume from step 1"):
        restore(folder)


def test_every_checkpoint_keeps_digests_of_its_files(folder):
    for step in (1, 2):
        assert has_digests(folder / str(step))
        assert damage(folder / str(step)) == []
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        assert checkpoints.steps() == [1, 2]


def flip_a_bit(file, place=-1):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_anywhere_is_damage(folder):
    files = [file for file in (folder / "2").rglob("*") if file.is_file()]
    assert len(files) >= 5
    for file in files:
        before = file.read_bytes()
        if not before:
            continue
        flip_a_bit(file, len(before) // 2)
        assert damage(folder / "2"), file
        file.write_bytes(before)
    assert damage(folder / "2") == []
    files[0].unlink()
    assert damage(folder / "2")


def test_a_checkpoint_that_keeps_sha256_is_checked_by_that(folder):
    step = folder / "2"
    (step / DIGESTS).unlink()
    digests = {
        file.relative_to(step).as_posix(): digest_of_file(file, "sha256")
        for file in step.rglob("*")
        if file.is_file()
    }
    (step / "sha256.json").write_text(json.dumps(digests))
    assert has_digests(step)
    assert damage(step) == []
    flip_a_bit(next(step.rglob("d/*")))
    assert len(damage(step)) == 1


def test_damaged_checkpoints_are_moved_aside_and_the_one_before_is_taken(folder):
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert set_aside_damaged(folder) == []
    (data, *_) = sorted((folder / "2").rglob("d/*"))
    flip_a_bit(data, 5)
    (line,) = set_aside_damaged(folder)
    assert line.startswith("The checkpoint of step 2 is damaged (")
    assert str(folder.parent / "damaged" / "2.0") in line
    np.testing.assert_array_equal(restore(folder)["weights"], np.full(1000, 1, np.float32))
    kept = {
        Path("2") / p.relative_to(folder.parent / "damaged" / "2.0")
        for p in (folder.parent / "damaged").rglob("*")
        if p.is_file()
    }
    assert kept == {path for path in before if path.parts[0] == "2"}


def test_a_checkpoint_without_digests_is_taken_and_said_to_be_unchecked(folder):
    (folder / "2" / DIGESTS).unlink()
    assert set_aside_damaged(folder) == [
        "The checkpoint of step 2 keeps no digests: damage would not show"
    ]
    assert (folder / "2").is_dir()


def test_of_several_damaged_checkpoints_all_are_moved(folder):
    for step in ("1", "2"):
        (data, *_) = sorted((folder / step).rglob("d/*"))
        flip_a_bit(data, 5)
    lines = set_aside_damaged(folder)
    assert [re.search(r"step (\d)", line)[1] for line in lines] == ["2", "1"]
    assert {path.name for path in (folder.parent / "damaged").iterdir()} == {"1.0", "2.0"}
    assert not list(folder.glob("[0-9]*"))


def test_what_reads_a_step_refuses_one_that_is_damaged(folder):
    (data, *_) = sorted((folder / "2").rglob("d/*"))
    flip_a_bit(data, 5)
    with (
        Checkpoints(folder, CheckpointConfig(), read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match=r"/2 is damaged: .* is not what was written"),
    ):
        checkpoints.restore_as_saved(2)


def test_scores_that_are_damaged_are_moved_aside_too(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"weights": jnp.zeros(3)}, {"miou": 0.5})
    os.truncate(folder / "1" / "metrics" / "metrics", 0)
    (line,) = set_aside_damaged(folder)
    assert "step 1 is damaged (its scores cannot be read" in line
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        assert checkpoints.steps() == [2]


def test_scores_that_are_cut_short_are_named_with_the_way_out(tmp_path):
    config = CheckpointConfig()
    with Checkpoints(tmp_path, config) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"weights": jnp.zeros(3)}, {"miou": 0.5})
        checkpoints.wait()
    os.truncate(tmp_path / "2" / "metrics" / "metrics", 0)
    with (
        pytest.raises(CheckpointError, match=r"^\S+/2/metrics/metrics cannot be read, .* remove"),
        Checkpoints(tmp_path, config),
    ):
        pass


def test_metadata_that_is_cut_short_is_damage_too(folder):
    for file in (folder / "2").rglob("_METADATA"):
        os.truncate(file, 10)
    with pytest.raises(CheckpointError, match=r"/2 cannot be read: .* resume from step 1"):
        restore(folder)


@pytest.mark.parametrize(
    ("file", "name"),
    [("array_metadatas/process_0", b'array_metadata":'), ("_sharding", b"SingleDeviceSharding")],
)
def test_metadata_with_a_flipped_bit_is_damage_where_no_digests_tell(folder, file, name):
    (folder / "2" / DIGESTS).unlink()
    path = folder / "2/default" / file
    data = path.read_bytes()
    assert name in data
    path.write_bytes(data.replace(name, bytes([name[0] ^ 1]) + name[1:], 1))
    with pytest.raises(CheckpointError, match=r"/2 cannot be read: .* resume from step 1"):
        restore(folder)


def test_one_of_another_model_says_what_differs_and_never_to_remove_it(folder):
    with pytest.raises(CheckpointError) as error:
        restore(folder, count=7)
    assert re.search(
        r"step 2 does not fit\.\n  weights is \[1000\] in .*, \[7\] in", str(error.value)
    )
    assert re.search("or choose another --run$", str(error.value))
    (folder.parent / "model").mkdir()
    with pytest.raises(
        CheckpointError, match=r"another --run, with --model.init \S+/model to start"
    ):
        restore(folder, count=7)


# ---------------------------------------------------------------------------- what does not fit


def shapes_of(optimizer="sgd", classes=11, ema=False, name="conv1", **fields):
    """Of a small state."""
    params = {
        f"backbone.{name}.kernel": jnp.zeros((3, 3, 3, 8)),
        "head.decoder.classifier.kernel": jnp.zeros((1, 1, 8, classes)),
    }
    rule, _ = make_optimizer(OptimConfig(optimizer, **fields), params, 10)
    make = functools.partial(initial_state, optimizer=rule, ema=ema)
    return jax.eval_shape(make, params, {"backbone.bn.mean": jnp.zeros(8)})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ""),
        (
            {"classes": 12},
            "The checkpoint's classifier has 11 channels (classes), that of this run has 12\n"
            "head.decoder.classifier.kernel is [1, 1, 8, 11] in the checkpoint, [1, 1, 8, 12] in this "
            "config",
        ),
        (
            {"name": "stem", "optimizer": "adamw"},
            "only in the checkpoint: 1 arrays (backbone.conv1.kernel)\n"
            "only in this config: 1 arrays (backbone.stem.kernel)",
        ),
        (
            {"optimizer": "adamw"},
            "optimizer: sgd -> adamw or lamb\n"
            "only in the checkpoint: 2 arrays (optimizer.1.trace.backbone.conv1.kernel, "
            "optimizer.1.trace.head.decoder.classifier.kernel)\n"
            "only in this config: 5 arrays (optimizer.0.count, optimizer.0.mu.backbone.conv1.kernel, "
            "optimizer.0.mu.head.decoder.classifier.kernel, ...)",
        ),
        (
            {"ema": True},
            "ema: off -> on\n"
            "only in this config: 3 arrays (ema.backbone.bn.mean, ema.backbone.conv1.kernel, "
            "ema.head.decoder.classifier.kernel)",
        ),
    ],
)
def test_what_does_not_fit_is_said(changed, expected):
    assert "\n".join(misfits(shapes_of(), shapes_of(**changed))) == expected
