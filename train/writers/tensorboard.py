"""TensorBoard's files, in `tensorboard/` of the run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from PIL import Image


class TensorBoard:
    """Writes event files; what stands there of later steps is hidden by a resumed run."""

    def __init__(self, folder: Path, *, start: int):
        self._board = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=start + 1 if start else None
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds metrics."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Adds a picture."""
        self._board.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        """Writes what waits."""
        self._board.close()


def open_writer(folder: Path, *, start: int, config: Mapping[str, Any]) -> TensorBoard:
    """The writer of a run."""
    del config
    return TensorBoard(folder, start=start)
