"""The command `deeplab-train evaluate`: a model and a data set -> scores, and pictures of the errors."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from deeplab_jax import Config, SegmentationModel, load
from deeplab_jax.checkpoint import RUN_MODEL, model_path
from deeplab_jax.command import keep_compiled_programs
from deeplab_jax.hub import repository_of
from deeplab_jax.model import named_values, with_values
from deeplab_jax.paths import check_local
from deeplab_jax.preprocessing import Preprocessing
from deeplab_jax.progress import progress
from train import report
from train.config import MeshConfig
from train.data import DataError, Dataset, Selection, open_dataset
from train.data.class_table import CLASS_FILE
from train.data.descriptions import RECORDS, folder_of
from train.data.pairs import Unpaired
from train.data.pictures import Bands, Pictures
from train.evaluate import Evaluator, Values
from train.output_stride import with_output_stride
from train.place import as_path
from train.report import Evaluation
from train.run_folder import checkpoints_of, chosen, is_run, model_of, scores_of
from train.sharding import make_mesh
from train.steps import inference_values
from train.targets import in_words, label_map_classes, label_map_names, scored_names
from train.watch import watch_run


def evaluate_command(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    data: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    data_dir: Path | None = None,
    labels: str | None = None,
    keys: str | None = None,
    unpaired: Unpaired = "stop",
    resize_labels: bool = False,
    split: Literal["val", "train", "all"] = "val",
    step: str | None = None,
    watch: bool = False,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    output_stride: Literal[8, 16, 32] | None = None,
    batch_size: int = 4,
    out: Path | None = None,
    examples: int = 4,
) -> int:
    """Evaluate a model: mIoU, Dice, accuracy, boundary F-score, and a row per class.

    Args:
      model: A model folder, a run's folder, a .safetensors file or hf://USER/NAME.
      data: A data set's name, folder:PATH, tfds:NAME, hf:ORG/NAME, hf:PATH or webdataset:PATTERN;
        `deeplab-train data` shows one. By default what the model was trained on, if it is in its run's
        folder.
      data_dir: The folder of prepared data sets; by default that of training, or TFDS's own.
      labels: The class of each id in the label maps of a data set that has no name here, such as
        0=background,100=road,200=car; by default what the model was trained with, if it is in its run's
        folder.
      keys: The features of tfds: and hf: that are picture, label map and (optional) name, or the endings of
        webdataset:; by default what the model was trained with, likewise.
      unpaired: Stop at pictures of a folder without label map, and label maps without picture, or skip
        them; by default as in training, likewise.
      resize_labels: Resize label maps of a folder that are of another size than their pictures, in the same
        proportion; likewise.
      split: The split to evaluate on; `all` is for folders without splits.
      step: Of a run: best (by mIoU in validation), latest, or the number of a checkpoint that is kept; by
        default the run's model, and of a run that has none yet the best checkpoint.
      watch: Of a run that goes on: evaluate each checkpoint when it is there, until the run's last. Scores
        and the best model are kept in RUN/watched.
      scales: Sizes at which each image is predicted; several are averaged.
      flip: Predict the mirror image too, and average.
      tile: Cut images into overlapping windows of so many pixels, to save memory.
      output_stride: Another output stride than in training; ASPP's rates change with it, so that it covers
        the same area.
      batch_size: Number of images at a time.
      out: The folder to write to: scores.json, confusion.png, the best and the worst images.
      examples: Number of images of each, the best and the worst.
    """
    check_local({"out": out})
    keep_compiled_programs(unless_slower=True)
    found = model if repository_of(model) is None else model_path(model)  # which is no run
    if watch and not is_run(found):
        raise ValueError(f"--watch takes a run's folder, {model} is none")
    network, origin, values = _model(found, step, watch)
    if output_stride is not None:
        network = with_output_stride(network, output_stride)
    options = {"unpaired": unpaired, "resize_labels": resize_labels}
    dataset = open_checked(network.config, origin, data, data_dir, labels, keys, **options)
    if told := in_words(network.config, dataset.class_names):
        Console(emoji=False).print(told, markup=False, highlight=False, soft_wrap=True)
    parts = {"val": [dataset.val], "train": [dataset.train], "all": [dataset.train, dataset.val]}
    source = Selection(tuple((part, i) for part in parts[split] for i in range(len(part))))
    mesh = make_mesh(MeshConfig())
    views = {"scales": scales, "flip": flip, "tile": tile}
    scored = scored_names(network.config, dataset.class_names)
    evaluator = Evaluator(
        network,
        source,
        mesh,
        batch_size=batch_size,
        overlapping=dataset.overlapping,
        **views,
    )

    def evaluate(values: Values, out: Path | None, at_step: int | None = None) -> Evaluation:
        values = jax.device_put(dict(values), NamedSharding(mesh, P()))
        with progress("evaluating", len(source)) as done:
            evaluation = evaluator(values, progress=done)
        Console(emoji=False).print(report.table(evaluation, scored))
        if out is not None:
            extremes = evaluation.extremes(examples)
            shown = evaluator.examples(values, tuple(extremes.values()))
            shown = dict(zip(extremes, shown, strict=True))
            asked = {"model": str(model), "data": dataset.name, "split": split, "step": at_step}
            asked |= {"output_stride": output_stride} | views
            report.write(out, evaluation, scored, shown, asked)
            Console(emoji=False).print(f"Written to {out}")
        return evaluation

    if watch:
        watch_run(model, lambda values, n: evaluate(values, out and out / str(n), n))
    else:
        evaluate(values, out)
    return 0


def _model(path: Path, step: str | None, watch: bool) -> tuple[SegmentationModel, Path, Values]:
    """The model that is meant, the path by which its training is found, and its values, none to watch."""
    if step is not None and not is_run(path):
        raise ValueError(f"--step takes a run's folder, {path} is none")
    if is_run(path) and (watch or step is not None or not (as_path(path) / RUN_MODEL).is_dir()):
        network = model_of(path)
        if watch:
            return network, path / RUN_MODEL, {}
        with checkpoints_of(path) as checkpoints:
            number, why = chosen(step or "best", checkpoints.steps(), scores_of(path))
            values = inference_values(checkpoints.restore_as_saved(number))
        Console(emoji=False).print(
            f"Of {path}: {why}.", markup=False, highlight=False, soft_wrap=True
        )
        return with_values(network, values), path / RUN_MODEL, values
    network = load(path)
    return network, training_path(path), named_values(network)


def training_path(path: Path) -> Path:
    """The path by which the training of the model at `path` is found."""
    return path / RUN_MODEL if is_run(path) else path


def open_checked(
    config: Config,
    origin: Path,
    data: str | None,
    data_dir: Path | None,
    labels: str | None,
    keys: str | None,
    **options: Any,
) -> Dataset:
    """The data set for a model, of which it is said what is assumed.

    Args:
      origin: see `training_path`; the others are those of `evaluate_command`.

    Raises DataError where model and data set do not fit.
    """
    bands, names = _bands(config.preprocessing), label_map_names(config)
    dataset = open_for_model(data, data_dir, labels, keys, origin, names, bands=bands, **options)
    for note in dataset.notes:
        Console(emoji=False).print(note, markup=False, highlight=False, soft_wrap=True)
    check_classes(config, dataset)
    check_pictures(config.preprocessing, dataset.pictures)
    return dataset


def check_classes(config: Config, dataset: Dataset) -> None:
    """Raises DataError where a model's classes are not those of the data set, in the same order.

    Names may differ; what is refused is another number of them, and the same names in another order.
    """
    if dataset.overlapping and not config.multilabel:
        raise DataError(
            f"the model gives a pixel one class, in {dataset.name} it may have several labels: "
            f"{', '.join(dataset.class_names[1:])}"
        )
    ours, theirs = label_map_names(config) or (), dataset.class_names
    classes = label_map_classes(config)
    if classes != len(theirs):
        first = ", the first of which is what has none of its labels" if config.multilabel else ""
        raise DataError(
            f"the model must have the classes of the data set{first}: it has {classes} "
            f"({', '.join(ours) or 'without names'}), {dataset.name} has {len(theirs)} "
            f"({', '.join(theirs)})"
        )
    if config.multilabel:  # whatever its first class is called
        ours, theirs = ours[1:], theirs[1:]
    plain, other = ([_plain(name) for name in names] for names in (ours, theirs))
    if sorted(plain) == sorted(other) and plain != other:
        raise DataError(
            f"the model must have the classes of the data set in the same order: its are "
            f"{', '.join(ours)}; those of {dataset.name}, {', '.join(theirs)}"
        )


def check_pictures(preprocessing: Preprocessing, pictures: Pictures) -> None:
    """Raises DataError where a model takes other pictures than those of the data set."""
    ours, theirs = (
        (len(preprocessing.mean), preprocessing.pixels),
        (pictures.channels, pictures.pixels),
    )
    if ours != theirs:
        raise DataError(
            f"the model takes {ours[0]} bands of {ours[1]}, the data set's pictures have {theirs[0]} of "
            f"{theirs[1]}"
        )


def _bands(preprocessing: Preprocessing) -> Bands | None:
    """The bands of a data set that a model is evaluated on."""
    return None if preprocessing.is_rgb else preprocessing.bands or "all"


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


_ON_REQUEST = ("unpaired", "resize_labels")
"""Options of the data of a training that hold for its evaluation too."""


def open_for_model(
    data: str | None,
    data_dir: Path | None,
    labels: str | None,
    keys: str | None,
    model: Path,
    class_names: tuple[str, ...] | None,
    **options: Any,
) -> Dataset:
    """Opens the data set, with the classes of training where neither the command nor the data names any.

    Without a name it is that of training, and what is to be done about its files is what was done then.
    """
    trained = _training_data(model)
    if data is None:
        if not trained["name"]:
            raise DataError(
                f"name a data set with --data: {model} is in no run's folder, which would say what it was "
                "trained on"
            )
        data = trained["name"]
        options |= {name: trained[name] for name in _ON_REQUEST if trained.get(name)}
    if data_dir is None and trained["name"] == data and trained["data_dir"] is not None:
        data_dir = Path(trained["data_dir"])
    if data.startswith(RECORDS):
        return _open_as_trained(data, data_dir, labels, keys, options, trained)
    folder = folder_of(data)
    if folder is None or labels is not None or keys is not None:
        return open_dataset(data, data_dir=data_dir, labels=labels, keys=keys, **options)
    labels, trained_on = trained["labels"], folder_of(trained["name"])
    same_folder = trained_on is not None and folder.resolve() == trained_on.resolve()
    named = (folder / CLASS_FILE).is_file()
    if labels is not None and trained_on is not None and (not named or same_folder):
        note = f"Ids are the classes that they were in training: {labels}."
        dataset = open_dataset(data, labels=labels, **options)
    elif class_names is not None and not named:
        note = f"The folder names no classes; the model's are used: {', '.join(class_names)}."
        dataset = open_dataset(data, class_names=class_names, **options)
    else:
        return open_dataset(data, **options)
    return dataclasses.replace(dataset, notes=(note, *dataset.notes))


def _open_as_trained(
    data: str,
    data_dir: Path | None,
    labels: str | None,
    keys: str | None,
    options: Mapping[str, Any],
    trained: Mapping[str, Any],
) -> Dataset:
    """Opens a data set of records, as it was in training where the model was trained on it."""
    class_names, note = None, None
    if trained["name"] == data:
        keys = keys or trained["keys"]
        if labels is None:
            labels, class_names = trained["labels"], trained["class_names"]
            if said := labels or ", ".join(class_names or ()):
                note = f"Ids are the classes that they were in training: {said}."
    dataset = open_dataset(
        data,
        data_dir=data_dir,
        class_names=class_names and tuple(class_names),
        labels=labels,
        keys=keys,
        **options,
    )
    return dataclasses.replace(dataset, notes=(*filter(None, (note,)), *dataset.notes))


def _training_data(model: Path) -> dict[str, Any]:
    """The options `data` of the run that a model is of; nothing but None if it is in no run's folder."""
    options = dict.fromkeys(("labels", "keys", "class_names", "data_dir"))
    try:
        config = json.loads((as_path(model).parent / "config.json").read_text())
        data = options | config["data"]
        folder_of(data["name"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return options | {"name": ""}
    return data
