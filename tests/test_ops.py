"""The numeric primitives against PyTorch, and every lowering of a convolution against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax import lax

from deeplab_jax import lowering, ops


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_near(ours, theirs, tolerance=2e-6):
    """Equal up to `tolerance` of the largest value.

    Both sides sum up to some 500 float32 products in an order of their own. 2e-6 is about 16 roundings
    (2^-23 each) of the largest sum; a product too many or too few is off by more than 1e-2.
    """
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max(initial=1e-3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


# ---------------------------------------------------------------------------- convolution

# Height, width, kernel, stride, dilation, padding, depthwise. Sides are odd and unequal; (5, 7) and
# (3, 2) are smaller than the rate, so that most taps see padding only.
CONVS = [
    pytest.param(case, id="{}x{}-k{}-s{}-d{}-p{}-{}".format(*case[:6], ("dense", "dw")[case[6]]))
    for case in [
        (9, 14, 1, 1, 1, 0, False),
        (9, 14, 1, 1, 6, 0, False),
        (9, 14, 3, 1, 1, 1, False),
        (9, 14, 3, 2, 1, 1, False),
        (11, 8, 5, 2, 1, 2, False),
        (9, 14, 3, 1, 2, 2, False),
        (11, 8, 5, 1, 2, 4, False),
        (17, 13, 3, 1, 6, 6, False),
        (17, 13, 3, 1, 2, 5, False),
        (5, 7, 3, 1, 18, 18, False),
        (3, 2, 5, 1, 18, 36, False),
        (1, 1, 3, 1, 6, 6, False),
        (9, 14, 3, 1, 1, 1, True),
        (9, 14, 3, 2, 1, 1, True),
        (9, 14, 3, 2, 2, 2, True),
        (11, 8, 5, 2, 2, 4, True),
        (17, 13, 3, 1, 6, 0, True),
        (5, 7, 3, 1, 18, 18, True),
        (1, 1, 5, 1, 2, 4, True),
    ]
]


def conv_arguments(case):
    height, width, kernel_size, stride, dilation, padding, depthwise = case
    x = normal(2, height, width, 6, seed=1)
    kernel = normal(kernel_size, kernel_size, *((1, 6) if depthwise else (6, 4)), seed=2)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    return x, kernel, options | {"groups": 6 if depthwise else 1}


# Compiling is nearly all that these tests do, and they need no fast code.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# As `predict` compiles: libraries of convolutions and sums do the work.
COMPILED = pytest.mark.parametrize(
    "jit",
    [jit, functools.partial(jax.jit, compiler_options=ops.compiler_options())],
    ids=["plain", "fast"],
)


def value_and_gradients(f, cotangent, *arguments, jit=jit):
    """f(*arguments) and the gradients of sum(f * cotangent)."""

    @jit
    def run(cotangent, *arguments):
        value, transpose = jax.vjp(f, *arguments)
        return value, *transpose(cotangent)

    return run(cotangent, *arguments)


@COMPILED
@pytest.mark.parametrize("case", CONVS)
def test_conv_and_its_gradients_equal_torch(case, jit):
    x, kernel, options = conv_arguments(case)
    torch_x = nchw(x).requires_grad_()
    torch_kernel = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    theirs = F.conv2d(torch_x, torch_kernel, **options)
    cotangent = normal(*nhwc(theirs).shape, seed=3)
    theirs.backward(nchw(cotangent))

    conv = functools.partial(ops.conv, **options)
    ours, x_gradient, kernel_gradient = value_and_gradients(
        conv, jnp.asarray(cotangent), jnp.asarray(x), jnp.asarray(kernel), jit=jit
    )
    assert_near(ours, nhwc(theirs))
    assert_near(x_gradient, nhwc(torch_x.grad))
    assert_near(kernel_gradient, torch_kernel.grad.numpy().transpose(2, 3, 1, 0))


def spec_of(pads, *, stride=1, dilation=1, groups=1):
    return lowering.Spec(stride, dilation, pads, groups)


@pytest.mark.parametrize(
    ("form", "kernel_shape", "spec"),
    [
        (lowering.depthwise_taps, (5, 3, 1, 6), spec_of(((0, 3), (2, 0)), stride=2, groups=6)),
        (lowering.depthwise_taps, (3, 3, 1, 6), spec_of(((4, 1), (0, 7)), dilation=3, groups=6)),
        (lowering.depthwise_taps, (2, 4, 1, 6), spec_of(((9, 0), (1, 6)), stride=3, groups=6)),
        (lowering.grouped_slices, (3, 3, 2, 9), spec_of(((1, 1), (0, 2)), stride=2, groups=3)),
        (lowering.grouped_slices, (3, 3, 3, 4), spec_of(((2, 2), (2, 2)), dilation=2, groups=2)),
        (lowering.grouped_slices, (1, 1, 3, 8), spec_of(((0, 0), (0, 0)), groups=2)),
        (lowering.pointwise, (1, 1, 6, 4), spec_of(((0, 0), (0, 0)), stride=3)),
        (lowering.atrous_taps, (3, 5, 6, 4), spec_of(((0, 9), (7, 1)), dilation=3)),
        (lowering.atrous_taps, (3, 3, 6, 4), spec_of(((18, 18), (18, 18)), dilation=18)),
        (lowering.atrous_taps, (2, 2, 6, 4), spec_of(((40, 40), (40, 40)), dilation=5)),
    ],
)
def test_the_forms_for_cpu_equal_xlas_own_convolution(form, kernel_shape, spec):
    # Asymmetric padding, unequal kernel sides and padding wider than the image: more than `conv`'s
    # callers ask for, so that the forms are right in general.
    x, kernel = jnp.asarray(normal(2, 9, 11, 6)), jnp.asarray(normal(*kernel_shape, seed=1))
    assert lowering.cpu_forms(x.shape, kernel.shape, spec)[0] is form
    native = functools.partial(lowering.native, spec=spec)
    cotangent = jnp.asarray(normal(*jax.eval_shape(native, x, kernel).shape, seed=2))
    # On CPU `conv` is the form with its own gradients.
    ours = value_and_gradients(lambda *a: ops._conv(*a, spec), cotangent, x, kernel)
    theirs = value_and_gradients(native, cotangent, x, kernel)
    for a, b in zip(ours, theirs, strict=True):
        assert_near(a, b)


# Rates that divide the sides and that do not, rates beyond the image, and every padding.
ATROUS_SPECS = [
    ((3, 3, 6, 4), spec_of(((2, 2), (2, 2)), dilation=2)),
    ((3, 5, 6, 4), spec_of(((0, 6), (9, 3)), dilation=3)),
    ((3, 3, 2, 9), spec_of(((2, 2), (0, 2)), dilation=2, groups=3)),
    ((2, 2, 6, 4), spec_of(((40, 40), (40, 40)), dilation=5)),
    ((3, 3, 6, 4), spec_of(((18, 18), (18, 18)), dilation=18)),
]


def gradients_of_native(x, kernel, spec):
    """A cotangent, and what XLA's own convolution makes of it."""
    native = functools.partial(lowering.native, spec=spec)
    cotangent = jnp.asarray(normal(*jax.eval_shape(native, x, kernel).shape, seed=2))
    return cotangent, value_and_gradients(native, cotangent, x, kernel)[1:]


