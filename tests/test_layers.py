"""Layers: batch norm as PyTorch's, and the initial values and formulas of the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplab_jax import layers
from deeplab_jax.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    ConvNormAct,
    LayerNorm,
    Norm,
    SeparableConvNormAct,
    SqueezeExcite,
    make_divisible,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---------------------------------------------------------------------------- batch norm

CHANNELS = 5


def two_batch_norms(momentum=0.1, epsilon=1e-5):
    """Ours and torch's, with the same random parameters and statistics."""
    ours = BatchNorm(CHANNELS, momentum=momentum, epsilon=epsilon)
    theirs = torch.nn.BatchNorm2d(CHANNELS, momentum=momentum, eps=epsilon)
    values = normal(4, CHANNELS)
    values[3] = np.abs(values[3]) + 0.1  # a variance
    for row, ours_has, theirs_has in zip(
        values,
        (ours.scale, ours.bias, ours.mean, ours.var),
        (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var),
        strict=True,
    ):
        ours_has[...] = jnp.asarray(row)
        theirs_has.data = torch.from_numpy(row.copy())
    return ours, theirs


def batch(seed):
    """[2, 7, 6, C] whose channels differ in mean and spread, as activations do."""
    spread = np.array([0.1, 1, 2, 5, 10], np.float32)
    return normal(2, 7, 6, CHANNELS, seed=seed) * spread + spread


def to_torch(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def to_numpy(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


# Means and variances of 84 float32 values, summed in different orders: a few roundings (1e-7 each) of
# values up to 50. The biased variance instead of the unbiased one would be off by 1 / 84 = 1e-2.
NEAR = {"rtol": 2e-5, "atol": 2e-5}


def assert_same_statistics(ours, theirs):
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), **NEAR)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), **NEAR)


@pytest.mark.parametrize(("momentum", "epsilon"), [(0.1, 1e-5), (0.01, 1e-3)])
def test_three_steps_of_training_then_evaluation_equal_torch(momentum, epsilon):
    ours, theirs = two_batch_norms(momentum, epsilon)
    for step in range(3):
        x = batch(step)
        np.testing.assert_allclose(ours(jnp.asarray(x)), to_numpy(theirs(to_torch(x))), **NEAR)
        assert_same_statistics(ours, theirs)
    ours.eval()
    theirs.eval()
    x = batch(3)
    np.testing.assert_allclose(ours(jnp.asarray(x)), to_numpy(theirs(to_torch(x))), **NEAR)
    assert_same_statistics(ours, theirs)


TINY = 1e-3
"""A deviation of which the variance, 1e-6, is less than any epsilon: a wrong one shows in all digits."""


@pytest.mark.parametrize("epsilon", [None, 1e-3, 1e-6])
@pytest.mark.parametrize("training", [True, False])
def test_the_epsilon_is_torchs_by_default_and_the_given_one_otherwise(training, epsilon):
    given = {} if epsilon is None else {"epsilon": epsilon}
    ours = BatchNorm(CHANNELS, **given)
    theirs = torch.nn.BatchNorm2d(CHANNELS, **({} if epsilon is None else {"eps": epsilon}))
    assert Norm(**given)(CHANNELS).epsilon == theirs.eps
    ours.var[...], theirs.running_var[:] = jnp.full(CHANNELS, TINY**2), TINY**2
    if not training:
        ours.eval()
        theirs.eval()
    x = TINY * normal(2, 7, 6, CHANNELS)
    expected = to_numpy(theirs(to_torch(x)))
    # Values of up to 3: a few roundings. An epsilon that is off by a tenth makes 5 % of difference.
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, **NEAR)


