"""A data set as training sees it: two splits of examples, and the names of their classes."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Literal, Protocol, TypeVar

import cv2
import numpy as np

from deeplab_jax.images import ImageError, check_checksums
from deeplab_jax.progress import progress
from train.data.pictures import RGB, Pictures
from train.metrics import IGNORE_LABEL

Part = Literal["image", "label"]
T = TypeVar("T")

_LISTED = 20
_FEW = 5
_MANY = 2000  # examples; looking at fewer takes a second or two and needs no progress bar


class DataError(ValueError):
    """Data that is missing, damaged or does not fit together; the message lists all that is wrong."""

    @classmethod
    def listing(cls, rule: str, problems: Sequence[str]) -> "DataError":
        """The error of several problems: the rule, and a line for each of the first of them."""
        rest = len(problems) - _LISTED
        lines = [rule, *problems[:_LISTED], *([f"and {rest} more"] if rest > 0 else [])]
        return cls("\n  ".join(lines))


def a_few(things: Sequence[object]) -> str:
    """The first of some names or numbers, and how many more there are."""
    rest = len(things) - _FEW
    return ", ".join(map(str, things[:_FEW])) + (f" and {rest} more" if rest > 0 else "")


class Source(Protocol):
    """Random access to the examples of a split, from many threads, and from other processes (pickled)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"image": uint8 `[H, W, 3]` RGB, "label": uint8 `[H, W]`}; label 255 is ignored.

        Of a data set that is read band by band, images are `[H, W, C]` of its type. Where a pixel may have
        several labels, "label" is `[H, W, labels]`: 1, 0, or 255.

        Raises:
          DataError: naming the example, if it cannot be read.
        """
        ...

    def label(self, index: int) -> np.ndarray:
        """The label of `self[index]` alone."""
        ...

    def name(self, index: int) -> str:
        """The name of an example, for messages and, once "/" is replaced, in names of files."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an example, from its header."""
        ...

    def picture_file(self, index: int) -> bytes:
        """The picture as it is stored: the same for the same picture."""
        ...


