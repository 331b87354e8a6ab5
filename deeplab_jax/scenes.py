"""Scenes: TIFFs with a place on earth, or too large to be read at once, segmented window by window.

What comes of `scene.tif` is `NAME.tif`, class ids with a palette on the same grid, in the same coordinate
reference system, and `NAME_overlay.jpg`, small enough to open. Neither the scene nor its labels are ever in
memory as a whole.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax import visualize
from deeplab_jax.bands import (
    BandReader,
    Layout,
    open_tiff,
    pixel_type,
    rasterio,
    read_bands,
    to_show,
)
from deeplab_jax.config import Config, mask_classes
from deeplab_jax.images import MOST_TRANSLUCENT, ImageError, is_tiff
from deeplab_jax.predict import Plan, Prediction, cuts, in_batches
from deeplab_jax.results import KEY, ResultFiles, digest_of_picture

WINDOW = 1024
"""Rows and columns of a window, unless `tile` says otherwise."""

LARGE = 2**25
"""Pixels of a TIFF that is taken for a scene though it has no place on earth."""

_OVERLAY_SIDE = 4096  # pixels
_BLOCK = 512
_CACHE = 256  # MiB that GDAL keeps of blocks; by default it takes a part of the machine's memory

Run = Callable[[np.ndarray], Prediction[np.ndarray]]


def is_scene(path: Path) -> bool:
    """Whether a file is a TIFF that is done window by window; False for what cannot be read."""
    try:
        if not (path.is_file() and is_tiff(path)):
            return False
        with open_tiff(path) as dataset:
            placed = dataset.crs is not None or dataset.gcps[0] or not dataset.transform.is_identity
            return bool(placed) or dataset.width * dataset.height > LARGE
    except Exception:  # no rasterio, or damaged: `read_picture` says so
        return False


@dataclasses.dataclass(frozen=True)
class SceneFiles:
    """What is written for each scene.

    Attributes:
      results: what is written for pictures, with the same colours and the same key.
      config: of the model.
    """

    results: ResultFiles
    config: Config

    def are_there(self, target: Path, scene: Path) -> bool:
        """Whether all results of a scene are there, and of just this scene, model and options."""
        labels, overlay = self._labels(target), self.results.overlay_of(target)
        if not labels.is_file() or (self.results.overlay and not overlay.is_file()):
            return False
        try:
            with open_tiff(labels) as dataset:
                found = dataset.tags().get(KEY)
            return found is not None and found == self.results.key(digest_of_picture(scene))
        except Exception:  # what is damaged is written once more
            return False

    def write(
        self,
        run: Run,
        scene: Path,
        target: Path,
        *,
        tile: int | None,
        at_once: int,
        progress: Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]],
    ) -> None:
        """Segments a scene, and writes what is wanted.

        Args:
          run: see `predict.evaluator`.
          tile: rows and columns of the windows; None is `WINDOW`.
          at_once: windows that run at once.
          progress: of what is done, and how many windows there are.

        Raises:
          ImageError: it cannot be read, or is no picture for this model.
          OSError: a file cannot be written; it is then as it was.
        """
        if self.results.top is not None or self.config.multilabel:
            several = "labels of which a pixel may have several"
            what = several if self.config.multilabel else "probabilities"
            raise ImageError(
                f"{scene}: {what} of a scene, which is done window by window, are not written"
            )
        key = self.results.key(digest_of_picture(scene))
        labels = self._labels(target)
        labels.parent.mkdir(parents=True, exist_ok=True)
        with (
            _reading(scene),
            rasterio().Env(GDAL_CACHEMAX=_CACHE),
            open_tiff(scene) as source,
        ):
            indices = _indices(source, self.config)
            with _written(labels, source, self._profile(source)) as out:
                out.update_tags(**{KEY: key})
                self._colour(out)
                rows, columns = (cuts(n, tile or WINDOW) for n in source.shape)
                windows = [(row, column) for row in rows for column in columns]
                with progress(f"predicting {scene.name}", len(windows)) as done:
                    for start in range(0, len(windows), at_once):
                        part = windows[start : start + at_once]
                        self._segment(run, source, out, indices, part, at_once)
                        done(start + len(part))
            if self.results.overlay:
                self._write_overlay(target, source, indices)

    def _segment(
        self,
        run: Run,
        source: Any,
        out: Any,
        indices: tuple[int, ...],
        windows: Sequence[tuple[tuple[slice, slice], tuple[slice, slice]]],
        at_once: int,
    ) -> None:
        """Segments windows of one size, and writes of each the pixels that count."""
        kind = self.config.preprocessing.pixels
        seen = [_window(row[0], column[0]) for row, column in windows]
        images = np.stack([read_bands(source, indices, kind, window=window) for window in seen])
        ids = in_batches(run, images, Plan(at_once, None)).ids
        for label, window, (row, column) in zip(ids, seen, windows, strict=True):
            if out.nodata is not None:
                label = np.where(source.dataset_mask(window=window) > 0, label, out.nodata)
            place = tuple(
                slice(s.start + kept.start, s.start + kept.stop) for s, kept in (row, column)
            )
            out.write(label[row[1], column[1]].astype(out.dtypes[0]), 1, window=_window(*place))

    def _profile(self, source: Any) -> dict[str, Any]:
        """How labels are stored: what has no data in the scene has none there, if an id is left for it."""
        classes = mask_classes(self.config.num_classes)
        whole = all("all_valid" in (f.name for f in flags) for flags in source.mask_flag_enums)
        nothing = None if whole or classes > visualize.IGNORED else visualize.IGNORED
        return {
            "dtype": "uint8" if classes <= 256 else "uint16",
            "count": 1,
            "nodata": nothing,
            "compress": "deflate",
            "tiled": True,
            "blockxsize": _BLOCK,
            "blockysize": _BLOCK,
            "bigtiff": "if_safer",
        }

    def _colour(self, out: Any) -> None:
        if out.dtypes[0] == "uint8":
            table = visualize.color_table(self.results.colors)
            out.write_colormap(1, {i: tuple(color) for i, color in enumerate(table.tolist())})

    def _write_overlay(self, target: Path, source: Any, indices: tuple[int, ...]) -> None:
        factor = min(1.0, _OVERLAY_SIDE / max(source.shape))
        shape = tuple(max(1, round(n * factor)) for n in source.shape)
        kind = self.config.preprocessing.pixels
        average = rasterio().enums.Resampling.average
        small = {"out_shape": (len(indices), *shape), "resampling": average}
        picture = to_show(read_bands(source, indices, kind, **small))
        with open_tiff(self._labels(target)) as labels:
            ids = labels.read(1, out_shape=shape)
        self.results.write_overlay(target, picture, ids)

    @staticmethod
    def _labels(target: Path) -> Path:
        return Path(f"{target}.tif")


def _indices(source: Any, config: Config) -> tuple[int, ...]:
    """The bands that are the model's channels; raises ImageError where they are not there."""
    given = config.preprocessing
    kinds = {pixel_type(dtype) for dtype in source.dtypes}
    kind = kinds.pop() if len(kinds) == 1 else "float32"
    if not given.is_rgb:
        reader = BandReader.of(given)
        reader.check(Layout(source.shape, source.count, kind))
        return reader.indices
    meanings = [meaning.name for meaning in source.colorinterp]
    if kind != "uint8" or "palette" in meanings:
        what = "a palette" if kind == "uint8" else f"numbers of {kind}"
        raise ImageError(
            f"has {what}, where the model takes RGB of 8 bits: gdal_translate -expand rgb, or -ot Byte "
            "-scale with the range that training had, makes it so"
        )
    colours = source.count - (meanings[-1] == "alpha")
    if colours < source.count:
        _check_alpha(source)
    if colours not in (1, 3):
        raise ImageError(
            f"has {source.count} bands, where the model takes RGB: say which three it sees, with "
            "gdal_translate -b 1 -b 2 -b 3"
        )
    return (1, 1, 1) if colours == 1 else (1, 2, 3)