@pytest.mark.parametrize(
    ("form", "kernel_shape", "spec"),
    [(lowering.grids_product, *case) for case in ATROUS_SPECS]
    + [(lowering.taps_product, *case) for case in ATROUS_SPECS]
    + [
        # Neither asks for one stride, one padding and one size.
        (lowering.taps_product, (3, 3, 6, 4), spec_of(((3, 0), (1, 7)), stride=2, dilation=3)),
        (lowering.taps_product, (3, 3, 2, 4), spec_of(((1, 1), (5, 4)), dilation=4, groups=2)),
    ],
)
def test_the_forms_of_an_atrous_kernels_gradient_equal_xlas_own(form, kernel_shape, spec):
    channels = kernel_shape[2] * spec.groups
    x = jnp.asarray(normal(2, 9, 11, channels))
    kernel = jnp.asarray(normal(*kernel_shape, seed=1))
    cotangent, (_, theirs) = gradients_of_native(x, kernel, spec)
    assert_near(jit(functools.partial(form, spec=spec))(x, kernel, cotangent), theirs)


@pytest.mark.parametrize(
    ("kernel_shape", "spec"),
    [
        *ATROUS_SPECS,
        ((3, 3, 1, 6), spec_of(((1, 1), (1, 1)), stride=2, groups=6)),
        ((3, 3, 1, 6), spec_of(((2, 2), (2, 2)), dilation=2, groups=6)),
        ((5, 5, 1, 6), spec_of(((4, 4), (4, 4)), dilation=2, groups=6)),
        ((3, 3, 6, 4), spec_of(((1, 1), (1, 1)), stride=2)),
        ((1, 1, 6, 4), spec_of(((0, 0), (0, 0)), dilation=2)),
    ],
)
def test_the_forms_for_gpus_equal_xlas_own_convolution(kernel_shape, spec):
    x = jnp.asarray(normal(2, 9, 11, kernel_shape[2] * spec.groups))
    kernel = jnp.asarray(normal(*kernel_shape, seed=1))
    forward, gradients = lowering.cuda_forms(x.shape, kernel.shape, spec)
    cotangent, theirs = gradients_of_native(x, kernel, spec)
    ours = jit(lambda *a: (forward(*a[:2], spec), *gradients(*a, spec)))(x, kernel, cotangent)
    for a, b in zip(ours, (lowering.native(x, kernel, spec), *theirs), strict=True):
        assert_near(a, b)


