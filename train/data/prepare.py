"""Preparing data sets for reading, without TensorFlow."""

import os
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from train.data.builders.pairs import PairsBuilder


def prepare_builder(
    builder: type[PairsBuilder], data_dir: Path, *, sources: tuple[Path, ...] = ()
) -> Path:
    """Writes a builder's data set as array_record; what is there already is kept.

    Several processes may do this at once: each writes its own, the first to finish is kept.

    Returns:
      The folder DATA_DIR/NAME/VERSION.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=data_dir) as beside:
        made = builder(
            sources=sources, data_dir=beside, file_format=tfds.core.FileFormat.ARRAY_RECORD
        )
        target = data_dir / Path(made.data_dir).relative_to(beside)
        if target.exists():
            return target
        tfds.disable_progress_bar()
        made.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(made.data_dir, target)
        except OSError:
            if not target.exists():
                raise
    return target
