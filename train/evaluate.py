"""Evaluation of a model on whole images, at their own size: every device takes its part of them."""

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax import compiler_options
from deeplab_jax.bands import to_show
from deeplab_jax.canvas import SMALLEST, Program
from deeplab_jax.canvases import FEW_SIZES, Size, shared_canvases
from deeplab_jax.config import Config
from deeplab_jax.model import with_values
from deeplab_jax.predict import (
    Prediction,
    check_options,
    fits_a_canvas,
    in_windows,
    program_of_any_size,
    segment,
    segment_on_canvas,
    sizes_on_canvas,
    views_of,
)
from deeplab_jax.preprocessing import normalize
from train.data import (
    DataError,
    EvalStep,
    Source,
    eval_batches,
    plan_evaluation,
    plan_of_some,
)
from train.metrics import (
    IGNORE_LABEL,
    boundary_scores,
    confusion_matrix,
    image_scores,
    label_boundaries,
    label_confusions,
    scores,
)
from train.report import Evaluation, Example, ImageScore
from train.sharding import to_devices
from train.targets import first_scored, label_map_classes, separate

AHEAD = 2
"""Batches that the host may be ahead of the devices, so that neither waits for the other."""

Values = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]


class Evaluator:
    """Measures a model on a split, again and again with other values of its variables.

    Compiles once for each size of image; more than a few share canvases, see `deeplab_jax.canvas`, with the
    scores of each image alone. With several processes all of them must call it, and get the same.

    Args:
      model: shapes in place of weights will do; stays as it is.
      source: the split.
      mesh: images are divided among all of its devices, whatever its axes, and never cut.
      batch_size: images at a time over all devices; rounded up to a multiple of their number.
      scales, flip, tile: see `deeplab_jax.predict`; no image is cut into windows unless `tile` says so.
      overlapping: whether label maps are `[H, W, labels]`, see `Dataset`.
      unreadable: stop at an image that cannot be read, or leave it out and log it.

    Raises:
      ValueError: for invalid options.
    """

    def __init__(
        self,
        model: nnx.Module,
        source: Source,
        mesh: Mesh,
        *,
        batch_size: int = 4,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        tile: int | None = None,
        overlapping: bool = False,
        unreadable: Literal["stop", "skip"] = "stop",
    ):
        check_options(scales=scales, tile=tile, batch_size=batch_size)
        self._config = model.config
        self._source, self._unreadable = source, unreadable
        self._labels = model.config.num_classes if overlapping else None
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, P(mesh.axis_names))
        everywhere = NamedSharding(mesh, P())
        compiled = functools.partial(
            jax.jit,
            out_shardings=(everywhere, self._rows),
            compiler_options=compiler_options(),
        )
        options: dict[str, Any] = {"scales": scales, "flip": flip}
        self._step = compiled(make_evaluation_step(model, tile=tile, **options))
        self._scales, self._views = scales, views_of(scales, flip)
        # Of images that are cut, all windows have a size already.
        self._program = functools.cache(
            lambda: program_of_any_size(model) if tile is None else None
        )
        self._plan = functools.cache(
            lambda: plan_evaluation(
                source,
                batch_size=self._batch_size,
                canvases=self._canvases,
                unreadable=unreadable,
            )
        )
        self._on_canvas = functools.cache(
            lambda: compiled(make_evaluation_step(model, program=self._program(), **options))
        )
        self._gather = jax.jit(lambda ids: ids, out_shardings=everywhere)

    def __call__(
        self, values: Values, *, progress: Callable[[int], None] = lambda done: None
    ) -> Evaluation:
        """Evaluates the split.

        Args:
          values: of the model's variables by name, on the devices of the mesh.
          progress: called with the number of images done.

        Raises:
          DataError: an image cannot be read, or has a label that is not a class.
        """
        total = _Total(self._source, self._config, highest=1 if self._labels else None)
        running: collections.deque[dict[str, jax.Array]] = collections.deque()
        for sums, _ in self._results(values, self._plan()):
            running.append(sums)
            if len(running) > AHEAD:
                progress(total.add(running.popleft()))
        while running:
            progress(total.add(running.popleft()))
        return total.result()

    def examples(self, values: Values, images: Sequence[ImageScore]) -> list[Example]:
        """The predictions for a few images of the split, in that order; see `__call__`."""
        plan = plan_of_some(self._plan(), {image.index for image in images})
        predictions = {}
        for sums, ids in self._results(values, plan):
            # By index, as the rows of several processes lie side by side.
            indices = np.asarray(sums["index"]).tolist()
            predictions |= dict(zip(indices, np.asarray(self._gather(ids)), strict=True))
        examples = []
        for score in images:
            example = self._source[score.index]
            height, width = example["label"].shape[:2]
            prediction = predictions[score.index][:height, :width]
            shown = to_show(example["image"])
            examples.append(Example(score, shown, example["label"], prediction))
        return examples

    def _results(
        self, values: Values, plan: Sequence[EvalStep]
    ) -> Iterator[tuple[dict[str, jax.Array], jax.Array]]:
        """What `make_evaluation_step` gives of the batches of a plan."""
        batches = eval_batches(
            self._source,
            plan,
            images=self._config.preprocessing,
            labels=self._labels,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            unreadable=self._unreadable,
        )
        for step, batch in zip(plan, batches, strict=True):
            if step.on_canvas:
                yield self._on_canvas()(values, self._put(batch | self._seen(batch["size"])))
            else:
                yield self._step(values, self._put(batch))

    def _canvases(self, sizes: Sequence[Size]) -> dict[Size, frozenset[Size]]:
        program = self._program() if len(set(sizes)) > FEW_SIZES else None
        if program is None:
            return {}
        able = functools.partial(fits_a_canvas, scales=self._scales)
        return shared_canvases(sizes, able, work=program.work())

    def _seen(self, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """What a program on canvases has to know of images of sizes `[B, 2]`, by names of its own."""
        sizes = np.maximum(sizes, SMALLEST)  # of rows without an image
        seen = sizes_on_canvas(self._program(), sizes, self._views)
        return {f"seen_{number}": of_view for number, of_view in enumerate(seen)}

    def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return to_devices(batch, dict.fromkeys(batch, self._rows))


# ---------------------------------------------------------------------------- on the devices


def make_evaluation_step(
    model: nnx.Module,
    *,
    scales: Sequence[float],
    flip: bool,
    tile: int | None = None,
    program: Program | None = None,
) -> Callable[[Values, Batch], tuple[dict[str, jax.Array], jax.Array]]:
    """The function (values, batch of `eval_batches`) -> (sums, ids as `Prediction` has them), to be jitted.

    Sums are small: `confusion` and the boundaries' are those of the whole batch; `index`, `miou`,
    `accuracy` and `highest` (the highest label) have an entry `[B]` for each image.

    Args:
      program: of images on canvases, whose batches have "seen_0", "seen_1", ... of `sizes_on_canvas` too.
    """
    views, measure = views_of(scales, flip), _measure(model.config)
    first = first_scored(model.config.num_classes)

    def step(values: Values, batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        module = with_values(model, values)
        module.eval()
        labels = batch["label"]
        pixels = normalize(batch["image"], model.config.preprocessing)
        if program is not None:
            seen = [batch[f"seen_{number}"] for number in range(1 + len(views))]
            ids = segment_on_canvas(program, model.config, values, pixels, seen, views).ids
        elif tile is None:
            ids = segment(module, pixels, views).ids
        else:
            # One after the other: large windows are why images are cut up.
            def each(windows: list[jax.Array]) -> Iterator[Prediction[jax.Array]]:
                ids = jax.lax.map(lambda w: segment(module, w, views).ids, jnp.stack(windows))
                return map(Prediction, ids)

            ids = in_windows(each, pixels, tile).ids
        confusion, boundary, bounded = jax.vmap(measure)(labels, ids, batch["size"])
        miou, accuracy = jax.vmap(lambda of_image: image_scores(of_image, first))(confusion)
        counted = jnp.where(labels == IGNORE_LABEL, jnp.zeros_like(labels), labels)
        sums = {
            "confusion": confusion.sum(0),
            "boundary_sum": boundary.sum(0),
            "boundary_count": bounded.sum(0, dtype=jnp.int32),
            "index": batch["index"],
            "miou": miou,
            "accuracy": accuracy,
            "highest": counted.reshape(len(counted), -1).max(1),
        }
        return sums, ids

    return step


def _measure(config: Config) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """The function (labels, ids, size) -> (confusion, boundary scores, which there are)."""
    classes, confusion = label_map_classes(config), confusion_of(config)

    def of_classes(labels: jax.Array, ids: jax.Array, size: jax.Array):
        return confusion(labels, ids), *boundary_scores(labels, ids, size, classes)

    def of_labels(labels: jax.Array, ids: jax.Array, size: jax.Array):
        boundaries = label_boundaries(separate(labels, ids.shape), ids, size)
        return confusion(labels, ids), *boundaries

    return of_labels if config.multilabel else of_classes


def confusion_of(config: Config) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function (label map, ids as `Prediction` has them) -> confusion, of classes or of each label."""
    if config.multilabel:
        return lambda labels, ids: label_confusions(separate(labels, ids.shape), ids)
    return functools.partial(confusion_matrix, num_classes=label_map_classes(config))


def no_such_class(name: object, label: int, highest: int) -> DataError:
    """What to raise where an image has a label above those of the model."""
    return DataError(
        f"{name} has the label {label}; the model's classes are 0 to {highest}, and {IGNORE_LABEL} is "
        "ignored"
    )


# ---------------------------------------------------------------------------- on the host


class _Total:
    """Adds up the sums of batches, in 64 bits."""

    def __init__(self, source: Source, config: Config, *, highest: int | None = None):
        self._source, self._first = source, first_scored(config.num_classes)
        count = label_map_classes(config)
        self._highest = count - 1 if highest is None else highest
        shape = (config.num_classes, 2, 2) if config.multilabel else (count, count)
        self._confusion = np.zeros(shape, np.int64)
        self._boundary_sum = np.zeros(shape[0], np.float64)
        self._boundary_count = np.zeros(shape[0], np.int64)
        self._images: list[ImageScore] = []
        self._done = 0

    def add(self, sums: Mapping[str, jax.Array]) -> int:
        """Returns the number of images so far."""
        sums = {name: np.asarray(value) for name, value in sums.items()}
        is_image = sums["index"] >= 0
        if (invalid := is_image & (sums["highest"] > self._highest)).any():
            row = int(invalid.argmax())
            name = self._source.name(int(sums["index"][row]))
            raise no_such_class(name, sums["highest"][row], self._highest)
        self._confusion += sums["confusion"]
        self._boundary_sum += sums["boundary_sum"]
        self._boundary_count += sums["boundary_count"]
        for row in np.flatnonzero(is_image & ~np.isnan(sums["accuracy"])):
            index, miou, accuracy = (
                sums[name][row].item() for name in ("index", "miou", "accuracy")
            )
            self._images.append(ImageScore(index, self._source.name(index), miou, accuracy))
        self._done += int(is_image.sum())
        return self._done

    def result(self) -> Evaluation:
        return Evaluation(
            scores(self._confusion, self._boundary_sum, self._boundary_count, first=self._first),
            self._confusion,
            tuple(sorted(self._images, key=lambda image: (image.miou, image.index))),
        )
