"""A process of several that loses one ends with a sentence, where JAX would abort it with a stack trace.

JAX's client of the coordination service ends its process in C++ when it hears that another has died, and
has no setting for that: it takes a callback, and cannot call one of Python's (std::bad_cast, up to 0.12).
"""

import atexit
import ctypes
import io
import os
import re
import signal
import sys
import threading

from deeplab_jax.quiet import is_debugging

PEER_LOST = 17
"""The exit status of a process that cannot go on because another has died."""

LOST = (
    "This process cannot continue, perhaps because another one died. Start all of them again with the same "
    "command: the run resumes from its last checkpoint."
)

_PREFIX = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d")
"""How a message of XLA begins."""

_OF_PEERS = re.compile(
    rb"coordination_service|preemption_sync_manager|Terminating process because the JAX distributed"
)
_DECISION = 2.0
"""Seconds in which the last words of a process that is being aborted are read."""


def end_with_a_sentence() -> None:
    """From now on, the loss of another process ends this one with `PEER_LOST` and `LOST`.

    What C++ prints goes through a thread, which leaves out what it says of that. With DEEPLAB_DEBUG=1
    nothing is changed.
    """
    if is_debugging():
        return
    stderr, (reading, writing) = os.dup(2), os.pipe()
    sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(2), "wb"), line_buffering=True)
    os.dup2(writing, 2)
    os.close(writing)
    lost = threading.Event()
    forwarding = threading.Thread(target=_forward, args=(reading, stderr, lost), daemon=True)
    forwarding.start()
    set_handler = ctypes.CDLL(None).signal

    @_Handler
    def on_abort(number: int) -> None:
        if lost.wait(_DECISION):
            os.write(stderr, f"{LOST}\n".encode())
            os._exit(PEER_LOST)
        # Of another cause: abort() goes on, and the process ends as it would have.
        set_handler(number, ctypes.cast(None, _Handler))

    def restore() -> None:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        forwarding.join(_DECISION)

    # Not `signal.signal`, whose handlers run in the main thread, later: abort() waits for nobody.
    set_handler(int(signal.SIGABRT), on_abort)
    _kept.append(on_abort)
    atexit.register(restore)


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[object] = []
"""What C may call, and Python must not collect."""


def _forward(reading: int, stderr: int, lost: threading.Event) -> None:
    """Copies lines, but for the messages that tell of a lost process."""
    of_peers = False
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if _PREFIX.match(line):
                of_peers = bool(_OF_PEERS.search(line))
                if of_peers and line.startswith(b"F"):
                    lost.set()
            if not of_peers:
                os.write(stderr, line)
