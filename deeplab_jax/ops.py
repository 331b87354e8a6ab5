"""Numeric primitives: convolutions, batch norm, pooling and bilinear resize, as PyTorch defines them.

Arrays are `[B, H, W, C]`, kernels `[kh, kw, C_in / groups, C_out]`. What depends on the platform
is in `lowering`. Which one it is, is decided when the program is lowered, so that a program compiled on
a laptop for a TPU is the TPU's.
"""

import functools
import itertools
import math
import platform
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import lowering
from deeplab_jax.lowering import Pads, output_size, resize_weights

__all__ = [
    "Padding",
    "Pads",
    "average_pool",
    "batch_norm",
    "compiler_options",
    "conv",
    "has_onednn",
    "max_pool",
    "moments",
    "output_size",
    "receptive_field",
    "relu_of_sum",
    "resize_bilinear",
    "resize_nearest",
    "resize_weights",
    "same_padding",
    "shift",
    "window_mean",
]

Padding = int | Literal["same"] | Pads
"""Zeros around the image: the same number on all sides, TensorFlow's "same" (the smallest total that
gives ceil(size / stride), the odd pixel at the bottom and right), or ((top, bottom), (left, right))."""


# ---------------------------------------------------------------------------- the compiler


def compiler_options(*, gradients: bool = False) -> dict[str, str | bool] | None:
    """What to give `jax.jit(..., compiler_options=)` around a model on the default backend.

    On CPU: convolutions and matrix products by XLA itself and sums over an image by the library that
    is its default for all three (XNNPACK's successor YNNPACK). A training step of DeepLabv3+ on
    EfficientNet-Lite0 takes 6.4 s by default, 11.8 s without the library, 2.6 s so. None elsewhere.

    Where `has_onednn`, convolutions and matrix products by oneDNN with the bias, sum and activation that
    follow (DeepLabv3+ on ResNet-50, one image: 300 -> 245 ms), but only while JAX's compilation cache is
    off: XLA cannot save such a program, and fails with a warning when it tries.

    Args:
      gradients: the program has gradients too, and runs without oneDNN, to which XLA gives a kernel's
        gradient in a form that takes it twice as long (a step of ResNet-50: 1.6 -> 1.9 s).
    """
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    config = jax.config
    kept = config.jax_enable_compilation_cache and config.jax_compilation_cache_dir is not None
    if has_onednn() and not kept and not gradients:
        options |= {"xla_cpu_experimental_onednn_custom_call": True}
    return options


def has_onednn() -> bool:
    """Whether XLA can leave the work to oneDNN: on CPU, in Linux wheels for x86-64 from jax 0.11 on.

    Earlier ones know the option and ignore it.
    """
    wheel = sys.platform == "linux" and platform.machine() == "x86_64"
    # The backend last: to ask for it is to start it.
    return wheel and jax.__version_info__ >= (0, 11) and jax.default_backend() == "cpu"


# ---------------------------------------------------------------------------- sizes


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's "SAME" zeros (before, after) for an axis of `size` pixels."""
    steps = (size - 1) // stride  # one less than the pixels of the result
    total = max(steps * stride + dilation * (kernel_size - 1) + 1 - size, 0)
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
    pads = _pads(x.shape[1:3], kernel.shape[:2], stride, dilation, padding)
    if lowering.is_symbolic(itertools.chain(*pads)):  # XLA's convolution takes numbers only
        x, pads = jnp.pad(x, ((0, 0), *pads, (0, 0))), ((0, 0), (0, 0))
    return _conv(x, kernel, lowering.Spec(stride, dilation, pads, groups))


def _pads(
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: int,
    dilation: int,
    padding: Padding,
) -> Pads:
    """Zeros before and after rows and columns."""
    if padding == "same":
        rows, columns = (
            same_padding(n, k, stride, dilation) for n, k in zip(size, kernel_size, strict=True)
        )
        return rows, columns
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    return padding