def test_layer_norm_is_torchs_its_epsilon_too():
    x = TINY * normal(2, 7, 6, CHANNELS)
    for ours, theirs in (
        (LayerNorm(CHANNELS), torch.nn.LayerNorm(CHANNELS)),
        (LayerNorm(CHANNELS, epsilon=1e-6), torch.nn.LayerNorm(CHANNELS, eps=1e-6)),
    ):
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(ours(jnp.asarray(x)), expected, **NEAR)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_torch(training):
    ours, theirs = two_batch_norms()
    if not training:
        ours.eval()
        theirs.eval()
    x, cotangent = batch(0), normal(2, 7, 6, CHANNELS, seed=9)
    torch_x = to_torch(x).requires_grad_()
    theirs(torch_x).backward(to_torch(cotangent))

    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    @jax.jit
    def gradients(params, x):
        def loss(params, x):
            # A copy, as the statistics that it updates are not to leave the gradient's trace.
            return jnp.sum(nnx.merge(graphdef, params, rest, copy=True)(x) * cotangent)

        return jax.grad(loss, argnums=(0, 1))(params, x)

    params_gradient, x_gradient = gradients(params, jnp.asarray(x))
    # Relative to the largest, which is where the sums of 84 terms are rounded.
    scale = np.abs(torch_x.grad.numpy()).max()
    np.testing.assert_allclose(x_gradient, to_numpy(torch_x.grad), rtol=2e-5, atol=2e-6 * scale)
    np.testing.assert_allclose(params_gradient["scale"][...], theirs.weight.grad, **NEAR)
    np.testing.assert_allclose(params_gradient["bias"][...], theirs.bias.grad, **NEAR)


def test_running_statistics_have_no_gradient():
    # They enter the loss of a step only through the next one's: a gradient would be a leak in a scan.
    ours, _ = two_batch_norms()
    graphdef, state = nnx.split(ours)

    def running_mean(x):
        model = nnx.merge(graphdef, state, copy=True)
        model(x)
        return model.mean[...].sum() + model.var[...].sum()

    np.testing.assert_array_equal(jax.grad(running_mean)(jnp.asarray(batch(0))), 0)


def test_one_value_per_channel_is_normalised_with_the_running_statistics():
    ours, theirs = two_batch_norms()
    mean, var = ours.mean[...], ours.var[...]
    x = normal(1, 1, 1, CHANNELS, seed=3)
    y = ours(jnp.asarray(x))
    theirs.eval()  # torch refuses such a batch in training
    np.testing.assert_allclose(y, to_numpy(theirs(to_torch(x))), **NEAR)
    np.testing.assert_array_equal(ours.mean[...], mean)
    np.testing.assert_array_equal(ours.var[...], var)


def test_two_values_per_channel_are_a_batch():
    ours, theirs = two_batch_norms()
    x = normal(2, 1, 1, CHANNELS, seed=3)
    np.testing.assert_allclose(ours(jnp.asarray(x)), to_numpy(theirs(to_torch(x))), **NEAR)
    assert_same_statistics(ours, theirs)


def test_a_frozen_batch_norm_evaluates_in_training():
    ours, theirs = two_batch_norms()
    mean, var = ours.mean[...], ours.var[...]
    ours.frozen = True
    ours.train()
    theirs.eval()
    x = batch(0)
    np.testing.assert_allclose(ours(jnp.asarray(x)), to_numpy(theirs(to_torch(x))), **NEAR)
    np.testing.assert_array_equal(ours.mean[...], mean)
    np.testing.assert_array_equal(ours.var[...], var)


