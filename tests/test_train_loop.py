"""Whole runs in processes of their own: resumed after a kill, told to end, of several processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import fsspec
import jax
import numpy as np
import pytest
from bucket import bucket
from PIL import Image

from deeplab_jax import __main__ as deeplab_command
from deeplab_jax import load
from deeplab_jax.checkpoint import ModelError
from deeplab_jax.model import named_variables
from train import loop
from train.checkpoint import CheckpointError, Checkpoints
from train.config import CheckpointConfig, TrainConfig
from train.configs import RECIPES
from train.evaluate_command import evaluate_command
from train.export_command import export_model_command
from train.lock import NAME, LockError, only_run_in

STEPS = 12
KILLS = 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of small pictures in which bright is one class, 255, and dark the other, 0."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.kron(rng.integers(0, 2, (4, 6)), np.ones((10, 10))).astype(np.uint8)
            noise = rng.integers(0, 60, (40, 60, 3))
            Image.fromarray((label[..., None] * 150 + noise).astype(np.uint8)).save(
                folder / split / "images" / f"{i}.png"
            )
            Image.fromarray(255 * label).save(folder / split / "labels" / f"{i}.png")
    (folder / "classes.txt").write_text("dark\nbright\n")
    return folder


def command(data, run, *flags):
    arguments = {
        "run": run,
        "data.name": f"folder:{data}",
        "model.preset": "fcn_resnet18",  # few layers: compiling is most of these tests
        "augment.crop": "32 32",
        "optim.optimizer": "sgd",
        "optim.warmup-steps": 2,
        "ema": 0.9,
        "steps": STEPS,
        "batch-size": 4,
        "checkpoint.every": 2,
        "evaluation.every": 6,
        "log-every": 1,
        "profile": "3:4",
    }
    words = [word for n, v in arguments.items() for word in (f"--{n}", *str(v).split())]
    return [sys.executable, "-m", "train", "quickstart", *words, *flags]


ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def start(*arguments, environment=ENVIRONMENT):
    return subprocess.Popen(command(*arguments), env=environment, stderr=subprocess.PIPE, text=True)


def finish(*arguments):
    process = start(*arguments)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def weights(run):
    return {n: np.asarray(v[...]) for n, v in named_variables(load(run / "model")).items()}


def assert_same_weights(run, expected):
    for name, value in weights(run).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def steps_on_disk(run):
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(data, run)
    return run


def test_a_run_leaves_all_there_is_to_know(undisturbed):
    names = {p.name for p in undisturbed.iterdir()}
    files = {"config.json", "model.json", "environment.json", "log.txt", "metrics.jsonl"}
    assert names == files | {"checkpoints", "evaluation", "model", "profile", "tensorboard"}
    assert list((undisturbed / "profile").rglob("*.xplane.pb"))
    assert {"scores.json", "confusion.png"} <= {
        p.name for p in (undisturbed / "evaluation").iterdir()
    }
    assert "255 is taken for class 1, bright." in (undisturbed / "log.txt").read_text()
    lines = rows_of(undisturbed)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "val/miou" in line] == [6, 12]
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    (last,) = (line for line in lines if line["step"] == STEPS and "train/loss" in line)
    assert 0 < last["speed/seconds_in_steps"] < times[-1] - times[0]
    assert 0 < last["speed/goodput"] < 1
    assert last["speed/teraflops_per_second"] > 0


def test_a_log_without_a_terminal_has_the_losses(undisturbed):
    log = (undisturbed / "log.txt").read_text()
    assert log.index("Compiling") < log.index("Compiled in 0:") < log.index("step 1 of 12: loss ")
    assert "Profile of steps 3 to 4: pip install xprof; xprof " in log
    assert re.search(
        r" step 12 of 12: loss [0-9.]+, learning rate \S+, \S+ images/s(, [0-9]+% of the time "
        r"waiting for data)?, 0:00 left",
        log,
    )


def test_the_model_of_a_run_is_its_moving_average(undisturbed):
    folder = undisturbed / "checkpoints"
    with Checkpoints(folder, CheckpointConfig(), read_only=True) as checkpoints:
        state = checkpoints.restore_as_saved(STEPS)
    assert_same_weights(undisturbed, state["ema"])
    name = "head.classifier.kernel"
    assert not np.array_equal(state["ema"][name], state["params"][name])


def tree_of(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != NAME}


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(data, undisturbed):
    with only_run_in(undisturbed):
        before = tree_of(undisturbed)
        process = start(data, undisturbed, "--steps", "50")
        _, err = process.communicate(timeout=300)
        assert tree_of(undisturbed) == before
    assert process.returncode == 2, err
    assert f"is being written by another run, process {os.getpid()} on " in err


def test_another_number_of_classes_is_said_and_nothing_is_advised_to_be_removed(
    data, undisturbed, tmp_path
):
    more = tmp_path / "data"
    shutil.copytree(data, more)
    (more / "classes.txt").write_text("0=dark\n255=bright\n9=glaring\n")
    before = tree_of(undisturbed)
    # Even where changes are accepted.
    process = start(more, undisturbed, "--accept-changes")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "classifier has 2 channels (classes), that of this run has 3" in err
    assert (
        "head.classifier.kernel is [1, 1, 128, 2] in the checkpoint, [1, 1, 128, 3] in this" in err
    )
    assert "classes: ['dark', 'bright'] -> ['dark', 'bright', 'glaring']" in err
    assert f"with --model.init {undisturbed}/model to start from its weights" in err
    assert "remove" not in err
    assert tree_of(undisturbed) == before


def wait_for_another_save(process, run):
    """Until the run has begun to write a checkpoint more than there are, or has ended."""
    before = saves(run)
    while process.poll() is None and saves(run) == before:
        time.sleep(0.02)


def saves(run):
    return sorted(p.name for p in (run / "checkpoints").glob("*"))


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(data, undisturbed, tmp_path):
    run, rng = tmp_path / "killed", np.random.default_rng(0)
    process = start(data, run)
    while process.poll() is None and not run.exists():
        time.sleep(0.02)
    process.kill()  # when there is nothing but the folder yet
    process.communicate()
    for _ in range(KILLS):
        before = steps_on_disk(run)
        process = start(data, run)
        # Not before, or a slow machine would kill nothing but start-ups.
        wait_for_another_save(process, run)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        assert steps_on_disk(run)[-1:] >= before[-1:], "a kill must never cost a checkpoint"
    finish(data, run)
    assert_same_weights(run, weights(undisturbed))
    assert losses(run) == losses(undisturbed)


def start_several(data, run, count, told="by flags"):
    """Processes of a run that are told of each other in one of the ways that there are."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = ENVIRONMENT | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    both = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    slurm = {
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
    }
    slurm |= {"SLURM_JOB_ID": str(os.getpid() % 4096)}  # JAX makes a port of it
    processes = []
    for index in map(str, range(count)):
        flags = ["--distributed.coordinator", address, "--distributed.processes", str(count)]
        flags += ["--distributed.process", index]
        told_of = {
            "by flags": {},
            "by Kubernetes": both | {"JOB_COMPLETION_INDEX": index},
            "by Slurm": slurm | {"SLURM_PROCID": index, "SLURM_LOCALID": index},
        }
        flags = flags if told == "by flags" else []
        processes.append(start(data, run, *flags, environment=environment | told_of[told]))
    return processes


