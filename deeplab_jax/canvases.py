"""Which images share a canvas: few programs to compile, and little to compute beyond the images."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import jax
import numpy as np

Size = tuple[int, int]
"""Rows and columns."""

FEW_SIZES = 2
"""So many compile for themselves; a canvas is for more."""

_MOST = 256  # sizes that are compared with each other

_COMPILING = {"cpu": 5e11}
"""Multiply-adds that run in the time in which a program is compiled: two cores do 1e11 a second, and
compile in 4 to 6 seconds."""

_COMPILING_ELSEWHERE = 3e14  # accelerators are faster at the one and slower at the other

_NO_CONVOLUTIONS = 16e3
"""Multiply-adds that take as long as all else that is done for a pixel. Without them MobileNetV2 would run
1.8 times as fast as measured, and ResNet-50 as measured."""


def choose_canvases(sizes: Iterable[Size], compiling: float) -> dict[Size, Size]:
    """The canvas for the images of each size, at least as large.

    Two canvases become one where less is computed in vain than could be in the time of compiling another
    program.

    Args:
      sizes: of all images.
      compiling: that time, in pixels.
    """
    counts = Counter(sizes)
    members = _rounded_up(counts)
    canvases = np.array(list(members), np.int64).reshape(-1, 2)
    images = np.array([sum(counts[size] for size in group) for group in members.values()])
    groups = list(members.values())
    while len(groups) > 1:
        pixels = images * canvases.prod(1)
        joint = np.maximum(canvases[:, None], canvases)
        more = (images[:, None] + images) * joint.prod(2) - pixels[:, None] - pixels
        np.fill_diagonal(more, np.iinfo(more.dtype).max)
        one, other = sorted(np.unravel_index(more.argmin(), more.shape))
        if more[one, other] >= compiling:
            break
        canvases[one], images[one] = joint[one, other], images[one] + images[other]
        groups[one] = groups[one] + groups.pop(other)
        canvases, images = np.delete(canvases, other, axis=0), np.delete(images, other)
    return {
        size: (int(canvas[0]), int(canvas[1]))
        for canvas, group in zip(canvases, groups, strict=True)
        for size in group
    }


def shared_canvases(
    sizes: Iterable[Size], able: Callable[[Size], bool], *, work: float
) -> dict[Size, frozenset[Size]]:
    """The canvases that sizes share, and these sizes; what lies on none runs in a program of its size.

    Args:
      sizes: of all images.
      able: whether images of a size, or canvases, can run so.
      work: multiply-adds for each pixel.
    """
    compiling = _COMPILING.get(jax.default_backend(), _COMPILING_ELSEWHERE)
    chosen = choose_canvases(filter(able, sizes), compiling / (work + _NO_CONVOLUTIONS))
    members: dict[Size, set[Size]] = defaultdict(set)
    for size, canvas in chosen.items():
        members[canvas].add(size)
    return {
        canvas: frozenset(group)
        for canvas, group in members.items()
        if len(group) > 1 and able(canvas)
    }


def _rounded_up(sizes: Iterable[Size]) -> dict[Size, list[Size]]:
    """Sizes by the same rounded up, as little as makes them at most `_MOST`."""
    multiple = 1
    while True:
        groups: dict[Size, list[Size]] = {}
        for height, width in sizes:
            rounded = (height + -height % multiple, width + -width % multiple)
            groups.setdefault(rounded, []).append((height, width))
        if len(groups) <= _MOST:
            return groups
        multiple *= 2
