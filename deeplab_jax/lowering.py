"""What runs on which platform: convolutions, biases, ReLU, max pooling, batch norm's statistics, resize.

A TPU has XLA's own form of all. On CPU that is many times slower than it need be for what DeepLab is made
of, and its gradients more so:

* depthwise: a sum of shifted images times a weight each, which XLA fuses into one loop
  (144 channels, 129 x 129: 43 ms -> 2 ms);
* atrous (dilated): one matrix product per tap over the part of the image that the tap really
  sees. At large rates most taps look at padding only, and that work disappears
  (2048 -> 256, rate 18 on 33 x 33: 165 ms -> 60 ms);
* 1x1: one matrix product, for the sake of its gradients;
* grouped: dense convolutions side by side (32 groups of 8 on 64 x 64: 45 ms -> 7 ms);
* max pooling: its gradient;
* resize: two weighted rows for each (128 x 128 x 21 to 512 x 512: 20 ms -> 2 ms).

`python -m benchmarks ops` measures the convolutions. Statistics have a form for each too, for what memory
they read and what layout they ask for.

An NVIDIA GPU has XLA's own convolution too, which is cuDNN's, and another form of what cuDNN does badly or
what keeps XLA from joining it with its neighbours:

* the kernel's gradient of an atrous convolution, which XLA would hand to cuDNN as a convolution with a
  window as large as the image (33 x 33), is one of every n-th pixel, or a matrix product;
* depthwise: as on CPU, one loop with the bias and activation that follow;
* a bias in the image's dtype, which cuDNN adds while it writes a convolution's result;
* resize reads the two rows that a row lies between, and its gradient the rows that lie beside one: XLA
  computes a loss and its gradient from logits as they are before the resize, and never writes larger ones;
* the gradients of max pooling without a scatter, and of the ReLU that ends a residual block.

`python -m benchmarks gpu` has the compiler's count of what these read and write.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

Pads = tuple[tuple[int, int], tuple[int, int]]


def output_size(
    size: int, kernel_size: int, *, stride: int = 1, dilation: int = 1, padding: int = 0
) -> int:
    """Rows (or columns) that a convolution or pooling of `size` rows gives.

    floor((size + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1
    """
    return (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1


def by_platform(static, *arguments, default, **others):
    """`form(*arguments, static)` of the form that is for the platform.

    Args:
      default: the form for TPU, and for all platforms that are not named.
      others: forms by JAX's name of the platform, "cpu" or "cuda".
    """
    named = {name: form for name, form in others.items() if form is not default}
    # One object for a form that is two platforms': JAX then traces it once.
    given = {form: functools.partial(_with_static, form, static) for form in named.values()}
    forms = {name: given[form] for name, form in named.items()}
    default = functools.partial(_with_static, default, static)
    return lax.platform_dependent(*arguments, **forms, default=default)


def _with_static(form, static, *arguments):
    return form(*arguments, static)


def is_symbolic(shape: Iterable[int]) -> bool:
    """Whether rows or columns are not known yet, in a program that is exported for images of all sizes.

    It has XLA's own forms only: the others are made for a size.
    """
    return any(export.is_symbolic_dim(size) for size in shape)


# ---------------------------------------------------------------------------- convolution


class Spec(NamedTuple):
    """The static part of a convolution; hashable, so that it can be an argument of `custom_vjp`."""

    stride: int
    dilation: int
    pads: Pads
    groups: int


def gradient_of(form):
    """The gradients of the arrays that `form(*arrays, static)` takes, by differentiating it."""

    def gradient(*arguments):
        *arrays, cotangent, static = arguments
        _, transpose = jax.vjp(lambda *arrays: form(*arrays, static), *arrays)
        return transpose(cotangent)

    return gradient


def cpu_forms(image: tuple[int, ...], kernel: tuple[int, ...], spec: Spec):
    """What is fastest on CPU, from the shapes alone: a convolution and its gradients."""
    if is_symbolic(image[1:3]):
        return native, native_gradients
    if spec.groups == image[-1] == kernel[-1] and kernel[2] == 1:
        return depthwise_taps, depthwise_gradients
    if spec.groups > 1:
        return grouped_slices, gradient_of(grouped_slices)
    if kernel[:2] == (1, 1) and spec.pads == ((0, 0), (0, 0)):
        return pointwise, gradient_of(pointwise)
    # Cropping copies each tap's part of the image, and pays where less than `cropped` of it is seen:
    # 2048 -> 256 on 64 x 64 at rates 12, 24, 36 (0.77, 0.56, 0.39 seen) takes 272, 267, 250 ms of one
    # core by XLA's own form and 305, 230, 147 ms cropped; of both gradients at 0.58, 180 and 140 ms.
    share = _visible_share(image, kernel, spec) if spec.stride == 1 else 1.0
    forward, gradient = (atrous_taps if share < cropped else native for cropped in (0.6, 0.8))
    return forward, gradient_of(gradient)


def cuda_forms(image: tuple[int, ...], kernel: tuple[int, ...], spec: Spec):
    """What XLA compiles best for an NVIDIA GPU, from the shapes alone: a convolution and its gradients."""
    if is_symbolic(image[1:3]):
        return native, native_gradients
    taps = kernel[0] * kernel[1]
    if spec.groups == kernel[3] and kernel[2] == 1 and taps <= _FEW_TAPS:
        return depthwise_taps, depthwise_gradients_by_cudnn
    if spec.dilation > 1 and taps > 1:
        return native, atrous_gradients
    return native, native_gradients


def native(x: jax.Array, kernel: jax.Array, spec: Spec) -> jax.Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(spec.stride, spec.stride),
        padding=spec.pads,
        rhs_dilation=(spec.dilation, spec.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


native_gradients = gradient_of(native)


def pointwise(x: jax.Array, kernel: jax.Array, spec: Spec) -> jax.Array:
    """A 1x1 convolution as one matrix product."""
    x = x[:, :: spec.stride, :: spec.stride]
    # Of two axes: given more, XLA would copy the transpose that the kernel's gradient begins with.
    y = lax.dot(x.reshape(-1, x.shape[3]), kernel[0, 0], preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:3], -1).astype(x.dtype)


_SLICE = 16


def grouped_slices(x: jax.Array, kernel: jax.Array, spec: Spec) -> jax.Array:
    """A grouped convolution as dense ones side by side, of 16 channels at least.

    Where groups are narrower, several make one dense convolution, with zeros between them: XLA's own
    grouped form takes five times as long (32 groups, one core's share in ms: 128 channels on 128 x 128
    106 -> 20; 256 on 64 x 64 45 -> 7; 512 on 32 x 32 12 -> 3; 1024 at rate 2 55 -> 8).
    """
    rows, columns, width, channels = kernel.shape
    most = max(1, _SLICE // width)
    merged = max(n for n in range(1, most + 1) if spec.groups % n == 0)
    slices, out = spec.groups // merged, channels // spec.groups
    apart = kernel.reshape(rows, columns, width, slices, merged, out)
    dense = jnp.einsum("hwcsmo,mn->shwncmo", apart, jnp.eye(merged, dtype=kernel.dtype))
    dense = dense.reshape(slices, rows, columns, merged * width, merged * out)
    parts = jnp.split(x, slices, axis=3)
    one = spec._replace(groups=1)
    return jnp.concatenate([native(part, dense[i], one) for i, part in enumerate(parts)], axis=3)


_FEW_TAPS = 9


def depthwise_taps(x: jax.Array, kernel: jax.Array, spec: Spec) -> jax.Array:
    """A depthwise convolution as one multiply-add per tap over a shifted view of the image.

    XLA makes one loop of it. Zeros around each tap's product, which that loop makes up as it goes, are
    twice as fast as a copy of the image with zeros around it, as long as the taps are few.
    """
    if kernel.shape[0] * kernel.shape[1] > _FEW_TAPS:
        padded = jnp.pad(x, ((0, 0), *spec.pads, (0, 0)))
        size = _conv_size(x.shape, kernel.shape, spec)
        return _sum_of_taps(padded, kernel, size, stride=spec.stride, dilation=spec.dilation)
    height, width = _conv_size(x.shape, kernel.shape, spec)
    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), jnp.float32)
    for i, j, rows, columns in _taps(x.shape, kernel.shape, spec):
        seen = x[:, rows.seen, columns.seen].astype(jnp.float32)
        product = seen * kernel[i, j, 0].astype(jnp.float32)
        total += jnp.pad(product, ((0, 0), rows.around, columns.around, (0, 0)))
    return total.astype(x.dtype)


def _sum_of_taps(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int], *, stride: int, dilation: int
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


def depthwise_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: Spec
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `depthwise_taps`."""
    if kernel.shape[0] * kernel.shape[1] <= _FEW_TAPS:
        _, transpose = jax.vjp(lambda x: depthwise_taps(x, kernel, spec), x)
        return *transpose(cotangent), _depthwise_kernel_gradient(x, kernel, cotangent, spec)
    # A depthwise convolution of the cotangent, spread out by the stride, with the kernel turned round.
    spread = []
    for axis, (before, _) in enumerate(spec.pads):
        reach = (kernel.shape[axis] - 1) * spec.dilation
        covered = (cotangent.shape[axis + 1] - 1) * spec.stride + 1
        after = x.shape[axis + 1] + before - covered
        spread.append((reach - before, after, spec.stride - 1))
    spread = lax.pad(cotangent, np.zeros((), x.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    size, turned = x.shape[1:3], kernel[::-1, ::-1]
    x_gradient = _sum_of_taps(spread, turned, size, stride=1, dilation=spec.dilation)
    # The forward pass has made this copy, and XLA keeps it.
    padded = jnp.pad(x, ((0, 0), *spec.pads, (0, 0)))
    unpadded = spec._replace(pads=((0, 0), (0, 0)))
    return x_gradient, _depthwise_kernel_gradient(padded, kernel, cotangent, unpadded)


def _depthwise_kernel_gradient(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: Spec
) -> jax.Array:
    """Sums over rows, few at a time: the sums of all taps, `[W, C]` each, stay in the cache.

    One sum over the image per tap would read the image and the cotangent from memory once for each
    (8 x 72 x 72 x 256, 3x3: 140 ms of processor time -> 23 ms).
    """
    images, height, width, channels = cotangent.shape
    columns = list(_views(x.shape[2], width, kernel.shape[1], spec.pads[1][0], spec))
    taps = list(itertools.product(*map(range, kernel.shape[:2])))
    at_once = next(n for n in (2, 3, 1) if height % n == 0)

    def row(array: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
        size = (1, 1, *array.shape[2:])
        found = lax.dynamic_slice(array, (image, index, 0, 0), size)[0, 0]
        return jnp.where((index >= 0) & (index < array.shape[1]), found.astype(jnp.float32), 0)

    def add(step: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        image, first = step * at_once // height, step * at_once % height
        for y in (first + r for r in range(at_once)):
            error = row(cotangent, image, y)
            starts = [i * spec.dilation - spec.pads[0][0] for i in range(kernel.shape[0])]
            seen = [row(x, image, y * spec.stride + start) for start in starts]
            sums = [
                total + seen[i][columns[j].seen] * error[columns[j].part]
                for total, (i, j) in zip(sums, taps, strict=True)
            ]
        return sums

    zeros = [jnp.zeros((columns[j].count, channels), jnp.float32) for _, j in taps]
    sums = lax.fori_loop(0, images * height // at_once, add, zeros)
    return jnp.stack([total.sum(0) for total in sums]).reshape(kernel.shape).astype(kernel.dtype)


def atrous_taps(x: jax.Array, kernel: jax.Array, spec: Spec) -> jax.Array:
    """A dilated convolution as a matrix product per tap, cropped to the image."""
    height, width = _conv_size(x.shape, kernel.shape, spec)
    total = jnp.zeros((x.shape[0], height, width, kernel.shape[3]), jnp.float32)
    for i, j, rows, columns in _taps(x.shape, kernel.shape, spec):
        # Not of two axes as in `pointwise`: XLA cannot reshape the crop if its rows are sharded.
        product = lax.dot_general(
            x[:, rows.seen, columns.seen],
            kernel[i, j],
            (((3,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        total += jnp.pad(product, ((0, 0), rows.around, columns.around, (0, 0)))
    return total.astype(x.dtype)


def atrous_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: Spec
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `native`, that of the kernel without an atrous rate.

    The kernel's gradient slides the cotangent over the image. XLA knows it as such, and cuDNN has it, only
    at rate 1; at others it becomes a convolution whose window is the cotangent.
    """
    _, transpose = jax.vjp(lambda x: native(x, kernel, spec), x)
    return *transpose(cotangent), atrous_kernel_gradient(x, kernel, cotangent, spec)


def depthwise_gradients_by_cudnn(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: Spec
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `depthwise_taps`, that of the kernel in XLA's own form.

    As sums over the image it would read x and the cotangent once for each tap.
    """
    _, transpose = jax.vjp(lambda x: depthwise_taps(x, kernel, spec), x)
    return *transpose(cotangent), atrous_kernel_gradient(x, kernel, cotangent, spec)


def atrous_kernel_gradient(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: Spec
) -> jax.Array:
    """The gradient of a convolution's kernel, without an atrous rate."""
    if spec.dilation == 1:
        _, transpose = jax.vjp(lambda kernel: native(x, kernel, spec), kernel)
        return transpose(cotangent)[0]
    # Both copy: the one x and the cotangent, the other the cotangent for each tap.
    fewer = x.shape[3] < (math.prod(kernel.shape[:2]) - 1) * kernel.shape[3]
    large = min(x.shape[1:3]) >= 4 * spec.dilation
    aligned = spec.stride == 1 and not any(n % spec.dilation for n in np.ravel(spec.pads))
    form = grids_product if fewer and large and aligned else taps_product
    return form(x, kernel, cotangent, spec)


def grids_product(x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: Spec) -> jax.Array:
    """The gradient of an atrous convolution's kernel, as that of one without a rate.

    A tap sees only pixels that are a multiple of the rate away. Every n-th pixel of every n-th row is an
    image of its own, of n x n that there are ("space to batch"), with zeros where they end too early.

    Needs stride 1 and paddings that are multiples of the rate.
    """
    rate = spec.dilation
    (top, bottom), (left, right) = ((before // rate, after // rate) for before, after in spec.pads)
    dense = Spec(1, 1, ((top, bottom), (left, right)), spec.groups)
    grids, errors = (_grids(array, rate) for array in (x, cotangent))
    _, transpose = jax.vjp(lambda kernel: native(grids, kernel, dense), kernel)
    return transpose(errors)[0]


def _grids(x: jax.Array, rate: int) -> jax.Array:
    """`[B, H, W, C]` -> `[B rate rate, ceil(H / rate), ceil(W / rate), C]`."""
    images, height, width, channels = x.shape
    rows, columns = -(-height // rate), -(-width // rate)
    below, beside = rows * rate - height, columns * rate - width
    x = jnp.pad(x, ((0, 0), (0, below), (0, beside), (0, 0)))
    x = x.reshape(images, rows, rate, columns, rate, channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)


def taps_product(x: jax.Array, kernel: jax.Array, cotangent: jax.Array, spec: Spec) -> jax.Array:
    """The gradient of an atrous convolution's kernel, as one matrix product over all pixels of x.

    The other factor is, side by side, the cotangent that each tap has for a pixel. That is a copy of the
    cotangent for each tap, where one of x would be larger: ASPP makes 256 channels of 2048.
    """
    views = list(_taps(x.shape, kernel.shape, spec))
    if not views:
        return jnp.zeros_like(kernel)
    errors = jnp.stack(
        [_over_image(cotangent, x.shape, view[2:], spec.stride) for view in views], axis=3
    )
    # Rows and columns stay axes of their own: XLA adds up the products of rows that are sharded.
    errors = errors.reshape(*errors.shape[:4], spec.groups, -1)
    # The barrier keeps XLA from computing x a second time, from the sum that a residual block ends with.
    pixels = lax.optimization_barrier(x).reshape(*x.shape[:3], spec.groups, -1)
    product = jnp.einsum("bhwgi,bhwtgo->tigo", pixels, errors, preferred_element_type=jnp.float32)
    # The taps that see more than padding are neighbours.
    (top, left), (bottom, right) = views[0][:2], views[-1][:2]
    rows, columns, channels, outputs = kernel.shape
    product = product.reshape(bottom - top + 1, right - left + 1, channels, outputs)
    around = ((top, rows - 1 - bottom), (left, columns - 1 - right), (0, 0), (0, 0))
    return jnp.pad(product, around).astype(kernel.dtype)


def _over_image(
    cotangent: jax.Array, image: tuple[int, ...], axes: tuple["_View", "_View"], stride: int
) -> jax.Array:
    """What a tap, by its views of rows and columns, has of the cotangent at each pixel of the image."""
    rows, columns = axes
    spread = [
        (view.seen.start, size - view.seen.stop, stride - 1)
        for view, size in zip(axes, image[1:3], strict=True)
    ]
    part = cotangent[:, rows.part, columns.part]
    return lax.pad(part, np.zeros((), part.dtype), ((0, 0, 0), *spread, (0, 0, 0)))


class _View(NamedTuple):
    """The part of an axis that a tap sees, and which part of the result sees it.

    Attributes:
      seen: of the image.
      part: of the result.
      around: how many pixels of the result before and after it see padding.
      count: how many see the image.
    """

    seen: slice
    part: slice
    around: tuple[int, int]
    count: int


def _taps(
    image: tuple[int, ...], kernel: tuple[int, ...], spec: Spec
) -> Iterator[tuple[int, int, _View, _View]]:
    """(row, column) of each tap that sees something else than padding, and its views of both axes."""
    rows, columns = (
        list(_views(image[axis + 1], out, kernel[axis], spec.pads[axis][0], spec))
        for axis, out in enumerate(_conv_size(image, kernel, spec))
    )
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        if row.count and column.count:
            yield i, j, row, column


def _views(size: int, out: int, taps: int, before: int, spec: Spec) -> Iterator[_View]:
    for tap in range(taps):
        # Pixel y sees y * stride + offset.
        offset, stride = tap * spec.dilation - before, spec.stride
        first, last = max(0, -(offset // stride)), min(out - 1, (size - 1 - offset) // stride)
        if first > last:
            yield _View(slice(0, 0), slice(0, 0), (0, out), 0)
            continue
        seen = slice(first * stride + offset, last * stride + offset + 1, stride)
        yield _View(seen, slice(first, last + 1), (first, out - 1 - last), last + 1 - first)


def _visible_share(image: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> float:
    """The share of a convolution's products that see the image, not padding."""
    seen = sum(rows.count * columns.count for _, _, rows, columns in _taps(image, kernel, spec))
    return seen / math.prod((*kernel[:2], *_conv_size(image, kernel, spec)))


def _conv_size(image: tuple[int, ...], kernel: tuple[int, ...], spec: Spec) -> tuple[int, int]:
    height, width = (
        output_size(n + sum(pads), k, stride=spec.stride, dilation=spec.dilation)
        for n, k, pads in zip(image[1:3], kernel[:2], spec.pads, strict=True)
    )
    return height, width


# ---------------------------------------------------------------------------- bias and ReLU


def shift_in_float32(x: jax.Array, bias: jax.Array, static: tuple[()]) -> jax.Array:
    """The sum with a float32 bias, rounded to the dtype of x."""
    del static
    return (x.astype(jnp.float32) + bias).astype(x.dtype)


def shift_of_pixels(x: jax.Array, bias: jax.Array, static: tuple[()]) -> jax.Array:
    """The same of a list of pixels."""
    del static
    # Of two axes, as the matrix product before it gives them: with four, XLA on CPU would copy what
    # two layers read, as it does at the end of each residual block.
    pixels = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return (pixels + bias).astype(x.dtype).reshape(x.shape)


def shift_in_dtype(x: jax.Array, bias: jax.Array, static: tuple[()]) -> jax.Array:
    """The sum with the bias rounded to the dtype of x, which is what cuDNN's convolutions take.

    In bfloat16, cuDNN then adds it to the convolution's float32 sums, and what is left is rounded once,
    where the sum in float32 of a convolution that is rounded already is rounded a second time.
    """
    del static
    return x + bias.astype(x.dtype)


def gate_by_input(cotangent: jax.Array, x: jax.Array, y: jax.Array, static: tuple[()]) -> jax.Array:
    """The gradient of y = relu(x), where x is above 0."""
    del y, static
    return lax.select(x > 0, cotangent, jnp.zeros_like(cotangent))


def gate_by_output(
    cotangent: jax.Array, x: jax.Array, y: jax.Array, static: tuple[()]
) -> jax.Array:
    """The same, where y is.

    XLA on GPU keeps y, which the next convolution reads, and not the sum x, and would read all that it is
    the sum of. The barrier hides from it that the two conditions are one.
    """
    del x, static
    return lax.select(lax.optimization_barrier(y) > 0, cotangent, jnp.zeros_like(cotangent))


# ---------------------------------------------------------------------------- max pooling


class Window(NamedTuple):
    """The static part of a pooling."""

    kernel_size: int
    stride: int
    padding: int


def reduce_window(x: jax.Array, window: Window) -> jax.Array:
    """XLA's own max pooling."""
    around = (window.padding, window.padding)
    return lax.reduce_window(
        x,
        np.asarray(-np.inf, x.dtype),  # traced, a jnp array would have no gradient rule
        lax.max,
        (1, window.kernel_size, window.kernel_size, 1),
        (1, window.stride, window.stride, 1),
        ((0, 0), around, around, (0, 0)),
    )


def max_of_taps(x: jax.Array, window: Window) -> jax.Array:
    """Max pooling as the maximum of shifted views."""
    return functools.reduce(jnp.maximum, _taps_of(x, window))


def _taps_of(x: jax.Array, window: Window) -> Iterator[jax.Array]:
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


def max_of_taps_gradient(
    x: jax.Array, cotangent: jax.Array, window: Window, *, place_dtype=jnp.int32
) -> tuple[jax.Array]:
    """The gradient of x: a window's goes to the first of equals.

    XLA's own carries a position along with every value (4 x 129 x 129 x 64: 93 ms of processor time ->
    25 ms). A GPU keeps the place in each window that won in memory, in `place_dtype`.
    """
    kernel_size, stride, padding = window
    best = max_of_taps(x, window)
    winner = jnp.full(best.shape, -1, place_dtype)
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
    winner = lax.pad(winner, np.asarray(-1, place_dtype), spread)
    total = jnp.zeros(x.shape, jnp.float32)
    for place, (i, j) in enumerate(itertools.product(range(kernel_size), repeat=2)):
        rows, columns = (
            slice(reach - i, reach - i + height),
            slice(reach - j, reach - j + width),
        )
        won = winner[:, rows, columns] == place
        total += jnp.where(won, cotangent[:, rows, columns].astype(jnp.float32), 0)
    return (total.astype(x.dtype),)


max_of_taps_gradient_in_bytes = functools.partial(max_of_taps_gradient, place_dtype=jnp.int8)


# ---------------------------------------------------------------------------- batch norm


def moments_in_one_pass(
    x: jax.Array, guess: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance from the sums of `x - guess` and of its square.

    A TPU makes both while a convolution writes `x`, and a mesh adds them up in one all-reduce, not two.
    The difference of squares loses as many digits as ((mean - guess) / deviation)^2 has.
    """
    shifted = x.astype(jnp.float32) - guess
    mean = shifted.mean(axes, keepdims=True)
    square = jnp.square(shifted).mean(axes, keepdims=True)
    return mean + guess, jnp.maximum(square - jnp.square(mean), 0)


def moments_in_two_passes(
    x: jax.Array, guess: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The mean first. A CPU takes two passes in any case, and these are a tenth faster."""
    del guess
    x = x.astype(jnp.float32)
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axes, keepdims=True)


# ---------------------------------------------------------------------------- concatenation


def side_by_side(one: jax.Array, other: jax.Array, _: tuple[()] = ()) -> jax.Array:
    """The channels of one image, then those of the other."""
    return jnp.concatenate([one, other], axis=-1)


def side_by_side_at_once(one: jax.Array, other: jax.Array, _: tuple[()] = ()) -> jax.Array:
    """The same, with a gradient that is whole before it is split.

    XLA would compute it for each part, and keep all products of a depthwise convolution's gradient in
    memory for that (a training step of DeepLabv3+ on EfficientNet-Lite0: -2 to -10 %, MobileNetV2: -6 %).
    """
    return lax.optimization_barrier(side_by_side(one, other))


# ---------------------------------------------------------------------------- resize


class Resampling(NamedTuple):
    """The static part of a resize along one axis, see `ops.resize_bilinear`.

    Attributes:
      whole: rows (or columns) of the whole result, of which `out` are the first; None where `out` is all.
    """

    axis: int
    size: int
    out: int
    align_corners: bool
    whole: int | None = None


def resize_weights(
    size: int, out: int, align_corners: bool, whole: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `out` positions: the source pixel before, the one after, and the latter's weight.

    They are the first of `whole`; None is that many.

    In float32 step by step as PyTorch computes it: at 513 pixels, doing it in float64 would give
    weights that differ from PyTorch's by 1e-5.
    """
    whole = out if whole is None else whole
    one, half = np.float32(1), np.float32(0.5)
    position = np.arange(out, dtype=np.float32)
    if align_corners:
        scale = np.float32(size - 1) / np.float32(whole - 1) if whole > 1 else np.float32(0)
        source = scale * position
    else:
        scale = np.float32(size) / np.float32(whole)
        source = np.maximum(scale * (position + half) - half, np.float32(0))
    before = np.minimum(source.astype(np.int32), size - 1)
    after = np.minimum(before + 1, size - 1)
    weight = np.clip(source - before.astype(np.float32), np.float32(0), one)
    return before, after, weight


def resize_matrix(resampling: Resampling) -> np.ndarray:
    """`[out, size]` with two weights in a row: the gradient of a product is one too, not a scatter."""
    size, out = resampling.size, resampling.out
    before, after, weight = resize_weights(*resampling[1:])
    matrix = np.zeros((out, size), np.float32)
    np.add.at(matrix, (np.arange(out), before), 1 - weight)
    np.add.at(matrix, (np.arange(out), after), weight)
    return matrix


@functools.partial(jax.jit, static_argnames="out")
def resize_half_pixel(x: jax.Array, *, out: tuple[int, int]) -> jax.Array:
    """Both axes by products, of matrices that the program makes when it knows the size.

    It is a function by itself in the program, which tells a translator to another language what it does.
    """
    return resize_of_any_size(x, out, align_corners=False)


@functools.partial(jax.jit, static_argnames="out")
def resize_align_corners(x: jax.Array, *, out: tuple[int, int]) -> jax.Array:
    """The same by the other corner rule."""
    return resize_of_any_size(x, out, align_corners=True)


def resize_of_any_size(
    x: jax.Array,
    out: tuple[int, int],
    *,
    align_corners: bool,
    whole: tuple[int, int] | None = None,
) -> jax.Array:
    """`x` resized to `out`, or the first rows and columns of `x` resized to `whole`; of any sizes."""
    whole = out if whole is None else whole
    for axis in (2, 1):
        at = axis - 1
        resampling = Resampling(axis, x.shape[axis], out[at], align_corners, whole[at])
        x = product_of_any_size(x, x.shape[axis], whole[at], resampling)
    return x


def product_of_any_size(
    x: jax.Array, size: jax.typing.ArrayLike, whole: jax.typing.ArrayLike, resampling: Resampling
) -> jax.Array:
    """`product` where the program makes the matrix, of sizes that are symbolic or known to it alone.

    Args:
      size, whole: from and to which it resizes; what `x` has beyond the first is not looked at, but must be
        finite.
    """
    source = _sources(size, whole, resampling)
    pixel = lax.iota(jnp.float32, resampling.size)
    # The pixels before and after a position are those less than one away.
    return product(x, jnp.maximum(1 - jnp.abs(source[:, None] - pixel), 0), resampling)


def weighted_rows_of_any_size(
    x: jax.Array, size: jax.typing.ArrayLike, whole: jax.typing.ArrayLike, resampling: Resampling
) -> jax.Array:
    """The same as a sum of two weighted rows (or columns) of x, as `weighted_rows`."""
    source = _sources(size, whole, resampling)
    before = jnp.floor(source)
    weight = source - before
    first = before.astype(jnp.int32)
    after = jnp.minimum(first + 1, size - 1)
    return _sum_of_rows(x, [(first, 1 - weight), (after, weight)], resampling.axis)


def _sources(
    size: jax.typing.ArrayLike, whole: jax.typing.ArrayLike, resampling: Resampling
) -> jax.Array:
    """Where each position lies in the source, by the steps of `resize_weights` in float32."""
    first, second = (jnp.asarray(n, jnp.int32).astype(jnp.float32) for n in (size, whole))
    position = lax.iota(jnp.float32, resampling.out)
    if resampling.align_corners:
        source = position * ((first - 1) / jnp.maximum(second - 1, 1))
    else:
        source = jnp.maximum((first / second) * (position + 0.5) - 0.5, 0)
    return jnp.minimum(source, first - 1)


def window_matrix(size: int, side: int, step: int) -> jax.Array:
    """A row for every `step`-th of the windows, the mean of `side` of `size` pixels; of any sizes."""
    number, pixel = (lax.iota(jnp.float32, n) for n in ((size - side) // step + 1, size))
    # The pixels of a window are those less than half of it from its middle.
    middle = step * number[:, None] + (side - 1) / 2
    return (jnp.abs(pixel - middle) < side / 2).astype(jnp.float32) / side


def product(x: jax.Array, matrix: jax.Array, resampling: Resampling) -> jax.Array:
    """The `resize_matrix` times every column of `x` along the axis, in float32.

    On a TPU (16 x 129 x 129 x 21 to 513 x 513) the loss and its gradient take 7 ms of a v5e by the
    compiler's estimate; selecting rows and weighing them takes longer than 30 ms.
    """
    return along_axis(x, matrix, resampling.axis)


def along_axis(x: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """A matrix times every column of `x` along the axis, in float32."""
    dimensions = (((1,), (axis,)), ((), ()))
    y = lax.dot_general(matrix, x.astype(jnp.float32), dimensions, precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, 0, axis).astype(x.dtype)


_FEW_ROWS = 40


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def weighted_rows(x: jax.Array, matrix: jax.Array, resampling: Resampling) -> jax.Array:
    """The same as a sum of two weighted rows (or columns) of x, and its gradient as one of a few.

    On a GPU XLA makes either part of what reads it, and logits at the size of the image are never in
    memory; on CPU a product takes ten times longer (128 x 128 x 21 to 512 x 512: 20 ms -> 2 ms).
    """
    del matrix
    before, after, weight = resize_weights(*resampling[1:])
    return _sum_of_rows(x, [(before, 1 - weight), (after, weight)], resampling.axis)


def _weighted_rows_forward(x, matrix, resampling):
    return weighted_rows(x, matrix, resampling), matrix


def _weighted_rows_backward(resampling, matrix, cotangent):
    axis, unused = resampling.axis, jnp.zeros_like(matrix)
    weights = resize_matrix(resampling)
    # The rows of the result that have something of a row of x are neighbours.
    first = (weights > 0).argmax(0)
    last = len(weights) - 1 - (weights > 0)[::-1].argmax(0)
    most = int((last - first).max()) + 1
    if most > _FEW_ROWS:
        return along_axis(cotangent, matrix.T, axis), unused
    terms = []
    for rows in (first + i for i in range(most)):
        inside = np.minimum(rows, len(weights) - 1)
        weight = np.where(rows == inside, weights[inside, np.arange(resampling.size)], 0)
        terms.append((inside, weight))
    return _sum_of_rows(cotangent, terms, axis), unused


weighted_rows.defvjp(_weighted_rows_forward, _weighted_rows_backward)


def _sum_of_rows(
    x: jax.Array, terms: Iterable[tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]], axis: int
) -> jax.Array:
    """The sum of rows of x, by their places along the axis, times a weight each; in float32."""
    others = [n for n in range(x.ndim) if n != axis]
    total = functools.reduce(
        jnp.add,
        (
            jnp.take(x, rows, axis, mode="clip").astype(jnp.float32)
            * jnp.expand_dims(weights.astype(np.float32), others)
            for rows, weights in terms
        ),
    )
    return total.astype(x.dtype)
