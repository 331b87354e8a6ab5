"""Damage to files, as disks, copies and people do it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Damage = Callable[[Path, np.random.Generator], None]


def flip(path: Path, rng: np.random.Generator) -> None:
    """One bit, anywhere."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def truncate(path: Path, rng: np.random.Generator) -> None:
    """A copy that was broken off."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(len(data))])


def blank(path: Path, rng: np.random.Generator) -> None:
    """A part that was never written, as after a loss of power."""
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def overwrite(path: Path, rng: np.random.Generator) -> None:
    """A part of something else."""
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    data[start : start + 16] = rng.bytes(len(data[start : start + 16]))
    path.write_bytes(data)


def empty(path: Path, _: np.random.Generator) -> None:
    """Nothing but the name."""
    path.write_bytes(b"")


def delete(path: Path, _: np.random.Generator) -> None:
    """Gone."""
    path.unlink()


def swap(path: Path, rng: np.random.Generator) -> None:
    """The content of another file of its folder, where there is one, or of its own turned round."""
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    data = others[rng.integers(len(others))].read_bytes() if others else path.read_bytes()[::-1]
    path.write_bytes(data)


DAMAGES: tuple[Damage, ...] = (flip, flip, flip, truncate, blank, overwrite, empty, delete, swap)
"""By how often they are tried."""
