"""What names and shapes of tensors are to the porter, and the tables that translate names."""

from collections.abc import Mapping
from typing import TypeVar

LONGEST_NAME = 500
"""Characters of a tensor's name, and of what a message has of any name. Real ones have under 150."""

T = TypeVar("T")

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape of every tensor in a checkpoint, wrappers and counters removed."""

Names = dict[str, str]
"""Path of each of our modules that owns weights -> name of the PyTorch module that owns the same.

Where one of our variables is a plain parameter of a larger module in the original, its own path stands for
it, and the name is the tensor's."""


def shown(name: object) -> str:
    """A name out of a file for a message: short, and without what would steer a terminal."""
    text = str(name)
    start = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:LONGEST_NAME])
    return start if len(text) <= LONGEST_NAME else f"{start}... ({len(text):,} characters)"


def conv_bn(ours: str, conv: str, bn: str) -> Names:
    """A convolution and its batch norm."""
    return {f"{ours}.conv": conv, f"{ours}.bn": bn}


def under(ours: str, theirs: str, names: Names) -> Names:
    """The table one level down on both sides; an empty `theirs` is the top level."""
    theirs = f"{theirs}." if theirs else ""
    return {f"{ours}.{path}": theirs + name for path, name in names.items()}


def within(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    """What is named below `prefix`, by its name without it."""
    return {n.removeprefix(prefix): x for n, x in named.items() if n.startswith(prefix)}


def count(shapes: Shapes, pattern: str) -> int:
    """How many of `pattern.format(0)`, `pattern.format(1)`, ... begin a name, without a gap."""
    n = 0
    while any(name.startswith(pattern.format(n)) for name in shapes):
        n += 1
    return n
