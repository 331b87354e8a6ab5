"""Cityscapes (Cordts et al. 2016), as TFDS's own builder would write it, without TensorFlow."""

from pathlib import Path

import tensorflow_datasets as tfds

from train.data.builders.pairs import Example, PairsBuilder, find_all, pair_files, stems


class Cityscapes(PairsBuilder, skip_registration=True):
    """From leftImg8bit and gtFine; ids are kept as they are: 0 to 33."""

    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="semantic_segmentation"),)
    KEYS = ("image_left", "segmentation_label", "image_id")
    DESCRIPTION = "Driving scenes in 34 classes, of which 19 are evaluated, 2048 x 1024."
    HOMEPAGE = "https://www.cityscapes-dataset.com/"

    def examples(self) -> dict[str, list[Example]]:
        """train and validation; the labels of test are not public."""
        return {
            split: _pairs(*find_all(self.sources, f"leftImg8bit/{folder}", f"gtFine/{folder}"))
            for split, folder in (("train", "train"), ("validation", "val"))
        }


def _pairs(images: Path, labels: Path) -> list[Example]:
    picture, label_map = "_leftImg8bit.png", "_gtFine_labelIds.png"
    cities = sorted(folder for folder in images.iterdir() if folder.is_dir())
    names = [f"{city.name}/{stem}" for city in cities for stem in stems(city, picture)]
    pairs = pair_files(images, labels, names, ends=(picture, label_map))
    return [
        (name.rpartition("/")[2], *files) for name, *files in pairs
    ]  # the city is in the name too
