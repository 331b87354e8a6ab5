"""The program as a function of TensorFlow's, from which its formats are made."""

from typing import Any

import jax
from jax.experimental import jax2tf

from deeplab_jax.export.program import ExportError, Interface, Model, function_of
from deeplab_jax.model import named_values
from deeplab_jax.quiet_tensorflow import import_tensorflow

tensorflow = import_tensorflow()


def to_tensorflow(model: Model, interface: Interface) -> Any:
    """A `tf.Module` whose method `run` is the model, with its weights as variables.

    Args:
      model: of `for_inference`.
      interface: of fixed sizes: TensorFlow cannot read how JAX writes others.

    Raises ExportError where a size is not fixed.
    """
    if interface.size is None or interface.batch is None:
        raise ExportError(
            "TensorFlow's formats are for images of one size and number: fix them, as with "
            "--size 512 512 --batch 1 (Interface(size=(512, 512), batch=1))"
        )
    struct = interface.struct(model)
    convert = jax2tf.convert(
        function_of(model, interface),
        with_gradient=False,
        # The form of XLA's own operations, which all converters know, and which runs on all platforms.
        native_serialization_platforms=("tpu",),
        native_serialization_disabled_checks=[jax2tf.DisabledSafetyCheck.platform()],
    )
    module = tensorflow.Module()
    module.weights = {
        name: tensorflow.Variable(jax.device_get(value), trainable=False)
        for name, value in named_values(model).items()
    }
    signature = tensorflow.TensorSpec(struct.shape, struct.dtype.name, name="images")
    module.run = tensorflow.function(
        lambda images: {interface.output: convert(dict(module.weights), images)},
        autograph=False,
        input_signature=[signature],
    )
    return module
