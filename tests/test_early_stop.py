"""Early stopping: when a run has stalled, and that a run which is stopped meanwhile counts on."""

import json

import jax
import numpy as np
import own_backbone  # noqa: F401 (registers a small one)
import pytest
from PIL import Image

from deeplab_jax import load
from deeplab_jax.model import named_variables
from train import loop
from train.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from train.data import AugmentConfig
from train.early_stop import best_and_since, has_stalled
from train.export_command import export_model_command
from train.run_folder import last_step


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.3], (1, 0)),
        ([0.3, 0.4, 0.2], (2, 1)),
        ([0.3, 0.3, 0.3], (1, 2)),  # as good is no better
        ([0.1, 0.5, 0.4, 0.6], (4, 0)),
    ],
)
def test_evaluations_are_counted_from_the_first_of_the_best(scores, expected):
    assert best_and_since(dict(enumerate(scores, 1))) == expected


def test_a_run_has_stalled_after_as_many_evaluations_as_it_has_patience():
    scores = {10: 0.4, 20: 0.3, 30: 0.39}
    assert [has_stalled(scores, patience) for patience in (1, 2, 3)] == [True, True, False]
    assert not has_stalled({}, 1)


def test_patience_needs_a_best_checkpoint_and_a_number():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        TrainConfig(evaluation=EvaluationConfig(patience=0))
    with pytest.raises(ValueError, match="keep_best must be at least 1, got 0"):
        TrainConfig(
            evaluation=EvaluationConfig(patience=1), checkpoint=CheckpointConfig(keep_best=0)
        )


@pytest.fixture
def config(tmp_path):
    """Of a run that evaluates each of twelve steps, none of which changes the weights."""
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (32, 32, 3)), ("labels", (32, 32))):
        for i in range(10):
            path = tmp_path / "data" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 2, shape, np.uint8)).save(path)
    return TrainConfig(
        run=tmp_path / "run",
        data=DataConfig(f"folder:{tmp_path / 'data'}", threads=2),
        augment=AugmentConfig(crop=(32, 32)),
        model=ModelConfig("fcn_stripes4", batch_norm_momentum=0.0),
        optim=OptimConfig("sgd", learning_rate=1e-30),
        steps=12,
        batch_size=8,
        log_to=(),
        evaluation=EvaluationConfig(every=1, patience=2),
    )


@pytest.mark.usefixtures("cache_settings")
def test_a_run_that_was_stopped_meanwhile_ends_where_it_would_have(config, monkeypatch):
    # The second time, nothing is compiled.
    jax.config.update("jax_compilation_cache_dir", str(config.run.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    steps_left = iter((False, True))
    monkeypatch.setattr(loop.StopSignal, "__call__", lambda self: next(steps_left))
    assert loop.train(config) == loop.STOPPED  # at step 2, before its evaluation
    monkeypatch.undo()
    assert loop.train(config) == loop.FINISHED
    rows = map(json.loads, (config.run / "metrics.jsonl").read_text().splitlines())
    scores = {row["step"]: row["val/miou"] for row in rows if "val/miou" in row}
    assert list(scores) == [1, 2, 3]
    assert len({*scores.values()}) == 1
    log = (config.run / "log.txt").read_text()
    assert f"Stopping early at step 3: the best mIoU, {scores[1]:.4f} at step 1, has not " in log
    assert last_step(config.run) == 3  # which what watches the run waits for
    assert json.loads((config.run / "evaluation" / "scores.json").read_text())["miou"] == scores[1]
    export_model_command(config.run, config.run.parent / "best")
    best = named_variables(load(config.run.parent / "best"))
    for name, variable in named_variables(load(config.run)).items():
        np.testing.assert_array_equal(variable[...], best[name][...], err_msg=name)
