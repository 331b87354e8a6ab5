"""The classes of annotations, which are names rather than ids."""

import dataclasses
from collections.abc import Iterable

from train.data.class_table import IGNORED, ClassTable
from train.data.dataset import a_few
from train.metrics import IGNORE_LABEL

BACKGROUND = "background"
BACKGROUNDS = (BACKGROUND, "_background_", "__background__", "bg")
IGNORED_NAMES = (IGNORED, "__ignore__", "ignore")


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names of the classes 0, 1, ..., of which 0 is what no region covers.

    Attributes:
      names: of all.
    """

    names: tuple[str, ...]

    def __getitem__(self, name: str) -> int:
        """The class of an annotation's name; ignored where it is not listed, see `classes_of`."""
        folded = name.casefold()
        if folded in IGNORED_NAMES:
            return IGNORE_LABEL
        if folded in BACKGROUNDS:
            return 0
        for number, known in enumerate(self.names):
            if known.casefold() == folded:
                return number
        return IGNORE_LABEL

    def table(self, origin: str) -> ClassTable:
        """The table of label maps that are drawn in these classes."""
        ids = {number: number for number in range(len(self.names))}
        return ClassTable(self.names, ids, explicit=True, origin=origin)


def classes_of(found: Iterable[str], table: ClassTable | None, problems: list[str]) -> Classes:
    """The classes of annotations with these names, in order: those of a table, else the names found.

    Adds to `problems` the names that a table lacks.
    """
    found = tuple(dict.fromkeys(found))
    own = [name for name in found if name.casefold() not in (*BACKGROUNDS, *IGNORED_NAMES)]
    if table is None:
        return Classes((BACKGROUND, *own))
    names = table.names
    if names[0].casefold() not in BACKGROUNDS:
        names = (BACKGROUND, *names)
    classes = Classes(names)
    known = {name.casefold() for name in names}
    if missing := [name for name in own if name.casefold() not in known]:
        problems.append(
            f"annotations have the names {a_few(missing)}, which {table.origin or 'the option'} does not "
            "list: add them, or correct their spelling"
        )
    return classes
