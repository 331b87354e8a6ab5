"""Trackio, which keeps what it is given on this machine unless TRACKIO_SPACE_ID names a Space."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio
from PIL import Image

from train.writers.identity import identity_of

PROJECT = "deeplab_jax"


class Trackio:
    """A run there, which goes on under the same name when ours is resumed."""

    def __init__(self, folder: Path, *, config: Mapping[str, Any]):
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=identity_of(folder, "trackio", lambda: f"{folder.name}-{os.urandom(3).hex()}"),
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow",
            config=dict(config),
            embed=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Logs a picture."""
        self._run.log({name: trackio.Image(image)}, step=step)

    def close(self, *, failed: bool) -> None:
        """Writes what waits."""
        self._run.finish()


def open_writer(folder: Path, *, start: int, config: Mapping[str, Any]) -> Trackio:
    """The writer of a run."""
    del start
    return Trackio(folder, config=config)
