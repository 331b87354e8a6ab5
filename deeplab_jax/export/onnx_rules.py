"""What each operation of JAX is in ONNX: one rule a row."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from deeplab_jax.export.onnx_graph import Graph, Order, Value
from deeplab_jax.export.program import ExportError

Parameters = dict[str, Any]
Rule = Callable[..., Any]
"""From the graph, the `Result`, the operation's parameters and the operands to the value, or to several."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What JAX says of the result of an operation."""

    shape: tuple[Any, ...]
    dtype: np.dtype


RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# ---------------------------------------------------------------------------- element by element


def elementwise(graph: Graph, result: Result, make: Callable[..., str], *operands: Value) -> Value:
    """A value that `make` computes of the operands' tensors, which ONNX repeats as NumPy does."""
    order = _common_order(operands, len(result.shape))
    operands = tuple(_of_rank(graph, value, result, order) for value in operands)
    name = make(*(graph.read(value) for value in operands))
    repeated = frozenset(
        axis
        for axis, size in enumerate(result.shape)
        if size != 1 and all(not value.shape or _is_one(value, axis) for value in operands)
    )
    return Value(name, result.shape, result.dtype, order, repeated)


def _is_one(value: Value, axis: int) -> bool:
    return axis in value.repeated or value.shape[axis] == 1


def _common_order(operands: tuple[Value, ...], rank: int) -> Order:
    """The order in which the operands that are computed are stored; transposing constants is free."""
    found = [value for value in operands if value.constant is None and len(value.shape) == rank]
    found.sort(key=lambda value: len(value.repeated))
    turned = [value for value in found if value.order != tuple(range(rank)) and not value.repeated]
    return (turned or found)[0].order if found else tuple(range(rank))


def _of_rank(graph: Graph, value: Value, result: Result, order: Order) -> Value:
    if len(value.shape) == len(order):
        return graph.in_order(value, order)
    if value.shape:
        raise ExportError(f"operands of shapes {value.shape} and {result.shape}")
    return value  # a number


def _formula(make: Callable[..., str]) -> Rule:
    """The rule of what `make` computes of the graph and the names of the operands."""

    def apply(graph: Graph, result: Result, parameters: Parameters, *operands: Value) -> Value:
        del parameters
        return elementwise(graph, result, functools.partial(make, graph), *operands)

    return apply


def _node(kind: str, **attributes: Any) -> Rule:
    return _formula(lambda graph, *names: graph.node(kind, *names, **attributes))


RULES |= {
    name: _node(kind)
    for name, kind in {
        "abs": "Abs",
        "add": "Add",
        "add_any": "Add",
        "and": "And",
        "ceil": "Ceil",
        "div": "Div",
        "eq": "Equal",
        "erf": "Erf",
        "exp": "Exp",
        "floor": "Floor",
        "ge": "GreaterOrEqual",
        "gt": "Greater",
        "le": "LessOrEqual",
        "log": "Log",
        "logistic": "Sigmoid",
        "lt": "Less",
        "mul": "Mul",
        "neg": "Neg",
        "not": "Not",
        "or": "Or",
        "pow": "Pow",
        "sign": "Sign",
        "sqrt": "Sqrt",
        "sub": "Sub",
        "tanh": "Tanh",
    }.items()
}

RULES |= {
    "clamp": _formula(lambda graph, low, x, high: graph.node("Clip", x, low, high)),
    "is_finite": _formula(
        lambda graph, x: graph.node(
            "Not", graph.node("Or", graph.node("IsNaN", x), graph.node("IsInf", x))
        )
    ),
    "ne": _formula(lambda graph, a, b: graph.node("Not", graph.node("Equal", a, b))),
    "rsqrt": _formula(lambda graph, x: graph.node("Reciprocal", graph.node("Sqrt", x))),
    "select_n": _formula(lambda graph, which, no, yes: graph.node("Where", which, yes, no)),
    "square": _formula(lambda graph, x: graph.node("Mul", x, x)),
}


