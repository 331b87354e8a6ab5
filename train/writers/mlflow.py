"""MLflow. Its own variables say where to: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric
from PIL import Image

from train.writers.identity import identity_of

EXPERIMENT = "deeplab_jax"


class MLflow:
    """A run there, which goes on under the same id when ours is resumed."""

    def __init__(self, folder: Path, *, config: Mapping[str, Any]):
        self._client = mlflow.MlflowClient()
        self._id = identity_of(folder, "mlflow", lambda: self._new(folder, config))
        self._client.update_run(self._id, status="RUNNING")

    def _new(self, folder: Path, config: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=folder.name)
        self._client.log_dict(run.info.run_id, dict(config), "config.json")
        return run.info.run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics."""
        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)  # one request: the training waits for it

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Logs a picture."""
        self._client.log_image(self._id, image, key=name, step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run there."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def open_writer(folder: Path, *, start: int, config: Mapping[str, Any]) -> MLflow:
    """The writer of a run."""
    del start
    return MLflow(folder, config=config)
