"""Data sets of Hugging Face: of the Hub, saved on this machine, or any folder of parquet files."""

import dataclasses
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import datasets
import huggingface_hub
import numpy as np
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from deeplab_jax.buckets import local_copy, url_of
from train.data.class_table import (
    ID2LABEL,
    ClassTable,
    folder_classes,
    from_names,
    named_classes,
    read_id2label,
)
from train.data.dataset import DataError, Dataset, Part
from train.data.pairs import IMAGES, LABELS, visible_files
from train.data.records import (
    ASK_FOR_KEYS,
    NAMES,
    Keys,
    by_split,
    choose_splits,
    dataset_of,
    parse_keys,
)

IMAGE_NAMES = (*IMAGES, "pixel_values", "picture", "photo")
LABEL_NAMES = (*LABELS, "semantic_segmentation", "segmentation_mask", "semantic_mask")

SAVED = ("dataset_dict.json", "state.json")
"""Files of what `save_to_disk` writes: of all splits, and of one."""

_FORM = re.compile(r"(?P<set>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.+-]+))?")


def open_huggingface(
    name: str,
    *,
    keys: str | None = None,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
) -> Dataset:
    """A data set of Hugging Face.

    What `datasets` has as Arrow files is read where it is; it makes such files, once, of parquet, in its
    cache (HF_DATASETS_CACHE). Splits are those of `records.choose_splits`; parquet files are of the split
    that their path names. Classes are named by `labels` or `class_names`, or else by a classes.txt in the
    folder, the label map's feature (ClassLabel), or an id2label.json in the folder or on the Hub; ids are
    checked as in a folder.

    Args:
      name: ORG/NAME or ORG/NAME:CONFIG; or a folder, which may be in a bucket, that `save_to_disk` wrote or
        that has parquet files.
      keys: the features that are picture, label map and, optionally, name: "image,label,file_name". By
        default those with a name in `IMAGE_NAMES`, in `LABEL_NAMES` and in `NAMES`.
      class_names: of the ids 0, 1, ...
      labels: the class of each id, such as "0=background,100=road,200=car".

    Raises:
      DataError: it cannot be had; its features or splits are not clear; or listing examples that cannot be
        read, and ids whose class is not clear.
    """
    folder = _folder(name)
    tables = _hub(name) if folder is None else _saved(folder)
    splits = choose_splits(split for split, table in tables.items() if len(table))
    features = tables[splits[0]].features
    chosen = _parse_keys(keys, features) if keys else _default_keys(features)
    table = (
        named_classes(class_names, labels)
        or (folder_classes(folder) if folder else None)
        or _own_names(features[chosen.label], chosen)
        or _id2label(name, folder)
    )
    records = {split: Rows(tables[split], split, chosen) for split in splits}
    note = f"Read from {folder or 'the Hub'}: {chosen}."
    return dataset_of(
        f"hf:{name}", records, table, note, origin=f"hf:{name}", in_folder=folder is not None
    )


class Rows:
    """The examples of a split; see `dataset.Encoded`.

    Args:
      table: the split.
      split: its name.
      keys: the features that are picture, label map and name. Without the last, an example goes by its
        place in the split, such as "train[12]".
    """

    def __init__(self, table: datasets.Dataset, split: str, keys: Keys):
        self._split, self._keys, self._length = split, keys, len(table)
        self._columns = {
            key: _encoded(table.select_columns([key]), key)
            for key in (keys.image, keys.label, keys.name)
            if key is not None
        }

    def __len__(self) -> int:
        return self._length

    def open(self, index: int, *parts: Part) -> tuple[BinaryIO, ...]:
        """The encoded picture and label map; of a label map that is an array, as .npy."""
        keys = {"image": self._keys.image, "label": self._keys.label}
        return tuple(_file(self._columns[keys[p]][index][keys[p]]) for p in parts)

    def name(self, index: int, part: Part = "image") -> str:
        """The name in the row, of both parts, or the example's place."""
        if self._keys.name is None:
            return f"{self._split}[{index}]"
        return str(self._columns[self._keys.name][index][self._keys.name])


def _encoded(column: datasets.Dataset, key: str) -> datasets.Dataset:
    """A column whose pictures are left as they are in their files, and whose arrays are NumPy's."""
    if isinstance(column.features[key], datasets.Image):
        return column.cast_column(key, datasets.Image(decode=False))
    return column.with_format("numpy") if _is_array(column.features[key]) else column


def _file(value: object) -> BinaryIO:
    """What a picture or label map is stored as: an array, bytes, or bytes or the path of a file."""
    if isinstance(value, np.ndarray):
        file = io.BytesIO()
        np.save(file, value)
        file.seek(0)
        return file
    data, path = (value["bytes"], value["path"]) if isinstance(value, Mapping) else (value, None)
    if data is None and path is None:
        raise DataError("there is nothing in this row")
    return Path(path).open("rb") if data is None else io.BytesIO(data)


# ---------------------------------------------------------------------------- where it is


def _folder(name: str) -> Path | None:
    """The folder that a name stands for, on this machine; None for a data set of the Hub."""
    path = Path(name).expanduser()
    if url_of(name):
        return local_copy(name)
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")):
        raise DataError(f"{path}: no such folder")
    return None


