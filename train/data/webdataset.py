"""WebDataset's tar files, read where they are: of every picture and label map, where its bytes begin."""

import dataclasses
import functools
import io
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from deeplab_jax.buckets import local_copy, url_of
from train.data.class_table import folder_classes, named_classes
from train.data.dataset import DataError, Dataset, Part, a_few, in_threads
from train.data.pairs import visible_files
from train.data.pictures import Bands
from train.data.records import by_split, choose_splits, dataset_of

PICTURES = ("jpg", "jpeg", "webp", "png")
"""The endings of pictures."""

LABELS = ("seg.png", "mask.png", "label.png")
"""The endings of label maps; beside a picture that is no PNG, `png` is one too."""

FORMS = (
    "KEY.jpg (jpeg, webp, png) with KEY.seg.png (mask.png, label.png), or KEY.jpg with KEY.png; KEY ends "
    "at the first dot of the file's name"
)

_SEVERAL = (
    "several pictures or label maps; --data.keys jpg,seg.png chooses by ending (--keys for `data` and "
    "`evaluate`)"
)
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
"""How a compressed file begins, and what unpacks it."""

_TARS = re.compile(r".*\.(tar|tgz|tbz2?|txz|tar\.\w+)", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_PADDING = 1 << 16  # bytes behind the end that are looked at; tar itself writes 10 KiB at most


def open_webdataset(
    pattern: str,
    *,
    keys: str | None = None,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
    bands: Bands | None = None,
) -> Dataset:
    """A data set in tar files of pictures and label maps, see `FORMS`.

    The tars are read once for where their members are; nothing is unpacked. They are of the split that
    their path names, as in val/000.tar or val-000.tar. Classes are named by `labels` or `class_names`, or
    by a classes.txt beside the tars; ids are checked as in a folder.

    Args:
      pattern: a folder of tars, which may be in a bucket, or paths as in
        "roads/{train,val}-{000..004}.tar".
      keys: the endings of picture and label map, such as "jpg,mask.png", where there are several.
      class_names: of the ids 0, 1, ...
      labels: the class of each id, such as "0=background,100=road,200=car".
      bands: of pictures that are read band by band; None is RGB.

    Raises:
      DataError: tars are missing, compressed or damaged; or listing members without their other half,
        examples that cannot be read, and ids whose class is not clear.
    """
    root, tars = _tars(pattern)
    wanted = _endings(keys) if keys else None
    splits = by_split(tars, root)
    chosen = choose_splits(splits)
    problems: list[str] = []
    records = {
        split: _split(root, tuple(map(Path, splits[split])), wanted, problems) for split in chosen
    }
    if problems:
        raise DataError.listing(
            f"{pattern}: tars must be whole and not compressed, and hold {FORMS}:", problems
        )
    if empty := [split for split, members in records.items() if not len(members)]:
        raise DataError(f"{pattern} has no pictures with label maps for {empty[0]}: {FORMS}")
    table = named_classes(class_names, labels) or folder_classes(root)
    note = f"Read from {', '.join(f'{len(splits[s])} tar files for {s}' for s in chosen)}."
    name = f"webdataset:{pattern}"
    return dataset_of(name, records, table, note, origin=name, in_folder=True, bands=bands)


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
      tar: its place among the tars.
      name: in the tar. It is a label for people, and no path.
      offset, size: its bytes.
    """

    tar: int
    name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Members:
    """Pairs of members of tars; see `dataset.Encoded`.

    Attributes:
      root: what names of tars are relative to.
      tars: the files.
      pairs: the picture and the label map of each example.
    """

    root: Path
    tars: tuple[Path, ...]
    pairs: tuple[tuple[Member, Member], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def open(self, index: int, *parts: Part) -> tuple[BinaryIO, ...]:
        """The bytes of an example."""
        return tuple(self._read(self._member(index, part)) for part in parts)

    def name(self, index: int, part: Part = "image") -> str:
        """The tar, and the member's name in it."""
        member = self._member(index, part)
        return f"{self.tars[member.tar].relative_to(self.root)}/{member.name}"

    def _member(self, index: int, part: Part) -> Member:
        return self.pairs[index][0 if part == "image" else 1]

    def _read(self, member: Member) -> BinaryIO:
        with self.tars[member.tar].open("rb") as file:
            file.seek(member.offset)
            return io.BytesIO(file.read(member.size))


# ---------------------------------------------------------------------------- tars


def _tars(pattern: str) -> tuple[Path, list[Path]]:
    """The tars that a pattern stands for, on this machine, and the folder that they are in."""
    if "{" not in pattern and not _TARS.fullmatch(pattern):
        root = local_copy(pattern) if url_of(pattern) else Path(pattern).expanduser()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; one tar is webdataset:NAME.tar")
        tars = [path for path in visible_files(root) if _TARS.fullmatch(path.name)]
        if not tars:
            raise DataError(f"{root} has no tar files; for pictures in files it is folder:PATH")
        return root, tars
    if url := url_of(pattern):
        # Each is copied to a place of its own, which says nothing of splits.
        raise DataError(
            f"tars in a bucket are given as their folder, webdataset:{url.rpartition('/')[0]}, got {url}"
        )
    tars = [Path(path).expanduser() for path in expand(pattern)]
    if missing := [str(path) for path in tars if not path.is_file()]:
        raise DataError.listing(f"{pattern} stands for files that are not there:", missing)
    return Path(os.path.commonpath([path.parent for path in tars])), tars


def expand(pattern: str) -> list[str]:
    """What a shell makes of braces: {000..004} is a range, {train,val} a choice; they may be nested."""
    if (found := _BRACES.search(pattern)) is None:
        return [pattern]
    if bounds := _RANGE.fullmatch(found[1]):
        first, last = map(int, bounds.groups())
        if last < first:
            raise DataError(f"{pattern}: the range {found[1]} has no number; write {{000..004}}")
        words: Iterable[str] = (f"{n:0{len(bounds[1])}d}" for n in range(first, last + 1))
    else:
        words = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    # Of nested braces the inner ones are replaced first, which gives the outer choices several times.
    return list(dict.fromkeys(path for word in words for path in expand(before + word + after)))


def _scan(tars: Sequence[Path], number: int) -> list[Member] | str:
    """The files in a tar; or what is wrong with it."""
    path = tars[number]
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        for magic, tool in _COMPRESSED.items():
            if start.startswith(magic):
                return (
                    f"{path} is compressed, and what is in it cannot be read out of order: {tool} it "
                    "(pictures are compressed themselves)"
                )
        try:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                found = list(tar)
                file.seek(tar.offset)
        except (tarfile.TarError, EOFError) as error:
            return f"{path} is damaged or no tar: {error}"
        # At a damaged header tarfile stops as at the end, which is zeros.
        rest = file.read(_PADDING)
        ends = [member.offset_data + member.size for member in found if member.isreg()]
        if rest.strip(b"\0") or max(ends, default=0) > size:
            return f"{path} is damaged, cut off or several tars in one, behind {len(found)} members"
        if sparse := [member.name for member in found if member.issparse()]:
            return f"{path} has sparse files ({a_few(sparse)}): write it again without --sparse"
    return [Member(number, m.name, m.offset_data, m.size) for m in found if m.isreg()]


# ---------------------------------------------------------------------------- pairs


def _endings(keys: str) -> tuple[str, str]:
    """The endings that the option `keys` names."""
    endings = [ending.strip().removeprefix(".") for ending in keys.split(",")]
    if len(endings) != 2 or not all(endings):
        raise DataError(f"keys of tars must be two endings, such as jpg,mask.png, got {keys!r}")
    return endings[0], endings[1]


def _split(
    root: Path, tars: tuple[Path, ...], wanted: tuple[str, str] | None, problems: list[str]
) -> Members:
    """The pairs in the tars of a split."""
    pairs: list[tuple[Member, Member]] = []
    scans = in_threads(functools.partial(_scan, tars), len(tars), "reading tars")
    for tar, found in zip(tars, scans, strict=True):
        if isinstance(found, str):
            problems.append(found)
        else:
            pairs += _pairs(found, wanted, str(tar.relative_to(root)), problems)
    return Members(root, tars, tuple(pairs))


def _pairs(
    members: Sequence[Member], wanted: tuple[str, str] | None, tar: str, problems: list[str]
) -> Iterator[tuple[Member, Member]]:
    """The pairs of a tar, in its order; what is left is added to `problems`."""
    samples: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    for member in members:
        folder, _, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        if key:  # others are hidden
            samples[f"{folder}/{key}" if folder else key][ending.lower()].append(member)
    lacking: dict[str, list[str]] = defaultdict(list)
    for key, sample in samples.items():
        images, labels = _kinds(list(sample), wanted)
        found = [member for ending in (*images, *labels) for member in sample[ending]]
        if len(images) == len(labels) == 1 and len(found) == 2:
            yield found[0], found[1]
        elif len(images) > 1 or len(labels) > 1 or len(found) > 2:
            names = ", ".join(member.name.rpartition("/")[2] for member in found)
            lacking[_SEVERAL].append(f"{key} ({names})")
        elif images or labels:
            lacking[f"no {'label map' if images else 'picture'}"].append(key)
    problems += [f"{tar}: {a_few(keys)}: {problem}" for problem, keys in lacking.items()]


def _kinds(endings: Collection[str], wanted: tuple[str, str] | None) -> tuple[list[str], list[str]]:
    """The endings of a key that are pictures, and those that are label maps."""
    if wanted:
        images, labels = ([ending] if ending in endings else [] for ending in wanted)
        return images, labels
    images, labels = ([e for e in known if e in endings] for known in (PICTURES, LABELS))
    if not labels and len(images) > 1 and "png" in images:
        images.remove("png")
        labels = ["png"]
    return images, labels