# The rule for gradients belongs to the choice of lowering: differentiating through the choice would
# keep the intermediate values of every platform's form, when all any of them needs is x and kernel.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, spec: lowering.Spec) -> jax.Array:
    cpu, _ = lowering.cpu_forms(x.shape, kernel.shape, spec)
    cuda, _ = lowering.cuda_forms(x.shape, kernel.shape, spec)
    return lowering.by_platform(spec, x, kernel, default=lowering.native, cpu=cpu, cuda=cuda)


def _conv_forward(x, kernel, spec):
    return _conv(x, kernel, spec), (x, kernel)


def _conv_backward(spec, saved, cotangent):
    x, kernel = saved
    _, cpu = lowering.cpu_forms(x.shape, kernel.shape, spec)
    _, cuda = lowering.cuda_forms(x.shape, kernel.shape, spec)
    native = lowering.native_gradients
    return lowering.by_platform(spec, x, kernel, cotangent, default=native, cpu=cpu, cuda=cuda)


_conv.defvjp(_conv_forward, _conv_backward)


# ---------------------------------------------------------------------------- bias and ReLU


def shift(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x` plus a bias for each channel, in the dtype of `x`.

    The bias is rounded to that dtype on NVIDIA GPUs, see `lowering.shift_in_dtype`, and float32 elsewhere.

    Args:
      x: `[..., C]`.
      bias: float32 `[C]`.
    """
    exactly, rounded = lowering.shift_in_float32, lowering.shift_in_dtype
    # Of no size, a list of pixels could not become an image again.
    cpu = exactly if lowering.is_symbolic(x.shape) else lowering.shift_of_pixels
    return lowering.by_platform((), x, bias, default=exactly, cpu=cpu, cuda=rounded)


@jax.custom_vjp
def relu_of_sum(x: jax.Array) -> jax.Array:
    """`jax.nn.relu` of a sum with terms that no other gradient reads, as an identity shortcut."""
    return jax.nn.relu(x)


def _relu_of_sum_forward(x):
    y = jax.nn.relu(x)
    return y, (x, y)


def _relu_of_sum_backward(saved, cotangent):
    x, y = saved
    by_x, by_y = lowering.gate_by_input, lowering.gate_by_output
    return (lowering.by_platform((), cotangent, x, y, default=by_x, cuda=by_y),)


relu_of_sum.defvjp(_relu_of_sum_forward, _relu_of_sum_backward)


# ---------------------------------------------------------------------------- batch norm


def moments(x: jax.Array, axes: tuple[int, ...], guess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of `x` over `axes`, which stay with size 1, in float32.

    Args:
      x: `[..., C]`.
      guess: float32 `[C]`, a mean that is likely, as the running one; the nearer it is the less is
        rounded, see `lowering.moments_in_one_pass`.
    """
    one_pass, two_passes = lowering.moments_in_one_pass, lowering.moments_in_two_passes
    return lowering.by_platform(axes, x, guess, default=one_pass, cpu=two_passes)


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


def max_pool(x: jax.Array, kernel_size: int = 3, *, stride: int = 2, padding: int = 1) -> jax.Array:
    """Maximum over windows of `[B, H, W, C]`; padding never wins."""
    return _max_pool(x, lowering.Window(kernel_size, stride, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, window: lowering.Window) -> jax.Array:
    native, taps = lowering.reduce_window, lowering.max_of_taps
    cpu = native if lowering.is_symbolic(x.shape[1:3]) else taps
    return lowering.by_platform(window, x, default=native, cpu=cpu)


def _max_pool_forward(x, window):
    return _max_pool(x, window), x


def _max_pool_backward(window, x, cotangent):
    native = lowering.gradient_of(lowering.reduce_window)
    cpu, cuda = lowering.max_of_taps_gradient, lowering.max_of_taps_gradient_in_bytes
    return lowering.by_platform(window, x, cotangent, default=native, cpu=cpu, cuda=cuda)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(
    x: jax.Array,
    kernel_size: int,
    *,
    stride: int,
    padding: Padding = 0,
    count_padding: bool = True,
) -> jax.Array:
    """Mean over windows of `[B, H, W, C]`.

    Args:
      padding: see `Padding`.
      count_padding: whether zeros beyond the border are among what is averaged.
    """
    window = (kernel_size, kernel_size)
    pads = _pads(x.shape[1:3], window, stride, 1, padding)
    ones = jnp.ones((*window, 1, x.shape[3]), x.dtype)
    total = conv(x, ones, stride=stride, padding=pads, groups=x.shape[3]).astype(jnp.float32)
    if count_padding:
        return (total / kernel_size**2).astype(x.dtype)
    if lowering.is_symbolic(x.shape[1:3]):
        ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
        seen = conv(ones, jnp.ones((*window, 1, 1), x.dtype), stride=stride, padding=pads)
        return (total / seen.astype(jnp.float32)).astype(x.dtype)
    rows, columns = (
        _seen(size, out, kernel_size, stride, before)
        for size, out, (before, _) in zip(x.shape[1:3], total.shape[1:3], pads, strict=True)
    )
    return (total / np.outer(rows, columns)[:, :, None]).astype(x.dtype)


def _seen(size: int, out: int, kernel_size: int, stride: int, before: int) -> np.ndarray:
    """How many of `size` pixels each of `out` windows sees, float32."""
    first = np.arange(out) * stride - before
    seen = np.minimum(first + kernel_size, size) - np.maximum(first, 0)
    return seen.astype(np.float32)


def window_mean(x: jax.Array, window: tuple[int, int], step: tuple[int, int] = (1, 1)) -> jax.Array:
    """Mean over windows of `[B, H, W, C]` at each of their places, summed in float32.

    For windows of many pixels, which `average_pool` is not: each axis is a product of matrices.

    Args:
      window: its rows and columns; one that is larger than the image is as large as the image.
      step: rows and columns from one place to the next.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        side = min(window[axis - 1], size)
        x = lowering.along_axis(x, lowering.window_matrix(size, side, step[axis - 1]), axis)
    return x


def resize_nearest(x: jax.Array, factor: int) -> jax.Array:
    """Each pixel of `[B, H, W, C]` as a block of them: `[B, factor H, factor W, C]`.

    That is PyTorch's `interpolate(mode="nearest", scale_factor=factor)`.
    """
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def concatenate(one: jax.Array, other: jax.Array) -> jax.Array:
    """The channels of two images side by side: `[B, H, W, C]` and `[B, H, W, D]` -> `[B, H, W, C + D]`."""
    form = lowering.side_by_side
    if lowering.is_symbolic(one.shape[1:3]):
        return form(one, other)
    return lowering.by_platform((), one, other, default=form, cpu=lowering.side_by_side_at_once)


def resize_bilinear(
    x: jax.Array,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    factor: int | None = None,
) -> jax.Array:
    """Bilinear resize of `[B, H, W, C]` to `size` (rows, columns), equal to PyTorch's.

    Args:
      x: images or features.
      size: (rows, columns) of the result, larger or smaller.
      align_corners: True maps the centres of corner pixels onto each other (TensorFlow 1's and the
        DeepLab papers' rule); False maps the outer edges (PyTorch's default). There is no
        antialiasing in either, as in `torch.nn.functional.interpolate(mode="bilinear")`.
      factor: by what both sides grow, and `size` is then what is kept at the top and left; None
        for what makes the whole result that size.
    """
    rows, columns = size if factor is None else (factor * n for n in x.shape[1:3])
    if lowering.is_symbolic((*x.shape[1:3], *size)):
        if factor is not None:
            return lowering.resize_of_any_size(
                x, size, align_corners=align_corners, whole=(rows, columns)
            )
        align, half = lowering.resize_align_corners, lowering.resize_half_pixel
        return (align if align_corners else half)(x, out=tuple(size))
    for axis, out, whole in (
        (2, size[1], columns),
        (1, size[0], rows),
    ):  # the image is small at first
        if x.shape[axis] != out or whole != out:
            resampling = lowering.Resampling(axis, x.shape[axis], out, align_corners, whole)
            x = lowering.by_platform(
                resampling,
                x,
                lowering.resize_matrix(resampling),
                default=lowering.product,
                cpu=lowering.weighted_rows,
                cuda=lowering.weighted_rows,
            )
    return x
