"""SHA-256 of each file of a folder, kept in a file among them: what has changed since is noticed."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deeplab_jax.whole_file import PARTIAL, write_file

FILE = "sha256.json"


def write_digests(folder: Path) -> None:
    """Writes the digests of a folder whose files are all there. Raises OSError where it cannot."""
    write_file(folder / FILE, json.dumps(_digests(folder), indent=1) + "\n")


def has_digests(folder: Path) -> bool:
    """Whether a folder keeps digests."""
    return (folder / FILE).is_file()


def damage(folder: Path) -> list[str]:
    """What is wrong with the files of a folder that keeps digests, a line each; empty where it is whole."""
    try:
        kept = json.loads((folder / FILE).read_text())
        wanted = {str(name): str(digest) for name, digest in kept.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return [f"{FILE} cannot be read: {error}"]
    found = _digests(folder)
    return [
        f"{name} is missing" if name not in found else f"{name} is not what was written"
        for name in sorted(wanted)
        if found.get(name) != wanted[name]
    ]


def _digests(folder: Path) -> dict[str, str]:
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / FILE and not path.name.endswith(PARTIAL)
    }
    with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter's lock
        return dict(zip(files, threads.map(digest_of_file, files.values()), strict=True))


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
