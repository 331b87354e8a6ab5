"""Any data set that TFDS has prepared, whether or not it is one of `descriptions`."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from train.data.class_table import ClassTable, from_names, named_classes
from train.data.dataset import DataError, Dataset
from train.data.records import ASK_FOR_KEYS, NAMES, Keys, choose_splits, dataset_of, parse_keys
from train.data.tfds import INFO_FILE, Records, find_prepared, info_of

_FORM = re.compile(r"(?P<set>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")


def open_prepared(
    name: str,
    data_dir: Path,
    *,
    keys: str | None = None,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
) -> Dataset:
    """A data set as TFDS has prepared it.

    Validation is the split `val`, `validation` or `test`, the first that there is; without one, one
    training example in `pairs.HELD_OUT`, always the same. Every label map is read, and ids that are not
    classes are an error, as in a folder: see `labelling.settle`. Classes are named by `labels` or
    `class_names`, or else by the feature itself (`tfds.features.LabeledImage`); without any names, ids must
    be 0, 1, 2, ... What was assumed is in the data set's `notes`.

    Args:
      name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION; the newest version by default.
      data_dir: where prepared data sets are.
      keys: the features that are picture, label map and, optionally, name: "image,label,file_name". By
        default `image`, the one other image feature that there is, and one of `NAMES`.
      class_names: of the ids 0, 1, ...
      labels: the class of each id, such as "0=background,100=road,200=car".

    Raises:
      DataError: it is not prepared there; its features or splits are not clear; or listing examples that
        cannot be read, and ids whose class is not clear.
    """
    folder = _find(name, data_dir)
    info = info_of(folder)
    features = _parse_keys(keys, info.features) if keys else _default_keys(info.features)
    table = named_classes(class_names, labels) or _own_names(
        info.features[features.label], features
    )
    splits = choose_splits(name for name in info.splits if info.splits[name].num_examples)
    records = {split: Records(folder, split, features) for split in splits}
    note = f"Read from {folder}: {features}."
    return dataset_of(f"tfds:{name}", records, table, note, origin=str(folder))


def _find(name: str, data_dir: Path) -> Path:
    """The folder of the data set, with its config and version."""
    form = _FORM.fullmatch(name)
    if form is None:
        raise DataError(f"a data set of TFDS must be tfds:NAME[/CONFIG][:VERSION], got tfds:{name}")
    dataset, version = form["set"], form["version"]
    folder = data_dir / dataset / version if version else find_prepared(dataset, data_dir)
    if folder is not None and (folder / INFO_FILE).is_file():
        return folder
    prepared = sorted(path.parent for path in data_dir.glob(f"*/**/{INFO_FILE}"))
    same = [path for path in prepared if path.is_relative_to(data_dir / dataset)]
    shown = [f"tfds:{path.parent.relative_to(data_dir)}:{path.name}" for path in same or prepared]
    raise DataError.listing(
        f"tfds:{name} is not prepared in {data_dir}. Prepare it with `tfds build`, or name another folder "
        f"with --data.data-dir (--data-dir for `data` and `evaluate`). "
        + ("Prepared there:" if shown else "Nothing is prepared there."),
        shown,
    )


# ---------------------------------------------------------------------------- features


def _parse_keys(text: str, features: tfds.features.FeaturesDict) -> Keys:
    """The features that the option `keys` names."""

    def not_a_name(name: str) -> str | None:
        if _is_scalar(features[name]):
            return None
        return f"the feature {name} is neither text nor a number: it cannot name examples"

    checks = (
        lambda name: _not_pixels(name, features[name], label=False),
        lambda name: _not_pixels(name, features[name], label=True),
        not_a_name,
    )
    return parse_keys(text, list(features), checks, _listed(features))


def _default_keys(features: tfds.features.FeaturesDict) -> Keys:
    """The features of a data set that has one picture and one label map."""
    images = [name for name in features if isinstance(features[name], tfds.features.Image)]
    others = [name for name in images if name != "image"]
    if len(images) != 2 or len(others) != 1:
        raise DataError.listing(
            f"{ASK_FOR_KEYS}: by default they are `image` and the one other image feature. The features "
            "are:",
            _listed(features),
        )
    names = (name for name in NAMES if name in features and _is_scalar(features[name]))
    keys = Keys("image", others[0], next(names, None))
    if problem := _not_pixels(keys.label, features[keys.label], label=True):
        raise DataError.listing(f"{problem}. The features are:", _listed(features))
    return keys


def _not_pixels(name: str, feature: object, *, label: bool) -> str | None:
    """What is wrong with a feature that is to be a picture or a label map."""
    if not isinstance(feature, tfds.features.Image):
        return f"the feature {name} is not an image"
    channels = feature.shape[-1]
    if label and channels not in (1, None):
        return f"the feature {name} has {channels} channels: a label map has one, of class ids"
    if not label and feature.np_dtype != np.uint8:
        kind = np.dtype(feature.np_dtype)
        return f"the feature {name} has pixels of {kind}: pictures must have uint8"
    return None


def _is_scalar(feature: object) -> bool:
    return isinstance(feature, tfds.features.Tensor) and feature.shape == ()


def _listed(features: tfds.features.FeaturesDict) -> list[str]:
    # Not their repr, which asks TensorFlow for the dtype.
    return [
        f"{name}: {type(feature).__name__}"
        + (f" {feature.shape}" if isinstance(feature, tfds.features.Image) else "")
        for name, feature in features.items()
    ]


def _own_names(feature: tfds.features.Image, keys: Keys) -> ClassTable | None:
    """The classes of a label map that knows them; by number where it knows only how many there are."""
    if not isinstance(feature, tfds.features.LabeledImage) or not feature.num_classes:
        return None
    names = tuple(feature.names)
    if names == tuple(map(str, range(len(names)))):
        names = tuple(f"class {i}" for i in range(len(names)))
    table = from_names(names)
    return dataclasses.replace(table, explicit=True, origin=f"the feature {keys.label}")