def _check_alpha(source: Any) -> None:
    shape = tuple(min(n, WINDOW) for n in source.shape)
    alpha = source.read(source.count, out_shape=shape)
    if ((alpha > 0) & (alpha < 255)).mean() > MOST_TRANSLUCENT:
        raise ImageError(
            f"its last band of {source.count} is marked as transparency, but holds something else, such as "
            "infrared: save the first three alone, with gdal_translate -b 1 -b 2 -b 3"
        )


def _window(rows: slice, columns: slice) -> Any:
    return rasterio().windows.Window.from_slices(rows, columns)


@contextlib.contextmanager
def _reading(scene: Path) -> Iterator[None]:
    """Whatever is wrong with a scene as an ImageError that names it; other errors stay what they are."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{scene}: {error}") from error
    except rasterio().errors.RasterioError as error:
        raise ImageError(f"{scene}: damaged, cannot be decoded ({error})") from error


@contextlib.contextmanager
def _written(path: Path, like: Any, profile: dict[str, Any]) -> Iterator[Any]:
    """A TIFF on the grid of another, which takes its place once all of it is written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    grid = {name: getattr(like, name) for name in ("width", "height", "crs", "transform")}
    points, of_points = like.gcps
    try:
        with open_tiff(partial, "w", **profile, **grid) as out:
            if points:
                out.gcps = points, of_points
            yield out
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
