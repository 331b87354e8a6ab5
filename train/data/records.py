"""What sets of records share, whoever wrote them: which features are which, splits, ids and classes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath

from train.data.class_table import ClassTable
from train.data.dataset import DataError, Dataset, DecodedSource, Encoded, Selection
from train.data.labelling import settle
from train.data.pairs import HELD_OUT, TRAIN, VAL
from train.data.pictures import Bands
from train.data.survey import pictures_of, survey

NAMES = ("file_name", "filename", "image_name", "image_id", "name", "id")
"""Features that may tell what an example is called, the first that there is."""

ASK_FOR_KEYS = (
    "say which features are the picture and the label map, with --data.keys IMAGE,LABEL[,NAME] (--keys "
    "for `data` and `evaluate`)"
)

_SPLITS = {word: word for word in (*TRAIN, *VAL)} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True)
class Keys:
    """The names of a data set's features.

    Attributes:
      image: the picture.
      label: the label map.
      name: what an example is called; None where nothing tells.
    """

    image: str
    label: str
    name: str | None = None

    def __str__(self) -> str:
        name = f", names are {self.name}" if self.name else ""
        return f"pictures are {self.image}, label maps are {self.label}{name}"


def parse_keys(
    text: str,
    features: Sequence[str],
    checks: tuple[Callable[[str], str | None], ...],
    listed: Sequence[str],
) -> Keys:
    """The features that the option `keys` names.

    Args:
      text: "image,label" or "image,label,file_name".
      features: all names that there are.
      checks: what is wrong with a feature as the picture, as the label map and as the name.
      listed: all features, a line each, for messages.

    Raises:
      DataError: there are no such features, or they are not of the kind that they should be.
    """
    names = [name.strip() for name in text.split(",")]
    problems: list[str] = []
    if not 2 <= len(names) <= 3:
        problems.append(f"keys must be IMAGE,LABEL or IMAGE,LABEL,NAME, got {text!r}")
    for name, check in zip(names, checks, strict=False):
        if name not in features:
            problems.append(f"there is no feature {name!r}")
        elif problem := check(name):
            problems.append(problem)
    if problems:
        raise DataError.listing("\n  ".join(problems) + "\nThe features are:", listed)
    return Keys(*names)


def choose_splits(names: Iterable[str]) -> tuple[str, ...]:
    """The names of the splits for training and, where there is one, for validation.

    Args:
      names: of the splits that have examples.

    Raises:
      DataError: none of them is for training.
    """
    names = list(names)
    train, val = (next((w for w in wanted if w in names), None) for wanted in (TRAIN, VAL))
    if train is None:
        found = ", ".join(names) or "no split that has examples"
        raise DataError(f"the data set must have a split {' or '.join(TRAIN)}, it has {found}")
    return (train,) if val is None else (train, val)


def by_split(files: Iterable[PurePath], root: PurePath) -> dict[str, list[PurePath]]:
    """Files by the split that their path below `root` names, as in val/0.tar and val-000.tar, or train."""
    splits: dict[str, list[PurePath]] = {}
    for file in files:
        parts = reversed(file.relative_to(root).parts)
        words = (w for part in parts for w in _words(part) if w in _SPLITS)
        splits.setdefault(_SPLITS[next(words, "train")], []).append(file)
    return splits


def _words(name: str) -> list[str]:
    return "".join(c if c.isalpha() else " " for c in name).casefold().split()


def dataset_of(
    name: str,
    records: Mapping[str, Encoded],
    table: ClassTable | None,
    note: str,
    *,
    origin: str,
    in_folder: bool = False,
    bands: Bands | None = None,
) -> Dataset:
    """A data set of records, all of which are looked at.

    Args:
      name: that it goes by.
      records: of the split for training and, where there is one, of that for validation; without it one
        example in `pairs.HELD_OUT` is held out, always the same.
      table: what was said of the classes.
      note: where the records come from, a sentence.
      origin: the same in a word or two, for messages.
      in_folder: see `labelling.settle`.
      bands: of pictures that are read band by band; None is RGB.

    Raises:
      DataError: listing examples that cannot be read, and ids whose class is not clear.
    """
    pictures = pictures_of(records, bands)
    masks, broken, wrong = survey(records, pictures)
    unclear: list[str] = []
    labelling = settle(masks, table, unclear, in_folder=in_folder) if masks else None
    if problems := [*broken, *unclear, *wrong]:
        raise DataError.listing(f"{origin}: pictures and label maps must fit together:", problems)
    notes = [note]
    if table is None:
        notes.append(f"The data set names no classes: they are {', '.join(labelling.names)}.")
    sources = [DecodedSource(encoded, labelling.decode, pictures) for encoded in records.values()]
    train, *val = records
    if not val:
        sources = _hold_out(sources[0])
        notes.append(
            f"There is no split for validation: {len(sources[1])} of {len(records[train])} examples of "
            f"{train} are held out for it, always the same."
        )
    elif val[0] not in ("val", "validation"):
        notes.append(f"The split for validation is {val[0]}.")
    return Dataset(
        name,
        labelling.names,
        *sources,
        notes=(*notes, *labelling.notes),
        pictures=pictures,
        overlapping=labelling.overlapping,
    )


def _hold_out(source: DecodedSource) -> list[Selection]:
    """Training and validation from one split: every `HELD_OUT`-th example is for validation."""
    if len(source) < 2:
        raise DataError(f"training and validation need an example each, found {len(source)} in all")
    last = min(HELD_OUT, len(source)) - 1
    places = [(source, index) for index in range(len(source))]
    return [
        Selection(tuple(place for place in places if (place[1] % HELD_OUT == last) == for_val))
        for for_val in (False, True)
    ]