def _saved(folder: Path) -> Mapping[str, datasets.Dataset]:
    """The splits in a folder."""
    if any((folder / file).is_file() for file in SAVED):
        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:  # of files of any age and in any state
            raise DataError(f"{folder} is not what save_to_disk writes: {error}") from error
        return {"train": found} if isinstance(found, datasets.Dataset) else found
    files = [path for path in visible_files(folder) if path.suffix == ".parquet"]
    if not files:
        raise DataError(
            f"{folder} must be a folder that save_to_disk of `datasets` wrote, or have parquet files; for "
            "pictures in files it is folder:PATH"
        )
    paths = {split: list(map(str, of_split)) for split, of_split in by_split(files, folder).items()}
    try:
        return datasets.load_dataset("parquet", data_files=paths)
    except Exception as error:
        raise DataError(f"the parquet files in {folder} cannot be read: {_cause(error)}") from error


def _cause(error: BaseException) -> BaseException:
    """What `datasets` says is wrong with a file, rather than that something is."""
    return error.__cause__ or error


def _hub(name: str) -> Mapping[str, datasets.Dataset]:
    """The splits of a data set of the Hub."""
    form = _FORM.fullmatch(name)
    if form is None:
        raise DataError(f"a data set of the Hub must be hf:ORG/NAME[:CONFIG], got hf:{name}")
    try:
        return datasets.load_dataset(form["set"], form["config"])
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"hf:{name} is no folder here and no data set on the Hub that you may read; where it is "
            f"private or gated, log in with `hf auth login` ({error})"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"hf:{name} is not on this machine, and the Hub cannot be reached: go online once and it is "
            f"kept, or copy its parquet files here and give their folder, hf:PATH ({error})"
        ) from error
    except Exception as error:  # whatever its files or its script raise
        raise DataError(
            f"hf:{name} cannot be loaded: {_cause(error)}. hf:ORG/NAME:CONFIG names one of several "
            "configurations; what is loaded by a script has to be saved with save_to_disk first, hf:PATH"
        ) from error


# ---------------------------------------------------------------------------- features


def _parse_keys(text: str, features: datasets.Features) -> Keys:
    checks = (
        lambda name: None if _is_picture(features[name]) else f"{name} has no pictures",
        lambda name: None if _is_label_map(features[name]) else f"{name} has no label maps",
        lambda name: None if _is_scalar(features[name]) else f"{name} is neither text nor a number",
    )
    return parse_keys(text, list(features), checks, _listed(features))


def _default_keys(features: datasets.Features) -> Keys:
    """The features of a data set whose names tell which is the picture and which the label map."""
    images = [n for n in features if n.casefold() in IMAGE_NAMES and _is_picture(features[n])]
    labels = [n for n in features if n.casefold() in LABEL_NAMES and _is_label_map(features[n])]
    if len(images) != 1 or len(labels) != 1:
        found = " and ".join(
            f"{', '.join(names) or 'none'} may be the {what}"
            for names, what in ((images, "picture"), (labels, "label map"))
        )
        raise DataError.listing(f"{ASK_FOR_KEYS}: {found}. The features are:", _listed(features))
    names = (name for name in NAMES if name in features and _is_scalar(features[name]))
    return Keys(images[0], labels[0], next(names, None))


def _is_picture(feature: object) -> bool:
    """Whether it is files of pictures, with or without `datasets` knowing that they are."""
    if isinstance(feature, Mapping):
        return {"bytes", "path"} <= feature.keys()
    binary = isinstance(feature, datasets.Value) and "binary" in feature.dtype
    return binary or isinstance(feature, datasets.Image)


def _is_label_map(feature: object) -> bool:
    return _is_picture(feature) or _is_array(feature)


def _is_array(feature: object) -> bool:
    """Whether it is ids in two dimensions."""
    if isinstance(feature, datasets.Array2D):
        return _holds_ids(feature.dtype)
    rows = isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.List)
    return rows and _is_id(feature.feature.feature)


def _is_scalar(feature: object) -> bool:
    text = isinstance(feature, datasets.Value) and "string" in feature.dtype
    return text or _is_id(feature)


def _is_id(feature: object) -> bool:
    number = isinstance(feature, datasets.Value) and _holds_ids(feature.dtype)
    return number or isinstance(feature, datasets.ClassLabel)


def _holds_ids(dtype: str) -> bool:
    return "int" in dtype or dtype == "bool"


def _listed(features: datasets.Features) -> list[str]:
    return [f"{name}: {feature}" for name, feature in features.items()]


# ---------------------------------------------------------------------------- classes


def _own_names(feature: object, keys: Keys) -> ClassTable | None:
    """The classes of a label map whose ids have names."""
    while isinstance(feature, datasets.List):
        feature = feature.feature
    if not isinstance(feature, datasets.ClassLabel):
        return None
    table = from_names(feature.names)
    return dataclasses.replace(table, explicit=True, origin=f"the feature {keys.label}")


def _id2label(name: str, folder: Path | None) -> ClassTable | None:
    """The classes that an id2label.json lists, in the folder or beside the data on the Hub."""
    if folder is not None:
        path = folder / ID2LABEL
        return read_id2label(path) if path.is_file() else None
    dataset = name.partition(":")[0]
    try:
        path = Path(huggingface_hub.hf_hub_download(dataset, ID2LABEL, repo_type="dataset"))
    except (EntryNotFoundError, LocalEntryNotFoundError):  # there is none, or none is kept here
        return None
    return read_id2label(path)
