"""Runs that are killed, again and again, at any moment: they end with the weights of an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import own_backbone  # noqa: F401 (registers a small one)
import pytest
from judge import assert_quiet
from PIL import Image

from deeplab_jax import load
from deeplab_jax.model import named_variables

TESTS = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH")))),
}
STEPS = 8
KILLS = int(os.environ.get("KILLS", "100"))
"""Of the long form."""

ENDS = 5
"""How often one run is ended before it may come to its own."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of pictures in which bright is one class and dark the other."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(5):
            label = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8))).astype(np.uint8)
            picture = label[..., None] * 150 + rng.integers(0, 60, (32, 32, 3))
            for kind, pixels in (("images", picture.astype(np.uint8)), ("labels", label)):
                path = folder / split / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


def start(data: Path, run: Path, *flags: str) -> subprocess.Popen[str]:
    arguments = {
        "plugin": "own_backbone",
        "run": run,
        "data.name": f"folder:{data}",
        "data.threads": 2,
        "model.preset": "fcn_stripes4",
        "augment.crop": "32 32",
        "steps": STEPS,
        "optim.warmup-steps": 2,
        "batch-size": 2,
        "checkpoint.every": 2,
        "evaluation.every": 3,
        "log-to": "tensorboard",
    }
    words = [
        word for name, value in arguments.items() for word in (f"--{name}", *f"{value}".split())
    ]
    command = [sys.executable, "-m", "train", "quickstart", *words, *flags]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def finish(data: Path, run: Path, *flags: str) -> float:
    """Lets a run come to its end; returns how many seconds that took."""
    began = time.monotonic()
    process = start(data, run, *flags)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert_quiet(err)
    return time.monotonic() - began


def weights(run: Path) -> dict[str, bytes]:
    return {n: np.asarray(v[...]).tobytes() for n, v in named_variables(load(run)).items()}


def latest(run: Path) -> int:
    steps = [int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    return max(steps, default=0)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """The weights of a run that nobody disturbs, and the seconds that it takes."""
    run = tmp_path_factory.mktemp("runs") / "run"
    seconds = finish(data, run)
    return weights(run), seconds


def end(run: Path, process: subprocess.Popen[str], sent: Sequence[signal.Signals]) -> bool:
    """Sends signals to a run; returns whether it was still there to be ended by the first."""
    before = latest(run)
    for number in sent:
        process.send_signal(number)
        time.sleep(0.05)
    _, err = process.communicate(timeout=300)
    assert_quiet(err)
    assert latest(run) >= before, "no end may cost a checkpoint"
    statuses = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}
    # Before it listens, SIGTERM ends it as any other process; at its end it may have been quicker.
    assert process.returncode in (statuses[sent[0]], -sent[0], 0), err
    return process.returncode != 0


@pytest.mark.parametrize(
    ("kills", "stops"),
    [(1, 1), pytest.param(KILLS, KILLS // 10, marks=pytest.mark.long_faults)],
)
def test_a_run_that_is_ended_at_any_moment_loses_nothing(
    kills, stops, data, undisturbed, tmp_path, tally
):
    expected, seconds = undisturbed
    rng = np.random.default_rng(kills)
    left = [(signal.SIGTERM, signal.SIGTERM)] * stops + [(signal.SIGKILL,)] * kills
    rng.shuffle(left)
    while left:
        run = tmp_path / str(len(left))
        for sent in map(tuple, left[:ENDS]):
            process = start(data, run)
            # From the first imports on to the report at the end; half of them when all is compiled.
            time.sleep(rng.uniform(0.1, 1.0) * seconds)
            if end(run, process, sent):
                left.pop(0)
                tally(" and ".join(s.name for s in sent), "nothing lost")
            else:
                break
        seconds = finish(data, run)  # other work on the machine comes and goes
        assert weights(run) == expected
        tally("runs ended by signals, then resumed", "equal to the bit")
