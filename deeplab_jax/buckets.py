"""What lies in buckets, gs:// or s3://: read from a copy on this machine, written from one.

Anything that fsspec opens will do, so memory:// too. A bucket cannot rename: what is made of several files
is there when its last one is, which `upload` is told.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import platformdirs

from deeplab_jax.progress import progress
from deeplab_jax.whole_file import write_file

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
"""Also of what `Path` leaves of one, as in "gs:/bucket"; a Windows drive has one letter."""

_PACKAGES = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
"""The extra that opens each kind."""

_INDEX = ".index.json"
_MANY = 20  # files whose copying shows progress


class BucketError(OSError):
    """What is asked for is not in the bucket, or the bucket cannot be reached; the message says which."""


def url_of(path: str | os.PathLike[str] | None) -> str | None:
    """The URL that a path is, whole again where `Path` took a slash; None of a path on this machine."""
    found = None if path is None else _URL.match(os.fspath(path))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


def local_copy(path: str | os.PathLike[str]) -> Path:
    """A file or folder of a bucket as a path on this machine; a path on this machine as it is.

    Copies are kept in the user's cache folder; what is unchanged since is not fetched again, and what is
    gone from the bucket is removed.

    Raises:
      BucketError: nothing is there, or the bucket cannot be reached.
    """
    if (url := url_of(path)) is None:
        return Path(path)
    files, root = _open(url)
    name = PurePosixPath(root).name
    place = platformdirs.user_cache_path("deeplab_jax") / "buckets"
    place = place / hashlib.sha256(url.encode()).hexdigest()[:16]
    with _reaching(url):
        if files.isfile(root):
            return _fetched(files, {name: files.info(root)}, place, url) / name
        found = {
            str(PurePosixPath(file).relative_to(root)): info
            for file, info in files.find(root, detail=True).items()
        }
    if not found:
        raise BucketError(f"{url}: no such file or folder")
    _fetched(files, found, place / name, url)
    return place / name


def upload(folder: Path, url: str, names: Iterable[str], *, last: str = "") -> None:
    """Copies files of a folder into a bucket, `last` when the others are there.

    Raises:
      BucketError: the bucket cannot be reached.
    """
    files, root = _open(url)
    names = list(names)
    with _reaching(url), ThreadPoolExecutor() as threads:
        first = [name for name in names if name != last]
        list(threads.map(lambda n: files.put_file(str(folder / n), f"{root}/{n}"), first))
        if last in names:
            files.put_file(str(folder / last), f"{root}/{last}")


def exists(url: str) -> bool:
    """Whether a file or folder is there. Raises BucketError where the bucket cannot be reached."""
    files, root = _open(url)
    with _reaching(url):
        return files.exists(root)


def remove(url: str) -> None:
    """Removes a file or folder, if it is there. Raises BucketError where the bucket cannot be reached."""
    files, root = _open(url)
    with _reaching(url):
        if files.exists(root):
            files.rm(root, recursive=True)


def read_text(url: str) -> str | None:
    """The content of a small file as it is now; None if it is not there."""
    files, root = _open(url)
    with _reaching(url):
        return files.cat_file(root).decode() if files.exists(root) else None


def write_text(url: str, text: str) -> None:
    """Writes a small file whole."""
    files, root = _open(url)
    with _reaching(url):
        files.pipe_file(root, text.encode())


def _open(url: str) -> tuple[Any, str]:
    """fsspec's file system, and what the URL is in it."""
    kind = url.partition("://")[0]
    try:
        with _reaching(url):
            files, root = fsspec.core.url_to_fs(url)
            files.invalidate_cache()  # of what was there when this process last looked
    except ImportError as error:
        extra = _PACKAGES.get(kind)
        way_out = f"pip install 'deeplab-jax[{extra}]'" if extra else "install what opens it"
        missing = f"{kind}:// needs a package that is not installed"
        raise BucketError(f"{missing}: {way_out} ({error})") from error
    except ValueError as error:
        raise BucketError(f"{url} is no URL that can be opened: {error}") from error
    return files, root.rstrip("/")


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Whatever a bucket's client raises, of any class, as a BucketError."""
    try:
        yield
    except (BucketError, ImportError, ValueError):
        raise
    except Exception as error:
        raise BucketError(f"{url}: {type(error).__name__}: {error}") from error


def _fetched(files: Any, found: Mapping[str, Mapping[str, Any]], place: Path, url: str) -> Path:
    """A folder of this machine with just these files; each is written whole or not at all."""
    inside = {name: _inside(place, name) for name in found if not name.endswith("/")}
    marks = {name: _mark(found[name]) for name in inside}
    index = place / _INDEX
    known = json.loads(index.read_text()) if index.is_file() else {}
    there = {name for name, path in inside.items() if path.is_file()}
    missing = [name for name in inside if name not in there or known.get(name) != marks[name]]
    for name in known.keys() - inside.keys():
        _inside(place, name).unlink(missing_ok=True)
    place.mkdir(parents=True, exist_ok=True)

    def fetch(name: str) -> None:
        path = inside[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching.", dir=place) as beside:
            part = Path(beside) / "part"
            files.get_file(found[name]["name"], str(part))
            os.replace(part, path)

    shown = len(missing) >= _MANY
    with (
        _reaching(url),
        ThreadPoolExecutor() as threads,
        progress(f"copying {url}", len(missing), unit="files", shown=shown) as done,
    ):
        for number, _ in enumerate(threads.map(fetch, missing), 1):
            done(number)
    write_file(index, json.dumps(marks))
    return place


def _inside(place: Path, name: str) -> Path:
    """Where a file goes; BucketError for a name that leads out of the folder, as a bucket's may."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise BucketError(f"a file in the bucket has a name that leads elsewhere: {name!r}")
    return place.joinpath(*parts)


def _mark(info: Mapping[str, Any]) -> str:
    """What changes when a file does."""
    keys = ("size", "etag", "ETag", "generation", "md5Hash", "mtime", "created", "LastModified")
    return " ".join(str(info[key]) for key in keys if key in info)
