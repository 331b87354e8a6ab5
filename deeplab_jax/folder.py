"""Class ids and overlays of any number of picture files, written to a folder."""

import dataclasses
import functools
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from deeplab_jax.bands import picture_size, read_picture, to_show
from deeplab_jax.canvases import Size
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.images import ImageError, frames_of
from deeplab_jax.model import SegmentationModel
from deeplab_jax.predict import Prediction, Top, check_options, config_of
from deeplab_jax.preprocessing import Preprocessing
from deeplab_jax.progress import progress as shown_progress
from deeplab_jax.results import digest_of_picture, output_names, result_files, targets_of
from deeplab_jax.runner import Group, Runner
from deeplab_jax.scenes import SceneFiles, is_scene

_BATCHES_AHEAD = 2  # read while one runs
_SAVES_WAITING = 16

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What became of pictures, or of videos.

    Attributes:
      written: those whose results were written.
      kept: those whose results were there.
      failures: what was wrong with those that could not be read, in their order.
      notes: what is not as one may think.
    """

    written: int
    kept: int
    failures: tuple[ImageError, ...]
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Predicted") -> "Predicted":
        """Both together."""
        return Predicted(
            self.written + other.written,
            self.kept + other.kept,
            self.failures + other.failures,
            self.notes + other.notes,
        )


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
    probabilities: Top = None,
    names: Sequence[Path] | None = None,
    shard: tuple[int, int] = (0, 1),
    redo: bool = False,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> Predicted:
    """Segments pictures into a folder: `NAME.png` of class ids, `NAME_overlay.jpg` to look at.

    The ids are at the picture's size and as `visualize.save_labels` writes them; a file that was
    there is replaced, never left half written. `results.output_names` says what NAME is. Pictures whose
    results are there, made of the same file by the same model and options, are left as they are. TIFFs with
    a place on earth, and very large ones, are done window by window, and become `NAME.tif`, see `scenes`.

    Pictures of the same size run together, in a program of their own. Where there are many sizes, they
    share canvases, of which the model sees the pictures alone, see `canvas`: classes are the same, unless
    two are equally likely up to rounding. With `tile`, those that are larger both ways share a program.

    Args:
      images: files, see `images.find_images`.
      out: is made if it is not there; must not be the folder of any picture.
      batch_size: pictures of a size that run at once, on all devices together; None is 8 on each, or what
        fits `MEMORY_LIMIT`.
      scales, flip, tile: see `predict`.
      overlay: False writes no `NAME_overlay.jpg`.
      alpha: strength of the overlay's tint.
      probabilities: write `NAME_probabilities.npz` too, with the arrays of a `Prediction`, `[H, W, K]`: of
        "all" classes, or of so many, the most likely first.
      names: what to call the results of each picture, without ending and relative to `out`; None is by
        `results.output_names`.
      shard: (index, count): of every `count` pictures do one, from the one at `index` on, where `count`
        processes share the work. Names do not depend on it.
      redo: write results anew that are there.
      devices: those that share the pictures; None is all of this process.
      progress: False shows no progress on standard error.

    Raises:
      OSError: a result cannot be written.
      ValueError: for wrong options, or an `out` in which results would mix with the pictures.
    """
    config = config_of(model)
    check_options(scales=scales, tile=tile, batch_size=batch_size, top=probabilities)
    _check_shard(*shard)
    all_paths = list({os.path.abspath(path): Path(path) for path in images}.values())
    targets = targets_of(all_paths, Path(out), names or output_names(all_paths))
    results = result_files(
        model,
        overlay=overlay,
        alpha=alpha,
        top=probabilities,
        scales=tuple(map(float, scales)),
        flip=flip,
        tile=tile,
    )
    scene_results = SceneFiles(results, config)
    paths = all_paths[shard[0] :: shard[1]]
    threads = ThreadPoolExecutor()
    scenes = {path for path, so in zip(paths, threads.map(is_scene, paths), strict=True) if so}
    if not redo:
        files = [scene_results if path in scenes else results for path in paths]
        there = threads.map(lambda of, path: of.are_there(targets[path], path), files, paths)
        paths = [path for path, done in zip(paths, there, strict=True) if not done]
    devices = jax.local_devices() if devices is None else devices
    runner = Runner(
        fold_batch_norm(model),
        scales=scales,
        flip=flip,
        tile=tile,
        top=probabilities,
        batch_size=batch_size,
        devices=devices,
    )
    failures: dict[Path, ImageError] = {}
    several: dict[Path, int] = {}
    saving: deque[Future] = deque()
    written = 0
    try:
        pictures = [path for path in paths if path not in scenes]
        with shown_progress("predicting", len(pictures), shown=progress) as done:
            for path, result in _results(threads, runner, pictures, config.preprocessing):
                if isinstance(result, ImageError):
                    failures[path] = result
                else:
                    picture, made = result
                    if picture.frames > 1:
                        several[path] = picture.frames
                    key = results.key(picture.digest)
                    shown = to_show(picture.pixels)
                    saving.append(threads.submit(results.write, targets[path], shown, made, key))
                # Wait where pictures would pile up faster than they are saved.
                while saving and (saving[0].done() or len(saving) > _SAVES_WAITING):
                    saving.popleft().result()
                    written += 1
                done(written + len(failures))
            while saving:
                saving.popleft().result()
                written += 1
                done(written + len(failures))
        for path in (path for path in paths if path in scenes):
            try:
                scene_results.write(
                    runner.windows,
                    path,
                    targets[path],
                    tile=tile,
                    at_once=len(devices) * (batch_size or 1),
                    progress=functools.partial(shown_progress, unit="windows", shown=progress),
                )
                written += 1
            except ImageError as error:
                failures[path] = error
    finally:
        threads.shutdown(cancel_futures=True)
    return Predicted(
        written=written,
        kept=len(all_paths[shard[0] :: shard[1]]) - len(paths),
        failures=tuple(failures[path] for path in paths if path in failures),
        notes=tuple(_of_several(path, several[path]) for path in paths if path in several),
    )


def _of_several(path: Path, count: int) -> str:
    return f"{path}: has {count} frames or pages, of which the first was taken"


def _check_shard(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(
            f"shard must be an index and a count, from 0/{max(count, 1)} to "
            f"{max(count, 1) - 1}/{max(count, 1)}, got {index}/{count}"
        )


# ---------------------------------------------------------------------------- reading and running


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A picture's pixels, the first of so many frames, and the digest of the file that they are from."""

    pixels: np.ndarray
    frames: int
    digest: str


