"""Which id, or which colour, of a label map is which class: classes.txt, and the option `labels`."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.data.dataset import DataError
from train.metrics import IGNORE_LABEL

CLASS_FILE = "classes.txt"

ID2LABEL = "id2label.json"
"""How transformers' people list the classes of a data set: {"0": "road", ...}."""

IGNORED = "ignored"
"""The name in a table whose ids or colours are no class and are left out of training and of scores."""

MOST_CLASSES = 254
"""Of a byte, 255 is ignored, and 254 stands for a colour that is in no table."""

FORMS = (
    "`name` (the first line is id 0), `id=name` (100=road), or `name r g b` for label maps in colour "
    "(road 128 64 128)"
)

_BY_ID = re.compile(r"(\d+)\s*=\s*(\S.*)")
_BY_COLOUR = re.compile(r"(\S.*?)[\s,:]+(\d+)[\s,]+(\d+)[\s,]+(\d+)")


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """Which id or colour of a label map is which class.

    Attributes:
      names: names of the classes 0, 1, ...
      ids: the class of each id; `IGNORE_LABEL` where it is ignored.
      colours: the class of each colour, as `pack` has it, in the same way; None where none are given.
      explicit: whether every id was given with its name, rather than counted.
      origin: where it comes from, for messages.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int]
    colours: Mapping[int, int] | None = None
    explicit: bool = False
    origin: str = ""


def pack(red: int, green: int, blue: int) -> int:
    """A colour as one number, red in its highest bits."""
    return red << 16 | green << 8 | blue


def unpack(colour: int) -> str:
    """A packed colour as people write it, "128 64 128"."""
    return f"{colour >> 16} {colour >> 8 & 255} {colour & 255}"


def from_names(names: Sequence[str]) -> ClassTable:
    """The table of classes whose ids are 0, 1, ..."""
    return _limited(ClassTable(tuple(names), {i: i for i in range(len(names))}))


def named_classes(class_names: Sequence[str] | None, labels: str | None) -> ClassTable | None:
    """The table of the options `class_names` or `labels`; None where neither is given.

    Raises:
      DataError: both are given; a name in `class_names` occurs twice; or see `parse_labels`.
    """
    if labels is not None and class_names:
        raise DataError("give either class_names or labels, which names the classes too, not both")
    if labels is not None:
        return parse_labels(labels)
    if class_names and (problems := _repeated(class_names)):
        raise DataError.listing(f"class names must differ, got {', '.join(class_names)}:", problems)
    return from_names(class_names) if class_names else None


def parse_labels(text: str) -> ClassTable:
    """The table of the option `labels`, such as "0=background,100=road,200=car".

    Classes are in the order in which their names first appear; ids that share a name are merged; the
    name `IGNORED` takes an id out.

    Raises:
      DataError: listing entries that are not ID=NAME, ids outside 0..255 and ids that occur twice.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    matches = [_BY_ID.fullmatch(entry) for entry in entries]
    problems = [f"{e!r} is not ID=NAME" for e, m in zip(entries, matches, strict=True) if not m]
    pairs = [(int(match[1]), match[2]) for match in matches if match]
    table = _by_ids("labels", pairs, problems)
    if problems or not pairs:
        rule = f"labels must be like 0=background,100=road,200=car, got {text!r}"
        raise DataError.listing(rule, problems)
    return _limited(table)


def folder_classes(root: Path) -> ClassTable | None:
    """The table that a folder has: our classes.txt, CVAT's labelmap.txt or Roboflow's _classes.csv.

    Raises:
      DataError: see `read_classes`.
    """
    if table := read_classes(root / CLASS_FILE):
        return table
    for name, form in _OTHERS.items():
        for path in (root / name, *sorted(root.glob(f"*/{name}"))):
            if path.is_file():
                return _parsed(path, [row for line in _lines(path) if (row := form(line))])
    return None


def _cvat(line: str) -> str | None:
    """A line `road:128,64,128::` as ours are."""
    name, _, rest = line.partition(":")
    colour = rest.partition(":")[0]
    return None if line.startswith("#") else f"{name} {colour.replace(',', ' ')}"


def _roboflow(line: str) -> str | None:
    """A line `1, road` as ours are; the first is a heading."""
    number, _, name = line.partition(",")
    return f"{int(number)}={name.strip()}" if number.strip().isdigit() else None


_OTHERS = {"labelmap.txt": _cvat, "_classes.csv": _roboflow}


def read_classes(path: Path) -> ClassTable | None:
    """The table in a classes.txt; None where there is no such file, or nothing in it.

    Its lines are all of one form: `name` of the ids 0, 1, ...; `id=name`; or `name r g b`. In the last two,
    names that are there again are merged, and `IGNORED` takes ids or colours out, as for `parse_labels`.

    Raises:
      DataError: the file is not UTF-8; or listing lines of other forms, numbers that are too large, ids and
        colours that occur twice, and names that do so in the first form, where merging is not meant.
    """
    return _parsed(path, _lines(path)) if path.is_file() else None


