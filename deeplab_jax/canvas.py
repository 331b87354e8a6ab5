"""Images of many sizes through one program: each lies on a canvas, and the model sees the image alone.

To compile takes seconds, or minutes, for each size of image, and in a folder of photographs nearly all
differ. Here the model is traced once with symbols for rows and columns, as for export, and what it does is
done to arrays as large as the canvas, at whose top left the image lies. Wherever an operation would read
beyond the image (a 3x3 convolution at its border, a mean over all of it), what it finds there is what it
would find in a program of the image's own size: zeros, or nothing. So the result is the same, up to
rounding.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.extend import core

from deeplab_jax import lowering, ops
from deeplab_jax.interpreter import NoRule, interpret
from deeplab_jax.symbols import compute

SMALLEST = 64
"""Rows and columns of the smallest image for which a program of any size is made: some networks pad smaller
ones, which a program without a size cannot decide."""

_USUAL = 512  # rows and columns of a usual image

Weights = Mapping[str, Any]
"""The arrays of a model, by their names."""

Function = Callable[[Weights, jax.Array], jax.Array]
"""Of weights and images `[1, H, W, C]`, to an array of as many rows and columns."""

Shape = tuple[Any, ...]
"""Sizes, of which those that follow from the image's are symbols."""


class NeedsItsSize(ValueError):
    """A model that does something that is done here for one size at a time only."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function traced for images of any size, see `trace`.

    Attributes:
      jaxpr: of the weights, in the order of their names, and the image.
      sizes: what it has to know of the image's size, as JAX writes it: rows, columns, and sizes of layers
        that follow from them. They are computed beforehand, as XLA would compute them for each pixel.
    """

    jaxpr: core.ClosedJaxpr
    sizes: tuple[str, ...]

    def sizes_of(self, height: int, width: int) -> list[int]:
        """The `sizes` of an image of rows and columns that are at least `SMALLEST`."""
        known = dict(zip(_SYMBOLS, (height, width), strict=True))
        return [compute(size, known) for size in self.sizes]

    def work(self) -> float:
        """Multiply-adds of the convolutions for each pixel of an image."""
        known, total = dict.fromkeys(_SYMBOLS, _USUAL), 0

        def count(equation: core.JaxprEqn, operands: list[Any]) -> Sequence[Any] | None:
            nonlocal total
            if equation.params.keys() & {"jaxpr", "call_jaxpr"}:
                return None  # a program: its operations come next
            results: list[Any] = [variable.aval for variable in equation.outvars]
            if equation.primitive.name == "conv_general_dilated":
                kernel = operands[1].shape
                filters = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
                out = [compute(size, known) for size in results[0].shape]
                total += math.prod(out) * math.prod(kernel) // filters
            return results

        interpret(self.jaxpr, self.jaxpr.in_avals, count)
        return total / _USUAL**2

    def __call__(self, weights: Weights, image: jax.Array, sizes: jax.Array) -> jax.Array:
        """What the function gives for the image that lies at the top left of a canvas.

        Args:
          image: the canvas, `[1, H, W, C]`, with anything beyond the image.
          sizes: `sizes_of` the image, int32.

        Returns:
          A canvas with the result at its top left, and anything beyond it.
        """
        seen = dict(zip(self.sizes, sizes, strict=True))
        return _result(self.jaxpr, weights, image, _Canvas(_whole(image), seen.__getitem__))


def trace(function: Function, weights: Weights, channels: int) -> Program:
    """A function for images of any size.

    Args:
      weights: or shapes of them.

    Raises:
      NeedsItsSize: it cannot be so.
    """
    limits = [f"{symbol} >= {SMALLEST}" for symbol in _SYMBOLS]
    rows, columns = export.symbolic_shape(",".join(_SYMBOLS), constraints=limits)
    structs = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in weights.items()}
    images = jax.ShapeDtypeStruct((1, rows, columns, channels), jnp.float32)
    asked = dict.fromkeys(_SYMBOLS)

    def ask(size: str) -> jax.Array:
        asked.setdefault(size)
        return jnp.zeros((), jnp.int32)

    def run(weights: Weights, image: jax.Array) -> jax.Array:
        return _result(jaxpr, weights, image, _Canvas(_whole(image), ask))

    canvas = jax.ShapeDtypeStruct((1, 2 * SMALLEST, 2 * SMALLEST, channels), jnp.float32)
    try:
        jaxpr = jax.make_jaxpr(function)(structs, images)
        jax.eval_shape(run, structs, canvas)  # whether all has a rule, and what the rules ask for
    except NeedsItsSize:
        raise
    except Exception as error:  # a backbone of someone's own may do anything with sizes
        reason = str(error).partition("\n")[0]
        raise NeedsItsSize(f"the program depends on the size of the images: {reason}") from error
    return Program(jaxpr, tuple(asked))


