"""Preparing data sets for reading, with the builders here and without TensorFlow."""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from train.data.builders.pairs import PairsBuilder
from train.data.dataset import DataError
from train.data.unpack import ArchiveError, unpack


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
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=data_dir) as beside:
        beside = Path(beside)
        folders = [_unpacked(s, beside / str(number)) for number, s in enumerate(sources)]
        made = _builder_class(builder)(
            sources=folders, data_dir=beside, file_format=tfds.core.FileFormat.ARRAY_RECORD
        )
        target = data_dir / Path(made.data_dir).relative_to(beside)
        if not sources:
            tfds.disable_progress_bar()
        with contextlib.redirect_stdout(None):  # it would report a download
            made.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
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
