"""What a path may be: of this machine's file system."""

import os
import re
from collections.abc import Mapping

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
"""Also of what `Path` leaves of one, as in "gs:/bucket"; a Windows drive has one letter."""


def check_local(paths: Mapping[str, str | os.PathLike | None]) -> None:
    """Raises ValueError, listing them, for paths that are URLs, such as gs://bucket/run.

    Opened as they are, they would be folders called "gs:".

    Args:
      paths: by the names that a person knows them by, such as "run"; None is no path.
    """
    urls = [
        f"{name} must be a path on this machine, got {found[1]}://{found[2]}: mount the bucket (gcsfuse "
        "does it for gs://) or download what is there, and give the path where it is then"
        for name, path in paths.items()
        if path is not None and (found := _URL.match(os.fspath(path)))
    ]
    if urls:
        raise ValueError("\n".join(urls))
