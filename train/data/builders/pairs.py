"""What our TFDS builders share: examples of a picture, a label map and a name.

Pictures and label maps are handed to TFDS as files (or Pillow images), whose bytes it copies as they
are; of arrays it would ask TensorFlow to encode them.
"""

import abc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import tensorflow_datasets as tfds
from PIL import Image

from train.data.dataset import DataError

Picture = Path | BinaryIO | Image.Image
Example = tuple[str, Picture, Picture]
"""Name, picture, label map."""

_DEEPEST = 4  # folders between a source and what is looked for in it


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose splits are `examples`.

    Attributes:
      KEYS: what picture, label map and name are called in it.
      sources: unpacked folders that the data set is in.
    """

    VERSION = tfds.core.Version("1.0.0")
    KEYS = ("image", "segmentation_mask", "file_name")
    DESCRIPTION = ""
    HOMEPAGE = ""

    def __init__(self, *, sources: Sequence[Path] = (), **options):
        self.sources = tuple(sources)
        super().__init__(**options)

    @abc.abstractmethod
    def examples(self) -> dict[str, Iterable[Example]]:
        """The examples of each split, in order.

        Raises:
          DataError: they are not in `sources`.
        """

    def label_feature(self) -> tfds.features.Image:
        """How label maps are stored: of the data sets that have names here, as their authors have them."""
        return tfds.features.Image(shape=(None, None, 1))

    def _info(self) -> tfds.core.DatasetInfo:
        image, label, name = self.KEYS
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(
                {
                    image: tfds.features.Image(shape=(None, None, 3)),
                    label: self.label_feature(),
                    name: tfds.features.Text(),
                }
            ),
            supervised_keys=(image, label),
            disable_shuffling=True,
        )

    def _split_generators(self, _) -> dict[str, Iterable]:
        splits = self.examples()
        if empty := [
            split for split, pairs in splits.items() if isinstance(pairs, list) and not pairs
        ]:
            places = ", ".join(map(str, self.sources))
            raise DataError.listing(
                f"every split must have an example, in the data set's source ({places}) none belongs to",
                empty,
            )
        return {split: self._generate_examples(pairs) for split, pairs in splits.items()}

    def _generate_examples(self, pairs: Iterable[Example]) -> Iterable:
        for index, (name, *pair) in enumerate(pairs):
            files = [str(file) if isinstance(file, Path) else file for file in pair]
            yield index, dict(zip(self.KEYS, (*files, name), strict=True))


def pair_files(
    images: Path, labels: Path, names: Iterable[str], *, ends: tuple[str, str] = (".jpg", ".png")
) -> list[Example]:
    """The examples of pictures `images/NAME.jpg` and label maps `labels/NAME.png`.

    Raises:
      DataError: listing all files that are not there.
    """
    pairs = [(name, images / f"{name}{ends[0]}", labels / f"{name}{ends[1]}") for name in names]
    missing = [str(file) for _, *pair in pairs for file in pair if not file.is_file()]
    if missing:
        raise DataError.listing("every picture needs its label map; there is no", missing)
    return pairs


def read_names(path: Path) -> list[str]:
    """The first word of each line of a list of examples.

    Raises:
      DataError: it is not a text file, or lists nothing.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a text file of names, a line each: {error}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path} must list the examples of a split, it is empty; fetch it anew")
    return names


def stems(folder: Path, end: str) -> list[str]:
    """The names of the files in a folder that end in `end`, without that, sorted."""
    return sorted(name.removesuffix(end) for name in os.listdir(folder) if name.endswith(end))


def find(sources: Sequence[Path], path: str, *, holding: str = "") -> Path | None:
    """Where `path` is in one of `sources`, or in folders in them: the shallowest place.

    Args:
      sources: folders.
      path: of a folder or file, such as "images/training".
      holding: the end of a file's name that the folder must have in it.
    """
    folders = list(sources)
    for _ in range(_DEEPEST + 1):
        for folder in folders:
            found = folder / path
            if found.exists() and (not holding or _holds(found, holding)):
                return found
        with_folders = (sorted(os.scandir(folder), key=lambda e: e.name) for folder in folders)
        folders = [Path(e.path) for entries in with_folders for e in entries if e.is_dir()]
    return None


def find_all(sources: Sequence[Path], *paths: str, holding: str = "") -> list[Path]:
    """`find` of several.

    Raises:
      DataError: listing those that are not there.
    """
    found = [find(sources, path, holding=holding) for path in paths]
    missing = [path for path, there in zip(paths, found, strict=True) if there is None]
    if missing:
        places = ", ".join(map(str, sources)) or "no source was given"
        what = f" with files *{holding}" if holding else ""
        raise DataError.listing(
            f"the data set must be in its source ({places}), in which there is no",
            [path + what for path in missing],
        )
    return found


def _holds(folder: Path, end: str) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(end) for entry in entries)