@rule("copy", "copy_p", "name", "optimization_barrier", "stop_gradient")
def _same(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    del graph, result, parameters
    return value


@rule("max")
def _max(graph: Graph, result: Result, parameters: Parameters, left: Value, right: Value) -> Value:
    for value, bound in ((left, right), (right, left)):
        if bound.constant is not None and bound.constant.size == 1 and not bound.constant.any():
            return _node("Relu")(graph, result, parameters, value)
    return _node("Max")(graph, result, parameters, left, right)


@rule("min")
def _min(graph: Graph, result: Result, parameters: Parameters, left: Value, right: Value) -> Value:
    """ReLU6 as one operator, which runtimes make part of the convolution before it."""
    for value, bound in ((left, right), (right, left)):
        relu = graph.maker(value)
        if relu is not None and relu.op_type == "Relu" and bound.shape == ():
            bounds = graph.constant(np.zeros((), result.dtype)), graph.read(bound)
            name = graph.node("Clip", relu.input[0], *bounds)
            return dataclasses.replace(value, name=name)
    return _node("Min")(graph, result, parameters, left, right)


@rule("erfc")
def _erfc(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    del parameters
    one = graph.constant(np.ones((), result.dtype))
    return elementwise(
        graph, result, lambda name: graph.node("Sub", one, graph.node("Erf", name)), value
    )


@rule("integer_pow")
def _integer_pow(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    power = graph.constant(np.asarray(parameters["y"], result.dtype))
    return elementwise(graph, result, lambda name: graph.node("Pow", name, power), value)


@rule("convert_element_type")
def _convert(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    del parameters
    if value.dtype == result.dtype:
        return value
    if value.constant is not None:
        return dataclasses.replace(
            value, name="", dtype=result.dtype, constant=value.constant.astype(result.dtype)
        )
    name = graph.cast(value.name, result.dtype)
    return dataclasses.replace(value, name=name, dtype=result.dtype)


# ---------------------------------------------------------------------------- shapes


@rule("transpose")
def _transpose(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    del graph
    new = {old: i for i, old in enumerate(parameters["permutation"])}
    return dataclasses.replace(
        value,
        shape=result.shape,
        order=tuple(new[axis] for axis in value.order),
        repeated=frozenset(new[axis] for axis in value.repeated),
    )


@rule("broadcast_in_dim")
def _broadcast(
    graph: Graph, result: Result, parameters: Parameters, value: Value, *_: Any
) -> Value:
    places = parameters["broadcast_dimensions"]
    rank = len(result.shape)
    widened = frozenset(
        axis
        for axis in range(rank)
        if result.shape[axis] != 1 and (axis not in places or _is_one(value, places.index(axis)))
    )
    if rank == len(value.shape):
        return dataclasses.replace(value, shape=result.shape, repeated=widened)
    # The axes of the operand in the order that they have in the result, ones between them.
    value = graph.plain(value)
    missing = [axis for axis in range(rank) if axis not in places]
    name, constant = value.name, value.constant
    if constant is None:
        name = graph.node("Unsqueeze", name, graph.integers(missing))
    else:
        constant = np.expand_dims(constant, tuple(missing))
    return Value(name, result.shape, result.dtype, tuple(range(rank)), widened, constant)


@rule("squeeze")
def _squeeze(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    gone = [axis % len(value.shape) for axis in parameters["dimensions"]]
    places = tuple(value.place(axis) for axis in gone)
    order, repeated = _without(value, gone)
    if value.constant is not None:
        constant = value.constant.squeeze(places)
        return Value(value.name, result.shape, result.dtype, order, repeated, constant)
    name = graph.node("Squeeze", value.name, graph.integers(sorted(places)))
    return Value(name, result.shape, result.dtype, order, repeated)


def _without(value: Value, axes: Iterable[int]) -> tuple[Order, frozenset[int]]:
    """`Value.order` and `Value.repeated` of what a value is without some of its axes."""
    new = {old: i for i, old in enumerate(_others(value, axes))}
    order = tuple(new[axis] for axis in value.order if axis in new)
    return order, frozenset(new[axis] for axis in value.repeated if axis in new)


@rule("expand_dims")
def _expand_dims(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    axes = set(parameters["dimensions"])
    kept = [axis for axis in range(len(result.shape)) if axis not in axes]
    return _broadcast(graph, result, {"broadcast_dimensions": tuple(kept)}, value)


@rule("reshape")
def _reshape(graph: Graph, result: Result, parameters: Parameters, value: Value, *_: Any) -> Value:
    del parameters
    if value.shape == result.shape:
        return value
    ones = [axis for axis, size in enumerate(value.shape) if size == 1]
    kept = tuple(size for size in value.shape if not _is(size, 1))
    if kept == tuple(size for size in result.shape if not _is(size, 1)):
        # Only ones come and go.
        squeezed = value
        if ones:
            squeezed = _squeeze(graph, Result(kept, value.dtype), {"dimensions": ones}, value)
        places = tuple(axis for axis, size in enumerate(result.shape) if not _is(size, 1))
        if len(places) == len(result.shape):
            return squeezed
        return _broadcast(graph, result, {"broadcast_dimensions": places}, squeezed)
    value = graph.plain(graph.whole(value))
    if value.constant is not None and all(isinstance(n, int) for n in result.shape):
        return graph.known(value.constant.reshape(result.shape), value.name)
    name = graph.node("Reshape", graph.read(value), _new_shape(graph, value.shape, result.shape))
    return Value(name, result.shape, result.dtype, tuple(range(len(result.shape))))


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def _new_shape(graph: Graph, old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    """Sizes for a Reshape: 0 is the size that stands at the same place, and one may be found out."""
    sizes: list[Any] = [
        0 if not isinstance(size, int) and axis < len(old) and str(old[axis]) == str(size) else size
        for axis, size in enumerate(new)
    ]
    open_ = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    if len(open_) == 1:
        sizes[open_[0]] = -1
    return graph.shape(sizes)


@rule("concatenate")
def _concatenate(graph: Graph, result: Result, parameters: Parameters, *values: Value) -> Value:
    order = _common_order(values, len(result.shape))
    values = tuple(graph.in_order(graph.whole(value), order) for value in values)
    axis = order.index(parameters["dimension"])
    name = graph.node("Concat", *map(graph.read, values), axis=axis)
    return Value(name, result.shape, result.dtype, order)


@rule("split")
def _split(
    graph: Graph, results: list[Result] | Result, parameters: Parameters, value: Value
) -> list[Value]:
    if isinstance(results, Result):
        return [value]
    value = graph.whole(value)
    sizes, axis = parameters["sizes"], value.place(parameters["axis"])
    names = graph.node(
        "Split", graph.read(value), graph.shape(sizes), outputs=len(sizes), axis=axis
    )
    return [
        Value(name, result.shape, result.dtype, value.order)
        for name, result in zip(names, results, strict=True)
    ]


@rule("slice")
def _slice(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    steps = parameters["strides"] or (1,) * len(value.shape)
    cut = [
        axis
        for axis, (start, stop, step) in enumerate(
            zip(parameters["start_indices"], parameters["limit_indices"], steps, strict=True)
        )
        if not (_is(start, 0) and str(stop) == str(value.shape[axis]) and step == 1)
    ]
    value = dataclasses.replace(value, shape=result.shape)
    cut = [axis for axis in cut if axis not in value.repeated]
    if not cut:
        return value
    places = [value.place(axis) for axis in cut]
    first, last, step = (
        [sizes[axis] for axis in cut]
        for sizes in (parameters["start_indices"], parameters["limit_indices"], steps)
    )
    if value.constant is not None and all(isinstance(n, int) for n in (*first, *last)):
        parts = [slice(None)] * value.constant.ndim
        for place, part in zip(places, zip(first, last, step, strict=True), strict=True):
            parts[place] = slice(*part)
        return dataclasses.replace(value, constant=value.constant[tuple(parts)])
    name = graph.node(
        "Slice",
        graph.read(value),
        graph.shape(first),
        graph.shape(last),
        graph.integers(places),
        graph.integers(step),
    )
    return dataclasses.replace(value, name=name, constant=None)


@rule("rev")
def _reverse(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    del result
    places = [value.place(axis) for axis in parameters["dimensions"]]
    count = len(places)
    name = graph.node(
        "Slice",
        graph.read(value),
        graph.integers([-1] * count),
        graph.integers([np.iinfo(np.int64).min] * count),
        graph.integers(places),
        graph.integers([-1] * count),
    )
    return dataclasses.replace(value, name=name, constant=None)


@rule("pad")
def _pad(graph: Graph, result: Result, parameters: Parameters, value: Value, fill: Value) -> Value:
    config = parameters["padding_config"]
    if any(inside for _, _, inside in config):
        raise ExportError("ONNX has no padding between pixels")
    value = graph.whole(value)
    if all(_is(before, 0) and _is(after, 0) for before, after, _ in config):
        return value
    stored = [config[axis] for axis in value.order]
    if any(isinstance(n, int) and n < 0 for before, after, _ in stored for n in (before, after)):
        raise ExportError(f"ONNX has no negative padding: {config}")
    pads = graph.shape([before for before, _, _ in stored] + [after for _, after, _ in stored])
    name = graph.node("Pad", graph.read(value), pads, graph.read(fill))
    return Value(name, result.shape, result.dtype, value.order)


@rule("iota")
def _iota(graph: Graph, result: Result, parameters: Parameters, *_: Value) -> Value:
    axis, rank = parameters["dimension"], len(result.shape)
    size = result.shape[axis]
    shape = [1] * rank
    repeated = frozenset(i for i in range(rank) if i != axis and not _is(result.shape[i], 1))
    order = tuple(range(rank))
    if isinstance(size, int):
        shape[axis] = size
        array = np.arange(size).astype(result.dtype).reshape(shape)
        return Value("", result.shape, result.dtype, order, repeated, array)
    zero, one = (graph.constant(np.asarray(n, np.int64)) for n in (0, 1))
    end = graph.node("Squeeze", graph.shape([size]))
    name = graph.cast(graph.node("Range", zero, end, one), result.dtype)
    if rank > 1:
        name = graph.node("Unsqueeze", name, graph.integers(i for i in range(rank) if i != axis))
    return Value(name, result.shape, result.dtype, order, repeated)


@rule("dim_as_value")
def _size(graph: Graph, result: Result, parameters: Parameters) -> Value:
    size = graph.size(parameters["dim"])
    if isinstance(size, int):
        return graph.known(np.asarray(size, result.dtype))
    name = graph.node("Squeeze", graph.cast(graph.shape([parameters["dim"]]), result.dtype))
    return Value(name, (), result.dtype, ())


# ---------------------------------------------------------------------------- sums and products


def _reduction(kind: str) -> Rule:
    def apply(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
        axes = parameters["axes"]
        if not axes:
            return value
        if value.repeated & set(axes):
            value = graph.whole(value)
        places = graph.integers(sorted(value.place(axis) for axis in axes))
        order, repeated = _without(value, axes)
        name = graph.node(kind, graph.read(value), places, keepdims=0)
        return Value(name, result.shape, result.dtype, order, repeated)

    return apply


RULES |= {
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
}


@rule("argmax")
def _argmax(graph: Graph, result: Result, parameters: Parameters, value: Value) -> Value:
    (axis,) = parameters["axes"]
    value = graph.whole(value)
    order, _ = _without(value, (axis,))
    name = graph.node("ArgMax", graph.read(value), axis=value.place(axis), keepdims=0)
    return Value(graph.cast(name, result.dtype), result.shape, result.dtype, order)


@rule("dot_general")
def _product(
    graph: Graph, result: Result, parameters: Parameters, left: Value, right: Value
) -> Value:
    """Axes of the result, as JAX has them: the batch's, the free ones of the left side, of the right."""
    (left_sum, right_sum), (left_batch, right_batch) = parameters["dimension_numbers"]
    left, right = graph.whole(left), graph.whole(right)
    left_free = _others(left, left_sum, left_batch)
    right_free = _others(right, right_sum, right_batch)
    a = graph.in_order(left, (*left_batch, *left_free, *left_sum))
    b = graph.in_order(right, (*right_batch, *right_sum, *right_free))
    # MatMul takes any number of axes in front, of both sides or of the left alone.
    fits = len(left_sum) == 1 and len(right_free) == 1
    if fits and (len(left_free) == 1 or not left_batch):
        name = graph.node("MatMul", graph.read(a), graph.read(b))
        return Value(name, result.shape, result.dtype, tuple(range(len(result.shape))))
    batch, summed = a.stored[: len(left_batch)], math.prod(left.shape[i] for i in left_sum)
    rows, columns = (
        math.prod(side.shape[i] for i in free)
        for side, free in ((left, left_free), (right, right_free))
    )
    flat = (
        graph.node("Reshape", graph.read(side), graph.shape((*batch, *sizes)))
        for side, sizes in ((a, (rows, summed)), (b, (summed, columns)))
    )
    name = graph.node("Reshape", graph.node("MatMul", *flat), graph.shape(result.shape))
    return Value(name, result.shape, result.dtype, tuple(range(len(result.shape))))


def _others(value: Value, *taken: Iterable[int]) -> list[int]:
    gone = set(itertools.chain(*taken))
    return [axis for axis in range(len(value.shape)) if axis not in gone]


# ---------------------------------------------------------------------------- images


@rule("conv_general_dilated")
def _conv(
    graph: Graph, result: Result, parameters: Parameters, image: Value, kernel: Value
) -> Value:
    numbers = parameters["dimension_numbers"]
    if parameters["batch_group_count"] != 1 or set(parameters["lhs_dilation"]) != {1}:
        raise ExportError("a transposed convolution")
    image = graph.in_order(graph.whole(image), tuple(numbers.lhs_spec))
    kernel = graph.in_order(graph.whole(kernel), tuple(numbers.rhs_spec))
    sides = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    before, after = zip(*parameters["padding"], strict=True)
    name = graph.node(
        "Conv",
        graph.read(image),
        graph.read(kernel),
        kernel_shape=sides,
        strides=parameters["window_strides"],
        dilations=parameters["rhs_dilation"],
        pads=[*before, *after],
        group=parameters["feature_group_count"],
    )
    return Value(name, result.shape, result.dtype, tuple(numbers.out_spec))


def _window(parameters: Parameters, rank: int) -> tuple[Order, list[int], list[int], list[int]]:
    """The order that ONNX's pooling wants, and kernel, strides and pads of its last axes."""
    sides, steps = parameters["window_dimensions"], parameters["window_strides"]
    pads = parameters["padding"]
    still = [
        axis
        for axis in range(rank)
        if sides[axis] == steps[axis] == 1 and tuple(pads[axis]) == (0, 0)
    ]
    moving = [axis for axis in range(rank) if axis not in still]
    if len(still) != 2 or {*parameters["base_dilation"], *parameters["window_dilation"]} != {1}:
        raise ExportError(f"a pooling over windows of {sides}")
    around = [*(pads[axis][0] for axis in moving), *(pads[axis][1] for axis in moving)]
    return (
        (*still, *moving),
        [sides[axis] for axis in moving],
        [steps[axis] for axis in moving],
        around,
    )


@rule("reduce_window_max")
def _max_pool(graph: Graph, result: Result, parameters: Parameters, image: Value) -> Value:
    order, sides, steps, pads = _window(parameters, len(result.shape))
    image = graph.in_order(graph.whole(image), order)
    name = graph.node("MaxPool", image.name, kernel_shape=sides, strides=steps, pads=pads)
    return Value(name, result.shape, result.dtype, order)


def _resize(mode: str) -> Rule:
    """Bilinear, of `[B, H, W, C]`."""

    def apply(graph: Graph, result: Result, parameters: Parameters, image: Value) -> Value:
        del parameters
        order = (0, 3, 1, 2)
        image = graph.in_order(graph.whole(image), order)
        sizes = graph.shape([result.shape[axis] for axis in order])
        name = graph.node(
            "Resize",
            graph.read(image),
            "",
            "",
            sizes,
            mode="linear",
            coordinate_transformation_mode=mode,
        )
        return Value(name, result.shape, result.dtype, order)

    return apply


FUNCTIONS: dict[str, Rule] = {
    "relu": _node("Relu"),
    "hard_sigmoid": _node("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_swish": _node("HardSwish"),
    "resize_half_pixel": _resize("half_pixel"),
    "resize_align_corners": _resize("align_corners"),
}
"""Functions that are one operator in ONNX, by the names that JAX gives them in a program."""
