"""The program as a function of TensorFlow's, from which its formats are made."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from deeplab_jax.export.program import ExportError, Function, Interface, Model, function_of
from deeplab_jax.interpreter import interpret
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
    from jax.experimental import jax2tf  # which imports TensorFlow, with all that it prints

    struct = interface.struct(model)
    run = jax2tf.convert(_plain(function_of(model, interface)), with_gradient=False)
    module = tensorflow.Module()
    module.weights = {
        name: tensorflow.Variable(jax.device_get(value), trainable=False)
        for name, value in named_values(model).items()
    }
    signature = tensorflow.TensorSpec(struct.shape, struct.dtype.name, name="images")
    module.run = tensorflow.function(
        lambda images: {interface.output: run(dict(module.weights), images)},
        autograph=False,
        input_signature=[signature],
    )
    return module


# ---------------------------------------------------------------------------- what TensorFlow reads

_PROGRAMS = ("closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat2")
"""Operations that are a program, and are gone into."""


def _plain(function: Function) -> Function:
    """The same, of the forms that are for no platform, and of operations that TensorFlow reads."""

    def run(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        program = jax.make_jaxpr(function)(weights, images)
        (result,) = interpret(program, jax.tree.leaves((weights, images)), _results)
        return result

    return run


def _results(equation: core.JaxprEqn, values: list[Any]) -> Sequence[Any] | None:
    primitive = equation.primitive
    match primitive.name:
        case "erf":  # which jax 0.12 writes as a composite operation
            return [_erf(*values)]
        case "erfc":
            return [1 - _erf(*values)]
        case name if name in _PROGRAMS:
            return None
    made = primitive.bind(*values, **equation.params)
    return made if primitive.multiple_results else [made]


_NUMERATOR = (
    2.2905065861350646e-4,
    3.4082910107109506e-3,
    0.050955695062380861,
    0.18520832239976145,
    1.128379143519084,
)
_DENOMINATOR = (
    -1.1791602954361697e-7,
    2.3547966471313185e-5,
    1.0179625278914885e-3,
    0.014070470171167667,
    0.11098505178285362,
    0.49746925110067538,
    1.0,
)
"""The rational function by which XLA and Eigen compute erf(x) / x from the square of x in float32."""

_ONE = 3.7439211627767994  # where erf is 1 in float32


def _erf(x: jax.Array) -> jax.Array:
    x = jnp.clip(x, -_ONE, _ONE)
    p, q = (jnp.polyval(jnp.array(c, x.dtype), x * x) for c in (_NUMERATOR, _DENOMINATOR))
    return x * p / q
