"""What a path may be: of this machine's file system."""

import os
from collections.abc import Mapping

from deeplab_jax.buckets import url_of


def check_local(paths: Mapping[str, str | os.PathLike | None]) -> None:
    """Raises ValueError, listing them, for paths that are URLs, such as gs://bucket/run.

    Opened as they are, they would be folders called "gs:".

    Args:
      paths: by the names that a person knows them by, such as "run"; None is no path.
    """
    urls = [
        f"{name} must be a path on this machine, got {url}: mount the bucket (gcsfuse does it for "
        "gs://) or copy what is there, and give the path where it is then"
        for name, path in paths.items()
        if (url := url_of(path)) is not None
    ]
    if urls:
        raise ValueError("\n".join(urls))