def test_two_processes_survive_what_one_does(data, undisturbed, tmp_path):
    run = tmp_path / "two"
    first, second = start_several(data, run, 2)
    wait_for_another_save(first, run)
    second.kill()
    second.communicate()
    _, err = first.communicate(timeout=120)
    # A step fails for want of the other, or JAX, which misses its heartbeat, would abort.
    assert first.returncode == 17, err
    assert "Start all of them again" in err
    assert "Traceback" not in err
    assert "stack trace" not in err

    for told in ("by Kubernetes", "by Slurm"):
        pair = start_several(data, run, 2, told)
        wait_for_another_save(pair[0], run)
        pair[1].send_signal(signal.SIGTERM)  # one host is told to end: all of them save and do
        for process in pair:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 143, err

    finish(data, run)  # one process, two devices
    # Float32 sums in another order, carried through a few steps; other examples would be 10 % off.
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-3)


@pytest.mark.long_faults
def test_four_processes_end_with_the_one_that_dies_and_two_go_on(data, undisturbed, tmp_path):
    run = tmp_path / "four"
    *others, last = start_several(data, run, 4)
    wait_for_another_save(others[0], run)
    last.kill()
    last.communicate()
    for process in others:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 17, err
        assert "Start all of them again" in err
        assert "Traceback" not in err
    for process in start_several(data, run, 2):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    # As above: sums in another order.
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-3)


