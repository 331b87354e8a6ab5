"""The data sets that have names: how TFDS holds each, its classes, and how to get it."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path

from train.data.dataset import DataError, Dataset, DecodedSource
from train.data.folder import open_folder

FOLDER = "folder:"


@dataclasses.dataclass(frozen=True)
class Description:
    """
    Attributes:
      prepared: what TFDS calls it, "name" or "name/config".
      class_names: of the classes 0, 1, ...
      label_map: the class of each id in its label maps; all other ids are ignored.
      get: what to do to have it, for a person: `{name}` and `{data_dir}` are filled in.
      builder: module and class that prepare it, in `train.data.builders`; None: TFDS's own.
      automatic: it needs no source and is prepared when it is first opened.
      keys: what picture, label map and name are called in it.
      train, val: its splits.
    """

    prepared: str
    class_names: tuple[str, ...]
    label_map: Mapping[int, int]
    get: str
    builder: str
    automatic: bool = False
    keys: tuple[str, str, str] = ("image", "segmentation_mask", "file_name")
    train: str = "train"
    val: str = "validation"


SHAPES = ("background", "circle", "square", "triangle", "star", "ring")

DESCRIPTIONS: dict[str, Description] = {
    "shapes": Description(
        prepared="shapes",
        class_names=SHAPES,
        label_map={i: i for i in range(len(SHAPES))},
        get="it is drawn when it is first opened",
        builder="shapes.Shapes",
        automatic=True,
    ),
}


def open_dataset(
    name: str, *, data_dir: Path | None = None, class_names: tuple[str, ...] | None = None
) -> Dataset:
    """A data set by its name.

    Args:
      name: one of `DESCRIPTIONS`, or "folder:PATH" for any folder, see `folder.open_folder`.
      data_dir: where prepared data sets are; None is TFDS's own place ($TFDS_DATA_DIR, or
        ~/tensorflow_datasets).
      class_names: of a folder.

    Raises:
      DataError: there is no such data set; or it is not prepared, with how to get it; or a folder does
        not hold together.
    """
    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER)).expanduser()
        return open_folder(path, class_names=class_names, name=name)
    if name not in DESCRIPTIONS:
        raise DataError(
            f"the data set must be one of {', '.join(DESCRIPTIONS)}, or {FOLDER}PATH for a folder of "
            f"pictures and label maps, got {name!r}"
        )
    if class_names is not None:
        raise DataError(f"class names can be given for a {FOLDER}PATH only; {name} has its own")
    from train.data import tfds  # takes a second, which a folder does not need

    description = DESCRIPTIONS[name]
    data_dir = Path(data_dir or tfds.DEFAULT_DIR).expanduser()
    folder = tfds.find_prepared(description.prepared, data_dir)
    if folder is None and description.automatic:
        folder = prepare(name, data_dir)
    if folder is None:
        raise DataError(
            f"{name} is not in {data_dir}. To get it:\n{description.get.format(data_dir=data_dir)}"
        )
    image, label, key = description.keys
    train, val = (
        DecodedSource(
            tfds.Records(folder, split, image=image, label=label, name=key), description.label_map
        )
        for split in (description.train, description.val)
    )
    return Dataset(name, description.class_names, train, val)


def prepare(name: str, data_dir: Path, sources: tuple[Path, ...] = ()) -> Path:
    """Prepares a data set with a builder of ours, see `prepare.prepare_builder`."""
    from train.data.prepare import prepare_builder  # imports TFDS, see above

    module, builder = DESCRIPTIONS[name].builder.split(".")
    builders = importlib.import_module(f"train.data.builders.{module}")
    return prepare_builder(getattr(builders, builder), data_dir, sources=sources)
