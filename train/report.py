"""The report of an evaluation: tables, a picture of the confusions, images.

Names are those of the classes that have scores, see `targets.scored_names`.
"""

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from deeplab_jax.images import write_image
from deeplab_jax.visualize import overlay, overlay_of_labels, palette
from deeplab_jax.whole_file import write_file
from train.metrics import Scores, tallies
from train.targets import separate


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """An image of a split: mIoU over the classes that occur in it, and the share of right pixels."""

    index: int
    name: str
    miou: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      scores: scores of the whole split.
      confusion: pixels of each label (row) that were predicted as each class (column), int64; of several
        labels for a pixel, `[labels, 2, 2]`, see `metrics.label_confusions`.
      images: those with a labelled pixel, the worst first.
    """

    scores: Scores
    confusion: np.ndarray
    images: tuple[ImageScore, ...]

    def means(self) -> dict[str, float]:
        """The mean scores, by name."""
        names = ("miou", "mean_dice", "mean_accuracy", "pixel_accuracy", "mean_boundary")
        return {name: getattr(self.scores, name) for name in names}

    def extremes(self, count: int) -> dict[str, ImageScore]:
        """The `count` worst images, "worst_1" being the worst, and as many of the best, none twice."""
        worst = self.images[:count]
        best = self.images[len(worst) :][::-1][:count]
        return {
            f"{kind}_{place}": score
            for kind, scores in (("worst", worst), ("best", best))
            for place, score in enumerate(scores, 1)
        }


@dataclasses.dataclass(frozen=True)
class Example:
    """An image with its label and its prediction.

    Attributes:
      score: of the image.
      image: uint8 `[H, W, 3]`, RGB.
      label: class ids `[H, W]`, or `[H, W, labels]`.
      prediction: class ids `[H, W]`; of a model of several labels `[H, W, labels]`, see `Prediction`.
    """

    score: ImageScore
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def write(
    folder: Path,
    evaluation: Evaluation,
    class_names: Sequence[str],
    examples: Mapping[str, Example],
    options: Mapping[str, Any],
) -> None:
    """Writes the report into a folder, which is created if missing.

    scores.json, confusion.png, and a JPEG for each example, in which the image stands beside its label
    and the prediction.

    Args:
      examples: by the names of their files, see `Evaluation.extremes`.
      options: how the evaluation was done, for scores.json.

    Raises:
      OSError: something cannot be written; every file is whole or as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "scores.json", to_json(evaluation, class_names, options))
    write_image(folder / "confusion.png", confusion_picture(evaluation.confusion, class_names))
    for name, example in examples.items():
        write_image(folder / f"{name}.jpg", comparison(example, class_names), quality=92)


# ---------------------------------------------------------------------------- numbers


def table(evaluation: Evaluation, class_names: Sequence[str]) -> Table:
    """A row for each class, and the means; of a binary model the foreground's row comes first."""
    result, confusion = evaluation.scores, evaluation.confusion
    _, labelled, _ = tallies(confusion)
    share = 100 * labelled / np.maximum(1, confusion.sum((-2, -1)))
    shown = Table("class", box=None)
    for column in ("IoU", "Dice", "accuracy", "boundary F", "pixels"):
        shown.add_column(column, justify="right")
    columns = (result.iou, result.dice, result.accuracy, result.boundary)
    for i in np.roll(np.arange(len(class_names)), -result.first):
        values = [_number(column[i]) for column in columns]
        shown.add_row(class_names[i], *values, f"{share[i]:.2f} %")
    shown.add_section()
    if len(class_names) - result.first > 1:
        means = (result.miou, result.mean_dice, result.mean_accuracy, result.mean_boundary)
        shown.add_row("mean", *map(_number, means), style="bold")
    shown.add_row("all pixels", "", "", _number(result.pixel_accuracy))
    return shown


def to_json(evaluation: Evaluation, class_names: Sequence[str], options: Mapping[str, Any]) -> str:
    """All numbers as JSON, with null for those that are undefined."""
    result = evaluation.scores
    columns = {name: getattr(result, name) for name in ("iou", "dice", "accuracy", "boundary")}
    data = {
        **options,
        **{name: _finite(value) for name, value in evaluation.means().items()},
        "classes": [
            {"name": name} | {column: _finite(values[i]) for column, values in columns.items()}
            for i, name in enumerate(class_names)
        ],
        "confusion": evaluation.confusion.tolist(),
        "images": [dataclasses.asdict(image) for image in evaluation.images],
    }
    return json.dumps(data, indent=1) + "\n"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# ---------------------------------------------------------------------------- confusions

