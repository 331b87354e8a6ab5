"""Models for other runtimes: ONNX, StableHLO and TensorFlow's formats.

One format is one module: how a file (of SavedModel a folder) is made of a model and an `Interface`, and how
it is run again. Every file is run before it takes its place, and compared with the model.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.beside import folder_beside, remove_leftovers
from deeplab_jax.checkpoint import check_parent
from deeplab_jax.export.program import (
    SMALLEST,
    ExportError,
    Interface,
    Model,
    for_inference,
    function_of,
    in_dtype,
)
from deeplab_jax.model import named_values

__all__ = ["FORMATS", "SMALLEST", "ExportError", "Exported", "Interface", "export"]

Format = Literal["onnx", "stablehlo", "tflite", "savedmodel"]

FORMATS: dict[Format, str] = {
    "onnx": "deeplab_jax.export.onnx_file",
    "stablehlo": "deeplab_jax.export.stablehlo",
    "tflite": "deeplab_jax.export.tflite",
    "savedmodel": "deeplab_jax.export.savedmodel",
}
"""The module of each; a file's suffix is the format's name."""

TOLERANCE = {"float32": 1e-5, "float16": 2e-2}
"""Largest difference to the model in float32, relative to its largest logit: what sums in another order
round, over a hundred layers (measured: 1e-6 to 6e-6; half precision has 2**13 times larger steps)."""

_ROUNDINGS = 4
"""A model that amplifies rounding, as very deep ones with random weights do, may differ by so many times
what its own logits do when each weight moves by one rounding; two programs round at every layer."""

_LOST = 0.01  # of the largest logit: where one rounding moves more, no comparison tells anything


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an exported file is, as far as it was checked.

    Attributes:
      error: largest difference between its scores and the model's, relative to the model's largest; of
        classes, by how much the model's own scores are for another class, relative to the same.
      compared: the shapes of the images that it was run on.
      usage: lines of Python that run it.
    """

    path: Path
    error: float
    compared: tuple[tuple[int, ...], ...]
    usage: str


def export(
    model: Model,
    path: str | os.PathLike,
    interface: Interface | None = None,
    *,
    to: Format | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    overwrite: bool = False,
) -> Exported:
    """Writes a model as a file that runs without this package, and runs it to compare.

    Args:
      model: from `create`, `load` or the porter, in any mode; batch norms are folded in the copy.
      path: of the file; its folder is made where it does not exist.
      interface: what the program takes and gives; None is normalised images to logits, in the layout that
        is the format's custom.
      to: the format; None goes by the suffix of `path`, .onnx, .stablehlo, .tflite or .savedmodel.
      dtype: float16 halves the file and computes in half precision.
      overwrite: replace a file that is there.

    Raises:
      ExportError: the model cannot be exported so, or what was exported computes something else; nothing is
        left at `path` that was not there.
    """
    path = Path(path)
    module = _format(to, path)
    check_parent(path)
    if path.is_dir():
        raise ExportError(f"{path} is a folder, which is never replaced: give another name")
    if path.exists() and not overwrite:
        raise ExportError(f"{path} exists; overwrite=True (--overwrite) replaces it")
    interface = interface or Interface(layout=module.LAYOUT)
    reference = for_inference(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(path) as beside:
        new = beside / path.name
        module.write(in_dtype(reference, dtype), interface, new)
        run = _runner(module, new)
        error, compared = compare(reference, interface, run, jnp.dtype(dtype).name)
        os.replace(new, path)
    remove_leftovers(path)
    usage = f"# {interface.describe(model)}\n{module.usage(path)}"
    return Exported(path, error, compared, usage)


def _format(to: str | None, path: Path) -> ModuleType:
    name = to or path.suffix.removeprefix(".")
    if name not in FORMATS:
        ways = ", ".join(FORMATS)
        raise ExportError(
            f"unknown export format {name!r} of {path}: --to (to=) must be one of {ways}, or the file's "
            "name must end so. A .safetensors file or a model folder is made by deeplab_jax.save"
        )
    extra = "export" if name in ("onnx", "stablehlo") else "tensorflow"
    return module_of(FORMATS[name], f"exporting to {name}", extra)


def module_of(name: str, what: str, extra: str) -> ModuleType:
    """A module that needs packages of an extra.

    Raises ExportError, saying what needs them and how to install them, where one is missing.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{what} needs {error.name}: pip install 'deeplab-jax[{extra}]'"
        ) from error


def _runner(module: ModuleType, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What runs an exported file, with the runtime's errors as ExportErrors."""
    with _runtime_errors():
        run = module.runner(path)

    def guarded(images: np.ndarray) -> np.ndarray:
        with _runtime_errors():
            return run(images)

    return guarded


@contextlib.contextmanager
def _runtime_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each runtime has kinds of its own
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"the exported program cannot be run: {cause}. Nothing was written; another --size may help, "
            "otherwise please report this"
        ) from error


def compare(
    model: Model,
    interface: Interface,
    run: Callable[[np.ndarray], np.ndarray],
    dtype: str = "float32",
) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """The `Exported.error` of a program, and the shapes that it was run on.

    Args:
      model: of `for_inference`.

    Raises ExportError where the program computes something else than the model does.
    """
    classes = interface.output == "classes"
    scores = dataclasses.replace(interface, output="logits") if classes else interface
    function, weights = jax.jit(function_of(model, scores)), named_values(model)
    distance = functools.partial(_behind, interface.channel_axis) if classes else _distance
    worst, shapes = 0.0, []
    for images in interface.examples(model):
        want = np.asarray(function(weights, images))
        error, allowed = distance(want, run(images)), TOLERANCE[dtype]
        if error > allowed:
            moved = {name: jnp.nextafter(value, np.inf) for name, value in weights.items()}
            rounding = _distance(want, np.asarray(function(moved, images)))
            if rounding > _LOST:
                raise ExportError(
                    "this model cannot be compared with what is exported: its own logits move by "
                    f"{rounding:.0%} of the largest when its weights are rounded once, as those of very "
                    "deep networks that are not trained do. Nothing was written"
                )
            allowed = max(allowed, _ROUNDINGS * rounding)
        if not error <= allowed:
            raise ExportError(
                f"the exported program computes something else: on images {list(images.shape)} it differs "
                f"by {error:.1e}, more than {allowed:.0e}. Nothing was written; please report this"
            )
        worst = max(worst, error)
        shapes.append(images.shape)
    return worst, tuple(shapes)


def _distance(want: np.ndarray, got: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    if want.shape != got.shape:
        return np.inf
    return float(np.abs(got - want).max() / _largest(want))


def _behind(axis: int, logits: np.ndarray, ids: np.ndarray) -> float:
    """How far the logit of a pixel's class is behind that pixel's best, relative to the largest of all.

    Half of it: two logits that both move may change places.
    """
    if ids.shape == logits.shape:  # of several labels, each for itself
        missed = np.maximum(logits, 0) - np.where(ids, logits, 0)
        return float(missed.max() / 2 / _largest(logits))
    if logits.shape[axis] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis)
    best = logits.max(axis)
    if ids.shape != best.shape or ids.max() >= logits.shape[axis]:
        return np.inf
    chosen = np.take_along_axis(logits, np.expand_dims(ids.astype(np.int64), axis), axis)
    return float((best - chosen.squeeze(axis)).max() / 2 / _largest(logits))


def _largest(values: np.ndarray) -> float:
    return max(float(np.abs(values).max()), float(np.finfo(np.float32).tiny))
