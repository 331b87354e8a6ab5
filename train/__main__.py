"""The command `deeplab-train`: evaluate."""

import json
import os
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deeplab_jax.checkpoint import load
from deeplab_jax.command import run
from train.evaluate import evaluate, find_pairs
from train.metrics import Scores, scores


def evaluate_command(
    model: tyro.conf.Positional[Path],
    /,
    images: Path,
    labels: Path,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    json_file: Path | None = None,
) -> int:
    """Hold a model's masks against labels: mIoU, accuracy and a row per class.

    Args:
        model: A model folder or a .safetensors file.
        images: The folder of pictures.
        labels: The folder of label PNGs with the pictures' names: grey or palette, the pixels are class
            ids, 255 is ignored.
        scales: Sizes to look at each picture in; several are averaged.
        flip: Look at the mirror image too.
        json_file: Write scores and confusion matrix there too.
    """
    network = load(model)
    pairs = find_pairs(images, labels)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("evaluating", total=len(pairs))
        confusion = evaluate(
            network,
            pairs,
            scales=scales,
            flip=flip,
            progress=lambda done: bar.update(task, completed=done),
        )
    result = scores(confusion)
    names = network.config.class_names or tuple(map(str, range(network.config.num_classes)))
    Console().print(_table(result, names))
    if json_file is not None:
        _write(json_file, result, names, confusion)
    return 0


def _table(result: Scores, names: tuple[str, ...]) -> Table:
    table = Table("class", box=None)
    for column in ("IoU", "accuracy"):
        table.add_column(column, justify="right")
    for name, iou, accuracy in zip(names, result.iou, result.accuracy, strict=True):
        table.add_row(name, *("-" if np.isnan(v) else f"{v:.4f}" for v in (iou, accuracy)))
    table.add_section()
    table.add_row("mean", f"{result.miou:.4f}", f"{result.mean_accuracy:.4f}")
    table.add_row("all pixels", "", f"{result.pixel_accuracy:.4f}")
    return table


def _write(path: Path, result: Scores, names: tuple[str, ...], confusion: np.ndarray) -> None:
    data = {
        "miou": result.miou,
        "mean_accuracy": result.mean_accuracy,
        "pixel_accuracy": result.pixel_accuracy,
        "iou": {
            name: None if np.isnan(v) else float(v)
            for name, v in zip(names, result.iou, strict=True)
        },
        "confusion": confusion.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(beside, path)


def main() -> None:
    """Runs the command."""
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {"evaluate": evaluate_command},
            prog="deeplab-train",
            description="Evaluation of segmentation models.",
        )
    )


if __name__ == "__main__":
    main()
