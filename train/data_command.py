"""The commands `deeplab-train data`, which shows a data set, `deeplab-train prepare` and `pack`."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from deeplab_jax import visualize
from deeplab_jax.bands import to_show
from deeplab_jax.images import write_image
from train.data.augment import AugmentConfig, augment
from train.data.dataset import (
    DataError,
    Dataset,
    Source,
    a_few,
    class_frequencies,
    class_weights,
    in_threads,
    label_counts,
    label_frequencies,
    positive_weights,
)
from train.data.descriptions import (
    DESCRIPTIONS,
    FOLDER,
    HUGGINGFACE,
    TFDS,
    WEBDATASET,
    description_of,
    how_to_get,
    open_dataset,
)
from train.data.pairs import Unpaired
from train.data.pictures import Bands, Rgb
from train.data.statistics import measure

_PANEL = 256  # pixels of the longer side of a picture on the sheet
_GAP = 6


def data_command(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None,
    /,
    data_dir: Path | None = None,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
    keys: str | None = None,
    bands: Bands | None = None,
    unpaired: Unpaired = "stop",
    resize_labels: bool = False,
    statistics: bool = False,
    augment: AugmentConfig = AugmentConfig(),
    examples: int = 12,
    seed: int = 0,
    sheet: Path = Path("data.png"),
) -> int:
    """Show a data set: number and sizes of examples, class frequencies, and a sheet of pictures.

    Args:
      name: A data set's name, folder:PATH, tfds:NAME, hf:ORG/NAME, hf:PATH or webdataset:PATTERN; without
        it, the names are listed.
      data_dir: The folder of prepared data sets; by default TFDS's own.
      class_names: Names of the classes 0, 1, ... of a data set that has no name here.
      labels: The class of each id in its label maps, such as 0=background,100=road,200=car.
      keys: The features of tfds: and hf: that are picture, label map and (optional) name, such as
        image,segmentation_mask,file_name; the endings of webdataset:, such as jpg,seg.png.
      bands: Read pictures of folder: and webdataset: band by band: all, or those with these numbers, from 1
        on. This is for what is more or other than RGB of 8 bits, such as GeoTIFFs.
      unpaired: Stop at pictures of a folder without label map, and label maps without picture, or skip
        them.
      resize_labels: Resize label maps of a folder that are of another size than their pictures.
      statistics: Print the mean and the standard deviation of each channel, of pictures scaled to [0, 1].
      augment: How training would augment; the sheet shows the result, without the padding of a crop that is
        larger than the largest picture.
      examples: Number of examples on the sheet, picked at random.
      seed: Seed of the choice of examples and of their augmentation.
      sheet: The PNG to write: augmented pictures, each beside its label map.
    """
    console = Console(emoji=False)
    if name is None:
        _print_names(console, data_dir)
        return 0
    dataset = open_dataset(
        name,
        data_dir=data_dir,
        class_names=class_names,
        labels=labels,
        keys=keys,
        bands=bands,
        unpaired=unpaired,
        resize_labels=resize_labels,
    )
    for note in dataset.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    splits = {"train": dataset.train, "val": dataset.val}
    sizes = {split: _read_sizes(source) for split, source in splits.items()}
    for split, source in splits.items():
        console.print(f"[bold]{split}[/]: {len(source)} examples, {_in_words(sizes[split])}")
    if not isinstance(dataset.pictures, Rgb):
        read = dataset.pictures
        console.print(f"pictures: {read.channels} bands of {read.pixels}", highlight=False)
    if statistics:
        console.print(f"{measure(dataset.train)}, as --data.mean and --data.std take them")
    if warning := _in_both_splits(dataset):
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    console.print(_frequencies(dataset))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    crop = tuple(np.minimum(augment.crop, sizes["train"].max(0)).tolist())
    shown = dataclasses.replace(augment, crop=crop)
    write_image(sheet, contact_sheet(dataset, shown, examples=examples, seed=seed))
    console.print(f"{min(examples, len(dataset.train))} augmented examples: {sheet}")
    return 0


def prepare_command(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    /,
    source: tuple[Path, ...] = (),
    data_dir: Path | None = None,
) -> int:
    """Prepare a data set from what you downloaded, without TensorFlow.

    Args:
      name: A data set's name; `deeplab-train data` lists them.
      source: Its archives (zip, tar), or the folders they were unpacked to.
      data_dir: The folder for prepared data sets; by default TFDS's own.
    """
    from train.data import tfds  # a second, see open_dataset
    from train.data.prepare import prepare

    description, data_dir = description_of(name), tfds.directory(data_dir)
    if prepared := tfds.find_prepared(description.prepared, data_dir):
        raise DataError(f"{name} is already prepared; to prepare it again, remove {prepared}")
    if description.sources and not source:
        raise DataError(f"{name} needs a source. {how_to_get(name, data_dir)}")
    folder = prepare(description.builder, data_dir, source)
    Console(emoji=False).print(f"{name} is prepared: {folder}")
    return 0


def pack_command(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
    packed: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    /,
    data_dir: Path | None = None,
    class_names: tuple[str, ...] | None = None,
    labels: str | None = None,
    keys: str | None = None,
    unpaired: Unpaired = "stop",
    resize_labels: bool = False,
) -> int:
    """Copy a data set of any kind into ArrayRecord files, which open as tfds:NAME.

    For buckets, for pods and for whatever reads many small files slowly. Label maps are drawn, checked and
    numbered once; the splits and the names of the classes stay with them. TensorFlow is not needed.

    Args:
      name: folder:PATH, hf:ORG/NAME, hf:PATH, webdataset:PATTERN or tfds:NAME, of RGB pictures.
      packed: The name of the copy: small letters, digits and underscores.
      data_dir: The folder of prepared data sets; by default TFDS's own.
      class_names: Names of the classes 0, 1, ..., where the data set has none.
      labels: The class of each id in its label maps, such as 0=background,100=road,200=car.
      keys: The features that are picture, label map and (optional) name; of webdataset: the endings.
      unpaired: Stop at pictures of a folder without label map, and label maps without picture, or skip
        them.
      resize_labels: Resize label maps of a folder that are of another size than their pictures.
    """
    from train.data import tfds  # a second, see open_dataset
    from train.data.prepare import check_name, pack

    check_name(packed)
    folder = tfds.directory(data_dir)
    if there := tfds.find_prepared(packed, folder):
        raise DataError(f"{packed} is already there; to write it again, remove {there}")
    dataset = open_dataset(
        name,
        data_dir=data_dir,
        class_names=class_names,
        labels=labels,
        keys=keys,
        unpaired=unpaired,
        resize_labels=resize_labels,
    )
    console = Console(emoji=False)
    for note in dataset.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    written = pack(dataset, packed, folder)
    console.print(
        f"{len(dataset.train)} examples for training and {len(dataset.val)} for validation: {written}"
    )
    console.print(f"Use it with --data.name {TFDS}{packed} --data.data-dir {folder}")
    return 0


# ---------------------------------------------------------------------------- tables


def _print_names(console: Console, data_dir: Path | None) -> None:
    """All data sets that have names, and which of them are prepared."""
    from train.data import tfds  # a second, see open_dataset

    data_dir = tfds.directory(data_dir)
    table = Table("name", "classes", "", box=None)
    for name, description in DESCRIPTIONS.items():
        prepared = tfds.find_prepared(description.prepared, data_dir)
        state = (
            "prepared" if prepared else "not prepared" if description.get else "drawn on first use"
        )
        table.add_row(name, str(len(description.class_names)), state)
    table.add_row(f"{FOLDER}PATH", "yours", "pictures and label maps in a folder")
    table.add_row(f"{TFDS}NAME", "its own", "any other that TFDS has prepared")
    table.add_row(f"{HUGGINGFACE}ORG/NAME", "its own", "Hugging Face's, or a folder of parquet")
    table.add_row(f"{WEBDATASET}PATTERN", "yours", "tar files of pictures and label maps")
    console.print(table)
    console.print(f"Prepared data sets are read from {data_dir}", soft_wrap=True, highlight=False)


def _read_sizes(source: Source) -> np.ndarray:
    """Rows and columns of each example, `[N, 2]`."""
    return np.array(list(in_threads(source.size, len(source), "reading sizes")))


def _in_both_splits(dataset: Dataset) -> str | None:
    """A warning of pictures that are for training and for validation: scores of them are too good."""
    train, val = (_picture_digests(source) for source in (dataset.train, dataset.val))
    first = {digest: index for index, digest in reversed(list(enumerate(train)))}
    both = [
        f"{dataset.val.name(index)} is {dataset.train.name(first[digest])}"
        for index, digest in enumerate(val)
        if digest in first
    ]
    if not both:
        return None
    return (
        f"Warning: {len(both)} of the {len(val)} pictures for validation are for training too, and scores "
        f"will be too good: {a_few(both)}."
    )


def _picture_digests(source: Source) -> list[bytes]:
    def digest(index: int) -> bytes:
        return hashlib.sha256(source.picture_file(index)).digest()

    return list(in_threads(digest, len(source), "looking for duplicates"))


def _in_words(sizes: np.ndarray) -> str:
    low, high = sizes.min(0), sizes.max(0)
    if (low == high).all():
        return f"all {low[1]} x {low[0]}"
    kinds = len(np.unique(sizes, axis=0))
    return f"{kinds} sizes, {low[1]} to {high[1]} wide, {low[0]} to {high[0]} high"


def _frequencies(dataset: Dataset) -> Table:
    """Per class: its part of the labelled pixels of each split, and its weight by median frequency.

    Where a pixel may have several labels, the part of all that has each, and its weight as one of them.
    """
    if dataset.overlapping:
        return _label_frequencies(dataset)
    train, val = (class_frequencies(s, dataset.num_classes) for s in (dataset.train, dataset.val))
    table = Table("id", "class", box=None)
    for column in ("train", "val", "weight"):
        table.add_column(column, justify="right")
    rows = zip(dataset.class_names, train, val, class_weights(train), strict=True)
    for i, (name, in_train, in_val, weight) in enumerate(rows):
        parts = (
            f"{100 * n / max(1, all_.sum()):.2f} %"
            for n, all_ in ((in_train, train), (in_val, val))
        )
        table.add_row(str(i), name, *parts, f"{weight:.2f}")
    return table


def _label_frequencies(dataset: Dataset) -> Table:
    names = dataset.class_names[1:]
    train, val = (label_frequencies(s, len(names)) for s in (dataset.train, dataset.val))
    table = Table("label", box=None)
    for column in ("train", "val", "weight"):
        table.add_column(column, justify="right")
    for name, *counts, weight in zip(names, train, val, positive_weights(train), strict=True):
        parts = (f"{100 * there / max(1, without + there):.2f} %" for without, there in counts)
        table.add_row(name, *parts, f"{weight:.2f}")
    return table


# ---------------------------------------------------------------------------- pictures


def contact_sheet(
    dataset: Dataset, config: AugmentConfig, *, examples: int, seed: int
) -> Image.Image:
    """Random augmented training examples: each picture, its classes over it, its label map; a legend."""
    rng = np.random.default_rng(seed)
    count = min(examples, len(dataset.train))
    # Of several labels black is what has none, whatever it is called.
    named = None if dataset.overlapping else dataset.class_names
    colors = visualize.palette(dataset.num_classes, named)
    panels, areas, pixels = [], np.zeros(256, np.int64), 0
    for index in rng.choice(len(dataset.train), count, replace=False).tolist():
        example = dataset.train[index]
        picture, label = augment(example["image"], example["label"], config, rng)
        picture = to_show(picture)
        areas += _areas(label)
        pixels += label.shape[0] * label.shape[1]
        shown = (picture, *_drawn(picture, label, colors))
        panels.append(_shrunk(np.concatenate(shown, axis=1)))
    columns = 2 if count > 3 else 1
    rows = -(-count // columns)
    height, width = panels[0].height + _GAP, panels[0].width + _GAP
    sheet = Image.new("RGB", (columns * width - _GAP, rows * height - _GAP), (250, 250, 250))
    for n, panel in enumerate(panels):
        sheet.paste(panel, (n % columns * width, n // columns * height))
    return visualize.with_legend(sheet, areas, colors, dataset.class_names, pixels)


def _areas(label: np.ndarray) -> np.ndarray:
    """Pixels of each class, int64 `[256]`; of several labels, those that have none, and each."""
    if label.ndim == 2:
        return label_counts(label)
    there = label == 1
    areas = np.array([np.count_nonzero(~there.any(-1)), *np.count_nonzero(there, axis=(0, 1))])
    return np.pad(areas, (0, 256 - len(areas)))


def _drawn(
    picture: np.ndarray, label: np.ndarray, colors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A picture under its label map, and that alone."""
    if label.ndim == 2:
        over = visualize.overlay(picture, label, colors, legend=False)
        return np.asarray(over), visualize.colorize(label, colors)
    draw = functools.partial(
        visualize.overlay_of_labels, labels=label == 1, colors=colors[1:], legend=False
    )
    return np.asarray(draw(picture)), np.asarray(draw(np.zeros_like(picture), alpha=1.0))


def _shrunk(pixels: np.ndarray) -> Image.Image:
    panel = Image.fromarray(pixels)
    panel.thumbnail((3 * _PANEL, _PANEL))
    return panel
