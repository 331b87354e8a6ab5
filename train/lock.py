"""One run at a time in a folder: a lock that names its owner and that no crash leaves behind."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

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
    Where the file system has no locks at all, a warning says so.

    Args:
      beat: seconds between heartbeats.
      sleep: a function that waits for so many seconds.

    Raises:
      LockError: another run has it.
    """
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


def _locked(path: Path, tries: int = 10) -> TextIO | None:
    """The lock's file, open and locked; None where the file system knows no locks."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with file:
            if isinstance(error, BlockingIOError):
                raise _refusal(path, _owner(file)) from None
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
    owner = {
        "host": platform.node(),
        "kernel": _kernel(),
        "pid": os.getpid(),
        "since": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
    }
    file.truncate(0)
    file.write(json.dumps(owner) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _kernel() -> str:
    """An id of the running kernel, within which flock works; hosts, above all pods, may share a name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()


def _owner(file: TextIO) -> dict[str, str | int]:
    """Who wrote the file; {} for one that nobody has signed."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return {key: owner[key] for key in ("host", "kernel", "pid", "since")}
    except (ValueError, KeyError, TypeError):
        return {}


def _refusal(path: Path, owner: dict[str, str | int]) -> LockError:
    who = "process {pid} on {host}, since {since}" if owner else "one that has just started"
    return LockError(
        f"{path.parent} is being written by another run, {who.format(**owner)}. Wait for it, or stop it "
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
    if not owner or owner["kernel"] == _kernel():
        return
    log.warning(
        f"{path.parent} is locked by process {owner['pid']} on {owner['host']}: waiting "
        f"{BEATS * beat:.0f} s for its heartbeat"
    )
    before = _changed(path)
    for _ in range(10):
        sleep(BEATS * beat / 10)
        if _changed(path) != before:
            raise _refusal(path, owner)
    log.warning("No heartbeat, so that run has crashed: taking over its folder")


def _changed(path: Path) -> int:
    """When the file was last changed, 0 if it is gone; opened, as network mounts look again only then."""
    try:
        with path.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0
