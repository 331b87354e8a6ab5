"""ADE20K in the 150 classes of the scene parsing challenge (Zhou et al. 2017).

TFDS's scene_parse150 has the instances instead.
"""

from train.data.builders.pairs import Example, PairsBuilder, find_all, pair_files, stems


class Ade20k(PairsBuilder, skip_registration=True):
    """From ADEChallengeData2016; ids are kept as they are: 0 for "other", then the classes from 1."""

    DESCRIPTION = "Scenes in 150 classes of things and stuff."
    HOMEPAGE = "http://sceneparsing.csail.mit.edu/"

    def examples(self) -> dict[str, list[Example]]:
        """train and validation."""
        return {
            split: pair_files(images, labels, stems(images, ".jpg"))
            for split, folder in (("train", "training"), ("validation", "validation"))
            for images, labels in [
                find_all(self.sources, f"images/{folder}", f"annotations/{folder}")
            ]
        }
