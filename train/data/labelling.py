"""What the pixels of a folder's label maps mean, from all that they hold and what was said of them."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from train.data.class_table import CLASS_FILE, IGNORED, ClassTable, from_names, pack, unpack
from train.data.dataset import a_few
from train.data.masks import ByColours, ByIds, ByLabels, Mask
from train.metrics import IGNORE_LABEL

BINARY = ("background", "foreground")
"""The classes of label maps of 0 and 255 where nobody names them."""

_WHITE = pack(255, 255, 255)
_LISTED = 12  # ids or colours in a message
_SMEARED = 20  # different ids or colours; more are no classes but edges, where nobody named them


@dataclasses.dataclass(frozen=True)
class Labelling:
    """The classes of a data set, and how its label maps are decoded.

    Attributes:
      names: names of the classes; where a pixel may have several, the first is for what has none.
      decode: what makes classes of the file of a label map.
      notes: what was assumed, a sentence each.
    """

    names: tuple[str, ...]
    decode: ByIds | ByColours | ByLabels
    notes: tuple[str, ...] = ()

    @property
    def overlapping(self) -> bool:
        """Whether a pixel may have several classes."""
        return isinstance(self.decode, ByLabels)


def settle(
    masks: Mapping[str, Mask],
    table: ClassTable | None,
    problems: list[str],
    *,
    in_folder: bool = True,
) -> Labelling | None:
    """The labelling of a data set; None, with the reason in `problems`, where it is not clear.

    Args:
      masks: all label maps of all splits, by name.
      table: what was said of the classes.
      problems: what is wrong is added, with the way out.
      in_folder: whether people can add a classes.txt and change the files. Of a set that was prepared,
        palettes are not compared: its ids are what counts.
    """
    if any(mask.labels for mask in masks.values()):
        return _by_labels(masks, table, problems)
    if table and table.colours and _go_by_colour(masks.values(), table.colours):
        return _by_colours(masks, table, problems)
    coloured = {name: mask for name, mask in masks.items() if mask.ids is None}
    if coloured:
        problems.append(_no_table(coloured, len(masks), in_folder))
        masks = {name: mask for name, mask in masks.items() if name not in coloured}
    labelling = _by_ids(masks, table, problems, in_folder) if masks else None
    return None if coloured else labelling


# ---------------------------------------------------------------------------- several labels


def _by_labels(
    masks: Mapping[str, Mask], said: ClassTable | None, problems: list[str]
) -> Labelling | None:
    counts = Counter(mask.labels or 0 for mask in masks.values())
    (most, _), *others = counts.most_common()
    if others:
        odd = [
            f"{name} ({mask.labels or 'ids'})"
            for name, mask in masks.items()
            if (mask.labels or 0) != most
        ]
        problems.append(
            f"arrays [H, W, labels] must have the same labels in all label maps: most have "
            f"{most or 'ids'}, others are {a_few(odd)}"
        )
        return None
    named = said.names if said else tuple(f"label {i}" for i in range(most))
    if len(named) not in (most, most + 1) or (said and (said.explicit or said.colours)):
        problems.append(
            f"the {most} labels of arrays [H, W, labels] take a name each, as lines of {CLASS_FILE} or as "
            f"class names, and may have one for pixels without any before, got {', '.join(named)}"
        )
        return None
    pixels = sum(mask.pixels for mask in masks.values())
    names = named if len(named) > most else (BINARY[0], *named)
    missing = [name for name, n in zip(names[1:], pixels, strict=True) if not n]
    if len(missing) == most:
        problems.append("no label map has a 1, which is where a label is: what do they hold?")
        return None
    notes = [f"A pixel may have several of {most} labels: {', '.join(names[1:])}."]
    notes += [f"Warning: no label map has a pixel of {', '.join(missing)}."] if missing else []
    return Labelling(names, ByLabels(most), tuple(notes))


# ---------------------------------------------------------------------------- ids


def _by_ids(
    masks: Mapping[str, Mask], said: ClassTable | None, problems: list[str], in_folder: bool
) -> Labelling | None:
    found = _pixels((mask.ids, mask.pixels) for mask in masks.values())
    explicit = said is not None and said.explicit
    binary = not explicit and _is_binary(masks.values(), found)
    table = _binary(found, said) if binary else _listed(found, said, in_folder)
    if isinstance(table, str):
        problems.append(table)
        return None
    classes = {IGNORE_LABEL: IGNORE_LABEL} | dict(table.ids)
    wrong = [_unknown_ids(masks, found, table, in_folder)]
    if in_folder:
        wrong.append(_palettes_that_differ(masks, classes))
    if any(wrong):
        problems += filter(None, wrong)
        return None
    notes = _remarks(table.names, classes, found, str)
    if table.colours:
        notes.append(
            f"Label maps are grey and not in the colours of {table.origin}: their pixels are taken for "
            "ids, 0 for its first line."
        )
    if binary:
        notes.append(
            f"Label maps hold 0 and {IGNORE_LABEL} alone: {IGNORE_LABEL} is taken for class 1, "
            f"{table.names[1]}."
        )
    elif not explicit and _two_ways(masks.values(), found):
        ground, other = table.names[:2]
        notes.append(
            f"Warning: some label maps hold 0 and 1, others 0 and {IGNORE_LABEL}, which is ignored. If "
            f'both are {other}, say so: labels "0={ground},1={other},{IGNORE_LABEL}={other}"'
        )
    return Labelling(table.names, ByIds(classes), tuple(notes))


def _is_binary(masks: Iterable[Mask], found: Counter[int]) -> bool:
    """Whether there are 0 and 255 alone; but 1 too where it is white, with one bit or a palette."""
    others = {
        i for mask in masks if (mask.colours != mask.ids * _WHITE).any() for i in mask.ids.tolist()
    }
    return {0, IGNORE_LABEL} <= found.keys() and others <= {0, IGNORE_LABEL}


def _two_ways(masks: Iterable[Mask], found: Counter[int]) -> bool:
    """Whether two classes may be 0 and 1 in some label maps, and 0 and 255 in others."""
    kinds = [{1, IGNORE_LABEL}.intersection(mask.ids.tolist()) for mask in masks]
    return found.keys() == {0, 1, IGNORE_LABEL} and max(map(len, kinds)) == 1


def _binary(found: Counter[int], said: ClassTable | None) -> ClassTable | str:
    """The table of label maps of 0 and 255, or why there is none."""
    names = said.names if said else BINARY
    if len(names) == 2:
        ids = {0: 0, 1: 1, IGNORE_LABEL: 1}
        return dataclasses.replace(said, ids=ids) if said else ClassTable(names, ids)
    return (
        f"label maps hold the ids 0 and {IGNORE_LABEL} alone, which are two classes, against "
        f"{_number(names, 'class name')}. Name two, that of 0 first, or say what the ids are: "
        f"{_flag(found)}"
    )


def _listed(found: Counter[int], said: ClassTable | None, in_folder: bool) -> ClassTable | str:
    """The table that was given, or of ids that need no names; or why there is none."""
    if said:
        return _too_few(said) or said
    ids = sorted(found.keys() - {IGNORE_LABEL})
    if len(ids) > 1 and ids == list(range(len(ids))):
        return from_names([f"class {i}" for i in ids])
    hold = f"these hold {_shares(found, str, by_id=True)}"
    if len(found) == 1:
        return (
            f"label maps must hold two classes at least, {hold}: are they the right files, and were they "
            "saved with their ids?"
        )
    rule = (
        "ids of classes without names must be 0, 1, 2, ... without gaps"
        if len(ids) > 1
        else f"label maps must hold two classes at least, besides {IGNORE_LABEL}, which is ignored"
    )
    return f"{rule}; {hold}. {_ways_out(found, in_folder)}"


def _too_few(table: ClassTable) -> str | None:
    """What is wrong with a table of fewer classes than two."""
    if len(table.names) > 1:
        return None
    return (
        f"there must be two classes at least, got {_number(table.names, 'class name')}: what is "
        "around a class, the background, is one too"
    )


def _unknown_ids(
    masks: Mapping[str, Mask], found: Counter[int], table: ClassTable, in_folder: bool
) -> str | None:
    """What is wrong with ids that are in no table."""
    known = {*table.ids, IGNORE_LABEL}
    unknown = {
        name: [i for i in mask.ids.tolist() if i not in known] for name, mask in masks.items()
    }
    if not any(unknown.values()):
        return None
    none_of = (
        f"not listed in {table.origin}"
        if table.explicit
        else f"none of the {_number(table.names, 'class')}, nor {IGNORE_LABEL}, which is ignored"
    )
    where = a_few([f"{name} ({a_few(ids)})" for name, ids in unknown.items() if ids])
    return (
        f"{where}: these labels are {none_of}. All label maps together hold "
        f"{_shares(found, str, by_id=True)}. {_ways_out(found, in_folder)}"
    )


def _ways_out(found: Counter[int], in_folder: bool) -> str:
    if len(found) > _SMEARED and in_folder:
        return (
            "So many ids are mostly the smeared edges of label maps that were once JPEG, or resized by "
            "interpolation: export them again as PNG, resize by nearest neighbour. If all of them are "
            f"meant, name them in {CLASS_FILE}, one id=name per line"
        )
    in_file = (
        f"; or in {CLASS_FILE}, one id=name per line, or one name per line for every id from 0 on"
    )
    return (
        f"Say which id is which class: {_flag(found)}{in_file if in_folder else ''}. The name {IGNORED} "
        "leaves an id out"
    )


def _flag(found: Counter[int]) -> str:
    """The option that says what ids are, with names to be replaced."""
    words = {0: "background", IGNORE_LABEL: "foreground" if len(found) == 2 else IGNORED}
    entries = [f"{i}={words.get(i, f'class_{i}')}" for i in sorted(found)]
    return f"--data.labels {','.join(entries)} (--labels for `data` and `evaluate`)"


def _palettes_that_differ(masks: Mapping[str, Mask], classes: Mapping[int, int]) -> str | None:
    """What is wrong with palettes that show an id in one colour here and in another one there."""
    first: dict[int, tuple[str, int]] = {}
    differing: dict[int, str] = {}
    for name, mask in masks.items():
        if mask.mode != "P":
            continue
        for i, colour in zip(mask.ids.tolist(), mask.colours.tolist(), strict=True):
            other, before = first.setdefault(i, (name, colour))
            if colour != before and classes.get(i) != IGNORE_LABEL:
                both = f"{unpack(before)} in {other} and {unpack(colour)} in {name}"
                differing.setdefault(i, f"the id {i} is {both}")
    if not differing:
        return None
    return (
        "the palette must show an id in the same colour in all label maps, as people draw by colour: "
        f"{'; '.join(list(differing.values())[:3])}. Where the colours are right, write them into "
        f"{CLASS_FILE}, a line `name r g b` for each class: then they count. Where the ids are right, save "
        "them without palettes: Image.fromarray(np.asarray(Image.open(FILE))).save(FILE)"
    )


# ---------------------------------------------------------------------------- colours


def _go_by_colour(masks: Iterable[Mask], colours: Mapping[int, int]) -> bool:
    """Whether what label maps show are colours of the table, rather than ids in grey."""
    masks = list(masks)
    grey = all(mask.mode != "P" and mask.ids is not None for mask in masks)
    return not grey or {c for mask in masks for c in mask.colours.tolist()} <= colours.keys()


def _by_colours(
    masks: Mapping[str, Mask], table: ClassTable, problems: list[str]
) -> Labelling | None:
    if few := _too_few(table):
        problems.append(few)
        return None
    found = _pixels((mask.colours, mask.pixels) for mask in masks.values())
    unknown = Counter({c: n for c, n in found.items() if c not in table.colours})
    if unknown:
        where = [
            name
            for name, mask in masks.items()
            if any(colour in unknown for colour in mask.colours.tolist())
        ]
        ids_too = (
            f" Where the pixels are class ids, leave the colours out of {CLASS_FILE}."
            if all(mask.ids is not None for mask in masks.values())
            else ""
        )
        problems.append(
            f"label maps have colours that {table.origin} does not list: "
            f"{_shares(unknown, unpack, found.total())}, in {a_few(where)}. Add a line "
            f"for each; `{IGNORED} r g b` leaves a colour out.{_smeared(unknown)}{ids_too}"
        )
        return None
    notes = _remarks(table.names, table.colours, found, unpack)
    return Labelling(table.names, ByColours(table.colours), tuple(notes))


def _no_table(coloured: Mapping[str, Mask], count: int, in_folder: bool) -> str:
    """What is wrong with label maps in colour, of `count` in all, where no table has their colours."""
    found = _pixels((mask.colours, mask.pixels) for mask in coloured.values())
    facts = (
        f"{len(coloured)} of {count} label maps are in colour, where grey or palette pictures would hold "
        f"class ids: {a_few(list(coloured))}. Colours found: {_shares(found, unpack)}."
    )
    if not in_folder:
        return f"{facts} Choose another feature as the label map (--data.keys), or prepare it with ids."
    if len(found) > _SMEARED:
        return facts + _smeared(found)
    lines = [f"class_{n} {unpack(colour)}" for n, (colour, _) in enumerate(found.most_common())]
    return "\n    ".join(
        [
            f"{facts} Say in {CLASS_FILE} which class each is, `name r g b` a line; the name {IGNORED} "
            "leaves a colour out. Here, with better names, it is",
            *lines,
        ]
    )


def _smeared(colours: Mapping[int, int]) -> str:
    if len(colours) <= _SMEARED:
        return ""
    return (
        " So many colours are often smeared edges, of JPEG, of resizing by interpolation or of smooth "
        "drawing: export the label maps again as PNG without them."
    )


# ---------------------------------------------------------------------------- in words


def _remarks(
    names: tuple[str, ...],
    classes: Mapping[int, int],
    found: Counter[int],
    word: Callable[[int], str],
) -> list[str]:
    """What people should know of ids or colours (`word` writes one) that are all clear."""
    notes = []
    keys_of = {
        c: [word(key) for key in sorted(found) if classes[key] == c] for c in range(len(names))
    }
    for c, keys in keys_of.items():
        if len(keys) > 1:
            notes.append(f"Merged as {names[c]}: {', '.join(keys)}.")
    ignored = Counter({key: n for key, n in found.items() if classes[key] == IGNORE_LABEL})
    if ignored:
        notes.append(f"Ignored pixels: {_shares(ignored, word, found.total())}.")
    if missing := [names[c] for c, keys in keys_of.items() if not keys]:
        notes.append(f"Warning: no label map has a pixel of {', '.join(missing)}.")
    return notes


def _pixels(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Counter[int]:
    """The pixels of each id or colour, of all label maps together."""
    total: Counter[int] = Counter()
    for keys, pixels in parts:
        total.update(dict(zip(keys.tolist(), pixels.tolist(), strict=True)))
    return total


def _shares(
    found: Counter[int],
    word: Callable[[int], str],
    total: int | None = None,
    *,
    by_id: bool = False,
) -> str:
    """The most frequent ids or colours with their parts of all pixels."""
    total = total or found.total()
    most = found.most_common(_LISTED)
    shares = [
        f"{word(key)} ({_percent(n / total)})" for key, n in (sorted(most) if by_id else most)
    ]
    rest = len(found) - _LISTED
    return ", ".join(shares) + (f" and {rest} more" if rest > 0 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.1g} %"


def _number(names: Sequence[str], word: str) -> str:
    return f"{len(names)} {word}{'' if len(names) == 1 else 'es' if word.endswith('s') else 's'}"
