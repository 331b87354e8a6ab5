"""A folder beside a place, in which is made what then takes the place; killed processes' are removed."""

import contextlib
import glob
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks: what is left there stays
    fcntl = None  # type: ignore[assignment]

_LOCK = "lock"


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder `.NAME.xxxxxxxx` in the folder of `path`, which is removed at the end.

    A file in it is locked meanwhile. The kernel takes the lock back from a process that ends in any way,
    and so `remove_leftovers` can tell.
    """
    with (
        contextlib.ExitStack() as held,  # until the folder is gone
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name,
    ):
        folder = Path(name)
        if fcntl is None:
            yield folder
            return
        file = held.enter_context((folder / "new-lock").open("w"))
        with contextlib.suppress(OSError):  # a file system without locks: nobody will take it away
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(running_kernel())
            file.flush()
            (folder / "new-lock").rename(folder / _LOCK)  # never there without being locked
        yield folder


def remove_leftovers(path: Path) -> None:
    """Removes the folders beside `path` of processes that were killed on this machine since it started.

    Those of other machines, and those without a lock, are left: nothing tells whether they are in use.
    """
    if fcntl is None:
        return
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the process lives
            if file.read() == running_kernel():
                shutil.rmtree(lock.parent)


def running_kernel() -> str:
    """An id of the running kernel, within which flock works; hosts, above all pods, may share a name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()
