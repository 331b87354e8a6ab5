"""Other people's code is quiet in the commands: what it raises reaches us, and is said once, by us."""

import asyncio
import functools
import logging
import os
import sys
import threading
import traceback
import warnings
from types import TracebackType

DEBUG = "DEEPLAB_DEBUG"
"""The environment variable that brings tracebacks, and what other people's code says."""


def is_debugging() -> bool:
    """Whether tracebacks are asked for."""
    return os.environ.get(DEBUG, "") not in ("", "0")


@functools.cache
def quieten() -> None:
    """Leaves out what Orbax and its threads say, for the whole process.

    Of a file that is damaged or cannot be written, each thread and each pending read tells in its own
    way, with a traceback, before and after the error itself reaches whoever asked.
    """
    if is_debugging():
        return
    logging.getLogger("absl").addFilter(_is_not_orbaxs)
    logging.getLogger("asyncio").addFilter(lambda record: False)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    unraisable, in_thread = sys.unraisablehook, threading.excepthook

    def on_unraisable(found: "sys.UnraisableHookArgs") -> None:
        if not _of_pending_reads(found.exc_traceback):
            unraisable(found)

    def on_thread(found: threading.ExceptHookArgs) -> None:
        if not _of_pending_reads(found.exc_traceback):
            in_thread(found)

    sys.unraisablehook, threading.excepthook = on_unraisable, on_thread


def _is_not_orbaxs(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _of_pending_reads(place: TracebackType | None) -> bool:
    """Whether an exception comes from Orbax, or from the event loop that its reads were to wake."""
    frames = [frame for frame, _ in traceback.walk_tb(place)]
    modules = [frame.f_globals.get("__name__", "") for frame in frames]
    return bool(modules) and modules[-1].startswith((f"{asyncio.__name__}.", "orbax."))
