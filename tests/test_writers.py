"""What records a run: each service offline, its record the same and whole after a resume."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from train.config import TrainConfig
from train.writers import SERVICES, check_services, jsonl, open_writers

ROOT = Path(__file__).parent.parent

RUN = """
    import json, sys
    from pathlib import Path
    from PIL import Image
    from train.writers import open_writers

    service, folder, sessions = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    folder.mkdir()
    config = {"batch_size": 4, "model": {"preset": "deeplabv3plus_resnet50"}}
    for start, last in sessions:
        for writer in open_writers([service], folder, start=start, config=config):
            for step in range(start + 1, last + 1):
                writer.scalars(step, {"train/loss": step / 10})
            writer.picture(last, "val/1", Image.new("RGB", (8, 6), "red"))
            writer.close(failed=False)
    if service == "tensorboard":
        assert "torch" not in sys.modules, "three seconds of every start"
"""
SESSIONS = [[0, 5], [3, 6]]  # the second resumes at a checkpoint before the end of the first


def record(service, folder, **variables):
    arguments = [sys.executable, "-c", textwrap.dedent(RUN), service, folder, json.dumps(SESSIONS)]
    # A process of its own: services start threads and servers that live as long as one. In a folder of its
    # own too: MLflow keeps pictures in the current one.
    done = subprocess.run(
        arguments,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(tmp_path):
    return tmp_path / "my-run"


def test_lines_of_later_steps_are_dropped_by_a_resumed_run(run):
    record("tensorboard", run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert jsonl.began(run) == rows[0]["time"]
    assert jsonl.latest(run, "train/loss") == 0.6
    assert jsonl.latest(run, "no/such") == 0
    assert list((run / "tensorboard").glob("events*"))


def test_mlflow(run, tmp_path):
    pytest.importorskip("mlflow")
    database = tmp_path / "mlflow.db"
    record("mlflow", run, MLFLOW_TRACKING_URI=f"sqlite:///{database}")
    with contextlib.closing(sqlite3.connect(database)) as found:
        assert found.execute("SELECT name, status FROM runs").fetchall() == [("my-run", "FINISHED")]
        assert found.execute("SELECT name FROM experiments").fetchall()[-1] == ("deeplab_jax",)
        rows = found.execute("SELECT step, value FROM metrics WHERE key = 'train/loss'").fetchall()
    assert set(rows) == {(step, step / 10) for step in range(1, 7)}


def test_weights_and_biases(run):
    pytest.importorskip("wandb")
    record("wandb", run, WANDB_MODE="offline")
    known = json.loads((run / "tracking.json").read_text())["wandb"]
    records = list((run / "wandb").glob("offline-run-*"))
    assert records
    assert all(path.name.endswith(known) for path in records)


def test_trackio(run, tmp_path):
    pytest.importorskip("trackio")
    record("trackio", run, TRACKIO_DIR=str(tmp_path / "trackio"))
    known = json.loads((run / "tracking.json").read_text())["trackio"]
    assert known.startswith("my-run-")
    (database,) = (tmp_path / "trackio").glob("deeplab_jax*.db")
    with contextlib.closing(sqlite3.connect(database)) as found:
        rows = found.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    losses = {(step, json.loads(text).get("train/loss")) for _, step, text in rows}
    assert {name for name, _, _ in rows} == {known}
    assert {(step, step / 10) for step in range(1, 7)} <= losses


def test_a_service_whose_package_is_missing_is_named_before_anything_happens(monkeypatch):
    monkeypatch.setitem(SERVICES, "wandb", "no_such_package")
    assert check_services(["tensorboard"]) == []
    with pytest.raises(
        ValueError, match=r"log_to wandb needs the package .*deeplab-jax\[tracking\]"
    ):
        TrainConfig(log_to=("wandb",))


@pytest.mark.parametrize("text", ["20", "0:3", "7:3", "a:b"])
def test_a_profile_is_a_first_and_a_last_step(text):
    with pytest.raises(ValueError, match=r"profile must be FIRST:LAST, such as 20:22"):
        TrainConfig(profile=text)


def test_without_services_there_is_the_file_alone(tmp_path):
    writers = open_writers((), tmp_path, start=0, config={})
    assert [type(writer).__name__ for writer in writers] == ["JsonLines"]
    writers[0].scalars(1, {"train/loss": float("nan")})
    writers[0].close(failed=True)
    assert (
        json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["train/loss"] is None
    )
