"""How far long work is: a bar on a terminal; elsewhere, in a log, a line now and then."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

BETWEEN_LINES = 30.0
"""Seconds between two lines where there is no terminal."""


@contextlib.contextmanager
def progress(
    doing: str, total: int, *, unit: str = "images", shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Shows on standard error how much of some work is done.

    Args:
      doing: what is done, such as "predicting".
      total: how many there are to do.
      unit: what is counted.
      shown: False shows nothing.

    Yields:
      A function that takes how many are done.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(console if shown else None, doing, total, unit)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not shown,
    )
    with bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.update(task, completed=done)


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        # Since the start: work comes in batches, and rich's rate of the last moments jumps.
        rate = task.completed / task.elapsed if task.elapsed else 0
        return Text(f"{rate:.1f} {self._unit}/s", "progress.data.speed")


class _Lines:
    """Prints a line where the last one is long ago."""

    def __init__(self, console: Console | None, doing: str, total: int, unit: str):
        self._console, self._doing, self._total, self._unit = console, doing, total, unit
        self._start = self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._console is None or not 0 < done < self._total or now - self._last < BETWEEN_LINES:
            return
        self._last = now
        rate = done / (now - self._start)
        left = duration((self._total - done) / rate)
        self._console.print(
            f"{self._doing}: {done} of {self._total} {self._unit}, {rate:.1f} {self._unit}/s, {left} left"
        )


def duration(seconds: float) -> str:
    """As clocks show it: 1:40, or 2:05:00 with hours."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
