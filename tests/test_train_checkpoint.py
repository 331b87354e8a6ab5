"""A run's checkpoints: which is the latest, and what is said of one that cannot be read."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.checkpoint import CheckpointError, Checkpoints
from train.config import CheckpointConfig


@pytest.fixture
def folder(tmp_path):
    """With checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"weights": jnp.full(1000, step, jnp.float32)})
        checkpoints.wait()
    return tmp_path


def restore(folder, count=1000):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"weights": jax.ShapeDtypeStruct((count,), jnp.float32, sharding=here)}
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        return checkpoints.restore(checkpoints.latest(), shapes)


def test_the_latest_comes_back(folder):
    np.testing.assert_array_equal(restore(folder)["weights"], np.full(1000, 2, np.float32))


def test_one_whose_files_are_cut_short_is_named_with_the_way_out(folder):
    for file in (folder / "2").rglob("d/*"):
        os.truncate(file, 10)
    with pytest.raises(CheckpointError, match=r"/2 cannot be read: .* go on from step 1"):
        restore(folder)


def test_one_of_another_model_is_named_with_the_way_out(folder):
    with pytest.raises(CheckpointError, match=r"(?s)/2 cannot be read: .* choose another --run"):
        restore(folder, count=7)
