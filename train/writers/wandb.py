"""Weights & Biases. Its own variables say where to: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from train.writers.identity import identity_of

PROJECT = "deeplab_jax"


class WeightsAndBiases:
    """A run there, which goes on under the same id when ours is resumed.

    Steps are a metric of its own: its counter refuses those that a resumed run repeats.
    """

    def __init__(self, folder: Path, *, config: Mapping[str, Any]):
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity_of(folder, "wandb", lambda: os.urandom(4).hex()),
            name=folder.name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Logs a picture."""
        self._run.log({"step": step, name: wandb.Image(image)})

    def close(self, *, failed: bool) -> None:
        """Sends what waits, and ends the run there."""
        self._run.finish(exit_code=int(failed))


def open_writer(folder: Path, *, start: int, config: Mapping[str, Any]) -> WeightsAndBiases:
    """The writer of a run."""
    del start
    return WeightsAndBiases(folder, config=config)
