"""From examples to batches, with Grain: for training an endless stream, for evaluation each once.

Nothing here has a state. Batch k of a training run follows from the seed and k alone, whatever the
number of processes, threads and workers, so a run resumes at step k by asking for batches from k on.
"""

import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import grain
import numpy as np
from absl import flags

from deeplab_jax.canvases import Size
from deeplab_jax.preprocessing import Preprocessing
from train.data.augment import AugmentConfig, augment, pad
from train.data.dataset import DataError, Source
from train.metrics import IGNORE_LABEL

OnUnreadable = Literal["stop", "skip"]
"""What to do about an example that cannot be read."""

_AHEAD = 2  # batches read for evaluation while one runs

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- training


class TrainBatches:
    """Augmented batches of a split: shuffled anew in each epoch, endless, the same for the same seed.

    The batches of all processes, one after the other, are the batches of one process alone.

    Args:
      source: the examples.
      config: how they are augmented.
      batch_size: of all processes together.
      seed: of order and augmentation.
      process_index, process_count: which of how many processes this is.
      threads: number of threads that read and augment, a batch each; in each worker, if there are any.
      workers: number of processes that do it instead. They start with `iterate`, in seconds; the
        program's main module must be safe to import.
      height_multiple: pads crops so that their rows can be cut up evenly, see `augment`.
      unreadable: "stop" raises a DataError with the example's name; "skip" puts the next readable
        example in its place and counts it in `skipped`.

    Attributes:
      skipped: how often each unreadable example, by name, was replaced in the batches given out.
    """

    def __init__(
        self,
        source: Source,
        config: AugmentConfig,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 16,
        workers: int = 0,
        height_multiple: int = 1,
        unreadable: OnUnreadable = "stop",
    ):
        if batch_size % process_count:
            raise ValueError(
                "the batch must divide by the number of processes, got "
                f"{batch_size} by {process_count}"
            )
        if len(source) == 0:
            raise DataError("the training split has no examples")
        self.skipped: Counter[str] = Counter()
        self._source = source
        self._threads, self._workers = threads, workers
        self._open: list[grain.DatasetIterator] = []
        examples = (
            grain.MapDataset.range(len(source))
            .seed(seed)
            .shuffle()
            .repeat()
            .map(_Read(source, unreadable))
            .random_map(_Augment(config, height_multiple))
        )
        # Cut for processes after random_map, whose draws follow the position: else all draw the same.
        # And after `batch`: laid side by side, the parts are one process's batch, row for row.
        parts = examples.batch(batch_size // process_count, drop_remainder=True)
        self._batches = parts[process_index::process_count]

    def iterate(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of the batches from number `start` on.

        Yields:
          {"image": uint8 `[b, H, W, 3]`, "label": uint8 `[b, H, W]`, "index": int32 `[b]`}; images of a
          data set that is read band by band have its channels and type, and where a pixel may have several
          labels, "label" is `[b, H, W, labels]`.

        Raises:
          DataError: an example cannot be read.
        """
        batches = self._batches[start:].to_iter_dataset(
            grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads)
        )
        if self._workers:
            _allow_workers()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        iterator = iter(batches)
        self._open.append(iterator)
        for batch in iterator:
            for index in batch.pop("replaced"):
                if index >= 0:
                    self._count(int(index))
            yield batch

    def close(self) -> None:
        """Ends threads and workers of every `iterate`."""
        while self._open:
            self._open.pop().close()

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _count(self, index: int) -> None:
        name = self._source.name(index)
        if name not in self.skipped:
            log.warning(f"{_reason(self._source, index)}; another example takes its place")
        self.skipped[name] += 1


@dataclasses.dataclass(frozen=True)
class _Read(grain.transforms.Map):
    """An index -> the example, and under "replaced" the index if another had to be read for it, or -1."""

    source: Source
    unreadable: OnUnreadable

    def map(self, index: int) -> dict[str, np.ndarray]:
        for step in range(len(self.source)):
            at = (index + step) % len(self.source)
            try:
                example = self.source[at]
            except DataError:
                if self.unreadable == "stop":
                    raise
                continue
            return example | {"index": np.int32(at), "replaced": np.int32(index if step else -1)}
        raise DataError(f"none of the {len(self.source)} examples can be read")


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
    config: AugmentConfig
    height_multiple: int

    def random_map(
        self, example: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        image, label = augment(
            example["image"],
            example["label"],
            self.config,
            rng,
            height_multiple=self.height_multiple,
        )
        return example | {"image": image, "label": label}


def _allow_workers() -> None:
    """Grain's workers read absl's flags, which must have been parsed; there are none of ours."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _reason(source: Source, index: int) -> str:
    try:
        source[index]
    except DataError as error:
        return str(error)
    return f"{source.name(index)} could not be read (now it can)"


# ---------------------------------------------------------------------------- evaluation


@dataclasses.dataclass(frozen=True)
class EvalStep:
    """Examples that are evaluated together.

    Attributes:
      size: (H, W) that they have, or of the canvas that they lie on.
      indices: of the examples, `batch_size` of them; -1 at the end where there are no more.
      on_canvas: whether they are of several sizes.
    """

    size: Size
    indices: tuple[int, ...]
    on_canvas: bool = False


def plan_evaluation(
    source: Source,
    *,
    batch_size: int,
    canvases: Callable[[Sequence[Size]], Mapping[Size, frozenset[Size]]] = lambda sizes: {},
    unreadable: OnUnreadable = "stop",
) -> list[EvalStep]:
    """Which whole images are evaluated together: those of a size, and those that share a canvas.

    Args:
      source: the examples.
      batch_size: of all processes together.
      canvases: of the sizes of all images, those that share canvases, see `shared_canvases`.
      unreadable: "skip" leaves out the examples whose size cannot be read, and logs them.

    Raises:
      DataError: the size of an example cannot be read.
    """

    def size_of(index: int) -> Size | None:
        try:
            return source.size(index)
        except DataError as error:
            if unreadable == "stop":
                raise
            log.warning(f"{error}; it is left out")
            return None

    with ThreadPoolExecutor() as threads:
        found = list(threads.map(size_of, range(len(source))))
    sizes = {index: size for index, size in enumerate(found) if size is not None}
    shared = canvases(list(sizes.values()))
    canvas_of = {size: canvas for canvas, members in shared.items() for size in members}
    groups: dict[tuple[Size, bool], list[int]] = defaultdict(list)
    for index, size in sizes.items():
        groups[canvas_of.get(size, size), size in canvas_of].append(index)
    return _steps(groups, batch_size)


def plan_of_some(plan: Sequence[EvalStep], indices: Collection[int]) -> list[EvalStep]:
    """The plan of some of the examples of a plan, for which nothing else has to compile."""
    groups: dict[tuple[Size, bool], list[int]] = defaultdict(list)
    for step in plan:
        groups[step.size, step.on_canvas] += [i for i in step.indices if i in indices]
    return _steps(groups, len(plan[0].indices)) if plan else []


def _steps(groups: Mapping[tuple[Size, bool], Sequence[int]], batch_size: int) -> list[EvalStep]:
    """Examples of a size, or on canvases of a size, so many at a time."""
    return [
        EvalStep(size, (*part, *(-1,) * (batch_size - len(part))), on_canvas)
        for (size, on_canvas), indices in groups.items()
        for part in (
            indices[start : start + batch_size] for start in range(0, len(indices), batch_size)
        )
    ]


def eval_batches(
    source: Source,
    plan: Sequence[EvalStep],
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 16,
    images: Preprocessing = Preprocessing(),
    labels: int | None = None,
    unreadable: OnUnreadable = "stop",
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of the batches of a plan: every example once, at its own size.

    All processes get as many batches, of the same shapes.

    Args:
      source: the examples.
      plan: of `plan_evaluation`, the same in all processes.
      process_index, process_count: which of how many processes this is.
      threads: that read.
      images: what says their channels and type.
      labels: how many labels each pixel of the label maps has; None for one class each.
      unreadable: "stop" raises a DataError with the example's name; "skip" logs it and leaves its
        row without an image.

    Yields:
      {"image": uint8 `[b, H, W, 3]`, "label": uint8 `[b, H, W]`, "index": int32 `[b]`, "size": int32
      `[b, 2]`}, of several labels "label" `[b, H, W, labels]`: images are padded at the bottom and right,
      where the label is ignored, and "size" is (H, W) without the padding. Rows without an image have the
      index -1 and the size (0, 0).

    Raises:
      DataError: an example cannot be read.
    """
    if not plan:
        return
    batch_size = len(plan[0].indices)
    if batch_size % process_count:
        raise ValueError(
            f"the batch must divide by the number of processes, got {batch_size} by {process_count}"
        )
    local = batch_size // process_count
    rows = slice(process_index * local, (process_index + 1) * local)
    steps = [dataclasses.replace(step, indices=step.indices[rows]) for step in plan]
    examples = [(step.size, index) for step in steps for index in step.indices]
    read = grain.MapDataset.source(examples).map(_ReadWhole(source, images, labels, unreadable))
    ahead = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, _AHEAD * local)
    )
    iterator = iter(read.to_iter_dataset(ahead))
    try:
        for _ in steps:
            rows = [next(iterator) for _ in range(local)]
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _ReadWhole(grain.transforms.Map):
    source: Source
    images: Preprocessing
    labels: int | None
    unreadable: OnUnreadable

    def map(self, step: tuple[tuple[int, int], int]) -> dict[str, np.ndarray]:
        size, index = step
        channels = len(self.images.mean)
        several = () if self.labels is None else (self.labels,)
        label = np.zeros((0, 0, *several), np.uint8)
        if index >= 0:
            try:
                example = self.source[index]
                image, label = example["image"], example["label"]
            except DataError as error:
                if self.unreadable == "stop":
                    raise
                log.warning(f"{error}; it is left out")
                index = -1
        inner = np.array(label.shape[:2], np.int32)
        if index < 0:
            image = np.zeros((1, 1, channels), self.images.pixels)
            label = np.full((1, 1, *several), IGNORE_LABEL, np.uint8)
        # Any value will do: the model does not see it.
        image, label = pad(image, label, size, (0,) * channels)
        return {"image": image, "label": label, "index": np.int32(index), "size": inner}