def test_an_atrous_kernel_that_sees_padding_only_has_no_gradient():
    x, kernel = jnp.ones((1, 2, 2, 3)), jnp.ones((1, 1, 3, 4))
    spec = spec_of(((8, 0), (8, 0)), stride=16, dilation=2)
    cotangent = jnp.ones(jax.eval_shape(lambda: lowering.native(x, kernel, spec)).shape)
    np.testing.assert_array_equal(lowering.taps_product(x, kernel, cotangent, spec), 0)


@pytest.mark.parametrize(("groups", "width"), [(8, 8), (6, 4), (2, 24)])
def test_narrow_groups_are_merged_and_wide_ones_are_not(groups, width):
    channels = groups * width
    x, kernel = normal(1, 7, 6, channels), normal(3, 3, width, channels, seed=1)
    spec = spec_of(((1, 1), (1, 1)), groups=groups)
    ours, theirs = (
        jit(functools.partial(form, spec=spec))(jnp.asarray(x), jnp.asarray(kernel))
        for form in (lowering.grouped_slices, lowering.native)
    )
    assert_near(ours, np.asarray(theirs))


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_same_padding_is_that_of_tensorflow(stride, dilation, depthwise):
    groups = 4 if depthwise else 1
    kernel = jnp.asarray(normal(3, 3, *((1, 4) if depthwise else (4, 5)), seed=1))

    @jit
    def both(x):
        options = {"stride": stride, "dilation": dilation, "groups": groups}
        return ops.conv(x, kernel, padding="same", **options), lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    for size in ((8, 11), (1, 2)):  # even, odd, and smaller than the kernel
        assert_near(*both(jnp.asarray(normal(1, *size, 4))))


def test_padding_may_differ_on_every_side():
    x, kernel = normal(2, 6, 5, 3), normal(3, 3, 3, 4, seed=1)
    padded = np.pad(x, ((0, 0), (0, 1), (3, 2), (0, 0)))
    ours = ops.conv(jnp.asarray(x), jnp.asarray(kernel), padding=((0, 1), (3, 2)))
    assert_near(ours, ops.conv(jnp.asarray(padded), jnp.asarray(kernel)))