def _whole(image: jax.Array) -> dict[str, int]:
    return dict(zip(_SYMBOLS, image.shape[1:3], strict=True))


def _result(
    jaxpr: core.ClosedJaxpr, weights: Weights, image: jax.Array, canvas: "_Canvas"
) -> jax.Array:
    inputs = [*(weights[name] for name in sorted(weights)), image]
    try:
        (result,) = interpret(jaxpr, inputs, functools.partial(_results, canvas))
    except NoRule as error:
        raise NeedsItsSize(f"no rule does JAX's {error} on a canvas") from error
    return result


def resize(
    image: jax.Array,
    size: jax.Array,
    out: jax.Array,
    canvas: tuple[int, int],
    *,
    align_corners: bool,
) -> jax.Array:
    """`ops.resize_bilinear` of the image on a canvas, onto a canvas of another size.

    Args:
      image: `[1, H, W, C]`.
      size: (rows, columns) of the image, int32 `[2]`; out: of the result; canvas: of that which it is on.
    """
    inside = _before(image.shape, 1, size[0]) & _before(image.shape, 2, size[1])
    image = jnp.where(inside, image, 0)
    for axis in (2, 1):
        resampling = lowering.Resampling(axis, image.shape[axis], canvas[axis - 1], align_corners)
        image = lowering.by_platform(
            resampling,
            image,
            size[axis - 1],
            out[axis - 1],
            default=lowering.product_of_any_size,
            cpu=lowering.weighted_rows_of_any_size,
        )
    return image


def mirror(image: jax.Array, size: jax.Array) -> jax.Array:
    """The mirror image, left to right, of the image on a canvas `[1, H, W, C]`."""
    columns = size[1] - 1 - jnp.arange(image.shape[2])
    return jnp.take(image, columns, axis=2, mode="clip")


# ---------------------------------------------------------------------------- sizes

_SYMBOLS = ("height", "width")


