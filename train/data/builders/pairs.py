"""What our TFDS builders share: examples of a picture, a label map and a name.

Pictures and label maps are handed to TFDS as files (or Pillow images), whose bytes it copies as they
are; of arrays it would ask TensorFlow to encode them.
"""

import abc
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import tensorflow_datasets as tfds
from PIL import Image

Picture = Path | BinaryIO | Image.Image
Example = tuple[str, Picture, Picture]
"""Name, picture, label map."""


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose splits are `examples`.

    Attributes:
      KEYS: what picture, label map and name are called, for sets that TFDS has too.
      sources: unpacked folders that the data set is in.
    """

    VERSION = tfds.core.Version("1.0.0")
    KEYS = ("image", "segmentation_mask", "file_name")
    DESCRIPTION = ""
    HOMEPAGE = ""

    def __init__(self, *, sources: tuple[Path, ...] = (), **options):
        self.sources = sources
        super().__init__(**options)

    @abc.abstractmethod
    def examples(self) -> dict[str, Iterable[Example]]:
        """The examples of each split, in order.

        Raises:
          DataError: they are not in `sources`.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        image, label, name = self.KEYS
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(
                {
                    image: tfds.features.Image(shape=(None, None, 3)),
                    label: tfds.features.Image(shape=(None, None, 1)),
                    name: tfds.features.Text(),
                }
            ),
            supervised_keys=(image, label),
            disable_shuffling=True,
        )

    def _split_generators(self, _) -> dict[str, Iterable]:
        return {split: self._generate_examples(pairs) for split, pairs in self.examples().items()}

    def _generate_examples(self, pairs: Iterable[Example]) -> Iterable:
        for index, (name, *pair) in enumerate(pairs):
            files = [str(file) if isinstance(file, Path) else file for file in pair]
            yield index, dict(zip(self.KEYS, (*files, name), strict=True))
