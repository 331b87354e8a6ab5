"""One run at a time in a folder or bucket: a lock that names its owner and that no crash leaves behind."""

import contextlib
import datetime
import errno
import fcntl
import itertools
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from deeplab_jax import buckets
from deeplab_jax.beside import running_kernel

NAME = ".lock"

BEAT = 30.0
"""Seconds between heartbeats. Bucket and network mounts show a change within a minute, which is less than
the wait of `BEATS`."""

BEATS = 2.5
"""Heartbeats that must be missing before the run of another host is considered crashed."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

log = logging.getLogger(__name__)


class LockError(OSError):
    """Another run writes to the folder; the message says which."""


@contextlib.contextmanager
def only_run_in(
    folder: Path, *, beat: float = BEAT, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Holds the lock of a run's folder, which is created if missing.

    The kernel keeps the lock (flock) and gives it back however the process ends. Where it does not
    reach other hosts, as on mounted buckets, a heartbeat does: the time at which the file was last changed.
    Where the file system has no locks at all, a warning says so. In a bucket the heartbeat alone has to do:
    two runs that start there in the same second do not notice each other.

    Args:
      beat: seconds between heartbeats.
      sleep: a function that waits for so many seconds.

    Raises:
      LockError: another run has it.
    """
    if (url := buckets.url_of(folder)) is not None:
        with _only_run_in_bucket(url, beat, sleep):
            yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(folder / NAME)
    if file is None:
        log.warning(
            f"{folder} is on a file system without locks: a second run in it would not be noticed"
        )
        yield
        return
    with file:
        _outwait_another_host(folder / NAME, file, beat, sleep)
        _sign(file)
        ended = threading.Event()
        threading.Thread(target=_beat, args=(folder / NAME, beat, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            with contextlib.suppress(OSError):  # nothing here may change how the run ends
                (folder / NAME).unlink()
                if made:
                    folder.rmdir()  # unless something is in it, as there should be


@contextlib.contextmanager
def _only_run_in_bucket(url: str, beat: float, sleep: Callable[[float], None]) -> Iterator[None]:
    """Holds the lock of a run in a bucket: a file that is written anew with every heartbeat."""
    lock = f"{url}/{NAME}"
    if (before := buckets.read_text(lock)) is not None and not _is_gone(owner := _parsed(before)):
        log.warning(f"{url} {_LOCKED.format(BEATS * beat, **(owner or _NOBODY))}")
        for _ in range(10):
            sleep(BEATS * beat / 10)
            if buckets.read_text(lock) not in (None, before):
                raise _refusal(url, owner)
        log.warning(_CRASHED)
    ended, beats, signature = threading.Event(), itertools.count(), _signature()

    def write() -> None:
        buckets.write_text(lock, json.dumps(signature | {"beats": next(beats)}))

    def keep() -> None:
        while not ended.wait(beat):
            with contextlib.suppress(OSError):
                write()

    write()
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=beat)  # or its last heartbeat might come after the removal
        with contextlib.suppress(OSError):
            buckets.remove(lock)


def _is_gone(owner: dict[str, str | int]) -> bool:
    """Whether the owner is known to have ended: a process of this machine that is no more."""
    if not owner or owner["kernel"] != running_kernel():
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


_NOBODY = {"host": "an unknown host", "pid": "?"}
_LOCKED = "is locked by process {pid} on {host}: waiting {0:.0f} s for its heartbeat"
_CRASHED = "No heartbeat, so that run has crashed: taking over its folder"


def _locked(path: Path, tries: int = 10) -> TextIO | None:
    """The lock's file, open and locked; None where the file system knows no locks."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with file:
            if isinstance(error, BlockingIOError):
                raise _refusal(str(path.parent), _owner(file)) from None
            if error.errno not in _NO_LOCKS:
                raise
        path.unlink(missing_ok=True)
        return None
    # A run that ended just now may have removed the file that is locked: then it locks nothing. Not for
    # ever, as a mount may number a file anew each time that it is looked at.
    if tries > 1 and not _is_at(path, file):
        file.close()
        return _locked(path, tries - 1)
    return file


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: TextIO) -> None:
    file.truncate(0)
    file.write(json.dumps(_signature()) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _signature() -> dict[str, str | int]:
    """Who this process is."""
    return {
        "host": platform.node(),
        "kernel": running_kernel(),
        "pid": os.getpid(),
        "since": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
    }


def _owner(file: TextIO) -> dict[str, str | int]:
    """Who wrote the file; {} for one that nobody has signed."""
    file.seek(0)
    return _parsed(file.read())


def _parsed(text: str) -> dict[str, str | int]:
    try:
        owner = json.loads(text)
        return {key: owner[key] for key in ("host", "kernel", "pid", "since")}
    except (ValueError, KeyError, TypeError):
        return {}


def _refusal(run: str, owner: dict[str, str | int]) -> LockError:
    who = "process {pid} on {host}, since {since}" if owner else "one that has just started"
    return LockError(
        f"{run} is being written by another run, {who.format(**owner)}. Wait for it, or stop it "
        f"with `kill {owner.get('pid', 'PID')}` (it saves first), or choose another --run"
    )


def _beat(path: Path, beat: float, ended: threading.Event) -> None:
    """Touches the file every `beat` seconds, for as long as the process lives."""
    while not ended.wait(beat):
        with contextlib.suppress(OSError):
            os.utime(path)


def _outwait_another_host(
    path: Path, file: TextIO, beat: float, sleep: Callable[[float], None]
) -> None:
    """Raises LockError if the file is of a run on another host that is alive; returns when it is not."""
    owner = _owner(file)
    if not owner or owner["kernel"] == running_kernel():
        return
    log.warning(f"{path.parent} {_LOCKED.format(BEATS * beat, **owner)}")
    before = _changed(path)
    for _ in range(10):
        sleep(BEATS * beat / 10)
        if _changed(path) != before:
            raise _refusal(str(path.parent), owner)
    log.warning(_CRASHED)


def _changed(path: Path) -> int:
    """When the file was last changed, 0 if it is gone; opened, as network mounts look again only then."""
    try:
        with path.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0
