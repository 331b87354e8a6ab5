"""Evaluation of a model on whole images, at their own size: every device takes its part of them."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import Progress

from deeplab_jax import Config, build, compiler_options, load
from deeplab_jax.command import keep_compiled_programs
from deeplab_jax.config import mask_classes
from deeplab_jax.layers import Conv
from deeplab_jax.model import named_variables, with_values
from deeplab_jax.paths import check_local
from deeplab_jax.predict import check_options, in_windows, looks_of, segment
from deeplab_jax.preprocessing import normalize
from train import report
from train.config import MeshConfig
from train.data import DataError, Dataset, Source, eval_batches, open_dataset
from train.data.class_table import CLASS_FILE
from train.data.descriptions import folder_of
from train.metrics import IGNORE_LABEL, boundary_scores, confusion_matrix, scores
from train.report import Evaluation, Example, ImageScore
from train.sharding import make_mesh, to_devices

AHEAD = 2
"""Batches that the host may be ahead of the devices, so that neither waits for the other."""

Values = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]


class Evaluator:
    """Measures a model on a split, again and again with other values of its variables.

    Compiles once per size of image. With several processes all of them must call it, and get the same.

    Args:
      model: shapes in place of weights will do; stays as it is.
      source: the split.
      mesh: images are divided among all of its devices, whatever its axes, and never cut.
      batch_size: images at a time over all devices; rounded up to a multiple of their number.
      bucket: pads images to multiples of this, so that few sizes compile, with zeros after
        normalisation; 1 evaluates each exactly as `deeplab_jax.predict` would.
      scales, flip, tile: see `deeplab_jax.predict`; no image is cut into windows unless `tile` says so.
      unreadable: stop at an image that cannot be read, or leave it out and log it.

    Raises:
      ValueError: for options that are none.
    """

    def __init__(
        self,
        model: nnx.Module,
        source: Source,
        mesh: Mesh,
        *,
        batch_size: int = 4,
        bucket: int = 1,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        tile: int | None = None,
        unreadable: Literal["stop", "skip"] = "stop",
    ):
        check_options(scales=scales, tile=tile, batch_size=batch_size)
        self._classes = mask_classes(model.config.num_classes)
        self._source, self._unreadable = source, unreadable
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._bucket = bucket
        self._rows = NamedSharding(mesh, P(mesh.axis_names))
        everywhere = NamedSharding(mesh, P())
        self._step = jax.jit(
            make_evaluation_step(model, scales=scales, flip=flip, tile=tile),
            out_shardings=(everywhere, self._rows),
            compiler_options=compiler_options(),
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
          DataError: an image cannot be read, or has a label that is no class.
        """
        total = _Total(self._source, self._classes)
        running: collections.deque[dict[str, jax.Array]] = collections.deque()
        for batch in self._batches(self._source):
            running.append(self._step(values, self._put(batch))[0])
            if len(running) > AHEAD:
                progress(total.add(running.popleft()))
        while running:
            progress(total.add(running.popleft()))
        return total.result()

    def examples(self, values: Values, images: Sequence[ImageScore]) -> list[Example]:
        """What the model makes of a few images of the split, in that order; see `__call__`."""
        selection = _Selection(tuple((self._source, image.index) for image in images))
        predictions = {}
        for batch in self._batches(selection):
            sums, ids = self._step(values, self._put(batch))
            # By index, as the rows of several processes lie side by side.
            places = np.asarray(sums["index"]).tolist()
            predictions |= dict(zip(places, np.asarray(self._gather(ids)), strict=True))
        examples = []
        for place, score in enumerate(images):
            example = self._source[score.index]
            height, width = example["label"].shape
            prediction = predictions[place][:height, :width]
            examples.append(Example(score, example["image"], example["label"], prediction))
        return examples

    def _batches(self, source: Source) -> Iterator[dict[str, np.ndarray]]:
        return eval_batches(
            source,
            batch_size=self._batch_size,
            bucket=self._bucket,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            unreadable=self._unreadable,
        )

    def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return to_devices(batch, dict.fromkeys(batch, self._rows))