@COMPILED
@pytest.mark.parametrize(
    "case",
    [
        pytest.param((9, 14, 3, 1, 1, 1, False), id="native"),
        pytest.param((9, 14, 3, 1, 6, 6, False), id="atrous"),
        pytest.param((9, 14, 3, 1, 1, 1, True), id="depthwise"),
    ],
)
def test_bfloat16_rounds_the_result_only(case, jit):
    x, kernel, options = conv_arguments(case)
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    conv = jit(functools.partial(ops.conv, **options))
    ours = conv(x, kernel)
    exact = conv(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert ours.dtype == jnp.bfloat16
    # One rounding to 8 bits is at most 2^-9 of the value; 2^-8 leaves room for values at a tie.
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


@COMPILED
@pytest.mark.parametrize(
    "case",
    [
        pytest.param((9, 14, 3, 1, 6, 6, False), id="atrous"),
        pytest.param((9, 14, 3, 1, 1, 1, True), id="depthwise"),
    ],
)
def test_bfloat16_gradients_are_near_float32_ones(case, jit):
    x, kernel, options = conv_arguments(case)
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    conv = functools.partial(ops.conv, **options)
    cotangent = jnp.asarray(normal(*jax.eval_shape(conv, x, kernel).shape, seed=3), jnp.bfloat16)
    ours = value_and_gradients(conv, cotangent, x, kernel, jit=jit)
    exact = value_and_gradients(conv, *(a.astype(jnp.float32) for a in (cotangent, x, kernel)))
    for a, b in zip(ours, exact, strict=True):
        # The gradient of x sums up to 9 taps, each rounded to bfloat16 (2^-9): 9 * 2^-9 < 0.02.
        assert_near(a, b, tolerance=0.02)


def lowered(f, platform, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


ATROUS = ((1, 9, 9, 8), (3, 3, 8, 4)), {"dilation": 4, "padding": 4}
DEPTHWISE = ((1, 9, 9, 8), (3, 3, 1, 8)), {"padding": 1, "groups": 8}
POINTWISE = ((1, 9, 9, 8), (1, 1, 8, 4)), {"stride": 2}
FORMS = pytest.mark.parametrize(
    "shapes_and_options", [ATROUS, DEPTHWISE, POINTWISE], ids=["atrous", "depthwise", "pointwise"]
)


def loss(x, kernel, **options):
    return jnp.square(ops.conv(x, kernel, **options)).sum()


@FORMS
@pytest.mark.parametrize("gradient", [False, True])
def test_a_tpu_gets_xlas_own_convolution(shapes_and_options, gradient):
    shapes, options = shapes_and_options
    f = functools.partial(loss, **options)
    text = lowered(jax.grad(f, argnums=(0, 1)) if gradient else f, "tpu", *shapes)
    # Forward; with the gradient, one more for x and one for the kernel.
    assert text.count("stablehlo.convolution") == (3 if gradient else 1)
    assert "dot_general" not in text


@pytest.mark.parametrize(
    ("shapes", "options", "convolutions", "products"),
    [
        # Forward and the gradient of x; that of the kernel is a product, or a convolution at rate 1.
        (((1, 9, 9, 8), (3, 3, 8, 4)), {"dilation": 4, "padding": 4}, 2, 1),
        (((1, 33, 33, 8), (3, 3, 8, 8)), {"dilation": 4, "padding": 4}, 3, 0),
        # Forward and the gradient of x are sums of shifted images.
        (*DEPTHWISE, 1, 0),
        (*POINTWISE, 3, 0),
        (((1, 9, 9, 8), (3, 3, 8, 4)), {"padding": 1}, 3, 0),
    ],
    ids=["far", "near", "depthwise", "pointwise", "dense"],
)
def test_no_window_on_a_gpu_is_larger_than_the_kernel(shapes, options, convolutions, products):
    f = jax.grad(functools.partial(loss, **options), argnums=(0, 1))
    text = lowered(f, "cuda", *shapes)
    assert text.count("stablehlo.convolution") == convolutions
    assert text.count("stablehlo.dot_general") == products
    if "dilation" in options:
        # XLA's own gradient is a convolution whose steps are the rate.
        assert "stride = [4, 4]" not in text
        assert "stride = [4, 4]" in lowered(f, "tpu", *shapes)


@FORMS
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_compute_in_float32_where_it_is_asked_for(shapes_and_options, platform):
    # Otherwise a TPU multiplies in bfloat16 and a GPU in TF32.
    shapes, options = shapes_and_options
    f = jax.grad(functools.partial(loss, **options), argnums=(0, 1))
    with jax.default_matmul_precision("highest"):
        text = lowered(f, platform, *shapes)
    multiplying = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert multiplying
    assert all("HIGHEST" in line and "DEFAULT" not in line for line in multiplying)


@pytest.mark.parametrize(
    ("shapes_and_options", "products"),
    [(ATROUS, True), (DEPTHWISE, False), (POINTWISE, True)],
    ids=["atrous", "depthwise", "pointwise"],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_cpu_gets_sums_and_products(shapes_and_options, products, gradient):
    shapes, options = shapes_and_options
    f = functools.partial(loss, **options)
    text = lowered(jax.grad(f, argnums=(0, 1)) if gradient else f, "cpu", *shapes)
    assert "stablehlo.convolution" not in text
    assert ("dot_general" in text) == products


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 2, "dilation": 2, "stride": 2}])
def test_other_convolutions_are_xlas_own_everywhere(platform, options):
    text = lowered(functools.partial(ops.conv, **options), platform, (1, 9, 9, 8), (3, 3, 8, 4))
    assert "stablehlo.convolution" in text