def read_id2label(path: Path) -> ClassTable:
    """The table in an `ID2LABEL`.

    Raises:
      DataError: the file is no JSON of ids and names, or see `parse_labels`.
    """
    rule = f'{path} must be JSON of ids and names, {{"0": "road", "1": "car"}}'
    try:
        pairs = [(int(i), str(name)) for i, name in json.loads(path.read_text("utf-8")).items()]
    except (ValueError, AttributeError) as error:
        raise DataError(f"{rule}: {error}") from error
    problems: list[str] = []
    table = _by_ids(path.name, pairs, problems)
    if problems or not pairs:
        raise DataError.listing(f"{rule}:", problems or ["it is empty"])
    return _limited(table)


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError where it is none."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path} must be text in UTF-8: {error}. Save it as UTF-8: an editor\'s "Save as" has a choice '
            "of encodings"
        ) from error
    return [line for line in lines if line]


def _parsed(path: Path, lines: Sequence[str]) -> ClassTable | None:
    """The table in lines of the forms of a classes.txt; see `read_classes`."""
    if not lines:
        return None
    by_id, by_colour = ([form.fullmatch(line) for line in lines] for form in (_BY_ID, _BY_COLOUR))
    matches = by_id if any(by_id) else by_colour
    problems = [
        f"{line!r} is not like the others"
        for line, match in zip(lines, matches, strict=True)
        if any(matches) and not match
    ]
    groups = [match.groups() for match in matches if match]
    if any(by_id):
        table = _by_ids(path.name, [(int(number), name) for number, name in groups], problems)
    elif any(by_colour):
        colours = [(name, tuple(map(int, rgb))) for name, *rgb in groups]
        table = _by_colours(path.name, colours, problems)
    else:
        problems += _repeated(lines)
        names, ids = _classes(list(enumerate(lines)))
        table = ClassTable(names, ids, origin=path.name)
    if problems:
        raise DataError.listing(f"{path}: every line must be of one form, {FORMS}:", problems)
    return _limited(table)


def _by_colours(
    origin: str, lines: Sequence[tuple[str, tuple[int, ...]]], problems: list[str]
) -> ClassTable:
    problems += [f"{name}: colours are 0..255, got {rgb}" for name, rgb in lines if max(rgb) > 255]
    pairs = [(pack(*rgb), name) for name, rgb in lines]
    problems += [f"the colour {unpack(colour)} occurs twice" for colour in _twice(pairs)]
    names, colours = _classes(pairs)
    _, ids = _classes(list(enumerate(name for name, _ in lines)))
    return ClassTable(names, ids, colours, origin=origin)


def _by_ids(origin: str, pairs: list[tuple[int, str]], problems: list[str]) -> ClassTable:
    names, ids = _classes(pairs)
    problems += [f"the id {i} occurs twice" for i in _twice(pairs)]
    problems += [f"the id {i} is above 255" for i in ids if i > 255]
    return ClassTable(names, ids, explicit=True, origin=origin)


def _classes(pairs: list[tuple[int, str]]) -> tuple[tuple[str, ...], dict[int, int]]:
    """The names of the classes, and the class of each key."""
    names = tuple(dict.fromkeys(name for _, name in pairs if not _is_ignored(name)))
    return names, {k: IGNORE_LABEL if _is_ignored(n) else names.index(n) for k, n in pairs}


def _repeated(names: Sequence[str]) -> list[str]:
    """What is wrong with a list of names, each of which is a class of its own."""
    places: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(str(number))
    return [
        f"{name!r} names the ids {' and '.join(ids)}: give each a name of its own, or, if they are one "
        f"class, say so with lines {ids[0]}={name}, {ids[1]}={name}"
        for name, ids in places.items()
        if len(ids) > 1 and not _is_ignored(name)
    ]


def _is_ignored(name: str) -> bool:
    return name.casefold() == IGNORED


def _twice(pairs: list[tuple[int, str]]) -> list[int]:
    """Keys that have two different names."""
    return sorted({key for key, _ in set(pairs) if len({n for k, n in pairs if k == key}) > 1})


def _limited(table: ClassTable) -> ClassTable:
    if len(table.names) > MOST_CLASSES:
        raise DataError(
            f"there can be {MOST_CLASSES} classes at most, as label maps are of 8 bits, got "
            f"{len(table.names)}: in --data.labels (--labels) or classes.txt give several ids one name, or "
            "leave some out by the name ignored"
        )
    return table
