"""What a command makes of a file that is not as it should be: the same as ever, or one sentence."""

import contextlib
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_jax.command import run

SAME, REFUSED, SET_ASIDE, UNSEEN = "same", "refused", "set aside", "not noticed"
"""What may happen. The last one only where neither the format has a checksum nor we keep a digest."""

MEMORY = 3 * 2**29
"""Bytes that reading a small file may take beside what the process has."""

SECONDS = 60


class TooLongError(BaseException):
    """No Exception, of which commands might make a sentence."""


def judge(
    read: Callable[[], Any],
    whole: Any,
    capfd: pytest.CaptureFixture[str],
    *,
    is_noticed: bool = True,
) -> str:
    """What came of `read`, as a command would end that does it; fails where that is none of what may be.

    Args:
      read: returns what a command would go on with, a tree of arrays.
      whole: what it returns of the file as it should be.
      is_noticed: whether the damage can be told from another, whole file.
    """
    capfd.readouterr()
    found = []

    def command() -> int:
        found.append(read())
        return 0

    with within_limits(), pytest.raises(SystemExit) as ended:
        run(command)
    err = capfd.readouterr().err
    assert_quiet(err)
    if ended.value.code:
        assert ended.value.code in (1, 2), err
        assert err.count("error: ") == 1, err
        return REFUSED
    if is_same(found[0], whole):
        return SAME
    assert not is_noticed, "silently another"
    return UNSEEN


def assert_quiet(err: str) -> None:
    """That nothing of other people's code, and no traceback, is among what a command has said."""
    for noise in ("Traceback", "absl", "Event loop", "Exception ignored", "Check failure"):
        assert noise not in err, err
    assert err.isprintable() or all(c.isprintable() or c in "\n\t\x1b" for c in err), repr(err)


@contextlib.contextmanager
def within_limits() -> Iterator[None]:
    """Ends what takes too long, and gives no more memory than `MEMORY` to what is done inside."""

    def too_long(*_: object) -> None:
        raise TooLongError(f"more than {SECONDS} s")

    # Not RLIMIT_AS: threads, of which Orbax starts dozens, reserve what they never touch.
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_same(a: Any, b: Any) -> bool:
    """Whether two trees are the same to the bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(is_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b
