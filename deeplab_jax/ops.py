"""Numeric primitives: convolutions, batch norm, pooling and bilinear resize, as PyTorch defines them.

Everything that depends on the platform hides in this file. Arrays are `[B, H, W, C]`, kernels
`[kh, kw, C_in / groups, C_out]`. XLA's own convolution is the best choice on TPU and GPU; on CPU
it is many times slower than it need be for the convolutions that DeepLab is made of:

* depthwise: a sum of shifted images times a weight each, which XLA fuses into one loop
  (144 channels, 129 x 129: 43 ms -> 2 ms);
* atrous (dilated): one matrix product per tap over the part of the image that the tap really
  sees. At large rates most taps look at padding only, and that work disappears
  (2048 -> 256, rate 18 on 33 x 33: 165 ms -> 60 ms);
* 1x1: one matrix product, for the sake of its gradients.

Which one runs is decided when the program is lowered for a platform, so that a program compiled on
a laptop for a TPU is the TPU's.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
Padding = int | Literal["same"] | Pads
"""Zeros around the image: the same number on all sides, TensorFlow's "same" (the smallest total that
gives ceil(size / stride), the odd pixel at the bottom and right), or ((top, bottom), (left, right))."""


# ---------------------------------------------------------------------------- the compiler


def compiler_options() -> dict[str, str] | None:
    """What to give `jax.jit(..., compiler_options=)` around a model on the default backend.

    On CPU: convolutions and matrix products by XLA itself and sums over an image by the library that
    is its default for all three (XNNPACK's successor YNNPACK). A training step of DeepLabv3+ on
    EfficientNet-Lite0 takes 6.4 s by default, 11.8 s without the library, 2.6 s so. None elsewhere.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


# ---------------------------------------------------------------------------- sizes


def output_size(
    size: int, kernel_size: int, *, stride: int = 1, dilation: int = 1, padding: int = 0
) -> int:
    """Rows (or columns) that a convolution or pooling of `size` rows gives.

    floor((size + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1
    """
    return (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's "SAME" zeros (before, after) for an axis of `size` pixels."""
    out = -(-size // stride)
    total = max((out - 1) * stride + dilation * (kernel_size - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def receptive_field(layers: Iterable[tuple[int, int | Fraction, int]]) -> int:
    """Side, in input pixels, of the window that one output pixel of a chain of layers depends on.

    Args:
      layers: (kernel size, stride, dilation) of each convolution or pooling, in order; a bilinear
        resize to four times the size is (2, Fraction(1, 4), 1).
    """
    field, jump = 1, 1
    for kernel_size, stride, dilation in layers:
        field += (kernel_size - 1) * dilation * jump
        jump *= stride
    return int(field)


# ---------------------------------------------------------------------------- convolution


class _Spec(NamedTuple):
    """The static part of a convolution; hashable, so that it can be an argument of `custom_vjp`."""

    stride: int
    dilation: int
    pads: Pads
    groups: int


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding = 0,
    groups: int = 1,
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation, as in every deep-learning library).

    Args:
      x: `[B, H, W, C_in]`.
      kernel: `[kh, kw, C_in / groups, C_out]`, of the same dtype as `x`.
      stride: step between output pixels.
      dilation: the atrous rate, the distance between the taps of the kernel.
      padding: see `Padding`.
      groups: `C_in` for a depthwise convolution.

    Returns:
      `[B, H', W', C_out]` in the dtype of `x`, H' as `output_size` says.
    """
    kh, kw = kernel.shape[:2]
    if padding == "same":
        pads = tuple(
            same_padding(n, k, stride, dilation)
            for n, k in zip(x.shape[1:3], (kh, kw), strict=True)
        )
    elif isinstance(padding, int):
        pads = ((padding, padding), (padding, padding))
    else:
        pads = padding
    return _conv(x, kernel, _Spec(stride, dilation, pads, groups))


# The rule for gradients belongs to the choice of lowering: differentiating through the choice would
# keep the intermediate values of every platform's form, when all any of them needs is x and kernel.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, spec: _Spec) -> jax.Array:
    on_cpu, _ = _cpu_forms(x.shape, kernel.shape, spec)
    return _by_platform(on_cpu, _native, spec, x, kernel)


def _conv_forward(x, kernel, spec):
    return _conv(x, kernel, spec), (x, kernel)


def _conv_backward(spec, saved, cotangent):
    x, kernel = saved
    _, on_cpu = _cpu_forms(x.shape, kernel.shape, spec)
    return _by_platform(on_cpu, _gradient_of(_native), spec, x, kernel, cotangent)


_conv.defvjp(_conv_forward, _conv_backward)


def _by_platform(on_cpu, default, static, *arguments):
    """`form(*arguments, static)` of the one that is for the platform."""
    on_cpu, default = (lambda *a, form=form: form(*a, static) for form in (on_cpu, default))
    return lax.platform_dependent(*arguments, cpu=on_cpu, default=default)


def _gradient_of(form):
    """The gradients of x and kernel by differentiating `form`."""

    def gradient(x, kernel, cotangent, spec):
        _, transpose = jax.vjp(functools.partial(form, spec=spec), x, kernel)
        return transpose(cotangent)

    return gradient


def _cpu_forms(image: tuple[int, ...], kernel: tuple[int, ...], spec: _Spec):
    """What is fastest on CPU, from the shapes alone: a convolution and its gradients."""
    if spec.groups == image[-1] == kernel[-1] and kernel[2] == 1:
        return _depthwise_taps, _depthwise_gradients
    if spec.groups == 1 and kernel[:2] == (1, 1) and spec.pads == ((0, 0), (0, 0)):
        return _pointwise, _gradient_of(_pointwise)
    # Cropping copies each tap's part of the image, and pays where less than `cropped` of it is seen:
    # 2048 -> 256 on 64 x 64 at rates 12, 24, 36 (0.77, 0.56, 0.39 seen) takes 272, 267, 250 ms of one
    # core by XLA's own form and 305, 230, 147 ms cropped; of both gradients at 0.58, 180 and 140 ms.
    share = _visible_share(image, kernel, spec) if spec.groups == spec.stride == 1 else 1.0
    forward, gradient = (_atrous_taps if share < cropped else _native for cropped in (0.6, 0.8))
    return forward, _gradient_of(gradient)


def _native(x: jax.Array, kernel: jax.Array, spec: _Spec) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(spec.stride, spec.stride),
        padding=spec.pads,
        rhs_dilation=(spec.dilation, spec.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


def _pointwise(x: jax.Array, kernel: jax.Array, spec: _Spec) -> jax.Array:
    """A 1x1 convolution as one matrix product."""
    return _matmul(x[:, :: spec.stride, :: spec.stride], kernel[0, 0]).astype(x.dtype)


def _matmul(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`[B, H, W, C]` by `[C, D]` in float32.

    Of two axes: given more, XLA would copy the transpose that the matrix's gradient begins with.
    """
    y = lax.dot(x.reshape(-1, x.shape[-1]), matrix, preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:3], -1)


def _depthwise_taps(x: jax.Array, kernel: jax.Array, spec: _Spec) -> jax.Array:
    """A depthwise convolution as one multiply-add per tap over a shifted view of the image."""
    padded = jnp.pad(x, ((0, 0), *spec.pads, (0, 0)))
    size = _conv_size(x.shape, kernel.shape, spec)
    return _sum_of_taps(padded, kernel, size, stride=spec.stride, dilation=spec.dilation)


def _sum_of_taps(
    x: jax.Array,
    kernel: jax.Array,
    size: tuple[int, int],
    *,
    stride: int,
    dilation: int,
) -> jax.Array:
    """A depthwise convolution without padding; `size` of its result."""
    (height, width), channels = size, x.shape[3]
    total = jnp.zeros((x.shape[0], height, width, channels), jnp.float32)
    for i in range(kernel.shape[0]):
        rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
        for j in range(kernel.shape[1]):
            columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
            total += x[:, rows, columns].astype(jnp.float32) * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(x.dtype)


def _depthwise_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: _Spec
) -> tuple[jax.Array, jax.Array]:
    """The image's gradient is a depthwise convolution of the cotangent, spread out by the stride."""
    spread = []
    for axis, (before, _) in enumerate(spec.pads):
        reach = (kernel.shape[axis] - 1) * spec.dilation
        covered = (cotangent.shape[axis + 1] - 1) * spec.stride + 1
        after = x.shape[axis + 1] + before - covered
        spread.append((reach - before, after, spec.stride - 1))
    spread = lax.pad(cotangent, np.zeros((), x.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    turned = kernel[::-1, ::-1]
    return (
        _sum_of_taps(spread, turned, x.shape[1:3], stride=1, dilation=spec.dilation),
        _depthwise_kernel_gradient(x, kernel, cotangent, spec),
    )


def _depthwise_kernel_gradient(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: _Spec
) -> jax.Array:
    """Sums over rows, few at a time: the sums of all taps, `[W, C]` each, stay in the cache.

    One sum over the image per tap would read the image and the cotangent from memory once for each
    (8 x 72 x 72 x 256, 3x3: 140 ms of processor time -> 23 ms).
    """
    images, height, width, channels = cotangent.shape
    taps = list(itertools.product(*map(range, kernel.shape[:2])))
    at_once = next(n for n in (2, 3, 1) if height % n == 0)
    last = (width - 1) * spec.stride + 1
    padded = jnp.pad(x, ((0, 0), *spec.pads, (0, 0)))

    def row(array: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
        size = (1, 1, *array.shape[2:])
        return lax.dynamic_slice(array, (image, index, 0, 0), size)[0, 0].astype(jnp.float32)

    def add(step: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        image, first = step * at_once // height, step * at_once % height
        for r in range(at_once):
            errors = row(cotangent, image, first + r)
            seen = [
                row(padded, image, (first + r) * spec.stride + i * spec.dilation)
                for i in range(kernel.shape[0])
            ]
            sums = [
                total + seen[i][j * spec.dilation :][: last : spec.stride] * errors
                for total, (i, j) in zip(sums, taps, strict=True)
            ]
        return sums

    zeros = [jnp.zeros((width, channels), jnp.float32)] * len(taps)
    sums = lax.fori_loop(0, images * height // at_once, add, zeros)
    return jnp.stack([total.sum(0) for total in sums]).reshape(kernel.shape).astype(kernel.dtype)


def _atrous_taps(x: jax.Array, kernel: jax.Array, spec: _Spec) -> jax.Array:
    """A dilated convolution (stride 1) as a matrix product per tap, cropped to the image."""
    height, width = _conv_size(x.shape, kernel.shape, spec)
    total = jnp.zeros((x.shape[0], height, width, kernel.shape[3]), jnp.float32)
    for i in range(kernel.shape[0]):
        rows = _visible(x.shape[1], height, i * spec.dilation - spec.pads[0][0])
        for j in range(kernel.shape[1]):
            columns = _visible(x.shape[2], width, j * spec.dilation - spec.pads[1][0])
            if rows is None or columns is None:  # this tap sees padding only
                continue
            (out_y, in_y, h), (out_x, in_x, w) = rows, columns
            product = lax.dot_general(
                x[:, in_y : in_y + h, in_x : in_x + w],
                kernel[i, j],
                (((3,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            total += jnp.pad(
                product,
                (
                    (0, 0),
                    (out_y, height - out_y - h),
                    (out_x, width - out_x - w),
                    (0, 0),
                ),
            )
    return total.astype(x.dtype)


def _visible(size: int, out: int, offset: int) -> tuple[int, int, int] | None:
    """(first output row, first input row, rows) where output row y sees input row y + offset."""
    first, last = max(0, -offset), min(out, size - offset)
    return (first, first + offset, last - first) if last > first else None


def _visible_share(image: tuple[int, ...], kernel: tuple[int, ...], spec: _Spec) -> float:
    """The share of a convolution's (stride 1) products that see the image, not padding."""
    share = 1.0
    out = _conv_size(image, kernel, spec)
    for size, taps, (before, _), length in zip(image[1:3], kernel, spec.pads, out, strict=False):
        seen = (_visible(size, length, i * spec.dilation - before) for i in range(taps))
        share *= sum(rows[2] for rows in seen if rows) / (taps * length)
    return share


def _conv_size(image: tuple[int, ...], kernel: tuple[int, ...], spec: _Spec) -> tuple[int, int]:
    height, width = (
        output_size(n + sum(pads), k, stride=spec.stride, dilation=spec.dilation)
        for n, k, pads in zip(image[1:3], kernel[:2], spec.pads, strict=True)
    )
    return height, width


# ---------------------------------------------------------------------------- batch norm


def moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of `x` over `axes`, which stay with size 1, in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axes, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    axes: tuple[int, ...],
    epsilon: float,
) -> jax.Array:
    """`x` shifted and scaled to mean 0 and variance 1 over `axes`, times `scale` plus `bias`.

    `mean` and `var` must be the `moments` of `x` over `axes`: the gradient of `x` includes what
    reaches it through them, and they have none of their own.

    Args:
      x: `[..., C]`; scale, bias: float32 `[C]`.
    """
    gain = scale / jnp.sqrt(var + epsilon)
    return (x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(x.dtype)


def _batch_norm_forward(x, scale, bias, mean, var, axes, epsilon):
    return batch_norm(x, scale, bias, mean, var, axes, epsilon), (x, scale, mean, var)


def _batch_norm_backward(axes, epsilon, saved, cotangent):
    x, scale, mean, var = saved
    count = math.prod(x.shape[axis] for axis in axes)
    inverse = 1 / jnp.sqrt(var + epsilon)
    x32, g = x.astype(jnp.float32), cotangent.astype(jnp.float32)
    # Nothing here is `x - mean`, which XLA would share with the forward pass and keep until now: as much
    # memory again as the inputs of all batch norms.
    bias_gradient = g.sum(axes, keepdims=True)
    scale_gradient = (g * (x32 * inverse - mean * inverse)).sum(axes, keepdims=True)
    gain = scale * inverse
    slope = gain * inverse * scale_gradient / count
    x_gradient = g * gain - x32 * slope + (mean * slope - gain * bias_gradient / count)
    others = tuple(range(x.ndim - 1))
    return (
        x_gradient.astype(x.dtype),
        scale_gradient.sum(others),
        bias_gradient.sum(others),
        jnp.zeros_like(mean),
        jnp.zeros_like(var),
    )


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


# ---------------------------------------------------------------------------- pooling and resize


class _Window(NamedTuple):
    """The static part of a pooling."""

    kernel_size: int
    stride: int
    padding: int


def max_pool(x: jax.Array, kernel_size: int = 3, *, stride: int = 2, padding: int = 1) -> jax.Array:
    """Maximum over windows of `[B, H, W, C]`; padding never wins."""
    return _max_pool(x, _Window(kernel_size, stride, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, window: _Window) -> jax.Array:
    return _by_platform(_max_of_taps, _reduce_window, window, x)


def _max_pool_forward(x, window):
    return _max_pool(x, window), x


def _max_pool_backward(window, x, cotangent):
    def native(x, cotangent, window):
        _, transpose = jax.vjp(functools.partial(_reduce_window, window=window), x)
        return transpose(cotangent)[0]

    return (_by_platform(_max_of_taps_gradient, native, window, x, cotangent),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _reduce_window(x: jax.Array, window: _Window) -> jax.Array:
    around = (window.padding, window.padding)
    return lax.reduce_window(
        x,
        np.asarray(-np.inf, x.dtype),  # traced, a jnp array would have no gradient rule
        lax.max,
        (1, window.kernel_size, window.kernel_size, 1),
        (1, window.stride, window.stride, 1),
        ((0, 0), around, around, (0, 0)),
    )


def _max_of_taps(x: jax.Array, window: _Window) -> jax.Array:
    return functools.reduce(jnp.maximum, _taps_of(x, window))


def _taps_of(x: jax.Array, window: _Window) -> Iterator[jax.Array]:
    """What each place of the window sees, `[B, H', W', C]`."""
    kernel_size, stride, padding = window
    around = (padding, padding)
    size = [output_size(n, kernel_size, stride=stride, padding=padding) for n in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=-np.inf)
    for place in itertools.product(range(kernel_size), repeat=2):
        rows, columns = (
            slice(first, first + (n - 1) * stride + 1, stride)
            for first, n in zip(place, size, strict=True)
        )
        yield x[:, rows, columns]


def _max_of_taps_gradient(x: jax.Array, cotangent: jax.Array, window: _Window) -> jax.Array:
    """To the first of equals in a window. XLA's own carries a position along with every value.

    (4 x 129 x 129 x 64: 93 ms of processor time -> 25 ms.)
    """
    kernel_size, stride, padding = window
    best = _max_of_taps(x, window)
    winner = jnp.full(best.shape, -1, jnp.int32)
    for place, seen in reversed(list(enumerate(_taps_of(x, window)))):
        winner = jnp.where(seen == best, place, winner)
    # Spread out by the stride, the windows of an input pixel are neighbours.
    reach = kernel_size - 1
    height, width = x.shape[1:3]
    spread = [
        (reach - padding, n + padding - (out - 1) * stride - 1, stride - 1)
        for n, out in zip((height, width), best.shape[1:3], strict=True)
    ]
    spread = ((0, 0, 0), *spread, (0, 0, 0))
    cotangent = lax.pad(cotangent, np.zeros((), x.dtype), spread)
    winner = lax.pad(winner, np.int32(-1), spread)
    total = jnp.zeros(x.shape, jnp.float32)
    for place, (i, j) in enumerate(itertools.product(range(kernel_size), repeat=2)):
        rows, columns = (
            slice(reach - i, reach - i + height),
            slice(reach - j, reach - j + width),
        )
        won = winner[:, rows, columns] == place
        total += jnp.where(won, cotangent[:, rows, columns].astype(jnp.float32), 0)
    return total.astype(x.dtype)


def resize_nearest(x: jax.Array, factor: int) -> jax.Array:
    """Each pixel of `[B, H, W, C]` as a block of them: `[B, factor H, factor W, C]`.

    That is PyTorch's `interpolate(mode="nearest", scale_factor=factor)`.
    """
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
    """Bilinear resize of `[B, H, W, C]` to `size` (rows, columns), equal to PyTorch's.

    Args:
      x: images or features.
      size: (rows, columns) of the result, larger or smaller.
      align_corners: True maps the centres of corner pixels onto each other (TensorFlow 1's and the
        DeepLab papers' rule); False maps the outer edges (PyTorch's default). There is no
        antialiasing in either, as in `torch.nn.functional.interpolate(mode="bilinear")`.
    """
    rows, columns = size
    # Columns first: their product wants them in front of the others, and here the image is small yet.
    if x.shape[2] != columns:
        x = _resize_rows(x.swapaxes(1, 2), columns, align_corners).swapaxes(1, 2)
    return x if x.shape[1] == rows else _resize_rows(x, rows, align_corners)


def _resize_rows(x: jax.Array, out: int, align_corners: bool) -> jax.Array:
    """A product with a matrix that has two weights in a row: its gradient is one too, not a scatter."""
    before, after, weight = resize_weights(x.shape[1], out, align_corners)
    matrix = np.zeros((out, x.shape[1]), np.float32)
    np.add.at(matrix, (np.arange(out), before), 1 - weight)
    np.add.at(matrix, (np.arange(out), after), weight)
    y = lax.dot_general(
        jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape)),
        x.reshape(*x.shape[:2], -1).astype(jnp.float32),
        (((2,), (1,)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(x.shape[0], out, *x.shape[2:]).astype(x.dtype)


def resize_weights(
    size: int, out: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `out` positions: the source pixel before, the one after, and the latter's weight.

    In float32 step by step as PyTorch computes it: at 513 pixels, doing it in float64 would give
    weights that differ from PyTorch's by 1e-5.
    """
    one, half = np.float32(1), np.float32(0.5)
    position = np.arange(out, dtype=np.float32)
    if align_corners:
        scale = np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
        source = scale * position
    else:
        scale = np.float32(size) / np.float32(out)
        source = np.maximum(scale * (position + half) - half, np.float32(0))
    before = np.minimum(source.astype(np.int32), size - 1)
    after = np.minimum(before + 1, size - 1)
    weight = np.clip(source - before.astype(np.float32), np.float32(0), one)
    return before, after, weight