def test_taps_that_see_padding_only_cost_nothing():
    # At rate 18 on 9 x 9 only the middle tap of a 3x3 sees the image.
    text = lowered(
        functools.partial(ops.conv, dilation=18, padding=18), "cpu", (1, 9, 9, 8), (3, 3, 8, 4)
    )
    assert text.count("stablehlo.dot_general") == 1


@FORMS
def test_conv_can_be_rematerialised(shapes_and_options):
    shapes, options = shapes_and_options
    x, kernel = (jnp.asarray(normal(*shape)) for shape in shapes)
    f = functools.partial(loss, **options)
    plain = jit(jax.grad(f, argnums=(0, 1)))(x, kernel)
    again = jit(jax.grad(jax.checkpoint(f), argnums=(0, 1)))(x, kernel)
    for a, b in zip(again, plain, strict=True):
        assert_near(a, b)


@FORMS
def test_conv_can_be_mapped_over_images_and_kernels(shapes_and_options):
    shapes, options = shapes_and_options
    x, kernel = (jnp.asarray(normal(3, *shape)) for shape in shapes)
    conv = functools.partial(ops.conv, **options)
    one_by_one = np.stack([jit(conv)(a, b) for a, b in zip(x, kernel, strict=True)])
    assert_near(jit(jax.vmap(conv))(x, kernel), one_by_one)


def test_only_x_and_kernel_are_kept_for_the_gradient():
    # Otherwise training would hold every platform's intermediate values in memory.
    shapes, options = ATROUS
    x, kernel = (jnp.asarray(normal(*shape)) for shape in shapes)
    _, transpose = jax.vjp(functools.partial(ops.conv, **options), x, kernel)
    kept = [leaf.shape for leaf in jax.tree.leaves(transpose) if hasattr(leaf, "shape")]
    assert sorted(kept) == sorted([x.shape, kernel.shape])


# ---------------------------------------------------------------------------- sizes


def test_output_size_is_torchs():
    rng = np.random.default_rng(0)
    checked = 0
    while checked < 200:
        size, kernel, stride, dilation, padding = rng.integers((1, 1, 1, 1, 0), (70, 8, 5, 20, 20))
        if size + 2 * padding <= dilation * (kernel - 1):
            continue  # the kernel does not fit, which torch refuses
        checked += 1
        options = {"stride": int(stride), "dilation": int(dilation), "padding": int(padding)}
        theirs = F.conv1d(torch.zeros(1, 1, size), torch.zeros(1, 1, kernel), **options).shape[-1]
        assert ops.output_size(int(size), int(kernel), **options) == theirs


# ---------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("size", [(9, 14), (1, 1), (2, 3)])
def test_max_pool_and_its_gradient_equal_torch(size):
    # All values below zero: padding with zeros would win.
    x = -1 - np.abs(normal(2, *size, 3))
    torch_x = nchw(x).requires_grad_()
    theirs = F.max_pool2d(torch_x, 3, stride=2, padding=1)
    cotangent = normal(*nhwc(theirs).shape)
    theirs.backward(nchw(cotangent))
    ours, gradient = value_and_gradients(ops.max_pool, jnp.asarray(cotangent), jnp.asarray(x))
    np.testing.assert_array_equal(ours, nhwc(theirs))
    # A pixel can be the maximum of up to four windows, whose cotangents it sums.
    assert_near(gradient, nhwc(torch_x.grad))


@pytest.mark.parametrize("size", [(9, 14), (1, 1), (2, 3)])
@pytest.mark.parametrize(
    ("window", "theirs"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, {"padding": 1}),
        (
            {"kernel_size": 2, "stride": 2, "padding": "same", "count_padding": False},
            {"ceil_mode": True, "count_include_pad": False},
        ),
    ],
    ids=["counting zeros", "not counting them"],
)
def test_average_pool_and_its_gradient_equal_torch(size, window, theirs):
    x = normal(2, *size, 3)
    torch_x = nchw(x).requires_grad_()
    expected = F.avg_pool2d(torch_x, window["kernel_size"], window["stride"], **theirs)
    cotangent = normal(*nhwc(expected).shape)
    expected.backward(nchw(cotangent))
    pool = functools.partial(ops.average_pool, **window)
    ours, gradient = value_and_gradients(pool, jnp.asarray(cotangent), jnp.asarray(x))
    assert_near(ours, nhwc(expected))
    assert_near(gradient, nhwc(torch_x.grad))


