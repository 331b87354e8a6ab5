"""SavedModel: TensorFlow's own, a folder, for TensorFlow Serving and whatever else reads it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from deeplab_jax.export.program import Interface, Model
from deeplab_jax.export.tensorflow_program import tensorflow, to_tensorflow

LAYOUT = "nhwc"
"""Of images and scores."""

_SIGNATURE = "serving_default"


def write(model: Model, interface: Interface, path: Path) -> None:
    """Writes the folder. Raises ExportError where a size is not fixed."""
    module = to_tensorflow(model, interface)
    program = module.run.get_concrete_function()
    tensorflow.saved_model.save(module, str(path), signatures={_SIGNATURE: program})


def runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The exported program, as a function of images."""
    loaded = tensorflow.saved_model.load(str(path))
    run = loaded.signatures[_SIGNATURE]
    return lambda images: next(iter(run(images=tensorflow.constant(images)).values())).numpy()


def usage(path: Path) -> str:
    """The lines that run it."""
    return (
        "import tensorflow\n"
        f'run = tensorflow.saved_model.load("{path}").signatures["{_SIGNATURE}"]\n'
        "(output,) = run(images=images).values()"
    )
