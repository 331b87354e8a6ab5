"""TFLite: for phones, browsers and small boards, where LiteRT runs it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from deeplab_jax.export.program import ExportError, Interface, Model, in_dtype
from deeplab_jax.export.tensorflow_program import tensorflow, to_tensorflow
from deeplab_jax.quiet_tensorflow import without_its_log

LAYOUT = "nhwc"
"""Of images and scores."""


def write(model: Model, interface: Interface, path: Path) -> None:
    """Writes a file of TFLite's builtin operations; of float16, its weights are halves.

    Raises ExportError where a size is not fixed, and for what TensorFlow does not convert.
    """
    module = to_tensorflow(in_dtype(model, np.float32), interface)
    program = module.run.get_concrete_function()
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([program], module)
    if model.dtype == np.float16:
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tensorflow.float16]
    try:
        with without_its_log():
            written = converter.convert()
    except Exception as error:  # ConverterError, of which TensorFlow makes no name public
        cause = str(error).splitlines()[0]
        raise ExportError(f"TensorFlow does not convert this model to TFLite: {cause}") from error
    path.write_bytes(written)


def runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The exported program on CPU, as a function of images."""
    with without_its_log():
        run = Interpreter(model_path=str(path)).get_signature_runner()
    return lambda images: next(iter(run(images=images).values()))


def usage(path: Path) -> str:
    """The lines that run it."""
    return (
        "from ai_edge_litert.interpreter import Interpreter\n"
        f'run = Interpreter(model_path="{path}").get_signature_runner()\n'
        "(output,) = run(images=images).values()"
    )
