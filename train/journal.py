"""The journal of a run: progress bar, log, and what `writers` record of its steps.

RUN/config.json        what was asked for
RUN/environment.json   versions, devices and the state of the code
RUN/log.txt            messages, with times
RUN/metrics.jsonl      a line per logged step or evaluation
RUN/tensorboard/       the same for TensorBoard, with pictures
"""

import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from train.writers import Writer

PACKAGES = ("deeplab-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Journal:
    """Writes a run's log, the terminal and all writers; a context manager.

    Silent in all processes but the main one.

    Args:
      folder: the run's folder.
      total: number of steps of the run.
      start: the step that it resumes after.
      is_main_process: whether this process is the one that writes.
      writers: what records the run; they are closed with the journal.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        start: int,
        is_main_process: bool,
        writers: Sequence[Writer] = (),
    ):
        self._writers = writers
        self._is_main_process = is_main_process
        self._console = Console(
            # Names of data sets and classes have colons, which are no codes of emoji.
            stderr=True,
            soft_wrap=True,
            highlight=False,
            emoji=False,
            quiet=not is_main_process,
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
            self._log = (folder / "log.txt").open("a")

    def __enter__(self) -> "Journal":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._bar.stop()
        if self._is_main_process:
            if error is not None:
                self._write(f"stopped by {kind.__name__}: {error}")
            self._log.close()
            for writer in self._writers:
                writer.close(failed=error is not None)

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
        for writer in self._writers:
            writer.scalars(step, values)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Records a picture."""
        for writer in self._writers:
            writer.picture(step, name, image)


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
