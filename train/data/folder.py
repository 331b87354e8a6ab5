"""Any folder of pictures and label maps as a data set."""

import functools
from collections.abc import Mapping
from pathlib import Path

from train.data.annotations import Drawn, Found, find_annotations
from train.data.class_table import CLASS_FILE, folder_classes, named_classes
from train.data.dataset import DataError, Dataset, DecodedSource, Encoded, a_few
from train.data.labelling import settle
from train.data.pairs import NoPairsError, Unpaired, find_splits, hold_out
from train.data.pictures import Bands
from train.data.survey import pictures_of, survey

_SKIP = "--data.unpaired skip, --unpaired skip for `data` and `evaluate`, leaves out what is alone"


def open_folder(
    root: Path,
    *,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
    bands: Bands | None = None,
    unpaired: Unpaired = "stop",
    resize_labels: bool = False,
    name: str | None = None,
) -> Dataset:
    """The data set in a folder.

    In place of label maps there may be annotations in COCO's, labelme's or YOLO's form, see
    `train.data.annotations`: they are drawn when they are asked for.

    Pictures and label maps are told apart by the folders they are in, see `pairs.LAYOUTS`, or else by
    their names, as in `a.jpg`, `a_mask.png`. Where there is no split for validation, one example in
    `pairs.HELD_OUT` is, always the same.

    The pixels of grey and palette label maps are ids, 255 is ignored. Label maps of 0 and 255 alone have
    two classes. In arrays `[H, W, labels]` of 0 and 1 a pixel may have several. A classes.txt in the
    folder, or `labels`, names classes, and maps ids or colours to them, see `class_table.folder_classes`;
    where it lists colours, palettes go by theirs too. Without names, the ids must be 0, 1, 2, ... Whatever
    was assumed is in the data set's `notes`.

    Args:
      root: the folder.
      class_names: of the ids 0, 1, ..., instead of a classes.txt.
      labels: the class of each id, such as "0=background,100=road,200=car", instead of both; see
        `class_table.parse_labels`.
      bands: of picture files that are read band by band, see `deeplab_jax.bands`; None is RGB.
      unpaired: what to do about pictures without label map, and label maps without picture.
      resize_labels: whether label maps of another size than their pictures are resized, by nearest
        neighbour; their sides must be in the same proportion.
      name: that the data set goes by.

    Raises:
      DataError: the folder is none of the layouts; or listing all pictures without label map and the
        other way round, pairs that differ in size or orientation, files that cannot be read, lossy
        label maps, ids and colours whose class is not clear, and palettes that differ.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    table = named_classes(class_names, labels) or folder_classes(root)
    missing: list[str] = []
    alone: list[str] = []
    splits: Mapping[str, Encoded]
    try:
        splits, notes = find_splits(root, missing, alone)
    except NoPairsError:
        found = find_annotations(root, table, missing)
        if found is None:
            raise
        table = found.classes.table(found.origin)
        splits, notes = _drawn(root, found, missing)
    pictures = pictures_of(splits, bands)
    masks, broken, wrong = survey(splits, pictures, resize_labels=resize_labels)
    unclear: list[str] = []
    labelling = settle(masks, table, unclear) if masks else None
    if alone and unpaired == "skip":
        notes = (f"Left out: {a_few(alone)}.", *notes)
        alone = []
    if problems := [*broken, *unclear, *missing, *alone, *wrong]:
        rule = f"{root}: pictures and label maps must fit together"
        way_out = f" ({_SKIP})" if alone else ""
        raise DataError.listing(f"{rule}{way_out}:", problems)
    decoded = functools.partial(
        DecodedSource,
        decode_label=labelling.decode,
        pictures=pictures,
        resize_labels=resize_labels,
    )
    sources = {split: decoded(files) for split, files in splits.items()}
    return Dataset(
        name or f"folder:{root}",
        labelling.names,
        sources["train"],
        sources["val"],
        notes=(*_unused(root, bool(class_names or labels)), *notes, *labelling.notes),
        pictures=pictures,
        overlapping=labelling.overlapping,
    )


def _drawn(
    root: Path, found: Found, problems: list[str]
) -> tuple[Mapping[str, Encoded], tuple[str, ...]]:
    """The splits of annotations, and what was assumed."""
    splits = dict(found.splits)
    names = ", ".join(found.classes.names[1:])
    notes = [
        f"Label maps are drawn of {found.code}'s annotations ({found.origin}): 0 is the background, "
        f"which no region covers; then {names}."
    ]
    if len(splits) < 2:
        (examples,) = splits.values()
        splits, note = hold_out(examples, lambda example: example.picture, problems)
        notes.append(note)
    return {split: Drawn(root, examples) for split, examples in splits.items()}, tuple(notes)


def _unused(root: Path, named: bool) -> tuple[str, ...]:
    unused = named and (root / CLASS_FILE).is_file()
    return (f"{CLASS_FILE} is not used: the options name the classes.",) if unused else ()