# ---------------------------------------------------------------------------- on the devices


def make_evaluation_step(
    model: nnx.Module, *, scales: Sequence[float], flip: bool, tile: int | None
) -> Callable[[Values, Batch], tuple[dict[str, jax.Array], jax.Array]]:
    """The function (values, batch of `eval_batches`) -> (sums, class ids `[B, H, W]`), to be jitted.

    Sums are small: `confusion` and the boundaries' are those of the whole batch; `index`, `miou`,
    `accuracy` and `highest` (the highest label) have an entry `[B]` for each image.
    """
    looks, classes = looks_of(scales, flip), mask_classes(model.config.num_classes)

    def step(values: Values, batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        module = with_values(model, values)
        module.eval()
        labels = batch["label"]
        pixels = normalize(batch["image"], model.config.preprocessing)
        pixels = jnp.where(_inside(labels.shape[1:], batch["size"])[..., None], pixels, 0)
        if tile is None:
            ids = segment(module, pixels, looks)
        else:
            # One after the other: large windows are why images are cut up.
            ids = in_windows(
                lambda windows: jax.lax.map(
                    lambda w: segment(module, w, looks), jnp.stack(windows)
                ),
                pixels,
                tile,
            )
        confusion = jax.vmap(lambda a, b: confusion_matrix(a, b, classes))(labels, ids)
        boundary, bounded = jax.vmap(lambda a, b, size: boundary_scores(a, b, size, classes))(
            labels, ids, batch["size"]
        )
        miou, accuracy = jax.vmap(_image_scores)(confusion)
        counted = jnp.where(labels == IGNORE_LABEL, jnp.zeros_like(labels), labels)
        sums = {
            "confusion": confusion.sum(0),
            "boundary_sum": boundary.sum(0),
            "boundary_count": bounded.sum(0, dtype=jnp.int32),
            "index": batch["index"],
            "miou": miou,
            "accuracy": accuracy,
            "highest": counted.max((1, 2)),
        }
        return sums, ids

    return step


def _inside(shape: tuple[int, int], size: jax.Array) -> jax.Array:
    """The pixels `[B, H, W]` that are not padding; size is `[B, 2]`."""
    rows = jnp.arange(shape[0])[:, None] < size[:, :1, None]
    columns = jnp.arange(shape[1]) < size[:, 1:, None]
    return rows & columns


def _image_scores(confusion: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mIoU over the classes that occur, pixel accuracy) of an image, NaN without a labelled pixel."""
    confusion = confusion.astype(jnp.float32)
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    iou = right / jnp.maximum(union, 1)
    return iou.sum() / (union > 0).sum(dtype=jnp.float32), right.sum() / confusion.sum()


# ---------------------------------------------------------------------------- on the host


class _Total:
    """Adds up the sums of batches, in 64 bits."""

    def __init__(self, source: Source, classes: int):
        self._source, self._classes = source, classes
        self._confusion = np.zeros((classes, classes), np.int64)
        self._boundary_sum = np.zeros(classes, np.float64)
        self._boundary_count = np.zeros(classes, np.int64)
        self._images: list[ImageScore] = []
        self._done = 0

    def add(self, sums: Mapping[str, jax.Array]) -> int:
        """Returns the number of images so far."""
        sums = {name: np.asarray(value) for name, value in sums.items()}
        there = sums["index"] >= 0
        if (odd := there & (sums["highest"] >= self._classes)).any():
            row = int(odd.argmax())
            raise DataError(
                f"{self._source.name(int(sums['index'][row]))} has the label {sums['highest'][row]}; the "
                f"model's classes are 0 to {self._classes - 1}, and {IGNORE_LABEL} is ignored"
            )
        self._confusion += sums["confusion"]
        self._boundary_sum += sums["boundary_sum"]
        self._boundary_count += sums["boundary_count"]
        for row in np.flatnonzero(there & ~np.isnan(sums["accuracy"])):
            index, miou, accuracy = (
                sums[name][row].item() for name in ("index", "miou", "accuracy")
            )
            self._images.append(ImageScore(index, self._source.name(index), miou, accuracy))
        self._done += int(there.sum())
        return self._done

    def result(self) -> Evaluation:
        return Evaluation(
            scores(self._confusion, self._boundary_sum, self._boundary_count),
            self._confusion,
            tuple(sorted(self._images, key=lambda image: (image.miou, image.index))),
        )


@dataclasses.dataclass(frozen=True)
class _Selection:
    """Examples of one source or of several, each by its source and its index there; see `Source`."""

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


# ---------------------------------------------------------------------------- the command


def evaluate_command(
    model: tyro.conf.Positional[Path],
    /,
    data: str,
    data_dir: Path | None = None,
    labels: str | None = None,
    split: Literal["val", "train", "all"] = "val",
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    output_stride: Literal[8, 16, 32] | None = None,
    batch_size: int = 4,
    bucket: int = 1,
    out: Path | None = None,
    examples: int = 4,
) -> int:
    """Evaluate a model: mIoU, accuracy, boundaries, and a row per class.

    Args:
      model: A model folder or a .safetensors file.
      data: A data set that has a name, or folder:PATH; `data` looks at one.
      data_dir: Where prepared data sets are; TFDS's own place by default.
      labels: The class of each id in a folder's label maps, such as 0=background,100=road,200=car; by
        default as the run was told in whose folder the model is.
      split: Which part of it; all of a folder that is not split.
      scales: Sizes to look at each image in; several are averaged.
      flip: Look at the mirror image too.
      tile: Cut images into overlapping windows of so many pixels, to save memory.
      output_stride: Another one than in training; ASPP's rates change with it, to see as far as before.
      batch_size: Images at a time.
      bucket: Pad images to multiples of this, so that few sizes compile.
      out: A folder to write to: scores.json, confusion.png, the best and the worst images.
      examples: How many of the best and of the worst.
    """
    check_local({"model": model, "out": out})
    keep_compiled_programs(unless_slower=True)
    network = load(model)
    if output_stride is not None:
        network = with_output_stride(network, output_stride)
    dataset = _open(data, data_dir, labels, model, network.config.class_names)
    for note in dataset.notes:
        Console().print(note, markup=False, highlight=False, soft_wrap=True)
    check_classes(network.config, dataset)
    parts = {"val": [dataset.val], "train": [dataset.train], "all": [dataset.train, dataset.val]}
    source = _Selection(tuple((part, i) for part in parts[split] for i in range(len(part))))
    mesh = make_mesh(MeshConfig())
    looks = {"scales": scales, "flip": flip, "tile": tile}
    evaluator = Evaluator(network, source, mesh, batch_size=batch_size, bucket=bucket, **looks)
    values = {name: variable[...] for name, variable in named_variables(network).items()}
    values = jax.device_put(values, NamedSharding(mesh, P()))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("evaluating", total=len(source))
        evaluation = evaluator(values, progress=lambda done: bar.update(task, completed=done))
    Console().print(report.table(evaluation, dataset.class_names))
    if out is not None:
        extremes = evaluation.extremes(examples)
        shown = evaluator.examples(values, tuple(extremes.values()))
        shown = dict(zip(extremes, shown, strict=True))
        asked = {"model": str(model), "data": data, "split": split, "output_stride": output_stride}
        report.write(out, evaluation, dataset.class_names, shown, asked | looks)
        Console().print(f"Written to {out}")
    return 0


def with_output_stride(model: nnx.Module, output_stride: int) -> nnx.Module:
    """The same weights in a model of another output stride: every layer reaches as far as in training.

    ASPP's rates change by the same factor, as the papers' do between training at 16 and evaluation at 8
    (Chen et al. 2017, sec. 4.1). A layer that loses its stride keeps its rate whatever the config's
    `first_block_dilation`: "same" would make it look twice as far as it was trained to.

    Raises:
      ValueError: the backbone cannot have that stride.
    """
    config, fields = model.config, {"output_stride": output_stride}
    if (rates := getattr(config.head, "rates", None)) is not None:
        before = config.backbone.output_stride
        fields["rates"] = tuple(max(1, rate * before // output_stride) for rate in rates)
    values = {name: variable[...] for name, variable in named_variables(model).items()}
    other = with_values(build(config.override(**fields), dtype=model.dtype), values)
    dilations = _dilations(model, output_stride)
    for path, conv in _convolutions(other).items():
        if conv.dilation != dilations[path]:
            conv.dilation = dilations[path]
            if conv.padding != "same":
                conv.padding = conv.dilation * (conv.kernel.shape[0] - 1) // 2
    return other


def _dilations(model: nnx.Module, output_stride: int) -> dict[tuple, int]:
    """The rate of each of the backbone's convolutions at another output stride, by its path."""
    here, stride = _convolutions(model), model.config.backbone.output_stride
    dilations = {path: conv.dilation for path, conv in here.items()}
    while stride != output_stride:
        stride = stride // 2 if output_stride < stride else stride * 2
        there = _convolutions(build(model.config.override(output_stride=stride)))
        for path, conv in there.items():
            # The one whose stride comes or goes reads pixels as far apart as before.
            if conv.stride == here[path].stride:
                dilations[path] = max(1, dilations[path] * conv.dilation // here[path].dilation)
        here = there
    return dilations


def _convolutions(model: nnx.Module) -> dict[tuple, Conv]:
    """Of the backbone, by path; those of 1x1 have no rate."""
    parts = nnx.iter_modules(model.backbone)
    return {
        path: part for path, part in parts if isinstance(part, Conv) and part.kernel.shape[0] > 1
    }


def check_classes(config: Config, dataset: Dataset) -> None:
    """Raises DataError where a model's classes are not those of the data set, in the same order.

    Names may differ; what is refused is another number of them, and the same names in another order.
    """
    ours, theirs = config.class_names or (), dataset.class_names
    classes = mask_classes(config.num_classes)
    if classes != len(theirs):
        raise DataError(
            f"the model must have the classes of the data set: it has {classes} "
            f"({', '.join(ours) or 'without names'}), {dataset.name} has {len(theirs)} "
            f"({', '.join(theirs)})"
        )
    ours, theirs = ([_plain(name) for name in names] for names in (ours, theirs))
    if sorted(ours) == sorted(theirs) and ours != theirs:
        raise DataError(
            f"the model must have the classes of the data set in the same order: its are "
            f"{', '.join(config.class_names)}; those of {dataset.name}, {', '.join(dataset.class_names)}"
        )


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _open(
    data: str,
    data_dir: Path | None,
    labels: str | None,
    model: Path,
    class_names: tuple[str, ...] | None,
) -> Dataset:
    """The data set, with the classes of training where neither the command nor the folder names any."""
    folder = folder_of(data)
    if folder is None or labels is not None:
        return open_dataset(data, data_dir=data_dir, labels=labels)
    named = (folder / CLASS_FILE).is_file()
    trained_on, labels = _training_data(model)
    if labels is not None and (not named or folder.resolve() == trained_on):
        note = f"Ids are the classes that they were in training: {labels}."
        dataset = open_dataset(data, labels=labels)
    elif class_names is not None and not named:
        note = f"The folder names no classes, they are taken for the model's: {', '.join(class_names)}."
        dataset = open_dataset(data, class_names=class_names)
    else:
        return open_dataset(data)
    return dataclasses.replace(dataset, notes=(note, *dataset.notes))


def _training_data(model: Path) -> tuple[Path | None, str | None]:
    """The folder that a run learnt from, and its option `labels`, where `model` is in a run's folder."""
    try:
        data = json.loads((model.parent / "config.json").read_text())["data"]
        folder, labels = folder_of(data["name"]), data["labels"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, None
    return folder and folder.resolve(), labels
