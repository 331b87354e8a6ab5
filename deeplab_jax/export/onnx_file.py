"""ONNX: a model as a graph of a standard's operators, which many runtimes run.

The program is traced with symbols for the sizes of images, as JAX has them, and each of its operations
becomes one of ONNX, see `onnx_rules`: so it is the very program that `predict` runs, on every backbone.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
from jax.extend import core
from onnx import helper

from deeplab_jax.config import to_dict
from deeplab_jax.export.onnx_graph import Graph, Value
from deeplab_jax.export.onnx_rules import FUNCTIONS, RULES, Result
from deeplab_jax.export.program import (
    ExportError,
    Interface,
    Model,
    function_of,
    needs_a_size,
)
from deeplab_jax.interpreter import NoRule, interpret
from deeplab_jax.model import named_values
from deeplab_jax.predict import config_of

LAYOUT = "nchw"
"""Of images and scores, as exports from PyTorch have them."""

PROPERTY = "deeplab_jax"
"""The key of the config in the metadata of the file."""

_LARGEST = 2**31 - 1  # bytes of a protocol buffer


def to_onnx(model: Model, interface: Interface) -> onnx.ModelProto:
    """A model as ONNX has it.

    Args:
      model: of `for_inference`.

    Raises:
      ExportError: for an operation that has no rule, and a model that needs a fixed size and has none.
    """
    weights = named_values(model)
    program = _traced(model, interface, weights)
    graph = Graph()
    values = [graph.known(np.asarray(weights[name]), name) for name in sorted(weights)]
    images = program.in_avals[-1]
    values.append(graph.input("images", images.shape, images.dtype, interface.fixed))
    try:
        (result,) = interpret(
            program,
            values,
            functools.partial(_results, graph),
            known=lambda array: graph.known(np.asarray(array)),
        )
    except NoRule as error:
        raise ExportError(f"no rule translates JAX's {error} to ONNX") from error
    return graph.model(interface.output, result)


def _traced(
    model: Model, interface: Interface, weights: Mapping[str, jax.Array]
) -> core.ClosedJaxpr:
    """The program, with symbols if it can be, also for sizes that are fixed: resizes are operators then."""
    structs = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in weights.items()}
    trace = jax.make_jaxpr(function_of(model, interface))
    free = dataclasses.replace(interface, size=None, batch=None)
    try:
        return trace(structs, free.struct(model))
    except jax.errors.InconclusiveDimensionOperation as error:
        if interface.size is None:
            raise needs_a_size(error) from error
    return trace(structs, interface.struct(model))


# ---------------------------------------------------------------------------- translation


def _results(graph: Graph, equation: core.JaxprEqn, values: list[Any]) -> Sequence[Value] | None:
    """The values that an operation gives."""
    name, parameters = equation.primitive.name, equation.params
    arrays: Any = [variable.aval for variable in equation.outvars]
    results = [Result(array.shape, np.dtype(array.dtype)) for array in arrays]
    if (function := FUNCTIONS.get(parameters.get("name", ""))) is not None:
        return [function(graph, results[0], parameters, *values)]
    if name not in RULES:
        return None
    made = RULES[name](graph, results if len(results) > 1 else results[0], parameters, *values)
    return made if isinstance(made, list) else [made]


# ---------------------------------------------------------------------------- the file


def write(model: Model, interface: Interface, path: Path) -> None:
    """Writes `to_onnx`, with the model's config, which has the names of classes, in its properties."""
    graph = to_onnx(model, interface)
    helper.set_model_props(graph, {PROPERTY: json.dumps(to_dict(config_of(model)))})
    if graph.ByteSize() > _LARGEST:
        raise ExportError(
            "an ONNX file holds 2 GiB at most, and this model is larger: --dtype float16"
        )
    path.write_bytes(graph.SerializeToString())


def runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The exported graph in onnxruntime on CPU, as a function of images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def usage(path: Path) -> str:
    """The lines that run it."""
    return (
        "import onnxruntime\n"
        f'session = onnxruntime.InferenceSession("{path}")\n'
        '(output,) = session.run(None, {"images": images})'
    )
