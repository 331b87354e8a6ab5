"""Class ids and overlays of any number of picture files, written to a folder."""

import functools
import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from deeplab_jax import visualize
from deeplab_jax.config import mask_classes
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.images import ImageError, image_size, read_image, write_image
from deeplab_jax.model import SegmentationModel
from deeplab_jax.paths import check_local
from deeplab_jax.predict import Plan, check_options, class_ids, config_of, evaluator, make_plan

_BATCHES_AHEAD = 2  # read while one runs
_SAVES_WAITING = 16
_JPEG_SIDE = 65500  # pixels; the format has no more than 65535
_MANY_SIZES = 16

T = TypeVar("T")
log = logging.getLogger(__name__)


def predict_folder(
    model: SegmentationModel,
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    batch_size: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlay: bool = True,
    alpha: float = 0.5,
    progress: bool = True,
) -> list[ImageError]:
    """Segments pictures into a folder: `NAME.png` of class ids, `NAME_overlay.jpg` to look at.

    The ids are at the picture's size and as `visualize.save_labels` writes them; a file that was
    there is replaced, never left half written. `output_names` says what NAME is.

    Pictures of the same size run together. Each size compiles anew, which takes seconds: a folder
    in which all sizes differ takes that long per picture, as padding them to common sizes would
    change classes near the border. With `tile`, those that are larger both ways share a program.

    Args:
      images: files, see `images.find_images`.
      out: is made if it is not there; must not be the folder of any picture.
      batch_size: pictures of a size that run at once; None is 8, or what fits `MEMORY_LIMIT`.
      scales, flip, tile: see `predict`.
      overlay: False writes no `NAME_overlay.jpg`.
      alpha: strength of the overlay's tint.
      progress: False shows no progress bar on standard error.

    Returns:
      What was wrong with the pictures that could not be read, in their order; all others are done.

    Raises:
      OSError: a result cannot be written.
      ValueError: for wrong options, or an `out` in which results would mix with the pictures.
    """
    config = config_of(model)
    check_options(scales=scales, tile=tile, batch_size=batch_size)
    if len(config.preprocessing.mean) != 3:
        raise ValueError(
            f"picture files have 3 channels, this model takes {len(config.preprocessing.mean)}; "
            "give `predict` arrays"
        )
    paths = list({os.path.abspath(path): Path(path) for path in images}.values())
    targets = _targets(paths, Path(out))
    run = evaluator(fold_batch_norm(model), scales, flip)
    colors = visualize.palette(mask_classes(config.num_classes), config.class_names)

    def save(path: Path, picture: np.ndarray, labels: np.ndarray) -> None:
        target = targets[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        visualize.save_labels(f"{target}.png", labels, colors)
        if overlay:
            shown = visualize.overlay(
                picture, labels, colors, alpha=alpha, class_names=config.class_names
            )
            if max(shown.size) > _JPEG_SIDE:
                shown.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
            # Colour at full resolution: at half of it outlines, a pixel wide, would smear.
            write_image(Path(f"{target}_overlay.jpg"), shown, quality=92, subsampling=0)

    plan = functools.partial(
        make_plan,
        num_classes=config.num_classes,
        scales=scales,
        tile=tile,
        batch_size=batch_size,
    )
    failures: dict[Path, ImageError] = {}
    saving: deque[Future] = deque()
    threads = ThreadPoolExecutor()
    try:
        with _progress_bar(progress) as bar:
            task = bar.add_task("predicting", total=len(paths))
            for path, result in _results(threads, run, paths, plan):
                if isinstance(result, ImageError):
                    failures[path] = result
                    bar.advance(task)
                    continue
                saving.append(threads.submit(save, path, *result))
                # Wait where pictures would pile up faster than they are saved.
                while saving and (saving[0].done() or len(saving) > _SAVES_WAITING):
                    saving.popleft().result()
                    bar.advance(task)
            for saved in saving:
                saved.result()
                bar.advance(task)
    finally:
        threads.shutdown(cancel_futures=True)
    return [failures[path] for path in paths if path in failures]


# ---------------------------------------------------------------------------- names


def output_names(paths: Sequence[Path]) -> list[Path]:
    """What to call the results of each picture, without ending: never two the same.

    The first of these that gives all pictures different names, also where case does not count:
    `photo`; `photo.jpg`; and either below the folders that the pictures do not have in common, as
    in `left/photo` and `right/photo`.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([path.parent for path in absolute]) if paths else ""
    below = [path.relative_to(common) for path in absolute]
    choices = [
        [Path(path.stem) for path in below],
        [Path(path.name) for path in below],
        [path.with_suffix("") for path in below],
        below,
    ]
    return next(
        (names for names in choices if len({str(n).casefold() for n in names}) == len(names)), below
    )


def _targets(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the results of each picture go, without ending."""
    check_local({"the output": out})
    if out.exists() and not out.is_dir():
        raise ValueError(f"the output must be a folder, {out} is a file")
    targets = dict(zip(paths, (out / name for name in output_names(paths)), strict=True))
    folders = {path.resolve().parent for path in paths}
    mixed = sorted({str(t.parent) for t in targets.values() if t.resolve().parent in folders})
    if mixed:
        raise ValueError(
            "results must not go where the pictures are: they would replace them, or be taken for "
            f"pictures the next time. Choose another folder than {', '.join(mixed)}"
        )
    return targets


# ---------------------------------------------------------------------------- reading and running


def _results(
    threads: ThreadPoolExecutor,
    run: Callable[[np.ndarray], np.ndarray],
    paths: Sequence[Path],
    plan: Callable[[int, tuple[int, int]], Plan],
) -> Iterator[tuple[Path, tuple[np.ndarray, np.ndarray] | ImageError]]:
    """The picture and its class ids, or what is wrong with it, for every path in some order."""
    same_size = defaultdict(list)
    sizes = threads.map(functools.partial(_attempt, image_size), paths)
    for path, size in zip(paths, sizes, strict=True):
        if isinstance(size, ImageError):
            yield path, size
        else:
            same_size[size].append(path)
    if len(same_size) > _MANY_SIZES:
        log.warning(
            f"{len(paths)} pictures have {len(same_size)} different sizes, and each compiles the "
            "model anew; `tile` makes those that are larger share a program"
        )
    for group_plan, reading in _read_ahead(threads, _batches(same_size, plan)):
        # A file may have been replaced since its header was read.
        same_shape = defaultdict(list)
        for path, future in reading.items():
            picture = future.result()
            if isinstance(picture, ImageError):
                yield path, picture
            else:
                same_shape[picture.shape].append((path, picture))
        for group in same_shape.values():
            ids = class_ids(run, np.stack([picture for _, picture in group]), group_plan)
            for (path, picture), labels in zip(group, ids, strict=True):
                yield path, (picture, labels)


def _batches(
    same_size: dict[tuple[int, int], list[Path]], plan: Callable[[int, tuple[int, int]], Plan]
) -> Iterator[tuple[Plan, list[Path]]]:
    for size, paths in same_size.items():
        group_plan = plan(len(paths), size)
        for start in range(0, len(paths), group_plan.at_once):
            yield group_plan, paths[start : start + group_plan.at_once]


def _read_ahead(
    threads: ThreadPoolExecutor, batches: Iterator[tuple[Plan, list[Path]]]
) -> Iterator[tuple[Plan, dict[Path, Future]]]:
    """Starts reading the next batches while one runs."""
    started = deque()
    for plan, paths in batches:
        started.append((plan, {p: threads.submit(_attempt, read_image, p) for p in paths}))
        if len(started) > _BATCHES_AHEAD:
            yield started.popleft()
    yield from started


def _attempt(read: Callable[[Path], T], path: Path) -> T | ImageError:
    try:
        return read(path)
    except ImageError as error:
        return error


# ---------------------------------------------------------------------------- progress


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # Since the start: pictures come in batches, and rich's rate of the last moments jumps.
        rate = task.completed / task.elapsed if task.elapsed else 0
        return Text(f"{rate:.1f} images/s", "progress.data.speed")


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
