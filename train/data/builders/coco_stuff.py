"""COCO-Stuff 164k: things and stuff (Caesar et al. 2018), from its label maps."""

from train.data.builders.pairs import Example, PairsBuilder, find_all, pair_files, stems


class CocoStuff(PairsBuilder, skip_registration=True):
    """From COCO's folders train2017 and val2017 of pictures and those, of the same names, of the label
    maps in stuffthingmaps; ids are kept as they are: 0 to 181, and 255 for unlabelled."""

    DESCRIPTION = "Photographs in 80 classes of things and 91 of stuff."
    HOMEPAGE = "https://github.com/nightrome/cocostuff"

    def examples(self) -> dict[str, list[Example]]:
        """train and validation."""
        return {
            split: pair_files(images, labels, stems(images, ".jpg"))
            for split, folder in (("train", "train2017"), ("validation", "val2017"))
            for (images,) in [find_all(self.sources, folder, holding=".jpg")]
            for (labels,) in [find_all(self.sources, folder, holding=".png")]
        }
