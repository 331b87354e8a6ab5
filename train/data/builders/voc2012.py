"""PASCAL VOC 2012 segmentation (Everingham et al. 2015), and SBD's further label maps.

Training on VOC commonly means "trainaug", 10,582 pictures: the 1,464 of VOC's own training split and
those that SBD (Hariharan et al. 2011) labelled, without any of VOC's validation split.
"""

import io
import itertools
from collections.abc import Iterable

from PIL import Image
from scipy.io import loadmat

from train.data.builders.pairs import (
    Example,
    PairsBuilder,
    find,
    find_all,
    pair_files,
    read_names,
    stems,
)
from train.data.dataset import DataError


class Voc2012(PairsBuilder, skip_registration=True):
    """From VOCdevkit/VOC2012 and, for the split trainaug, SBD's folder `cls` of .mat files (in
    benchmark_RELEASE) or a folder `SegmentationClassAug` of PNGs made of them."""

    DESCRIPTION = "Photographs in 20 classes of objects and background; borders are 255, ignored."
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"

    def examples(self) -> dict[str, Iterable[Example]]:
        """train, validation and, with SBD, trainaug."""
        voc = find(self.sources, "VOC2012")
        within = self.sources if voc is None else (voc,)
        images, labels, lists = find_all(
            within, "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
        )
        train, val = read_names(lists / "train.txt"), read_names(lists / "val.txt")
        splits = {
            "train": pair_files(images, labels, train),
            "validation": pair_files(images, labels, val),
        }
        if aug := find(self.sources, "SegmentationClassAug", holding=".png"):
            splits["trainaug"] = pair_files(
                images, aug, sorted({*stems(aug, ".png"), *train} - {*val})
            )
        elif sbd := find(self.sources, "cls", holding=".mat"):
            more = pair_files(
                images, sbd, sorted({*stems(sbd, ".mat")} - {*train, *val}), ends=(".jpg", ".mat")
            )
            splits["trainaug"] = itertools.chain(splits["train"], map(_with_png, more))
        return splits


def _with_png(example: Example) -> Example:
    """The example with the class ids of SBD's .mat file as a PNG. Raises DataError where it has none."""
    name, picture, mat = example
    try:
        ids = loadmat(mat, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
        png = io.BytesIO()
        Image.fromarray(ids).save(png, "PNG")
    except Exception as error:  # damaged files make loadmat raise nearly anything
        raise DataError(
            f"{mat} must be a label map of SBD's, a .mat file with GTcls.Segmentation, and whole "
            f"({type(error).__name__}: {error}); fetch it anew"
        ) from error
    png.seek(0)
    return name, picture, png
