"""Models for other runtimes: ONNX and StableHLO.

One format is one module: how a file is made of a model and an `Interface`, and how it is run again. Every
file is run before it takes its place, and compared with the model.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable
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
    weights_of,
)

__all__ = ["FORMATS", "SMALLEST", "ExportError", "Exported", "Interface", "export"]

FORMATS = {"onnx": "deeplab_jax.export.onnx_file", "stablehlo": "deeplab_jax.export.stablehlo"}
"""The module of each; a file's suffix is the format's name."""

TOLERANCE = {"float32": 1e-5, "float16": 2e-2}
"""Largest difference to the model in float32, relative to its largest logit: what sums in another order
round, over a hundred layers (measured: 1e-6 to 6e-6; half precision has 2**13 times larger steps)."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an exported file is, as far as it was checked.

    Attributes:
      error: largest difference between its scores and the model's, relative to the model's largest; of
        classes, the share of pixels whose class differs.
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
    to: Literal["onnx", "stablehlo"] | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    overwrite: bool = False,
) -> Exported:
    """Writes a model as a file that runs without this package, and runs it to compare.

    Args:
      model: from `create`, `load` or the porter, in any mode; batch norms are folded in the copy.
      path: of the file.
      interface: what the program takes and gives; None is normalised images to logits, in the layout that
        is the format's custom.
      to: the format; None goes by the suffix of `path`, .onnx or .stablehlo.
      dtype: float16 halves the file and computes in half precision.
      overwrite: replace a file that is there.

    Raises:
      ExportError: the model cannot be exported so, or what was exported computes something else; nothing is
        left at `path` that was not there.
    """
    path = Path(path)
    module = _format(to, path)
    check_parent(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ExportError(f"{path} exists; overwrite=True (--overwrite) replaces a file")
    interface = interface or Interface(layout=module.LAYOUT)
    network = for_inference(model, dtype)
    with folder_beside(path) as beside:
        new = beside / path.name
        module.write(network, interface, new)
        error, compared = compare(model, interface, module.runner(new), jnp.dtype(dtype).name)
        os.replace(new, path)
    remove_leftovers(path)
    return Exported(path, error, compared, module.usage(path))


def _format(to: str | None, path: Path) -> ModuleType:
    name = to or path.suffix.removeprefix(".")
    if name not in FORMATS:
        ways = ", ".join(FORMATS)
        raise ExportError(
            f"unknown export format {name!r} of {path}: --to (to=) must be one of {ways}, or the file's "
            "name must end so. A .safetensors file or a model folder is made by deeplab_jax.save"
        )
    try:
        return importlib.import_module(FORMATS[name])
    except ModuleNotFoundError as error:
        raise ExportError(
            f"exporting to {name} needs {error.name}: pip install 'deeplab-jax[export]'"
        ) from error


def compare(
    model: Model,
    interface: Interface,
    run: Callable[[np.ndarray], np.ndarray],
    dtype: str = "float32",
) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """The `Exported.error` of a program, and the shapes that it was run on.

    Raises ExportError where the program computes something else than the model does.
    """
    reference = for_inference(model)
    weights, allowed = weights_of(reference), TOLERANCE[dtype]
    scores = dataclasses.replace(
        interface, output="logits" if interface.output == "classes" else interface.output
    )
    function = jax.jit(function_of(reference, scores))
    worst, shapes = 0.0, []
    for images in interface.examples(model):
        want, got = np.asarray(function(weights, images)), run(images)
        shapes.append(images.shape)
        axis = 1 if interface.layout == "nchw" else 3
        error = (_disagreement if interface.output == "classes" else _distance)(
            want, got, axis, allowed
        )
        worst = max(worst, error)
        if not error <= allowed:
            raise ExportError(
                f"the exported program computes something else: on images {list(images.shape)} it differs "
                f"by {error:.1e}, more than {allowed:.0e}. Nothing was written; please report this"
            )
    return worst, tuple(shapes)


def _distance(want: np.ndarray, got: np.ndarray, axis: int, allowed: float) -> float:
    del axis, allowed
    if want.shape != got.shape:
        return np.inf
    return float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(np.float32).tiny))


def _disagreement(logits: np.ndarray, ids: np.ndarray, axis: int, allowed: float) -> float:
    """The share of pixels of another class, of which the model's own logits do not make it a tie."""
    if logits.shape[axis] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis)
    if ids.shape != logits.max(axis).shape:
        return np.inf
    chosen = np.take_along_axis(logits, np.expand_dims(ids.astype(np.int64), axis), axis)
    behind = logits.max(axis, keepdims=True) - chosen
    return float((behind > 2 * allowed * np.abs(logits).max()).mean())