@dataclasses.dataclass(frozen=True)
class Selection:
    """A `Source` of chosen examples of one or several others.

    Attributes:
      places: for each example, its source and its index there.
    """

    places: tuple[tuple[Source, int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        source, place = self.places[index]
        return source[place]

    def label(self, index: int) -> np.ndarray:
        source, place = self.places[index]
        return source.label(place)

    def name(self, index: int) -> str:
        source, place = self.places[index]
        return source.name(place)

    def size(self, index: int) -> tuple[int, int]:
        source, place = self.places[index]
        return source.size(place)

    def picture_file(self, index: int) -> bytes:
        source, place = self.places[index]
        return source.picture_file(place)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: two splits of examples, and the names of their classes.

    Attributes:
      name: the name that it was opened by.
      class_names: names of the classes 0, 1, ...
      train: the training split.
      val: the validation split.
      notes: what was assumed in opening it, a sentence each, to be shown to the user.
      pictures: how its pictures are read.
      overlapping: whether a pixel may have several of the classes but the first, which is for none.
    """

    name: str
    class_names: tuple[str, ...]
    train: Source
    val: Source
    notes: tuple[str, ...] = ()
    pictures: Pictures = RGB
    overlapping: bool = False

    @property
    def num_classes(self) -> int:
        """The number of classes, without `IGNORE_LABEL`."""
        return len(self.class_names)


# ---------------------------------------------------------------------------- decoding


class Encoded(Protocol):
    """Where the bytes of examples are: files of a folder, or records of a prepared data set."""

    def __len__(self) -> int: ...

    def open(self, index: int, *parts: Part) -> tuple[BinaryIO, ...]:
        """The encoded picture, label map, or both, to be read from the start."""
        ...

    def name(self, index: int, part: Part = "image") -> str:
        """The name of an example, see `Source.name`, or the file of a part of it."""
        ...


class DecodedSource:
    """A `Source` of encoded pictures and label maps.

    Args:
      encoded: where they are.
      decode_label: what makes uint8 `[H, W]` of the file of a label map: classes, and 255 where it is
        ignored; or `[H, W, labels]`; see `train.data.masks`. Called from many threads, and pickled.
      pictures: what makes pixels of the file of a picture.
      resize_labels: resize label maps that are in proportion to their pictures, see `in_proportion`.
    """

    def __init__(
        self,
        encoded: Encoded,
        decode_label: Callable[[BinaryIO], np.ndarray],
        pictures: Pictures = RGB,
        *,
        resize_labels: bool = False,
    ):
        self._encoded = encoded
        self._decode_label = decode_label
        self._pictures = pictures
        self._resize_labels = resize_labels
        self._sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        with self._naming(index, "image"):
            image_file, label_file = self._encoded.open(index, "image", "label")
        with image_file, label_file:
            with self._naming(index, "image"):
                image = self._pictures.decode(image_file)
            label = self._label_in(label_file, index)
        size, drawn = image.shape[:2], label.shape[:2]
        if size != drawn and self._resize_labels and in_proportion(size, drawn):
            label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if size != label.shape[:2]:
            raise DataError(f"{self.name(index)}: {sizes_differ(size, drawn)}")
        # NaN is "no data": where nothing was measured, nothing is learned.
        if image.dtype == np.float32:
            label = label.copy()
            label[np.isnan(image).all(-1)] = IGNORE_LABEL
        return {"image": image, "label": label}

    def label(self, index: int) -> np.ndarray:
        with self._naming(index, "label"):
            (file,) = self._encoded.open(index, "label")
        with file:
            return self._label_in(file, index)

    def _label_in(self, file: BinaryIO, index: int) -> np.ndarray:
        with self._naming(index, "label"):
            check_checksums(file)
            return self._decode_label(file)

    def name(self, index: int) -> str:
        return self._encoded.name(index)

    def size(self, index: int) -> tuple[int, int]:
        if index not in self._sizes:  # kept: every evaluation asks again
            with self._naming(index, "image"):
                (file,) = self._encoded.open(index, "image")
                with file:
                    self._sizes[index] = self._pictures.size(file)
        return self._sizes[index]

    def picture_file(self, index: int) -> bytes:
        with self._naming(index, "image"):
            (file,) = self._encoded.open(index, "image")
            with file:
                return file.read()

    @contextlib.contextmanager
    def _naming(self, index: int, part: Part) -> Iterator[None]:
        """Damaged files make decoders raise nearly anything; whatever it is, the file is named."""
        try:
            yield
        except Exception as error:
            raise DataError(unreadable(self._encoded.name(index, part), error)) from error


def unreadable(name: str, error: Exception) -> str:
    """What is wrong with a file that could not be decoded."""
    known = isinstance(error, DataError | ImageError)
    return f"{name} cannot be read: {error if known else f'{type(error).__name__}: {error}'}"


def in_proportion(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes (H, W) differ in scale alone, but for the rounding of their sides."""
    scales = [a / b for a, b in zip(one, other, strict=True)]
    # Rounding, up or down, moves each side of the smaller one by less than a pixel.
    return max(scales) / min(scales) <= 1 + 2 / min(*one, *other)


def sizes_differ(image: Sequence[int], label: Sequence[int]) -> str:
    """What is wrong where the sides (H, W) of a picture and of its label map differ."""
    return f"the picture is {image[1]} x {image[0]}, its label map {label[1]} x {label[0]}"


# ---------------------------------------------------------------------------- looking at a whole split


def in_threads(use: Callable[[int], T], count: int, doing: str) -> Iterator[T]:
    """`use` of 0 to `count` - 1, in order, computed in threads; with a progress bar if they are many."""
    with (
        ThreadPoolExecutor() as threads,
        progress(doing, count, unit="examples", shown=count >= _MANY) as done,
    ):
        for number, result in enumerate(threads.map(use, range(count)), 1):
            done(number)
            yield result


def label_counts(label: np.ndarray) -> np.ndarray:
    """Pixels of each id in a label map, int64 `[256]`."""
    return np.bincount(label.ravel(), minlength=256)


def class_frequencies(source: Source, num_classes: int) -> np.ndarray:
    """Labelled pixels of each class in a split, int64 `[num_classes]`.

    Raises:
      DataError: listing the examples with labels that are not classes.
    """
    total, problems = np.zeros(256, np.int64), []
    counting = in_threads(lambda i: label_counts(source.label(i)), len(source), "counting")
    for index, counts in enumerate(counting):
        total += counts
        if unknown := not_classes(counts, num_classes):
            problems.append(f"{source.name(index)}: {unknown}")
    if problems:
        raise DataError.listing(f"labels must be {_allowed(num_classes)}:", problems)
    return total[:num_classes]


def not_classes(counts: np.ndarray, num_classes: int) -> list[int]:
    """The ids with pixels, of `label_counts`, that are neither a class nor ignored."""
    return [i for i in np.flatnonzero(counts).tolist() if i >= num_classes and i != IGNORE_LABEL]


def class_weights(
    frequencies: np.ndarray, method: Literal["median", "log"] = "median"
) -> tuple[float, ...]:
    """Class weights that make up for rare classes; 0 for a class that never occurs.

    Args:
      frequencies: pixels of each class, see `class_frequencies`.
      method: "median" is median frequency / frequency (SegNet, Badrinarayanan et al. 2017, with the
        frequencies of the whole split); "log" is 1 / log(1.02 + frequency) (ENet, Paszke et al. 2016).
    """
    occurs = frequencies > 0
    share = frequencies / max(1, frequencies.sum())
    if method == "median":
        weights = np.median(share[occurs]) / np.where(occurs, share, 1)
    else:
        weights = 1 / np.log(1.02 + share)
    return tuple(np.where(occurs, weights, 0.0).tolist())


def label_frequencies(source: Source, labels: int) -> np.ndarray:
    """Pixels of a split without and with each label, int64 `[labels, 2]`.

    Args:
      labels: how many there are: the classes but the first, or those of label maps of several.

    Raises:
      DataError: listing the examples with labels that are not classes.
    """
    if not len(source) or source.label(0).ndim == 2:
        frequencies = class_frequencies(source, labels + 1)
        there = frequencies[1:]
        return np.stack([frequencies.sum() - there, there], axis=-1)
    total = np.zeros((labels, 2), np.int64)
    for label in in_threads(source.label, len(source), "counting"):
        total += np.stack([np.count_nonzero(label == n, axis=(0, 1)) for n in (0, 1)], axis=-1)
    return total


def positive_weights(frequencies: np.ndarray) -> tuple[float, ...]:
    """Of each label the pixels without it by those with it, of `label_frequencies`.

    1 for one that never occurs.
    """
    without, there = frequencies.T
    return tuple(np.where(there > 0, without / np.maximum(there, 1), 1.0).tolist())


def _allowed(num_classes: int) -> str:
    return f"0 to {num_classes - 1}, the classes, or {IGNORE_LABEL}, which is ignored"