def test_average_pool_keeps_bfloat16():
    pooled = ops.average_pool(jnp.ones((1, 5, 5, 2), jnp.bfloat16), 3, stride=2)
    assert pooled.dtype == jnp.bfloat16
    assert (pooled == 1).all()


@pytest.mark.parametrize("window", [(4, 6), (1, 1), (9, 14)])
def test_the_mean_of_windows_equals_torchs_average_pooling(window):
    x = normal(2, 9, 14, 3)
    theirs = F.avg_pool2d(nchw(x), window, stride=1)
    assert_near(ops.window_mean(jnp.asarray(x), window), nhwc(theirs))


def test_a_window_that_is_larger_than_the_image_is_as_large_as_the_image():
    x = jnp.asarray(normal(2, 9, 14, 3))
    assert (ops.window_mean(x, (20, 6)) == ops.window_mean(x, (9, 6))).all()


@pytest.mark.parametrize("size", [(9, 14), (1, 1), (2, 3)])
@pytest.mark.parametrize("window", [lowering.Window(3, 2, 1), lowering.Window(2, 2, 0)])
def test_the_gradients_of_max_pooling_agree_where_values_are_equal_too(size, window):
    x = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (2, *size, 3)), jnp.float32)
    pool = functools.partial(lowering.reduce_window, window=window)
    shape = jax.eval_shape(pool, x).shape
    cotangent = jnp.asarray(normal(*shape))
    _, theirs = value_and_gradients(pool, cotangent, x)
    for form in (lowering.max_of_taps_gradient, lowering.max_of_taps_gradient_in_bytes):
        (ours,) = form(x, cotangent, window)
        assert_near(ours, theirs)  # of up to four cotangents


def test_max_pool_keeps_bfloat16():
    assert ops.max_pool(jnp.zeros((1, 5, 5, 2), jnp.bfloat16)).dtype == jnp.bfloat16


# ---------------------------------------------------------------------------- bias and ReLU


def test_a_bias_is_added_in_float32_and_the_sum_is_rounded():
    # bfloat16 has neither 1.001 nor the sum: its neighbours of 2.001 are 2 and 2.015625.
    x, bias = jnp.ones((2, 3, 4, 1), jnp.bfloat16), jnp.full(1, 1.001)
    y = ops.shift(x, bias)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, (x.astype(jnp.float32) + bias).astype(jnp.bfloat16))