def test_bfloat16_input_is_normalised_in_float32():
    # bfloat16 knows 100.5 but not 100.3 (its neighbours are 100 and 100.5): a subtraction in bfloat16
    # would give 0 or 0.5 instead of 0.2.
    norm = BatchNorm(1)
    norm.mean[...] = jnp.full((1,), 100.3)
    norm.eval()
    y = norm(jnp.full((1, 2, 2, 1), 100.5, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    # The result is rounded to bfloat16 once: 2^-9 of 0.2, after a difference known to 2^-17.
    np.testing.assert_allclose(y.astype(jnp.float32), 0.2, rtol=2**-8)


def test_statistics_of_bfloat16_input_are_those_of_float32():
    norm, exact = BatchNorm(CHANNELS), BatchNorm(CHANNELS)
    x = jnp.asarray(batch(0) + 100, jnp.bfloat16)
    norm(x)
    exact(x.astype(jnp.float32))
    for ours, theirs in ((norm.mean, exact.mean), (norm.var, exact.var)):
        assert ours[...].dtype == jnp.float32
        np.testing.assert_array_equal(ours[...], theirs[...])


def test_over_a_mesh_the_statistics_are_of_the_global_batch():
    x = normal(8, 3, 5, CHANNELS) + np.arange(8, dtype=np.float32)[:, None, None, None]
    graphdef, state = nnx.split(two_batch_norms()[0])

    @jax.jit
    def step(state, x):
        model = nnx.merge(graphdef, state)
        y = model(x)
        return y, nnx.state(model, nnx.BatchStat)

    alone, alone_statistics = step(state, jnp.asarray(x))
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    together, together_statistics = step(replicated, sharded)
    assert len(together.sharding.device_set) == 4
    # The devices' sums are added last, another order than one device's. Each quarter's own mean
    # differs from the global one by up to 3.
    np.testing.assert_allclose(together, alone, **NEAR)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            together_statistics[name][...], alone_statistics[name][...], **NEAR
        )


# ---------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize(
    ("groups", "fan", "size"),
    [(1, "out", 9 * 256), (64, "out", 9 * 4), (1, "in", 9 * 64), (64, "in", 9)],
)
def test_the_initial_kernel_is_hes_for_the_fan(groups, fan, size):
    kernel = Conv(64, 256, 3, groups=groups, fan=fan, rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.shape == (3, 3, 64 // groups, 256)
    # The deviation of n samples is known to 1 / sqrt(2 n); n is 2304 or more, and this is 5 of those.
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / size), rtol=5 / np.sqrt(2 * kernel.size))


def test_the_initial_kernel_can_be_given_a_deviation():
    kernel = Conv(64, 64, std=0.01, rngs=nnx.Rngs(0)).kernel[...]
    # 4096 samples: five times 1 / sqrt(2 * 4096).
    np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.055)


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 6), (5, 2), (7, 1)])
def test_by_default_stride_1_keeps_the_size(kernel_size, dilation):
    def run(x):
        return Conv(2, 3, kernel_size, dilation=dilation, rngs=nnx.Rngs(0))(x)

    x = jax.ShapeDtypeStruct((1, 9, 4, 2), jnp.float32)
    assert jax.eval_shape(run, x).shape == (1, 9, 4, 3)


def test_the_bias_starts_at_zero_and_is_added():
    conv = Conv(2, 3, bias=True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(conv.bias[...], 0)
    x = jnp.asarray(normal(1, 2, 2, 2))
    before = conv(x)
    conv.bias[...] = jnp.arange(3, dtype=jnp.float32)
    np.testing.assert_array_equal(conv(x), before + jnp.arange(3, dtype=jnp.float32))


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(Conv, 4, 6, 3, bias=True),
        functools.partial(ConvNormAct, 4, 6, 3, activation="hard_swish"),
        functools.partial(SeparableConvNormAct, 4, 6, dilation=2),
        functools.partial(SqueezeExcite, 4, 2),
    ],
    ids=lambda make: make.func.__name__,
)
def test_layers_compute_in_the_dtype_of_their_input_with_float32_parameters(make):
    def run(x):
        module = make(rngs=nnx.Rngs(0))
        y = module(x)
        return y, nnx.state(module)

    y, state = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 5, 7, 4), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_conv_norm_act_is_what_its_name_says():
    module = ConvNormAct(4, 6, 3, norm=Norm(0.03, 1e-3), stride=2, rngs=nnx.Rngs(0))
    module.eval()
    assert (module.bn.momentum, module.bn.epsilon) == (0.03, 1e-3)
    ours, parts = jax.jit(lambda x: (module(x), jax.nn.relu(module.bn(module.conv(x)))))(
        jnp.asarray(normal(1, 5, 7, 4))
    )
    np.testing.assert_array_equal(ours, parts)


