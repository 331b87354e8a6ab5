"""Stopping a run by a signal."""

import signal
from types import FrameType

import jax


class StopSignal:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and stop; a context manager.

    A second Ctrl-C interrupts at once. Where `jax.distributed` runs it takes SIGTERM itself, and
    `Checkpoints.preempted` stops all processes at the same step.
    """

    def __init__(self):
        self._seen = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if not jax.distributed.is_initialized():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether the run has been asked to stop."""
        return self._seen

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
