"""Folded batch norms: the same logits, for every family of backbones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import own_backbone  # noqa: F401 (registers a small one)
import pytest
from flax import nnx

from deeplab_jax import compiler_options, create, fold_batch_norm, predict
from deeplab_jax.fold import Shift
from deeplab_jax.layers import BatchNorm, Conv

# Compiling is nearly all that these tests do, and the model as it is needs no fast code.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def with_statistics(model):
    """Batch norms as after training; fresh ones are 0 and 1 and would prove nothing."""
    rng = np.random.default_rng(0)
    for norm in parts(model, BatchNorm):
        for variable in (norm.scale, norm.var):
            variable[...] = jnp.asarray(rng.uniform(0.5, 1.5, variable.shape), jnp.float32)
        for variable in (norm.bias, norm.mean):
            variable[...] = jnp.asarray(rng.normal(0, 0.1, variable.shape), jnp.float32)
    return model


def parts(model, kind):
    return [part for _, part in nnx.iter_modules(model) if isinstance(part, kind)]


@pytest.mark.parametrize(
    "preset",
    [
        "deeplabv3_resnet18",
        "fcn_resnest14d",
        "fcn_regnety_002",
        "deeplabv3plus_mobilenet_v2",
        "lraspp_mobilenet_v3_small",
        pytest.param("deeplabv3plus_xception65", marks=pytest.mark.long),
        pytest.param("fcn_efficientnet_b0", marks=pytest.mark.long),
        pytest.param("fcn_drn_d_22", marks=pytest.mark.long),
        "deeplabv3_mobilevit_xxs",
    ],
)
def test_folding_leaves_no_batch_norm_and_the_same_logits(preset):
    model = with_statistics(create(preset, num_classes=4, rngs=nnx.Rngs(0)))
    model.eval()
    norms = len(parts(model, BatchNorm))
    folded = fold_batch_norm(model)
    assert not parts(folded, BatchNorm)
    assert len(parts(folded, Shift)) == norms
    assert len(parts(model, BatchNorm)) == norms  # the model itself stays
    assert_same_logits(folded, model)


@pytest.mark.long
def test_norms_that_come_before_their_convolutions_stay():
    model = with_statistics(create("fcn_dpn68", num_classes=4, rngs=nnx.Rngs(0)))
    model.eval()
    folded = fold_batch_norm(model)
    # In each of 22 blocks the first norm, before the four shortcuts one more, and the last of all.
    assert len(parts(folded, BatchNorm)) == 22 + 4 + 1
    assert_same_logits(folded, model)


def assert_same_logits(folded, model):
    images = np.random.default_rng(1).standard_normal((1, 33, 40, 3), np.float32)
    fast = jax.jit(lambda model, images: model(images), compiler_options=compiler_options())
    ours, exact = fast(folded, images), jit(lambda model, images: model(images))(model, images)
    # Every kernel is rounded anew, by 2^-24, and up to 141 layers pass that on.
    np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-5 * np.abs(exact).max())


def test_a_convolutions_own_bias_is_scaled_too():
    class Parent(nnx.Module):
        def __init__(self):
            self.conv2 = Conv(3, 4, bias=True, rngs=nnx.Rngs(0))
            self.conv2.bias[...] = jnp.arange(4, dtype=jnp.float32)
            self.bn2 = BatchNorm(4)

        def __call__(self, x):
            return self.bn2(self.conv2(x))

    parent = with_statistics(Parent())
    parent.eval()
    x = np.random.default_rng(1).standard_normal((1, 2, 2, 3), np.float32)
    np.testing.assert_allclose(fold_batch_norm(parent)(x), parent(x), rtol=1e-5, atol=1e-5)


def test_the_epsilon_of_a_norm_is_folded_with_it():
    model = with_statistics(create("fcn_stripes4", num_classes=2, rngs=nnx.Rngs(0)))
    for norm in parts(model, BatchNorm):
        norm.var[...] = jnp.full(norm.var.shape, norm.epsilon)  # which it doubles
    model.eval()
    assert_same_logits(fold_batch_norm(model), model)


def test_a_batch_norm_without_a_convolution_before_it_stays():
    class Parent(nnx.Module):
        def __init__(self):
            self.bn = BatchNorm(3)

    assert isinstance(fold_batch_norm(Parent()).bn, BatchNorm)


def test_a_folded_model_predicts():
    model = with_statistics(create("lraspp_mobilenet_v3_small", num_classes=4, rngs=nnx.Rngs(0)))
    picture = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    # Classes may change where two are equally likely up to rounding, which is nowhere near 1 in 100.
    same = predict(fold_batch_norm(model), picture) == predict(model, picture)
    assert same.mean() > 0.99
