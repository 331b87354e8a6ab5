"""The journal of a run: progress bar, log, metrics of every logged step, TensorBoard.

RUN/config.json        what was asked for
RUN/environment.json   versions, devices and the state of the code
RUN/log.txt            messages, with times
RUN/metrics.jsonl      a line per logged step or evaluation
RUN/tensorboard/       the same for TensorBoard, with pictures
"""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deeplab_jax.whole_file import write_file

PACKAGES = ("deeplab-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

METRICS = "metrics.jsonl"


class Journal:
    """Writes a run's folder and the terminal; a context manager. Silent in all processes but the main one.

    Args:
      folder: the run's folder.
      total: number of steps of the run.
      start: the step that it resumes after; lines of later steps, from before a crash, are dropped.
      is_main_process: whether this process is the one that writes.
    """

    def __init__(self, folder: Path, *, total: int, start: int, is_main_process: bool):
        self._is_main_process = is_main_process
        self._console = Console(
            stderr=True, soft_wrap=True, highlight=False, quiet=not is_main_process
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not is_main_process or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=start, numbers="")
        if is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_after(folder / METRICS, start)
            self._log = (folder / "log.txt").open("a")
            self._metrics = (folder / METRICS).open("a")
            self._board = tensorboardX.SummaryWriter(
                str(folder / "tensorboard"), purge_step=start + 1 if start else None
            )

    def __enter__(self) -> "Journal":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._bar.stop()
        if self._is_main_process:
            if error is not None:
                self._write(f"stopped by {kind.__name__}: {error}")
            self._log.close()
            self._metrics.close()
            self._board.close()

    def say(self, text: str) -> None:
        """Prints a line, and logs it."""
        if self._is_main_process:
            self._console.print(escape(text))
            self._write(text)

    def note(self, text: str) -> None:
        """Logs a line, and prints it where no progress bar shows the same."""
        if self._is_main_process:
            if self._bar.disable:
                self._console.print(escape(text))
            self._write(text)

    def _write(self, text: str) -> None:
        print(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}", file=self._log, flush=True)

    def advance(self, step: int, numbers: str = "", *, doing: str = "training") -> None:
        """Moves the progress bar."""
        self._bar.update(self._task, completed=step, description=doing, numbers=numbers)

    def show(self, table: Table) -> None:
        """Prints a table; it is not logged, as the run's folder has its numbers."""
        self._console.print(table)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records metrics of a step, such as {"train/loss": 0.3}."""
        if self._is_main_process:
            finite = {name: v if np.isfinite(v) else None for name, v in values.items()}
            print(json.dumps({"step": step, **finite}), file=self._metrics, flush=True)
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Adds a picture to TensorBoard."""
        if self._is_main_process:
            self._board.add_image(name, np.asarray(image), step, dataformats="HWC")


def environment() -> dict[str, Any]:
    """The versions, devices and state of the code that a result depends on."""
    code = Path(__file__).parent
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
        "processes": jax.process_count(),
        "commit": _git(code, "rev-parse", "HEAD"),
        "changed_files": _git(code, "status", "--porcelain"),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None where git or the repository is missing."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def measured(run: Path) -> dict[int, float]:
    """The mIoU of each step of a run that has been evaluated."""
    file = run / METRICS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    # A line that a crash, or a run that goes on, has cut off is left out.
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["val/miou"] for row in rows if "val/miou" in row}


def _drop_after(file: Path, step: int) -> None:
    """Removes the lines of steps that will be repeated."""
    if file.exists():
        lines = file.read_text().splitlines(keepends=True)
        # A line that a crash cut off is dropped too.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_file(file, "".join(kept))