def test_a_run_in_a_bucket_is_killed_and_resumed(data, undisturbed, tmp_path, monkeypatch):
    url = "gs://bucket/runs/mine"
    with bucket() as variables:
        environment = ENVIRONMENT | variables | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        files = fsspec.filesystem("gs", use_listings_cache=False)

        def there():
            return {name.removeprefix("bucket/runs/mine/") for name in files.find(url[5:])}

        # To a file, as gcsfs says again and again that it has no credentials: a pipe would be full.
        said = tmp_path / "stderr.txt"
        with said.open("w") as stderr:
            # A checkpoint takes a thousand requests, so only a few of them.
            words = command(data, url, "--checkpoint.every", "4", "--evaluation.every", "12")
            process = subprocess.Popen(words, env=environment, stderr=stderr)
            while "checkpoints/4/commit_success.txt" not in there():
                assert process.poll() is None, said.read_text()
                time.sleep(0.1)
            process.kill()
            process.wait()
            assert "metrics.jsonl" in there()
            second = subprocess.run(words, env=environment, stderr=stderr, timeout=300)
        assert second.returncode == 0, said.read_text()
        assert "Resuming at step" in said.read_text()
        assert f"Results are in {url}." in said.read_text()
        files_of_a_run = {"config.json", "log.txt", "model/config.json", "evaluation/scores.json"}
        assert files_of_a_run <= there()
        assert ".lock" not in there()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert_same_values(load(url), load(undisturbed))
    assert not (Path.cwd() / "gs:").exists()


def losses(run):
    """Of every step that the run's folder tells of, in its order."""
    return {line["step"]: line["train/loss"] for line in rows_of(run) if "train/loss" in line}


def test_a_stopped_run_saves_and_resumes_later(data, undisturbed, tmp_path):
    run = tmp_path / "stopped"
    process = start(data, run)
    wait_for_another_save(process, run)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    saved = steps_on_disk(run)[-1]
    assert f"Stopped. Step {saved} is saved, and a model of it in {run / 'model'}; run the" in err
    export_model_command(run, tmp_path / "model", step=str(saved))
    assert_same_values(load(tmp_path / "model"), load(run))
    shutil.rmtree(run / "model")  # as in a run that was killed
    with pytest.raises(ModelError, match="is a run that has not ended: make a model of one of its"):
        load(run)
    finish(data, run)
    assert_same_weights(run, weights(undisturbed))


def test_any_checkpoint_of_a_run_becomes_a_model(undisturbed, tmp_path, capsys):
    export_model_command(undisturbed, tmp_path / "latest", step="latest")
    assert_same_values(load(tmp_path / "latest"), load(undisturbed))  # a run's folder has its model
    export_model_command(undisturbed, tmp_path / "best")
    scores = {row["step"]: row["val/miou"] for row in rows_of(undisturbed) if "val/miou" in row}
    best = max(scores, key=lambda step: (scores[step], step))
    assert f"step {best} (mIoU {scores[best]:.4f})" in capsys.readouterr().out
    export_model_command(undisturbed, tmp_path / "named", step=str(best))
    assert_same_values(load(tmp_path / "named"), load(tmp_path / "best"))
    with pytest.raises(CheckpointError, match=r"--step must be best, latest or a step .*'999'"):
        export_model_command(undisturbed, tmp_path / "none", step="999")
    with pytest.raises(CheckpointError, match="is not a run's folder"):
        export_model_command(tmp_path, tmp_path / "none")


def test_a_run_is_evaluated_on_its_own_data_at_any_checkpoint(undisturbed, tmp_path, capsys):
    scores = {row["step"]: row["val/miou"] for row in rows_of(undisturbed) if "val/miou" in row}
    for step in (None, "6"):
        evaluate_command(undisturbed, step=step, out=tmp_path / f"{step}")
        found = json.loads((tmp_path / f"{step}" / "scores.json").read_text())
        # float32 sums in another order, by another number of devices, may turn a pixel
        assert found["miou"] == pytest.approx(scores[int(step or STEPS)], abs=1e-3)
    assert "step 6 (mIoU" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--step takes a run's folder"):
        evaluate_command(undisturbed / "model", step="6")
    with pytest.raises(ValueError, match="--watch takes a run's folder"):
        evaluate_command(undisturbed / "model", watch=True)


