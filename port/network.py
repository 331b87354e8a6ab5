"""Finds the network in a checkpoint: whose code wrote it, and under what prefix.

A training framework keeps the network as a part of its own (`model.`, `net.`), beside perhaps the weights
of a loss, a teacher, or a second network.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from port.backbones import NAMINGS
from port.layouts import LAYOUTS, Layout
from port.layouts.classification import Classification
from port.naming import Shapes, within
from port.read import CheckpointError

DEEPEST_PREFIX = 3
"""Parts of a name, at most, that a training framework may have put before the network's own."""

MOST_BESIDE = 1e-3
"""Share of a file's numbers that may lie beside the network under other names; any head has more."""

KINDS = {
    "a vision transformer, of which we have none": ("attn.qkv.", "attention.query.", "cls_token"),
    "a DenseNet, of which we have none": ("denselayer",),
    "an Inception network, of which we have none": ("Mixed_", "mixed_", "branch3x3"),
    "a U-Net, which is no DeepLab": ("up_blocks.", "decoder.blocks.", "up1.conv", "ups.0"),
    "a feature pyramid, which is no DeepLab": ("fpn.", "seg_blocks."),
    "a VGG network, of which we have none": ("features.28.weight",),
}
"""Networks that people also have, by parts of the names of their tensors."""

Tensors = Mapping[str, np.ndarray]


class Network(NamedTuple):
    """The network of a checkpoint.

    Attributes:
      layout: the family of code that it is of.
      source: its tensors, by the names that it has in the checkpoint, without the prefix.
      tensors: the same by the names that the layout's code has today, without those that the logits do
        not depend on.
      dropped: what was left out, for people.
    """

    layout: Layout
    source: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    dropped: tuple[str, ...]


def find_network(
    tensors: Tensors,
    *,
    layout: str | None = None,
    prefix: str | None = None,
    ignore: tuple[str, ...] = (),
) -> Network:
    """The network of a checkpoint, found by its names.

    Args:
      tensors: all of a checkpoint's.
      layout: one of `LAYOUTS`; None finds it.
      prefix: what stands before the network's names, "student."; None finds it.
      ignore: patterns of names that are left out, "loss.*", as a shell has them.

    Raises:
      CheckpointError: when no layout knows the names, or more than one network may be meant.
      ValueError: when the layout is unknown, or nothing has the prefix or matches a pattern.
    """
    kept, dropped = _without(tensors, ignore)
    if prefix is not None:
        prefix = _checked_prefix(prefix, kept)
        family = named_layout(layout) if layout else _one(_layouts_of(kept, prefix), kept, prefix)
    elif layout is not None:
        family = named_layout(layout)
        prefix = next((p for p in _sole_prefixes(kept) if _takes(family, kept, p)), "")
    else:
        family, prefix = _find(kept)
    source = within(kept, prefix)
    if prefix:
        dropped.append(f"prefix {prefix!r}")
    if beside := [name for name in kept if not name.startswith(prefix)]:
        dropped.append(f"{some(beside, 5)}: beside the network")
    canonical = _canonical(family, source)
    if apart := [name for name in canonical if name.startswith(family.apart)]:
        dropped.append(f"{some(apart)}: no part of the segmentation")
    network = {name: tensor for name, tensor in canonical.items() if name not in apart}
    return Network(family, source, network, tuple(dropped))


def find_layout(tensors: Tensors) -> Layout:
    """The layout whose code made these names.

    Raises CheckpointError when none does or more than one might.
    """
    return _find(tensors)[0]


def named_layout(name: str) -> Layout:
    """The layout of that name. Raises ValueError, listing them, where there is none."""
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def some(lines: list[str], most: int = 20) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(lines[:most]) + (f" and {len(lines) - most} more" if len(lines) > most else "")


# ---------------------------------------------------------------------------- what the user says


def _without(
    tensors: Tensors, patterns: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], list[str]]:
    kept, lines = dict(tensors), []
    for pattern in patterns:
        hit = fnmatch.filter(kept, pattern)
        if not hit:
            raise ValueError(
                f"--ignore {pattern!r} matches none of the {len(kept)} names: {some(list(kept), 5)}"
            )
        lines.append(f"{some(hit, 5)}: as --ignore {pattern!r} says")
        kept = {name: tensor for name, tensor in kept.items() if name not in hit}
    return kept, lines


def _checked_prefix(prefix: str, tensors: Tensors) -> str:
    """With its dot. Raises ValueError, saying what there is, where no name begins so."""
    dotted = prefix and prefix.rstrip(".") + "."
    if not any(name.startswith(dotted) for name in tensors):
        first = Counter(name.partition(".")[0] + "." for name in tensors)
        there = ", ".join(f"{begin} ({n} tensors)" for begin, n in first.most_common(10))
        raise ValueError(f"no tensor's name begins with {dotted!r}; there are {there}")
    return dotted


