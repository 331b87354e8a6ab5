"""What `deploy/` has to start us elsewhere: as far as one machine without a cluster can tell."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from flax import nnx
from PIL import Image

from deeplab_jax import Config, ResNetConfig, build, save
from deeplab_jax import __main__ as deeplab
from deeplab_jax.heads import FCNConfig
from deeplab_jax.model import fill
from train import __main__ as deeplab_train

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def pod_templates():
    (jobset,) = documents("jobset.yaml")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    _, job = documents("gpu-job.yaml")
    return {"jobset.yaml": replicated["template"]["spec"], "gpu-job.yaml": job["spec"]}


def commands():
    """The words of every `deeplab-train` of the folder, by its file."""
    found = {
        name: job["template"]["spec"]["containers"][0]["command"]
        for name, job in pod_templates().items()
    }
    (sky,) = documents("sky.yaml")
    words = shlex.split(sky["run"].replace("$RECIPE", "quickstart").replace("$BUCKET", "gs://b"))
    found["sky.yaml"] = ["deeplab-train", *words[1:]]
    xpk = re.search(r'--command "(deeplab-train [^"]*)"', (DEPLOY / "jobset.yaml").read_text())
    found["xpk"] = shlex.split(xpk[1])
    sbatch = re.search(r"sbatch .*train\.sbatch (.*)$", (DEPLOY / "train.sbatch").read_text(), re.M)
    found["train.sbatch"] = ["deeplab-train", *shlex.split(sbatch[1])]
    return found


@pytest.mark.parametrize("name", commands())
def test_the_commands_are_ours(name, monkeypatch):
    asked = []
    monkeypatch.setattr(deeplab_train, "train", lambda config: asked.append(config) or 0)
    monkeypatch.setattr(deeplab_train, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr("sys.argv", commands()[name])
    with pytest.raises(SystemExit) as end:
        deeplab_train.main()
    assert end.value.code == 0
    assert len(asked) == 1


def test_all_pods_of_a_job_are_one_training():
    jobs = pod_templates()
    for job in jobs.values():
        assert job["parallelism"] == job["completions"]
        assert job["completionMode"] == "Indexed"
        assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    variables = jobs["gpu-job.yaml"]["template"]["spec"]["containers"][0]["env"]
    variables = {variable["name"]: variable["value"] for variable in variables}
    assert int(variables["JAX_NUM_PROCESSES"]) == jobs["gpu-job.yaml"]["completions"]
    service, job = documents("gpu-job.yaml")
    name, subdomain = job["metadata"]["name"], job["spec"]["template"]["spec"]["subdomain"]
    assert subdomain == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert variables["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-0.{subdomain}:")


def test_jobs_are_what_kubernetes_takes():
    validate = pytest.importorskip("kubernetes_validate").validate
    for job in pod_templates().values():
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": job}
        validate(whole, "1.29", strict=True)
    validate(documents("gpu-job.yaml")[0], "1.29", strict=True)


def stand_in(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(("status", "queued"), [(0, False), (143, True), (2, False), (1, False)])
def test_slurm_queues_again_what_was_stopped_and_nothing_else(tmp_path, status, queued):
    stand_in(tmp_path, "srun", f'echo "$@" > {tmp_path}/srun.txt\nexit {status}')
    stand_in(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/scontrol.txt')
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    words = ["bash", DEPLOY / "train.sbatch", "quickstart", "--run", "a folder"]
    assert subprocess.run(words, env=environment).returncode == status
    started = (tmp_path / "srun.txt").read_text()
    assert "deeplab-train quickstart --run a folder" in started
    if queued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 77\n"
    else:
        assert not (tmp_path / "scontrol.txt").exists()


@pytest.mark.parametrize("tool", ["shellcheck", "hadolint"])
def test_scripts_are_clean(tool):
    if (found := shutil.which(tool)) is None:
        pytest.skip(f"{tool} is not installed")
    files = DEPLOY.glob("*.sbatch" if tool == "shellcheck" else "Dockerfile")
    subprocess.run([found, *files], check=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = Config(ResNetConfig(18, output_stride=32), FCNConfig(channels=8), 3)
    return save(fill(build(config), nnx.Rngs(0)), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(10):
        (folder / f"{n % 2}").mkdir(exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (33, 41, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{n % 2}" / f"{n // 2}.png")
    return folder


def masks_in(folder):
    masks = {}
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            masks[str(path.relative_to(folder))] = np.array(image)
    return masks


@pytest.fixture(scope="module")
def expected(model, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    deeplab.predict(model, (str(pictures),), out=out, recursive=True, overlay=False)
    assert len(masks_in(out)) == 10
    return masks_in(out)


def assert_same_masks(out, expected):
    found = masks_in(out)
    assert found.keys() == expected.keys()
    for name, mask in found.items():
        # Another number of pictures at once may round a tie to the other side.
        assert (mask == expected[name]).mean() > 0.999, name


def test_an_array_of_slurm_jobs_does_all_pictures(model, pictures, expected, tmp_path):
    for task in (3, 4, 5):  # arrays need not begin at 0
        environment = os.environ | {
            "DEEPLAB": f"{Path(sys.executable).parent}/deeplab",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_MIN": "3",
            "SLURM_ARRAY_TASK_COUNT": "3",
            "PYTHONPATH": str(ROOT),
        }
        words = ["bash", DEPLOY / "predict.sbatch", model, pictures, tmp_path / "out"]
        subprocess.run(words, env=environment, check=True, stderr=subprocess.PIPE)
    assert_same_masks(tmp_path / "out", expected)


def ray_environment():
    pytest.importorskip("ray")
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "XLA_FLAGS": "",
    }


def test_ray_predicts(model, pictures, expected, tmp_path):
    words = [DEPLOY / "ray_predict.py", model, pictures, tmp_path / "out", "--batch", "3"]
    done = subprocess.run(
        [sys.executable, *words], env=ray_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 pictures are in" in done.stdout
    assert_same_masks(tmp_path / "out", expected)


def test_ray_trains_on_two_workers_and_resumes(tmp_path):
    run = tmp_path / "run"
    flags = ["--run", run, "--steps", "4", "--optim.warmup-steps", "1", "--batch-size", "4"]
    flags += ["--log-every", "1", "--data.data-dir", tmp_path / "data", "--checkpoint.every", "2"]
    words = [DEPLOY / "ray_train.py", "--workers", "2", "--storage", tmp_path / "ray", "quickstart"]
    for _ in range(2):  # the second has nothing left to do but the end
        done = subprocess.run(
            [sys.executable, *map(str, words + flags)],
            env=ray_environment(),
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "(2 data)" in (run / "log.txt").read_text()
    assert "Resuming at step 4 of 4." in (run / "log.txt").read_text()
    assert (run / "model" / "config.json").is_file()