def test_a_watched_run_is_scored_to_its_end_and_its_best_model_kept(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr("train.watch.POLL", 0.2)
    training = start(data, run, "--checkpoint.keep", "9")
    while not (run / "model.json").exists():
        assert training.poll() is None, training.stderr.read()
        time.sleep(0.1)
    evaluate_command(run, watch=True)  # ends when the run's last step is scored
    _, err = training.communicate(timeout=60)
    assert training.returncode == 0, err
    kept = {row["step"]: row.get("val/miou") for row in rows_of(run / "watched")}
    assert sorted(step for step, score in kept.items() if score is not None) == [2, 4, 6, 8, 10, 12]
    theirs = {row["step"]: row["val/miou"] for row in rows_of(run) if "val/miou" in row}
    for step, score in theirs.items():
        assert kept[step] == pytest.approx(score, abs=1e-3)
    del kept[0]
    best = max(kept, key=lambda step: (kept[step], step))
    export_model_command(run, tmp_path / "best", step=str(best))
    assert_same_values(load(run / "watched" / "best"), load(tmp_path / "best"))


def rows_of(folder):
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_as_if_nothing_were(
    data, undisturbed, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "model")
    latest, before = sorted(steps_on_disk(run), reverse=True)[:2]
    (run / "checkpoints" / f"{latest + 1}.orbax-checkpoint-tmp").mkdir()  # a save that was killed
    files = sorted((run / "checkpoints" / str(latest)).rglob("d/*"), key=lambda f: f.stat().st_size)
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 1
    files[-1].write_bytes(content)

    def check(status):
        monkeypatch.setattr("sys.argv", ["deeplab", "check", str(run)])
        with pytest.raises(SystemExit) as end:
            deeplab_command.main()
        assert end.value.code == status
        return capsys.readouterr().out

    assert f"step {before} is whole" in (said := check(1))
    assert re.search(rf"step {latest} is damaged: \S+ is not what was written", said)
    refused = start(data, run, "--steps", "3")
    _, err = refused.communicate(timeout=300)
    assert refused.returncode == 2
    assert f"The checkpoint of step {latest} is damaged" in err  # and is moved, whatever follows
    assert f"already at step {before}" in err
    (run / "damaged" / f"{latest}.0").rename(run / "checkpoints" / str(latest))
    err = finish(data, run, "--accept-changes")
    assert f"The checkpoint of step {latest} is damaged" in err
    assert f"Resuming at step {before} of {STEPS}." in err
    assert_same_weights(run, weights(undisturbed))
    assert (run / "damaged" / f"{latest}.0").is_dir()
    check(0)


def test_a_run_prints_nothing_of_other_peoples_code(data, tmp_path):
    err = finish(data, tmp_path / "run")
    assert "WARNING" not in err, err
    assert "absl" not in err, err


def assert_same_values(a, b):
    assert a.config == b.config
    for name, variable in named_variables(a).items():
        np.testing.assert_array_equal(variable[...], named_variables(b)[name][...], err_msg=name)


def test_a_loss_of_nan_ends_the_run_and_is_not_saved(data, tmp_path):
    run = tmp_path / "diverged"
    process = start(data, run, "--optim.learning-rate", "1e30")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    told = err.replace("\n", " ")
    assert re.search(r"loss is NaN or infinite at step 2\. Its batch: \['train/images/", told)
    assert steps_on_disk(run) == []


def test_a_changed_config_is_shown_and_refused(data, undisturbed):
    process = start(data, undisturbed, "--optim.learning-rate", "0.5", "--log-every", "7")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert f"optim.learning_rate: {RECIPES['quickstart'].CONFIG.optim.learning_rate} -> 0.5" in err
    assert "log_every" not in err


def test_all_that_does_not_fit_is_listed_together(data, tmp_path):
    (tmp_path / "mine.txt").write_text("not a run")
    process = start(data, tmp_path, "--batch-size", "3", "--model.batch-norm", "2")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "2 x 1 does not divide 3" in err
    assert "2 does not divide 3 examples" in err
    assert "is not a run" in err


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("choose another --run"), 2, "error: choose another --run\n"),
        (LockError("being written"), 2, "error: being written\n"),
        (RuntimeError("a peer is gone"), 17, "Start all of them again"),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset"), 17, "Start all of them"),
        (TimeoutError("no barrier"), 17, "Start all of them again"),
    ],
)
def test_one_of_several_processes_ends_at_once_with_what_it_would_say_alone(
    tmp_path, monkeypatch, capsys, error, status, told
):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(loop, "_train", Mock(side_effect=error))
    with pytest.raises(SystemExit) as ended:
        loop.train(TrainConfig(run=tmp_path / "run", batch_size=8))
    assert ended.value.code == status
    assert told in capsys.readouterr().err
