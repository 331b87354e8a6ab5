"""Who a run is to a service: an id that is kept in its folder, so that a resumed run is the same there."""

import json
from collections.abc import Callable
from pathlib import Path

from deeplab_jax.whole_file import write_file

FILE = "tracking.json"


def identity_of(folder: Path, service: str, new: Callable[[], str]) -> str:
    """The id of a run with a service, a new one where it has none yet."""
    path = folder / FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    if service not in known:
        known[service] = new()
        write_file(path, json.dumps(known) + "\n")
    return known[service]
