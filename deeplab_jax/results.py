"""The files that prediction writes for a picture, and how it knows them again.

`NAME.png` are the class ids, `NAME_overlay.jpg` is to look at, `NAME_probabilities.npz` has what its name
says. A model with several labels for a pixel has a `NAME_LABEL.png` for each of them, of 0 and 1. Into the
PNG goes a key: the SHA-256 of all that the results depend on, the picture among it. So a folder that was
cut short is finished, and what has changed since is done anew.
"""

import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

from deeplab_jax import visualize
from deeplab_jax.config import mask_classes
from deeplab_jax.digests import digest_of, digest_of_file
from deeplab_jax.images import write_image
from deeplab_jax.model import SegmentationModel, named_variables
from deeplab_jax.paths import check_local
from deeplab_jax.predict import Prediction, Top
from deeplab_jax.version import __version__
from deeplab_jax.whole_file import write_file

KEY = "deeplab_jax"
"""The name of the key among a PNG's texts."""

_JPEG_SIDE = 65500  # pixels; the format has no more than 65535


@dataclasses.dataclass(frozen=True)
class ResultFiles:
    """What is written for each picture of a folder.

    Attributes:
      colors: of the classes, uint8 `[classes, 3]`.
      class_names: for the legend.
      overlay: whether `NAME_overlay.jpg` is written.
      alpha: strength of its tint.
      top: of which classes `NAME_probabilities.npz` is written, if it is.
      made_by: digest of the model and of all options.
      multilabel: whether a pixel may have several labels.
    """

    colors: np.ndarray
    class_names: tuple[str, ...] | None
    overlay: bool
    alpha: float
    top: Top
    made_by: str
    multilabel: bool = False

    def key(self, picture: str) -> str:
        """The key of the results of a picture file with this digest."""
        return hashlib.sha256(f"{self.made_by} {picture}".encode()).hexdigest()

    def are_there(self, target: Path, picture: Path) -> bool:
        """Whether all results of a picture are there, and of just this picture, model and options."""
        wanted = [*self._labels(target)]
        wanted += [self.overlay_of(target)] if self.overlay else []
        wanted += [self._probabilities(target)] if self.top is not None else []
        if not all(file.is_file() for file in wanted):
            return False
        try:
            with Image.open(self._labels(target)[-1], formats=["PNG"]) as labels:
                found = labels.info.get(KEY)
            return found is not None and found == self.key(digest_of_picture(picture))
        except (OSError, SyntaxError):  # what is damaged is read, or written, once more
            return False

    def write(
        self, target: Path, picture: np.ndarray, made: Prediction[np.ndarray], key: str
    ) -> None:
        """Writes what is wanted; the class ids, with the key, last.

        Raises:
          OSError: a file cannot be written; it is then as it was.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.overlay:
            self.write_overlay(target, picture, made.ids)
        if made.probabilities is not None:
            packed = io.BytesIO()
            if made.classes is None:
                np.savez_compressed(packed, probabilities=made.probabilities)
            else:
                np.savez_compressed(packed, probabilities=made.probabilities, classes=made.classes)
            write_file(self._probabilities(target), packed.getvalue())
        files = self._labels(target)
        masks = np.moveaxis(made.ids, -1, 0) if self.multilabel else [made.ids]
        for number, (file, ids) in enumerate(zip(files, masks, strict=True)):
            colors = [(0, 0, 0), self.colors[number]] if self.multilabel else self.colors
            visualize.save_labels(file, ids, np.array(colors), texts={KEY: key})

    def write_overlay(self, target: Path, picture: np.ndarray, ids: np.ndarray) -> None:
        """Writes `NAME_overlay.jpg` alone; raises OSError where it cannot."""
        draw = visualize.overlay_of_labels if self.multilabel else visualize.overlay
        shown = draw(picture, ids, self.colors, alpha=self.alpha, class_names=self.class_names)
        if max(shown.size) > _JPEG_SIDE:
            shown.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
        # Colour at full resolution: at half of it outlines, a pixel wide, would smear.
        write_image(self.overlay_of(target), shown, quality=92, subsampling=0)

    def _labels(self, target: Path) -> list[Path]:
        """The label map, or one for each label."""
        if not self.multilabel:
            return [Path(f"{target}.png")]
        names = self.class_names or [f"label_{i}" for i in range(len(self.colors))]
        plain = [re.sub(r"[^\w-]+", "_", name) for name in names]
        unique = len({name.casefold() for name in plain}) == len(plain)
        return [
            Path(f"{target}_{name}.png" if unique else f"{target}_{i}_{name}.png")
            for i, name in enumerate(plain)
        ]

    @staticmethod
    def overlay_of(target: Path) -> Path:
        """Where the overlay is."""
        return Path(f"{target}_overlay.jpg")

    @staticmethod
    def _probabilities(target: Path) -> Path:
        return Path(f"{target}_probabilities.npz")


def digest_of_picture(path: Path) -> str:
    """Digest of a picture's file; of what cannot be read, as a pipe, nothing."""
    try:
        return digest_of_file(path) if path.is_file() else ""
    except OSError:
        return ""


def result_files(
    model: SegmentationModel, *, overlay: bool, alpha: float, top: Top, **options: object
) -> ResultFiles:
    """What a model's results are with these options.

    Args:
      options: what else class ids depend on.
    """
    config = model.config
    weights = {
        name: variable[...]
        for name, variable in named_variables(model).items()
        if isinstance(
            variable, nnx.Param | nnx.BatchStat
        )  # not a user's own state of random numbers
    }
    depends_on = {
        "config": config,
        "dtype": str(getattr(model, "dtype", None)),
        "version": __version__,
        "overlay": overlay and alpha,
        "top": top,
        **options,
    }
    if config.multilabel:  # black is for what has none
        colors = visualize.palette(config.num_classes + 1)[1:]
    else:
        colors = visualize.palette(mask_classes(config.num_classes), config.class_names)
    return ResultFiles(
        colors=colors,
        class_names=config.class_names,
        overlay=overlay,
        alpha=alpha,
        top=top,
        made_by=digest_of(weights, repr(depends_on)),
        multilabel=config.multilabel,
    )


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


def targets_of(paths: Sequence[Path], out: Path, names: Sequence[Path]) -> dict[Path, Path]:
    """Where the results of each picture go, without ending."""
    check_local({"the output": out})
    if out.exists() and not out.is_dir():
        raise ValueError(f"the output must be a folder, {out} is a file")
    targets = dict(zip(paths, (out / name for name in names), strict=True))
    folders = {path.resolve().parent for path in paths}
    mixed = sorted({str(t.parent) for t in targets.values() if t.resolve().parent in folders})
    if mixed:
        raise ValueError(
            "results must not go where the pictures are: they would replace them, or be taken for "
            f"pictures the next time. Choose another folder than {', '.join(mixed)}"
        )
    return targets
