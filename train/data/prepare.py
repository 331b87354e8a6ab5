"""Writing data sets as array_record, without TensorFlow: those that have builders here, and any other."""

import contextlib
import importlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from train.data.builders.packed import builder_of
from train.data.builders.pairs import PairsBuilder
from train.data.dataset import DataError, Dataset
from train.data.pictures import Rgb
from train.data.unpack import ArchiveError, unpack

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def prepare(builder: str, data_dir: Path, sources: Sequence[Path] = ()) -> Path:
    """Writes a data set as array_record; existing ones are kept.

    Several processes may do this at once: each writes its own, and the first to finish is kept.

    Args:
      builder: module and class in `train.data.builders`.
      data_dir: the folder to write to; archives are unpacked there too, and removed afterwards.
      sources: folders and archives that the data set is in.

    Returns:
      The folder DATA_DIR/NAME/VERSION.

    Raises:
      DataError: listing what is missing in the sources.
    """
    missing = [str(source) for source in sources if not source.exists()]
    if missing:
        raise DataError.listing("sources must be folders or archives; there is no", missing)
    with _beside(data_dir) as beside:
        folders = [_unpacked(s, beside / str(number)) for number, s in enumerate(sources)]
        if not sources:
            tfds.disable_progress_bar()
        return _write(_builder_class(builder), data_dir, beside, folders)


def check_name(name: str) -> None:
    """Raises DataError if a data set cannot have this name, which TFDS makes a part of files' names."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"the copy's name must be of small letters, digits and _, and begin with a letter, got {name!r}"
        )


def pack(dataset: Dataset, name: str, data_dir: Path) -> Path:
    """Writes any data set as array_record, so that it opens as tfds:NAME; an existing one is kept.

    Pictures are the same to the pixel, most to the byte. Label maps are PNGs of the classes 0, 1, ... and
    255, with the names of the classes beside them.

    Args:
      dataset: of RGB pictures, and of one class for a pixel.
      name: of the copy, as `check_name` has it.
      data_dir: the folder to write to.

    Returns:
      The folder DATA_DIR/NAME/VERSION.

    Raises:
      DataError: pictures are not RGB, a pixel may have several labels, or an example cannot be read.
    """
    if dataset.overlapping:
        raise DataError(
            f"only label maps of one class for a pixel are copied, in {dataset.name} it may have several"
        )
    if not isinstance(dataset.pictures, Rgb):
        raise DataError(
            f"only RGB pictures are copied: those of {dataset.name} have {dataset.pictures.channels} bands"
        )
    with _beside(data_dir) as beside:
        return _write(builder_of(dataset, name), data_dir, beside)


@contextlib.contextmanager
def _beside(data_dir: Path) -> Iterator[Path]:
    """A folder in `data_dir` for what is not whole yet."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=data_dir) as beside:
        yield Path(beside)


def _write(
    builder: type[PairsBuilder], data_dir: Path, beside: Path, sources: Sequence[Path] = ()
) -> Path:
    """Prepares a data set in `beside`, and moves it to its place if none is there yet."""
    options = {"file_format": tfds.core.FileFormat.ARRAY_RECORD}
    made = builder(sources=sources, data_dir=beside, **options)
    target = data_dir / Path(made.data_dir).relative_to(beside)
    with contextlib.redirect_stdout(None):  # it would report a download
        made.download_and_prepare(**options)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(made.data_dir, target)
    except OSError:
        if not target.exists():
            raise
    return target


def _builder_class(name: str) -> type[PairsBuilder]:
    module, builder = name.split(".")
    return getattr(importlib.import_module(f"train.data.builders.{module}"), builder)


def _unpacked(source: Path, folder: Path) -> Path:
    """A source that is a folder; of an archive, what is in it, in `folder`."""
    if source.is_dir():
        return source
    try:
        unpack(source, folder)
    except ArchiveError as error:
        raise DataError(
            f"{source} must be a folder, or a zip or tar archive, and whole: {error}"
        ) from error
    return folder
