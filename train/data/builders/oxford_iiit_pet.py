"""Oxford-IIIT Pet's trimaps (Parkhi et al. 2012), as in TFDS's own builder, without TensorFlow."""

from train.data.builders.pairs import Example, PairsBuilder, find_all, pair_files, read_names


class OxfordIiitPet(PairsBuilder, skip_registration=True):
    """From the folders images and annotations; ids are kept: 1 pet, 2 background, 3 not classified."""

    DESCRIPTION = "Cats and dogs with trimaps."
    HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/pets/"

    def examples(self) -> dict[str, list[Example]]:
        """train and test."""
        images, labels, train, test = find_all(
            self.sources,
            *("images", "annotations/trimaps", "annotations/trainval.txt", "annotations/test.txt"),
        )
        return {
            "train": pair_files(images, labels, read_names(train)),
            "test": pair_files(images, labels, read_names(test)),
        }