def test_a_separable_convolution_has_nothing_between_its_two():
    module = SeparableConvNormAct(4, 6, dilation=2, rngs=nnx.Rngs(0))
    module.eval()
    assert module.depthwise.kernel.shape == (3, 3, 1, 4)
    assert module.pointwise.kernel.shape == (1, 1, 4, 6)

    @jax.jit
    def both(x):
        return module(x), jax.nn.relu(module.bn(module.pointwise(module.depthwise(x))))

    np.testing.assert_array_equal(*both(jnp.asarray(normal(1, 5, 7, 4))))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("relu", torch.nn.ReLU()),
        ("relu6", torch.nn.ReLU6()),
        ("hard_swish", torch.nn.Hardswish()),
        ("hard_sigmoid", torch.nn.Hardsigmoid()),
        ("sigmoid", torch.nn.Sigmoid()),
        ("silu", torch.nn.SiLU()),
        ("none", torch.nn.Identity()),
    ],
)
def test_activations_are_torchs(name, theirs):
    x = np.linspace(-9, 9, 181, dtype=np.float32)
    # One or two roundings (6e-8) of values up to 9.
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.asarray(x)), theirs(torch.from_numpy(x)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "activation", "gate"),
    [
        ({}, torch.relu, torch.nn.functional.hardsigmoid),  # MobileNetV3's
        ({"activation": "silu", "gate": "sigmoid"}, torch.nn.functional.silu, torch.sigmoid),
    ],
    ids=["mobilenet_v3", "efficientnet"],
)
def test_squeeze_excite_is_torchs_formula(options, activation, gate):
    module = SqueezeExcite(6, 3, **options, rngs=nnx.Rngs(0))
    module.fc1.bias[...] = jnp.asarray(normal(3, seed=1))
    module.fc2.bias[...] = jnp.asarray(normal(6, seed=2))
    x = normal(2, 5, 7, 6, seed=3)
    fc1, fc2 = (
        (torch.from_numpy(np.array(fc.kernel[0, 0])), torch.from_numpy(np.array(fc.bias[...])))
        for fc in (module.fc1, module.fc2)
    )
    hidden = activation(torch.from_numpy(x).mean((1, 2)) @ fc1[0] + fc1[1])
    expected = x * gate(hidden @ fc2[0] + fc2[1]).numpy()[:, None, None, :]
    # A mean of 35 values and two products of 6 and 3 terms: some roundings (6e-8) of values below 4.
    np.testing.assert_allclose(module(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_of_an_image_is_summed_in_float32():
    # A bfloat16 sum of ones stops at 256, where adding one more is lost.
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    mean = layers.global_mean(x)
    assert mean.shape == (1, 1, 1, 1)
    assert mean.dtype == jnp.bfloat16
    assert float(mean[0, 0, 0, 0]) == 1


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [
        (3, 8),  # never below the divisor
        (16, 16),
        (20, 24),  # halves go up
        (19.9, 24),  # 16 would be down by more than 10 %
        (18, 24),  # so would 16 here
        (33, 32),  # down by 3 %
        (24 * 1.4, 32),  # EfficientNet-Lite4
        (320 * 0.5, 160),
    ],
)
def test_channels_are_rounded_to_multiples_of_8(channels, rounded):
    assert make_divisible(channels) == rounded


def test_channels_may_be_rounded_to_the_nearest_multiple():
    assert make_divisible(19.9, least=0.0) == 16


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_channels_that_are_the_same_at_every_pixel_need_not_be_spread_out(kernel_size):
    conv = Conv(5, 3, kernel_size, bias=True, rngs=nnx.Rngs(0))
    x, uniform = jnp.asarray(normal(2, 4, 6, 3)), jnp.asarray(normal(2, 1, 1, 2, seed=1))
    spread = jnp.concatenate([x, jnp.broadcast_to(uniform, (2, 4, 6, 2))], axis=-1)
    # Sums of up to 45 products in another order.
    np.testing.assert_allclose(conv(x, uniform), conv(spread), rtol=0, atol=1e-5)


def test_the_gradient_of_relu6_is_torchs():
    x = np.array([-1, 0, 1e-3, 3, 6, 7], np.float32)
    torch_x = torch.from_numpy(x.copy()).requires_grad_()
    torch.nn.functional.relu6(torch_x).sum().backward()
    gradient = jax.grad(lambda x: ACTIVATIONS["relu6"](x).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, torch_x.grad.numpy())
