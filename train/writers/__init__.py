"""Where the numbers and pictures of a run go: a file each, and a row in `SERVICES` where one is chosen.

`metrics.jsonl` in the run's folder is always written. What a resumed run writes goes on where it stopped.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from train.writers.jsonl import JsonLines

Service = Literal["tensorboard", "wandb", "mlflow", "trackio"]

SERVICES: Mapping[str, str] = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
"""The package that each service needs. The module of its name here has a function `open_writer`."""


class Writer(Protocol):
    """What records a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records metrics of a step, such as {"train/loss": 0.3}."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Records a picture."""

    def close(self, *, failed: bool) -> None:
        """Ends the record, or, if the run `failed`, says so where that can be said."""


def check_services(names: Sequence[str]) -> list[str]:
    """What is missing for these services, a line each."""
    return [
        f"log_to {name} needs the package {SERVICES[name]}: pip install 'deeplab-jax[tracking]'"
        for name in names
        if importlib.util.find_spec(SERVICES[name]) is None
    ]


def open_writers(
    names: Sequence[str], folder: Path, *, start: int, config: Mapping[str, Any]
) -> list[Writer]:
    """The writers of a run, new or resumed.

    Args:
      names: of services.
      folder: the run's.
      start: the step that it resumes after; what is recorded of later steps, from before a crash, is
        dropped where it can be.
      config: what was asked for.
    """
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    services = [module.open_writer(folder, start=start, config=config) for module in modules]
    return [JsonLines(folder, start=start), *services]