_FEW = 30
"""Classes whose confusions have their numbers written into them."""


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """The confusions as shares of each label's pixels: rows are labels, columns predictions.

    Of several labels for a pixel, a row is a label, and the columns are what of its pixels was found and
    missed, and what of all others was taken for it.
    """
    # A second, which nothing else needs; the class itself, as pyplot would look for a screen.
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    labelled = confusion.sum(-1, keepdims=True)
    shares = np.ma.masked_invalid(
        np.where(labelled > 0, 100 * confusion / np.maximum(labelled, 1), np.nan)
    )
    columns, title = class_names, "Where the pixels of each class went"
    words = {"xlabel": "predicted", "ylabel": "labelled"}
    if shares.ndim == 3:
        shares = np.ma.stack([shares[:, 1, 1], shares[:, 1, 0], shares[:, 0, 1]], axis=1)
        columns, title = ("found", "missed", "false alarm"), "Pixels with and without each label"
        words = {"xlabel": "", "ylabel": "label"}
    count = len(class_names)
    cell = 0.42 if count <= _FEW else 0.15  # inches
    wide, high = cell * len(columns), cell * count
    figure = Figure((wide + 2.6, high + 2.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    # The root, so that a confusion of a few percent is seen.
    axes.set_facecolor("0.9")  # of classes that are not labelled
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(count), class_names)
    axes.tick_params(labelsize=9 if count <= _FEW else 7, length=0)
    axes.set(title=title, **words)
    bar = figure.colorbar(shown, shrink=0.6, ticks=(0, 1, 5, 20, 50, 100), format="%g %%")
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    if count <= _FEW:
        for (row, column), share in np.ndenumerate(shares):
            if share is not np.ma.masked and share >= 0.5:
                color = "white" if share > 30 else "0.2"
                axes.text(
                    column, row, f"{share:.0f}", ha="center", va="center", size=8, color=color
                )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


# ---------------------------------------------------------------------------- images

_SIDES = (320, 720)
"""Pixels between which the longer side of a panel is brought."""


def comparison(example: Example, class_names: Sequence[str]) -> Image.Image:
    """An image, its label and the prediction side by side; under them a caption and a legend."""
    image = _sized(example.image)
    label, prediction = map(_sized_ids, (example.label, example.prediction))
    several, draw = prediction.ndim == 3, overlay
    colors = palette(len(class_names), class_names)
    if several:  # black is for what has none
        colors, draw = palette(len(class_names) + 1)[1:], overlay_of_labels
    wanted = np.asarray(separate(label, prediction.shape)) == 1 if several else label
    right = draw(
        np.concatenate([image, image], axis=1),
        np.concatenate([wanted, prediction], axis=1),
        colors,
        class_names=class_names,
    )
    height, width = image.shape[:2]
    score, font = example.score, ImageFont.load_default(max(13, right.width // 60))
    lines = (
        _from_its_end(score.name, font, width - 16),
        f"mIoU {score.miou:.3f}, {100 * score.accuracy:.1f} % of pixels right",
        "image | label | prediction",
    )
    below = height + 16 + round(1.6 * font.size * len(lines))
    canvas = Image.new("RGB", (width + right.width, max(right.height, below)), (250, 250, 250))
    canvas.paste(Image.fromarray(image))
    canvas.paste(right, (width, 0))
    draw = ImageDraw.Draw(canvas)
    for seam in (width, 2 * width):
        draw.line((seam, 0, seam, height - 1), (250, 250, 250), 3)
    spacing = 0.4 * font.size
    draw.multiline_text((8, height + 8), "\n".join(lines), (45, 45, 45), font, spacing=spacing)
    return canvas


def _from_its_end(name: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a name as fits; the end of a path tells most."""
    while font.getlength(name) > width and len(name) > 4:
        name = "..." + name[4:] if name.startswith("...") else "..." + name[3:]
    return name


def _shown_size(shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) at which an image is not too small to see and not too large to open."""
    longest = max(shape[:2])
    factor = min(max(longest, _SIDES[0]), _SIDES[1]) / longest
    height, width = (max(1, round(side * factor)) for side in shape[:2])
    return height, width


def _sized(image: np.ndarray) -> np.ndarray:
    """An image at that size."""
    height, width = _shown_size(image.shape)
    if height == image.shape[0]:
        return image
    how = Image.LANCZOS if height < image.shape[0] else Image.NEAREST
    return np.asarray(Image.fromarray(image).resize((width, height), how))


def _sized_ids(ids: np.ndarray) -> np.ndarray:
    """Ids, or labels of which a pixel may have several, at that size, by nearest neighbour."""
    rows, columns = (
        ((np.arange(shown) + 0.5) * side / shown).astype(np.intp)
        for shown, side in zip(_shown_size(ids.shape), ids.shape[:2], strict=True)
    )
    return ids[rows][:, columns]
