"""Writing a file whole or not at all."""

import os
from pathlib import Path

PARTIAL = ".partial"
"""How the names of files end that are not whole yet, or never will be, as their process was killed."""


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it: `path` has all of `content` or is as it was.

    Permissions are what the umask gives to a new file.

    Args:
      content: text is encoded as UTF-8.

    Raises:
      OSError: the file cannot be written; nothing is left beside it.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of a full disk it does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
