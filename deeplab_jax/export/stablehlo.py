"""StableHLO: the program itself, as JAX compiles it, for CPU, CUDA and TPU at once."""

from collections.abc import Callable
from pathlib import Path

import flatbuffers  # type: ignore[import-untyped]  # noqa: F401 - jax.export writes with it
import jax
import numpy as np
from jax import export

from deeplab_jax.export.program import Interface, Model, function_of, needs_a_size
from deeplab_jax.model import named_values

PLATFORMS = ("cpu", "cuda", "tpu")

LAYOUT = "nhwc"
"""Of images and scores."""


def to_stablehlo(model: Model, interface: Interface) -> bytes:
    """A model as `jax.export` writes it, its weights inside.

    Args:
      model: of `for_inference`.

    Raises:
      ExportError: for a model that needs a fixed size and has none.
    """
    weights, function = named_values(model), function_of(model, interface)
    program = jax.jit(lambda images: function(weights, images))
    try:
        exported = export.export(program, platforms=PLATFORMS)(interface.struct(model))
    except jax.errors.InconclusiveDimensionOperation as error:
        raise needs_a_size(error) from error
    return bytes(exported.serialize())


def write(model: Model, interface: Interface, path: Path) -> None:
    """Writes `to_stablehlo`."""
    path.write_bytes(to_stablehlo(model, interface))


def runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The exported program, as a function of images."""
    program = export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(program.call(images))


def usage(path: Path) -> str:
    """The lines that run it."""
    return (
        "import jax\n"
        f'program = jax.export.deserialize(bytearray(open("{path}", "rb").read()))\n'
        "output = program.call(images)"
    )
