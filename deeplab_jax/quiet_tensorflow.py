"""TensorFlow, which few need, without what it prints."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

from deeplab_jax.quiet import is_debugging


def import_tensorflow() -> ModuleType:
    """The package tensorflow. Raises ImportError where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_its_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow
    tensorflow.get_logger().setLevel("ERROR")  # it calls all deprecated that runs a graph
    return tensorflow


@contextlib.contextmanager
def without_its_log() -> Iterator[None]:
    """Leaves out what is written to standard error by C++ too; Python's exceptions still come.

    Of the whole process, and so for a short while. With DEEPLAB_DEBUG=1 all is written.
    """
    if is_debugging():
        yield
        return
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
