"""Any data set that training reads, copied into one of TFDS: classes by number, with their names."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from deeplab_jax.orientation import STORED, orientation
from train.data.builders.pairs import Example, PairsBuilder, Picture
from train.data.dataset import Dataset, Source

_FORMATS = ("JPEG", "PNG")
_MODES = ("RGB", "L")


def builder_of(dataset: Dataset, name: str) -> type[PairsBuilder]:
    """The builder of a copy.

    Args:
      dataset: of RGB pictures.
      name: of the copy, in TFDS's form: small letters, digits and underscores.
    """

    class Packed(PairsBuilder, skip_registration=True):
        DESCRIPTION = f"A copy of {dataset.name}."

        def label_feature(self) -> tfds.features.Image:
            return tfds.features.LabeledImage(labels=list(dataset.class_names))

        def examples(self) -> dict[str, Iterator[Example]]:
            return {"train": _examples(dataset.train), "validation": _examples(dataset.val)}

    Packed.name = name
    return Packed


def _examples(source: Source) -> Iterator[Example]:
    for index in range(len(source)):
        example = source[index]
        label = Image.fromarray(example["label"])
        yield source.name(index), _picture(source, index, example["image"]), label


def _picture(source: Source, index: int, pixels: np.ndarray) -> Picture:
    """The file as it is, where all readers of TFDS's see the same RGB in it; else a PNG of its pixels."""
    file = io.BytesIO(source.picture_file(index))
    with Image.open(file) as image:
        plain = (
            image.format in _FORMATS
            and image.mode in _MODES
            and "transparency" not in image.info
            and orientation(image) == STORED
        )
    return io.BytesIO(file.getvalue()) if plain else Image.fromarray(pixels)
