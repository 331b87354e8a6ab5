"""The command `deeplab-train quantize`: a model and a data set -> ONNX in 8 bits, and what that costs."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deeplab_jax import Config, load
from deeplab_jax.beside import folder_beside, remove_leftovers
from deeplab_jax.checkpoint import check_parent
from deeplab_jax.export import SMALLEST, Interface, export, module_of
from deeplab_jax.progress import progress
from train.data import DataError, Dataset, Source
from train.data.pairs import Unpaired
from train.evaluate import confusion_of, no_such_class
from train.evaluate_command import open_checked, training_path
from train.metrics import IGNORE_LABEL, Scores, scores
from train.targets import first_scored, label_map_classes, scored_names

LIMIT = 0.01
"""Of mIoU: what 8 bits may cost."""

Run = Callable[[np.ndarray], np.ndarray]
"""A program: a batch of images to the class of every pixel."""


def quantize_command(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.onnx")],
    /,
    data: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    data_dir: Path | None = None,
    labels: str | None = None,
    keys: str | None = None,
    unpaired: Unpaired = "stop",
    resize_labels: bool = False,
    calibration: int = 300,
    force: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a model as ONNX in 8 bits, and measure what that costs in mIoU.

    The file takes uint8 pictures of any size, `[B, H, W, C]`, and gives the class of every pixel. It is
    calibrated on pictures of the training split; it and the model in float32 are then run by onnxruntime on
    the validation split. Where mIoU falls by more than a point, nothing is written and the status is 1.

    Args:
      model: A model folder, a .safetensors file, a run's folder or hf://USER/NAME.
      out: The file to write.
      data: A data set's name, or as in deeplab-train evaluate; by default what the model was trained on, if
        it is in its run's folder.
      data_dir: The folder of prepared data sets; by default that of training, or TFDS's own.
      labels: The class of each id in the label maps; by default as in training, likewise.
      keys: The features of tfds: and hf: or the endings of webdataset:; likewise.
      unpaired: Stop at pictures of a folder without label map, and label maps without picture, or skip
        them; likewise.
      resize_labels: Resize label maps of a folder that are of another size than their pictures; likewise.
      calibration: Number of pictures of the training split to calibrate on, spread over all of it.
      force: Write the file whatever it costs.
      overwrite: Replace a file that is there.
    """
    _check(out, calibration, overwrite=overwrite)
    int8, onnx_file = (
        module_of(f"deeplab_jax.export.{name}", "a model in 8 bits", "int8")
        for name in ("int8", "onnx_file")
    )
    network = load(model)
    config = network.config
    options = {"unpaired": unpaired, "resize_labels": resize_labels}
    origin = training_path(model)
    dataset = open_checked(config, origin, data, data_dir, labels, keys, **options)
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(out) as beside:
        whole, small = beside / "float32.onnx", beside / out.name
        export(network, whole, Interface(images="pixels", output="classes"))
        int8.quantize(whole, _Pictures(dataset.train, calibration), small)
        runs = [onnx_file.runner(program) for program in (whole, small)]
        before, after = _scores(runs, dataset, config)
        console.print(_table(before, after, scored_names(config, dataset.class_names)))
        drop = before.miou - after.miou
        console.print(
            f"mIoU {before.miou:.3f} in float32, {after.miou:.3f} in 8 bits, of {len(dataset.val)} images "
            f"that it was not calibrated on. {whole.stat().st_size / 1e6:.1f} MB became "
            f"{small.stat().st_size / 1e6:.1f}."
        )
        if not drop <= LIMIT and not force:
            why = (
                "No pixel has a label, so that there is no mIoU to compare"
                if math.isnan(drop)
                else f"8 bits cost {100 * drop:.1f} points of mIoU, more than {100 * LIMIT:.0f}"
            )
            console.print(
                f"{why}: nothing was written. Calibrating on more pictures may help (--calibration), and "
                "--force writes the file all the same"
            )
            return 1
        os.replace(small, out)
    remove_leftovers(out)
    console.print(f"Written to {out}", markup=False)
    console.print(onnx_file.usage(out), markup=False, style="dim")
    return 0


def _check(out: Path, calibration: int, *, overwrite: bool) -> None:
    """Raises ValueError for what cannot be, before the work begins."""
    check_parent(out)
    if out.suffix != ".onnx":
        raise ValueError(f"the file's name must end in .onnx, got {out}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise ValueError(f"{out} exists; --overwrite replaces it")
    if calibration < 1:
        raise ValueError(f"--calibration must be at least 1, got {calibration}")


class _Pictures(Sequence[np.ndarray]):
    """Some pictures of a split, spread over all of it, each as a batch `[1, H, W, C]`."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._indices = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return _image(self._source, int(self._indices[index]))[0]


def _image(source: Source, index: int) -> tuple[np.ndarray, np.ndarray]:
    """An image `[1, H, W, C]` and its label map. Raises DataError for one that the program cannot take."""
    example = source[index]
    height, width = example["image"].shape[:2]
    if min(height, width) < SMALLEST:
        raise DataError(
            f"{source.name(index)} is {width} x {height}: the program takes images of {SMALLEST} x "
            f"{SMALLEST} and more"
        )
    return example["image"][None], example["label"]


def _scores(runs: Sequence[Run], dataset: Dataset, config: Config) -> list[Scores]:
    """Those of each program on the validation split. Raises DataError for a label above the classes."""
    source, confusion = dataset.val, confusion_of(config)
    highest = 1 if dataset.overlapping else label_map_classes(config) - 1
    totals = [np.int64(0)] * len(runs)
    with progress("comparing", len(source)) as done:
        for index in range(len(source)):
            image, labels = _image(source, index)
            if (found := labels[labels != IGNORE_LABEL].max(initial=0)) > highest:
                raise no_such_class(source.name(index), found, highest)
            for number, run in enumerate(runs):
                totals[number] = totals[number] + np.asarray(
                    confusion(labels, run(image)[0]), np.int64
                )
            done(index + 1)
    none = np.zeros(len(totals[0]))
    return [scores(total, none, none, first=first_scored(config.num_classes)) for total in totals]


def _table(before: Scores, after: Scores, class_names: Sequence[str]) -> Table:
    """A row for each class, and the mean."""
    shown = Table("class", box=None)
    for column in ("IoU float32", "int8", "change"):
        shown.add_column(column, justify="right")
    rows = [
        *zip(class_names, before.iou, after.iou, strict=True),
        ("mean", before.miou, after.miou),
    ]
    for name, whole, small in rows:
        shown.add_row(escape(name), f"{whole:.4f}", f"{small:.4f}", f"{small - whole:+.4f}")
    return shown
