"""Pictures of any sizes through few programs: which run together, and what the model says of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from deeplab_jax.canvas import Program
from deeplab_jax.canvases import FEW_SIZES, Size, shared_canvases
from deeplab_jax.model import SegmentationModel
from deeplab_jax.predict import (
    MANY,
    Plan,
    Prediction,
    Top,
    canvas_evaluator,
    evaluator,
    in_batches,
    make_plan,
    program_of_any_size,
    runs_whole,
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Pictures that share a program.

    Attributes:
      paths: of the files.
      size: of all pictures, or of the canvas that each lies on.
      plan: how they run.
      sizes: of pictures on a canvas; none where all have one size.
      many: their program has the weights as constants, see `predict.evaluator`.
    """

    paths: tuple[Path, ...]
    size: Size
    plan: Plan
    sizes: frozenset[Size] = frozenset()
    many: bool = False

    def batches(self) -> Iterator["Group"]:
        """As many at a time as the plan has."""
        for start in range(0, len(self.paths), self.plan.at_once):
            yield dataclasses.replace(self, paths=self.paths[start : start + self.plan.at_once])

    def of_one_size(self) -> "Group":
        """The same without a canvas."""
        return dataclasses.replace(self, sizes=frozenset())


class Runner:
    """What a model says of pictures of any sizes.

    Args:
      model: in evaluation mode.
      scales, flip, tile, batch_size: see `folder.predict_folder`.
      top: see `predict.Prediction`.
      devices: that share the pictures.

    Attributes:
      windows: what says something of images of one size `[B, H, W, C]`, see `predict.evaluator`.
    """

    def __init__(
        self,
        model: SegmentationModel,
        *,
        scales: Sequence[float],
        flip: bool,
        tile: int | None,
        top: Top,
        batch_size: int | None,
        devices: Sequence[jax.Device],
    ):
        classes = model.config.num_classes
        self._plan: Callable[[int, Size], Plan] = functools.partial(
            make_plan,
            num_classes=classes,
            scales=scales,
            tile=tile,
            batch_size=batch_size,
            devices=len(devices),
        )
        self._runs_whole: Callable[[Size], bool] = functools.partial(
            runs_whole, num_classes=classes, scales=scales, tile=tile
        )
        evaluate = functools.partial(evaluator, model, scales, flip, top=top, devices=devices)
        self.windows = evaluate()
        self._of_many = functools.cache(lambda: evaluate(images=MANY))
        self._program = functools.cache(lambda: program_of_any_size(model))
        self._on_canvas = functools.cache(
            lambda program: canvas_evaluator(program, model, scales, flip, top=top, devices=devices)
        )

    def groups(self, same_size: Mapping[Size, Sequence[Path]]) -> list[Group]:
        """Pictures by their size; where there are more than a few, by the canvases that sizes share."""
        program = self._program() if len(same_size) > FEW_SIZES else None
        groups = self._shared(same_size, program) if program is not None else []
        shared = {size for group in groups for size in group.sizes}
        groups += [
            Group(tuple(paths), size, self._plan(len(paths), size))
            for size, paths in same_size.items()
            if size not in shared
        ]
        # One alone, as such a program keeps copies of the weights.
        largest = max(groups, key=lambda group: len(group.paths), default=None)
        if largest is not None and not largest.sizes and len(largest.paths) >= MANY:
            groups[groups.index(largest)] = dataclasses.replace(largest, many=True)
        return groups

    def _shared(self, same_size: Mapping[Size, Sequence[Path]], program: Program) -> list[Group]:
        all_sizes = (size for size, paths in same_size.items() for _ in paths)
        shared = shared_canvases(all_sizes, self._runs_whole, work=program.work())
        groups = []
        for canvas, sizes in shared.items():
            paths = tuple(p for size, same in same_size.items() if size in sizes for p in same)
            groups.append(Group(paths, canvas, self._plan(len(paths), canvas), sizes))
        return groups

    def __call__(
        self, group: Group, pictures: Sequence[np.ndarray]
    ) -> list[Prediction[np.ndarray]]:
        """What the model says of each of some pictures of a group."""
        if group.sizes and (program := self._program()) is not None:
            made = self._on_canvas(program)(*_laid_out(pictures, (group.plan.at_once, *group.size)))
        else:
            run = self._of_many() if group.many else self.windows
            made = in_batches(run, np.stack(pictures), group.plan)
        return [
            jax.tree.map(_cut_out(row, picture.shape[0], picture.shape[1]), made)
            for row, picture in enumerate(pictures)
        ]


def _cut_out(row: int, height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array[row, :height, :width]


def _laid_out(
    pictures: Sequence[np.ndarray], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Canvases `[B, H, W, C]` with pictures at the top left, and sizes `[B, 2]`; the last is repeated."""
    canvases = np.zeros((*shape, pictures[0].shape[-1]), pictures[0].dtype)
    sizes = np.zeros((len(canvases), 2), np.int32)
    for row, canvas in enumerate(canvases):
        picture = pictures[min(row, len(pictures) - 1)]
        height, width = sizes[row] = picture.shape[:2]
        canvas[:height, :width] = picture
    return canvases, sizes
