"""Reading what TFDS has prepared, without TensorFlow: array_record as well as tfrecord files."""

import io
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from deeplab_jax.buckets import local_copy, url_of
from deeplab_jax.paths import check_local
from train.data.dataset import DataError, Part
from train.data.records import Keys

INFO_FILE = "dataset_info.json"

_FORMATS = (tfds.core.FileFormat.ARRAY_RECORD, tfds.core.FileFormat.TFRECORD)


class Records:
    """The examples of a split of a prepared data set; see `dataset.Encoded`.

    Args:
      folder: that has the data set's `dataset_info.json`.
      split: such as "train", "train[:50%]".
      keys: the features that are picture, label map and name. Without the last, an example goes by its
        place in the split, such as "train[12]".

    Raises:
      DataError: the files are in another format than array_record and tfrecord, or damaged.
    """

    def __init__(self, folder: Path, split: str, keys: Keys):
        self._keys = {"image": keys.image, "label": keys.label}
        self._name, self._split = keys.name, split
        info = info_of(folder)
        if info.file_format not in _FORMATS:
            raise DataError(
                f"{folder} must have been prepared as array_record or tfrecord, got "
                f"{info.file_format.value}: prepare it again with --file_format=array_record"
            )
        wanted = [name for name in (keys.image, keys.label, keys.name) if name is not None]
        if missing := [name for name in wanted if name not in info.features]:
            raise DataError(f"{folder} has no feature {', '.join(missing)}. Prepare it again")
        self._features = tfds.features.FeaturesDict(
            {feature: info.features[feature] for feature in wanted}
        )
        files = info.splits[split].file_instructions
        tfrecord = info.file_format == tfds.core.FileFormat.TFRECORD
        try:
            self._records: Sequence[bytes] = (
                TFRecords(files) if tfrecord else ArrayRecordDataSource(files)
            )
        except (OSError, RuntimeError) as error:
            raise DataError(f"{folder} cannot be read: {error}. Prepare it again") from error

    def __len__(self) -> int:
        return len(self._records)

    def open(self, index: int, *parts: Part) -> tuple[BinaryIO, ...]:
        """The encoded picture and label map, from one reading of the record."""
        example = self._read(index)
        return tuple(io.BytesIO(example[self._keys[part]]) for part in parts)

    def name(self, index: int, part: Part = "image") -> str:
        """The name in the record, of both parts, or the example's place."""
        if self._name is None:
            return f"{self._split}[{index}]"
        try:
            name = self._read(index)[self._name]
        except Exception:  # damaged, which is said of this example to whom reads it
            return f"{self._split}[{index}]"
        return name.decode() if isinstance(name, bytes) else str(name)

    def _read(self, index: int) -> dict[str, bytes]:
        skip = dict.fromkeys(self._keys.values(), tfds.decode.SkipDecoding())
        return self._features.deserialize_example_np(self._records[index], decoders=skip)


class TFRecords:
    """Random access to the records of tfrecord files, by their offsets, which are read on opening.

    A record is its length (8 bytes, little endian), a checksum of that (4), the bytes, and their
    checksum (4). Checksums are not looked at.

    Args:
      files: which records of which files: `filename`, `skip` and `take`, as TFDS describes splits.
    """

    def __init__(self, files: Sequence[tfds.core.utils.shard_utils.FileInstruction]):
        self._paths = [os.fspath(file.filename) for file in files]
        self._offsets = [_offsets(file.filename)[file.skip :][: file.take] for file in files]
        self._ends = np.cumsum([len(offsets) for offsets in self._offsets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} records")
        file = int(np.searchsorted(self._ends, index, side="right"))
        offset, length = self._offsets[file][index - self._ends[file]].tolist()
        with open(self._paths[file], "rb") as opened:
            opened.seek(offset)
            return opened.read(length)


def _offsets(path: os.PathLike) -> np.ndarray:
    """Where each record's bytes begin and how many they are, int64 `[records, 2]`."""
    found, at, size = [], 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            (length,) = struct.unpack("<Q", file.read(8))
            found.append((at + 12, length))
            at += 12 + length + 4
    if at != size:
        raise DataError(f"{path} is cut off: its last record ends {at - size} bytes after the file")
    return np.array(found, np.int64).reshape(-1, 2)


def directory(data_dir: Path | None, name: str | None = None) -> Path:
    """Where prepared data sets are: `data_dir`, or else $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Of a bucket it is a folder on this machine, with a copy of one data set.

    Args:
      name: of the data set that is wanted, NAME or NAME/CONFIG; None where it is all of them, or to write.

    Raises:
      ValueError: all of a bucket is wanted.
    """
    folder = data_dir or tfds.core.constants.DATA_DIR
    if name is None or (url := url_of(folder)) is None:
        check_local({"data_dir": folder})
        return Path(folder).expanduser()
    return local_copy(f"{url}/{re.split('[/:]', name)[0]}").parent


def info_of(folder: Path) -> tfds.core.DatasetInfo:
    """What TFDS says of the prepared data set in a folder. Raises DataError where it can say nothing."""
    try:
        return tfds.builder_from_directory(folder).info
    except Exception as error:  # of files of any age and in any state
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{folder} is not a data set that TFDS can read: {reason}. Prepare it again"
        ) from error


def splits(folder: Path) -> tuple[str, ...]:
    """The splits of the prepared data set in a folder."""
    return tuple(info_of(folder).splits)


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """The folder of a data set's newest version that is prepared.

    Args:
      name: NAME or NAME/CONFIG.
      data_dir: has it as NAME/VERSION or NAME/CONFIG/VERSION.
    """
    found = [
        path.parent
        for path in (data_dir / name).glob(f"*/{INFO_FILE}")
        if tfds.core.Version.is_valid(path.parent.name)
    ]
    return max(found, key=lambda folder: tfds.core.Version(folder.name), default=None)
