"""A trace of a few steps, for xprof: what the devices and the host do, when."""

import re
from pathlib import Path

import jax

FOLDER = "profile"


def steps_to_trace(text: str) -> tuple[int, int]:
    """The first and the last step of "FIRST:LAST". Raises ValueError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]*):([1-9][0-9]*)", text)
    if not found or int(found[2]) < int(found[1]):
        raise ValueError(f"profile must be FIRST:LAST, such as 20:22, got {text!r}")
    return int(found[1]), int(found[2])


class Profiler:
    """Traces the steps that are asked for; a context manager, so that a run that stops keeps its trace.

    Args:
      steps: the first and the last; None traces nothing.
      folder: the run's.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._first, self._last = steps or (0, 0)
        self._folder = folder / FOLDER
        self._tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Begins where this is the first step; a resumed run may come in between."""
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def is_last(self, step: int) -> bool:
        """Whether the trace ends with this step, which should be waited for then."""
        return self._tracing and step == self._last

    def finish(self) -> str:
        """Writes the trace; returns how to look at it."""
        self._stop()
        return f"Profile of steps {self._first} to {self._last}: pip install xprof; xprof {self._folder}"

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
