"""TensorBoard's files, in `tensorboard/` of the run's folder."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image


class TensorBoard:
    """Writes event files; what stands there of later steps is hidden by a resumed run."""

    def __init__(self, folder: Path, *, start: int):
        self._board = _tensorboardx().SummaryWriter(
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


def _tensorboardx() -> ModuleType:
    """The package, without PyTorch, which it imports for graphs of modules: a run would start 3 s later."""
    absent = {} if "torch" in sys.modules else {"torch": None}
    sys.modules.update(absent)  # type: ignore[arg-type] - what Python takes for a package that is not there
    try:
        import tensorboardX
    finally:
        for name in absent:
            del sys.modules[name]
    return tensorboardX


def open_writer(folder: Path, *, start: int, config: Mapping[str, Any]) -> TensorBoard:
    """The writer of a run."""
    del config
    return TensorBoard(folder, start=start)
