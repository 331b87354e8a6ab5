"""`metrics.jsonl` in a run's folder: a line per logged step or evaluation, with the time of its writing."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from deeplab_jax.whole_file import write_file

FILE = "metrics.jsonl"


class JsonLines:
    """Appends to the file; a number that is not finite is null there."""

    def __init__(self, folder: Path, *, start: int):
        path = folder / FILE
        kept = [row for row in _rows(path) if row["step"] <= start]
        # A new run's first line says when it began.
        rows = kept or [{"step": start, "time": round(time.time(), 3)}]
        write_file(path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._file = path.open("a")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line."""
        finite = {name: v if np.isfinite(v) else None for name, v in values.items()}
        row = {"step": step, "time": round(time.time(), 3), **finite}
        print(json.dumps(row), file=self._file, flush=True)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Pictures are no lines."""

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        self._file.close()


def began(folder: epath.PathLike) -> float:
    """When a run began, in seconds since 1970, of its first line; now without one that says so."""
    return next(
        (row["time"] for row in _rows(epath.Path(folder) / FILE) if "time" in row), time.time()
    )


def latest(folder: epath.PathLike, name: str) -> float:
    """The last value of a metric of a run; 0 without one."""
    return next(
        (row[name] for row in reversed([*_rows(epath.Path(folder) / FILE)]) if name in row), 0.0
    )


def measured(folder: epath.PathLike) -> dict[int, float]:
    """The mIoU of each step of a run that has been evaluated, without those that are NaN."""
    return {
        row["step"]: row["val/miou"]
        for row in _rows(epath.Path(folder) / FILE)
        if row.get("val/miou") is not None
    }


def _rows(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    path = epath.Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A line that a crash, or a run that goes on, has cut off is left out.
    return (json.loads(line) for line in lines if line.endswith("\n"))