# ---------------------------------------------------------------------------- finding


def _find(tensors: Tensors) -> tuple[Layout, str]:
    """The layout whose code made these names, and what stands before all names of the network."""
    for prefix in _sole_prefixes(tensors):
        if found := _layouts_of(tensors, prefix):
            return _one(found, tensors, prefix), prefix
    networks = _networks(tensors)
    if len(networks) == 1:
        return networks[0]
    if networks:
        lines = [
            f"  {prefix} ({layout.name}, {len(within(tensors, prefix))} tensors)"
            for layout, prefix in networks
        ]
        raise CheckpointError(
            "\n".join(
                [
                    "the checkpoint has more than one network; say which with --prefix (in Python, "
                    "prefix=...):",
                    *lines,
                ]
            )
        )
    return _one([], tensors, ""), ""


def _one(found: list[Layout], tensors: Tensors, prefix: str) -> Layout:
    """The one that was found; an error that says what there is where it is none or several."""
    if len(found) == 1:
        return found[0]
    names = some(list(within(tensors, prefix)), 5)
    if found:
        raise CheckpointError(
            f"these names ({names}) may be of {' or '.join(x.name for x in found)}: "
            "say which with --layout (in Python, layout=...)"
        )
    raise CheckpointError(
        f"no layout knows these names: {names}. {_nearest(shapes_of(tensors))}"
        f"We read {', '.join(f'{x.name} ({x.code})' for x in LAYOUTS.values())}. "
        "Other names are of another network, and a layout is one small file, see CONTRIBUTING.md."
    )


def _sole_prefixes(tensors: Tensors) -> Iterator[str]:
    """What may stand before all names of the network: nothing first, then part by part.

    Beside it are small things, such as the weights of a loss: where there are large ones, it ends.
    """
    total = sum(tensor.size for tensor in tensors.values())
    for depth in range(DEEPEST_PREFIX + 1):
        sizes: Counter[str] = Counter()
        for name, tensor in tensors.items():
            sizes[_begin(name, depth)] += tensor.size
        prefix, size = max(sizes.items(), key=lambda item: item[1], default=("", 0))
        if size < (1 - MOST_BESIDE) * total:
            return
        yield prefix


def _networks(tensors: Tensors) -> list[tuple[Layout, str]]:
    """Whole segmentation networks beside one another or beside others, with their prefixes.

    A head or a classifier alone may be a part of what we do not know, and is not taken for one.
    """
    found: list[tuple[Layout, str]] = []
    for depth in range(1, DEEPEST_PREFIX + 1):
        for prefix in dict.fromkeys(_begin(name, depth) for name in tensors):
            if not any(prefix.startswith(outer) for _, outer in found):
                whole = [
                    layout
                    for layout in _layouts_of(tensors, prefix)
                    if layout.takes_others and layout.find_place(shapes_of(within(tensors, prefix)))
                ]
                found += [(layout, prefix) for layout in whole]
    return found


def _begin(name: str, depth: int) -> str:
    """The first parts of a name, with their dots; short names have fewer."""
    return "".join(f"{part}." for part in name.split(".")[:-1][:depth])


def _layouts_of(tensors: Tensors, prefix: str) -> list[Layout]:
    """Those whose names they may be; of a classifier alone only where they are of nothing larger."""
    found = [layout for layout in LAYOUTS.values() if _takes(layout, tensors, prefix)]
    larger = [layout for layout in found if not isinstance(layout, Classification)]
    return larger or found


def _takes(layout: Layout, tensors: Tensors, prefix: str) -> bool:
    return layout.recognises(shapes_of(_canonical(layout, within(tensors, prefix))))


def _canonical(layout: Layout, tensors: Tensors) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        new = layout.canonical(name)
        if new in renamed:
            raise CheckpointError(f"{layout.name} calls two tensors {new!r}; keep one of them")
        renamed[new] = tensor
    return renamed


def _nearest(shapes: Shapes) -> str:
    """A sentence on what of an unknown network is known: its backbone, or the kind that it is of."""
    prefixes = dict.fromkeys(_begin(name, d) for d in range(DEEPEST_PREFIX + 1) for name in shapes)
    for prefix in prefixes:
        inner = within(shapes, prefix)
        for naming in NAMINGS:
            if naming.recognises(inner):
                others = [name for name in shapes if not name.startswith(prefix)]
                rest = f"; what is not known is its head: {some(others, 5)}" if others else ""
                under = f" under {prefix!r}" if prefix else ""
                return f"Its backbone{under} has the names of {naming.known}{rest}. "
    for kind, marks in KINDS.items():
        if any(mark in name for name in shapes for mark in marks):
            return f"It looks like {kind}. "
    return ""