@dataclasses.dataclass
class _Canvas:
    """What is known of sizes: of the arrays that hold everything, and of what is seen of them.

    Attributes:
      whole: rows and columns of the canvas, and what was computed of them.
      seen: gives a size of the image, or of what follows from it, as JAX writes it.
      merged: by the product of two sizes, those two: of axes that were reshaped into one.
    """

    whole: dict[str, int]
    seen: Callable[[str], jax.Array]
    merged: dict[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def shape(self, sizes: Shape) -> tuple[int, ...]:
        """Sizes of an array that holds everything."""
        return tuple(compute(size, self.whole) for size in sizes)

    def seen_size(self, size: Any) -> Any:
        """A size of what is seen: a number, or int32 `[]`."""
        return size if isinstance(size, int) else self.seen(str(size))

    def masked(
        self, array: jax.Array, shape: Shape, fill: Any, axes: Sequence[int] | None = None
    ) -> jax.Array:
        """The array with `fill` in place of what is not seen, along the axes that are said, or all."""
        inside: list[jax.Array] = []
        for axis in range(len(shape)) if axes is None else axes:
            size = shape[axis]
            if isinstance(size, int):
                continue
            if (both := self.merged.get(str(size))) is not None:
                columns = self.shape((both[1],))[0]
                index = lax.broadcasted_iota(jnp.int32, array.shape, axis)
                inside.append(index // columns < self.seen_size(both[0]))
                inside.append(index % columns < self.seen_size(both[1]))
            else:
                inside.append(_before(array.shape, axis, self.seen_size(size)))
        if not inside:
            return array
        return jnp.where(functools.reduce(jnp.logical_and, inside), array, fill)


def _before(shape: tuple[int, ...], axis: int, size: Any) -> jax.Array:
    """Which elements of an array are before a place along an axis."""
    return lax.broadcasted_iota(jnp.int32, shape, axis) < size


# ---------------------------------------------------------------------------- the program


def _results(canvas: _Canvas, equation: core.JaxprEqn, values: list[Any]) -> Sequence[Any] | None:
    """What an operation gives of values that lie on the canvas."""
    name, parameters = equation.primitive.name, equation.params
    if name in _ELEMENTWISE:
        return [equation.primitive.bind(*values, **parameters)]
    if (rule := _RULES.get(parameters.get("name", name))) is None:
        return None
    made = rule(canvas, equation, *values)
    return made if isinstance(made, list) else [made]


_NAMES = """
    abs add and ceil clamp convert_element_type copy cos div eq erf erfc exp expm1 floor ge gt integer_pow
    is_finite le log log1p logistic lt max min mul name ne neg not or pow rsqrt select_n sign sin sqrt
    square squeeze stop_gradient sub tanh transpose
"""
_ELEMENTWISE = frozenset(_NAMES.split())
"""Operations that are done to the canvas as to the image, with parameters in which there is no size."""

Rule = Callable[..., Any]
"""From the canvas, the operation and its operands to its result, or to a list of several."""

_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of operations, or of functions by the names that JAX gives them in a program."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _shape(variable: Any) -> Shape:
    return tuple(variable.aval.shape)


# ---------------------------------------------------------------------------- rules: shapes


@_rule("dim_as_value")
def _size(canvas: _Canvas, equation: core.JaxprEqn) -> jax.Array:
    aval: Any = equation.outvars[0].aval
    return jnp.asarray(canvas.seen_size(equation.params["dim"]), aval.dtype)


@_rule("iota")
def _iota(canvas: _Canvas, equation: core.JaxprEqn) -> jax.Array:
    shape = canvas.shape(_shape(equation.outvars[0]))
    return lax.broadcasted_iota(equation.params["dtype"], shape, equation.params["dimension"])


@_rule("broadcast_in_dim")
def _broadcast(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array) -> jax.Array:
    shape = canvas.shape(_shape(equation.outvars[0]))
    return lax.broadcast_in_dim(value, shape, equation.params["broadcast_dimensions"])


@_rule("reshape")
def _reshape(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array) -> jax.Array:
    old, new = (_shape(variable) for variable in (*equation.invars, *equation.outvars))
    _check_reshape(canvas, _without_ones(old), _without_ones(new))
    return value.reshape(canvas.shape(new))


def _without_ones(shape: Shape) -> list[Any]:
    return [size for size in shape if not isinstance(size, int) or size != 1]


def _check_reshape(canvas: _Canvas, old: list[Any], new: list[Any]) -> None:
    """Goes through the axes that become one axis or several, and notes rows and columns that become one.

    Raises NeedsItsSize where the image would not stay what it is on the canvas.
    """
    left, right = list(old), list(new)
    while left and right:
        merged = _first(left, right)
        merged = _first(right, left) if merged is None else merged
        if merged is None:
            break
        canvas.merged |= merged
    if left or right:
        raise NeedsItsSize(f"a reshape from {old} to {new}")


def _first(parts: list[Any], whole: list[Any]) -> dict[str, tuple[Any, Any]] | None:
    """Removes the first size of `whole`, and those of `parts` that it is the product of.

    Returns:
      That size with rows and columns, where they are; None where the sizes do not begin so, and are kept.
    """
    product, count = 1, 0
    while count < len(parts) and not _same(product, whole[0]):
        product, count = product * parts[count], count + 1
    # What is seen stays at the beginning of an axis if numbers alone come behind it.
    numbers = [isinstance(size, int) for size in parts[:count]]
    if not _same(product, whole[0]) or not (all(numbers[1:]) or numbers == [False, False]):
        return None
    merged = {} if all(numbers[1:]) else {str(whole[0]): (parts[0], parts[1])}
    del parts[:count], whole[:1]
    return merged


def _same(one: Any, other: Any) -> bool:
    return str(one) == str(other)


@_rule("slice")
def _slice(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array) -> jax.Array:
    start, stop = (equation.params[name] for name in ("start_indices", "limit_indices"))
    if not all(isinstance(n, int) for n in start):
        raise NeedsItsSize(f"a slice from {start} on")
    return lax.slice(value, start, canvas.shape(stop), equation.params["strides"])


@_rule("concatenate")
def _concatenate(canvas: _Canvas, equation: core.JaxprEqn, *values: jax.Array) -> jax.Array:
    axis = equation.params["dimension"]
    _check_numbers(equation, [axis])
    return lax.concatenate(values, axis)


@_rule("split")
def _split(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array) -> list[jax.Array]:
    _check_numbers(equation, [equation.params["axis"]])
    return equation.primitive.bind(value, **equation.params)


@_rule("rev")
def _reverse(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array) -> jax.Array:
    _check_numbers(equation, equation.params["dimensions"])
    return equation.primitive.bind(value, **equation.params)


def _check_numbers(equation: core.JaxprEqn, axes: Sequence[int]) -> None:
    """Raises NeedsItsSize where an operation is along an axis whose size is not known."""
    if any(not isinstance(_shape(v)[axis], int) for v in equation.invars for axis in axes):
        raise NeedsItsSize(f"{equation.primitive.name} along rows or columns")


@_rule("pad")
def _pad(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array, fill: jax.Array) -> jax.Array:
    firsts, _, insides = zip(*equation.params["padding_config"], strict=True)
    if any(insides):
        raise NeedsItsSize("padding between pixels")
    shape = canvas.shape(_shape(equation.outvars[0]))
    # The image may have more padding before it than the canvas would have: room for all beyond the image.
    room = [
        size if isinstance(first, int) else size + beyond
        for first, size, beyond in zip(firsts, shape, value.shape, strict=True)
    ]
    value = canvas.masked(value, _shape(equation.invars[0]), fill)
    before = [canvas.seen_size(first) for first in firsts]
    padded = lax.dynamic_update_slice(jnp.full(room, fill), value, before)
    return padded[tuple(map(slice, shape))]


# ---------------------------------------------------------------------------- rules: sums and products


@_rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array) -> jax.Array:
    limits = {"reduce_max": -np.inf, "reduce_min": np.inf}
    fill = limits.get(equation.primitive.name, 0)
    if fill and not jnp.issubdtype(value.dtype, jnp.floating):
        raise NeedsItsSize(f"{equation.primitive.name} of {value.dtype}")
    axes = equation.params["axes"]
    value = canvas.masked(value, _shape(equation.invars[0]), fill, axes)
    return equation.primitive.bind(value, **equation.params)


@_rule("argmax")
def _argmax(canvas: _Canvas, equation: core.JaxprEqn, value: jax.Array) -> jax.Array:
    _check_numbers(equation, equation.params["axes"])
    return equation.primitive.bind(value, **equation.params)


@_rule("dot_general")
def _product(
    canvas: _Canvas, equation: core.JaxprEqn, left: jax.Array, right: jax.Array
) -> jax.Array:
    summed, _ = equation.params["dimension_numbers"]
    shapes = map(_shape, equation.invars)
    # Of both sides, as zero times what is not a number is none either.
    sides = [
        canvas.masked(value, shape, 0, axes)
        for value, shape, axes in zip((left, right), shapes, summed, strict=True)
    ]
    return equation.primitive.bind(*sides, **equation.params)


# ---------------------------------------------------------------------------- rules: images


@_rule("conv_general_dilated")
def _conv(
    canvas: _Canvas, equation: core.JaxprEqn, image: jax.Array, kernel: jax.Array
) -> jax.Array:
    given = equation.params
    order = lax.conv_dimension_numbers(image.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    (stride, *strides), (rate, *rates) = given["window_strides"], given["rhs_dilation"]
    if (
        given["dimension_numbers"] != order
        or strides != [stride]
        or rates != [rate]
        or set(given["lhs_dilation"]) != {1}
        or given["batch_group_count"] != 1
    ):
        raise NeedsItsSize("a convolution that is none of `ops.conv`")
    if kernel.shape[:2] != (1, 1):
        image = canvas.masked(image, _shape(equation.invars[0]), 0)
    return ops.conv(
        image,
        kernel,
        stride=stride,
        dilation=rate,
        padding=given["padding"],
        groups=given["feature_group_count"],
    )


@_rule("reduce_window_max")
def _max_pool(canvas: _Canvas, equation: core.JaxprEqn, image: jax.Array) -> jax.Array:
    image = canvas.masked(image, _shape(equation.invars[0]), -np.inf)
    return equation.primitive.bind(image, **equation.params)


def _resized(align_corners: bool) -> Rule:
    def apply(canvas: _Canvas, equation: core.JaxprEqn, image: jax.Array) -> jax.Array:
        old, new = (_shape(v)[1:3] for v in (*equation.invars, *equation.outvars))
        seen, out = (jnp.stack([*map(jnp.asarray, map(canvas.seen_size, s))]) for s in (old, new))
        rows, columns = canvas.shape(new)
        return resize(image, seen, out, (rows, columns), align_corners=align_corners)

    return apply


_RULES["resize_half_pixel"] = _resized(align_corners=False)
_RULES["resize_align_corners"] = _resized(align_corners=True)