def test_the_forms_of_a_bias_are_the_same_in_float32():
    x, bias = jnp.asarray(normal(2, 3, 4, 5)), jnp.asarray(normal(5, seed=1))
    ours, theirs = (
        form(x, bias, ()) for form in (lowering.shift_in_dtype, lowering.shift_in_float32)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_a_rounded_bias_adds_no_more_than_its_own_rounding():
    x, bias = jnp.asarray(normal(2, 9, 9, 64), jnp.bfloat16), jnp.asarray(normal(64, seed=1))
    exact = x.astype(jnp.float32) + bias
    error = jnp.abs(lowering.shift_in_dtype(x, bias, ()).astype(jnp.float32) - exact)
    # A rounding to 8 bits is 2^-8 at most: of the bias, and of the sum with it.
    bias_error = 2**-8 * jnp.abs(bias)
    assert (error <= bias_error + 2**-8 * (jnp.abs(exact) + bias_error)).all()
    assert error.max() > 0


def test_the_relu_of_a_sum_and_its_gradient_are_jaxs():
    x = jnp.asarray([-1.0, -0.0, 0.0, 1e-30, 2.0, jnp.inf, -jnp.inf])
    cotangent = jnp.asarray(normal(7))
    theirs = value_and_gradients(jax.nn.relu, cotangent, x)
    for a, b in zip(value_and_gradients(ops.relu_of_sum, cotangent, x), theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    for form in (lowering.gate_by_input, lowering.gate_by_output):
        np.testing.assert_array_equal(form(cotangent, x, jax.nn.relu(x), ()), theirs[1])


# ---------------------------------------------------------------------------- batch norm


# A mean 20 deviations from the guess multiplies what a sum of 500 is off, 1e-6, by 20^2.
@pytest.mark.parametrize(("guess", "tolerance"), [(0.0, 1e-3), (9.7, 3e-6)])
def test_the_moments_in_one_pass_and_in_two_are_those_of_float64(guess, tolerance):
    x = 10 + 0.5 * normal(4, 9, 14, 3)
    axes = (0, 1, 2)
    exact = x.astype(np.float64)
    for form in (lowering.moments_in_one_pass, lowering.moments_in_two_passes):
        mean, var = form(jnp.asarray(x), jnp.full(3, guess), axes)
        np.testing.assert_allclose(mean, exact.mean(axes, keepdims=True), rtol=1e-6)
        np.testing.assert_allclose(var, exact.var(axes, keepdims=True), rtol=tolerance)


def test_values_that_are_all_the_same_have_no_negative_variance():
    _, var = lowering.moments_in_one_pass(jnp.full((2, 3, 1), 0.1), jnp.zeros(1), (0, 1))
    assert 0 <= float(var[0, 0, 0]) < 1e-9


# ---------------------------------------------------------------------------- resize

RESIZES = [
    ((9, 14), (33, 65)),  # up
    ((33, 65), (9, 14)),  # down, without antialiasing
    ((33, 33), (513, 513)),  # a DeepLab's logits to its image
    ((5, 8), (3, 31)),  # down one way and up the other
    ((1, 1), (6, 9)),
    ((1, 7), (4, 1)),
    ((6, 9), (1, 1)),
    ((6, 9), (6, 17)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_resize_and_its_gradient_equal_torch(source, target, align_corners):
    x = normal(2, *source, 3)
    torch_x = nchw(x).requires_grad_()
    theirs = F.interpolate(torch_x, target, mode="bilinear", align_corners=align_corners)
    cotangent = normal(2, *target, 3, seed=1)
    theirs.backward(nchw(cotangent))
    resize = functools.partial(ops.resize_bilinear, size=target, align_corners=align_corners)
    ours, gradient = value_and_gradients(resize, jnp.asarray(cotangent), jnp.asarray(x))
    # The source position of a pixel is a float32 below 65, known to half of 2^-17 = 8e-6; compilers may
    # fuse its multiplication and subtraction and so round it once less. A slope of up to 5 per pixel
    # makes 4e-5 of that; 1e-5 is what is seen. Positions by the wrong rule are off by 0.1 and more.
    np.testing.assert_allclose(ours, nhwc(theirs), rtol=0, atol=2e-5)
    # Each source pixel gathers up to 16 * 16 cotangents; a weight is off by 8e-6 at most.
    assert_near(gradient, nhwc(torch_x.grad), tolerance=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_what_grows_by_a_factor_is_torchs_and_cropped(align_corners):
    x, factor, kept = normal(2, 9, 14, 3), 4, (33, 55)
    torch_x = nchw(x).requires_grad_()
    theirs = F.interpolate(
        torch_x, scale_factor=factor, mode="bilinear", align_corners=align_corners
    )
    theirs = theirs[:, :, : kept[0], : kept[1]]
    cotangent = normal(2, *kept, 3, seed=1)
    theirs.backward(nchw(cotangent))
    options = {"size": kept, "factor": factor, "align_corners": align_corners}
    resize = functools.partial(ops.resize_bilinear, **options)
    ours, gradient = value_and_gradients(resize, jnp.asarray(cotangent), jnp.asarray(x))
    # As above.
    np.testing.assert_allclose(ours, nhwc(theirs), rtol=0, atol=2e-5)
    assert_near(gradient, nhwc(torch_x.grad), tolerance=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_weights_stay_within_the_image(align_corners):
    for size in (1, 2, 3, 7, 33):
        for out in (1, 2, 5, 33, 513, 1025):
            before, after, weight = ops.resize_weights(size, out, align_corners)
            assert before.min() >= 0
            assert after.max() <= size - 1
            assert weight.min() >= 0
            assert weight.max() <= 1
            assert weight.dtype == np.float32


def test_align_corners_keeps_the_corners():
    x = jnp.asarray(normal(1, 5, 7, 2))
    y = ops.resize_bilinear(x, (17, 50), align_corners=True)
    np.testing.assert_array_equal(y[:, 0, 0], x[:, 0, 0])
    # 49 steps of the rounded 6 / 49 end within a rounding (2^-21) of pixel 6, times its slope.
    np.testing.assert_allclose(y[:, -1, -1], x[:, -1, -1], rtol=0, atol=4e-6)


def test_resize_to_the_same_size_changes_nothing():
    x = jnp.asarray(normal(1, 5, 7, 2))
    assert ops.resize_bilinear(x, (5, 7)) is x


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    ("out", "whole"), [*((n, None) for n in (1, 5, 14, 17, 129, 900)), (30, 56)]
)
def test_the_forms_of_a_resize_agree(axis, out, whole, align_corners):
    x = jnp.asarray(normal(2, 9, 14, 3))
    resampling = lowering.Resampling(axis, x.shape[axis], out, align_corners, whole)
    matrix = lowering.resize_matrix(resampling)
    cotangent = jnp.asarray(
        normal(*(out if i == axis else n for i, n in enumerate(x.shape)), seed=1)
    )
    product, rows = (
        value_and_gradients(lambda x, form=form: form(x, matrix, resampling), cotangent, x)
        for form in (lowering.product, lowering.weighted_rows)
    )
    # A sum of two products, and for the gradient of up to 129.
    for ours, theirs in zip(product, rows, strict=True):
        assert_near(ours, theirs, tolerance=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_few_rows_are_resized_without_a_product_but_on_tpu(platform):
    resize = functools.partial(ops.resize_bilinear, size=(33, 33))
    shape = (1, 9, 9, 3)
    for f in (resize, jax.grad(lambda x: jnp.square(resize(x)).sum())):
        assert "dot_general" not in lowered(f, platform, shape)
        assert "dot_general" in lowered(f, "tpu", shape)


def test_resize_computes_in_float32_and_returns_the_dtype_it_got():
    x = jnp.asarray(normal(1, 5, 7, 2), jnp.bfloat16)
    y = ops.resize_bilinear(x, (11, 7))
    exact = ops.resize_bilinear(x.astype(jnp.float32), (11, 7))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


# ---------------------------------------------------------------------------- the compiler


@pytest.mark.skipif(not ops.has_onednn(), reason="XLA here has no oneDNN")
def test_onednn_takes_a_convolution_and_what_follows_it():
    @functools.partial(jax.jit, compiler_options=ops.compiler_options())
    def layer(x, kernel, bias):
        return jax.nn.relu(ops.conv(x, kernel, padding=1) + bias)

    shapes = ((1, 33, 33, 64), (3, 3, 64, 64), (64,))
    program = layer.lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    text = program.as_text()
    assert "__onednn$convolution" in text
    assert "RELU" in text


@pytest.mark.usefixtures("cache_settings")
def test_programs_that_are_kept_are_ones_that_can_be_saved(tmp_path):
    without = ops.compiler_options(gradients=True)
    assert (ops.compiler_options() != without) == ops.has_onednn()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert ops.compiler_options() == without


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(129, 65), (7, 5), (1, 1), (513, 2)])
def test_the_resize_that_exports_to_any_size_is_the_same(size, align_corners):
    x = np.random.default_rng(0).standard_normal((1, 33, 17, 3), np.float32)
    forms = lowering.resize_half_pixel, lowering.resize_align_corners
    ours = forms[align_corners](x, out=size)
    expected = ops.resize_bilinear(x, size, align_corners=align_corners)
    # XLA rounds the position once where NumPy rounds its product and its sum.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "form", [lowering.side_by_side, lowering.side_by_side_at_once, ops.concatenate]
)
def test_channels_lie_side_by_side_and_their_gradients_are_split(form):
    one, other = jnp.full((2, 3, 4, 2), 1.0), jnp.full((2, 3, 4, 3), 2.0)
    weight = jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)
    value, gradients = jax.value_and_grad(lambda *x: (form(*x) * weight).sum(), (0, 1))(one, other)
    assert value == (weight[..., :2].sum() + 2 * weight[..., 2:].sum())
    np.testing.assert_array_equal(gradients[0], weight[..., :2])
    np.testing.assert_array_equal(gradients[1], weight[..., 2:])