def _read(path: Path, preprocessing: Preprocessing) -> _Picture:
    # The digest first: of a file that is replaced meanwhile, the results are done anew the next time.
    digest = digest_of_picture(path)
    frames = frames_of(path) if preprocessing.is_rgb else 1
    return _Picture(read_picture(path, preprocessing), frames, digest)


def _results(
    threads: ThreadPoolExecutor,
    runner: Runner,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
) -> Iterator[tuple[Path, tuple[_Picture, Prediction[np.ndarray]] | ImageError]]:
    """The picture and what the model says of it, or what is wrong with it, for every path in some order."""
    same_size: dict[Size, list[Path]] = defaultdict(list)
    size_of = functools.partial(picture_size, preprocessing=preprocessing)
    sizes = threads.map(functools.partial(_attempt, size_of), paths)
    for path, size in zip(paths, sizes, strict=True):
        if isinstance(size, ImageError):
            yield path, size
        else:
            same_size[size].append(path)
    batches = (batch for group in runner.groups(same_size) for batch in group.batches())
    read = functools.partial(_read, preprocessing=preprocessing)
    for batch, reading in _read_ahead(threads, batches, read):
        together: dict[tuple[int, ...], list[tuple[Path, _Picture]]] = defaultdict(list)
        for path, future in reading.items():
            picture = future.result()
            if isinstance(picture, ImageError):
                yield path, picture
            else:
                # A file may have been replaced since its header was read.
                shape = picture.pixels.shape
                together[() if shape[:2] in batch.sizes else shape].append((path, picture))
        for shape, some in together.items():
            group = batch.of_one_size() if shape else batch
            made = runner(group, [picture.pixels for _, picture in some])
            for (path, picture), prediction in zip(some, made, strict=True):
                yield path, (picture, prediction)


def _read_ahead(
    threads: ThreadPoolExecutor, batches: Iterator[Group], read: Callable[[Path], _Picture]
) -> Iterator[tuple[Group, dict[Path, Future]]]:
    """Starts reading the next batches while one runs."""
    started: deque[tuple[Group, dict[Path, Future]]] = deque()
    for batch in batches:
        started.append((batch, {p: threads.submit(_attempt, read, p) for p in batch.paths}))
        if len(started) > _BATCHES_AHEAD:
            yield started.popleft()
    yield from started


def _attempt(read: Callable[[Path], T], path: Path) -> T | ImageError:
    try:
        return read(path)
    except ImageError as error:
        return error
