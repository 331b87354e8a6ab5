"""Heads: against the same layers written out in torch, and what their options do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.heads import (
    ASPP,
    ClassifierConfig,
    Decoder,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    LRASPPConfig,
    SteppedLRASPPConfig,
    build_head,
    rates_for,
)
from deeplab_jax.layers import BatchNorm, SeparableConvNormAct
from deeplab_jax.model import build, fill

CHANNELS = {"half": 5, "low": 6, "mid": 7, "aux": 8, "high": 10}
CLASSES = 5

# Compiling is nearly all that these tests do, and they need no fast code.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def filled(make, *, training=False):
    """The module that `make(rngs=...)` gives, with random statistics, biases and scales.

    Fresh ones are 0 and 1, which would hide that one is left out.
    """
    module = fill(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Rngs(0))
    generator = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        if path[-1] != "kernel":
            low, high = (0.5, 1.5) if path[-1] in ("var", "scale") else (-0.5, 0.5)
            variable[...] = jnp.asarray(generator.uniform(low, high, variable.shape), jnp.float32)
    if not training:
        module.eval()
    return module


def head_of(config, *, align_corners=False, output_stride=16, training=False):
    make = functools.partial(
        build_head,
        config,
        CHANNELS,
        CLASSES,
        output_stride=output_stride,
        align_corners=align_corners,
    )
    return filled(make, training=training)


# ---------------------------------------------------------------------------- against torch


def to_torch(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def conv(module, x):
    """What torch makes of a `Conv`."""
    kernel = torch.from_numpy(np.asarray(module.kernel[...]).transpose(3, 2, 0, 1).copy())
    bias = None if module.bias is None else torch.from_numpy(np.array(module.bias[...]))
    padding, dilation = module.padding, module.dilation
    return F.conv2d(x, kernel, bias, 1, padding, dilation, module.groups)


def norm_relu(module, x):
    values = (module.mean, module.var, module.scale, module.bias)
    return F.relu(F.batch_norm(x, *(torch.from_numpy(np.array(v[...])) for v in values), eps=1e-5))


def block(module, x):
    """What torch makes of a `ConvNormAct` or a `SeparableConvNormAct`."""
    if not isinstance(module, SeparableConvNormAct):
        return norm_relu(module.bn, conv(module.conv, x))
    x = conv(module.depthwise, x)
    x = x if module.depthwise_bn is None else norm_relu(module.depthwise_bn, x)
    return norm_relu(module.bn, conv(module.pointwise, x))


def aspp(module, x):
    """DeepLabv3's ASPP as the paper and torchvision have it."""
    branches = [block(branch, x) for branch in module.branches]
    pooled = block(module.pool, F.adaptive_avg_pool2d(x, 1))
    branches.append(F.interpolate(pooled, x.shape[2:], mode="bilinear"))
    return block(module.project, torch.cat(branches, 1))


def decoder(module, x, low):
    """DeepLabv3+'s decoder as the paper has it."""
    low = block(module.low, low)
    x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=module.align_corners)
    x = torch.cat([low, x], 1)
    for part in module.convs:
        x = block(part, x)
    return conv(module.classifier, x)


def assert_equals_torch(ours, theirs):
    """Equal but for some ten roundings (6e-8 each) of sums up to the largest value, per layer.

    A branch at another place, or another rate, is off by as much as the values themselves.
    """
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separable": True},
        {"separable": True, "norm_between": True},
        {"bias": True, "project_kernel": 3, "rates": (2, 9)},
    ],
    ids=["dense", "separable", "norm-between", "bias"],
)
def test_aspp_equals_torch(options):
    module = filled(functools.partial(ASPP, 10, 8, **options))
    x = normal(2, 9, 14, 10)
    assert_equals_torch(jit(module)(x), aspp(module, to_torch(x)))


@pytest.mark.parametrize(
    ("config", "align_corners"),
    [
        (DeepLabV3PlusConfig(channels=8, low_channels=4), False),
        (DeepLabV3PlusConfig(channels=8, low_channels=4, decoder_convs=1), True),
        (
            DeepLabV3PlusConfig(channels=8, separable=True, separable_decoder=True, refine=True),
            False,
        ),
    ],
    ids=["paper", "align-corners", "separable"],
)
def test_the_v3plus_head_equals_torch(config, align_corners):
    head = head_of(config, align_corners=align_corners)
    high, low = normal(2, 5, 7, 10), normal(2, 17, 26, 6, seed=1)
    x = aspp(head.aspp, to_torch(high))
    x = x if head.refine is None else block(head.refine, x)
    assert_equals_torch(jit(head)(high, low), decoder(head.decoder, x, to_torch(low)))


def test_the_v3_head_equals_torch():
    head = head_of(DeepLabV3Config(channels=8, convs=2))
    x = normal(2, 9, 14, 10)
    expected = aspp(head.aspp, to_torch(x))
    for part in head.convs:
        expected = block(part, expected)
    assert_equals_torch(jit(head)(x), conv(head.classifier, expected))


def test_the_fcn_head_equals_torch():
    head = head_of(FCNConfig(tap="aux", channels=4))
    x = normal(2, 9, 14, 8)
    assert_equals_torch(jit(head)(x), conv(head.classifier, block(head.conv, to_torch(x))))


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_lraspp_head_equals_torch(align_corners):
    head = head_of(LRASPPConfig(8), align_corners=align_corners)
    high, mid = normal(2, 5, 7, 10), normal(2, 9, 14, 7, seed=1)
    x = to_torch(high)
    gate = torch.sigmoid(conv(head.scale, F.adaptive_avg_pool2d(x, 1)))
    x = F.interpolate(
        block(head.cbr, x) * gate, (9, 14), mode="bilinear", align_corners=align_corners
    )
    expected = conv(head.high_classifier, x) + conv(head.mid_classifier, to_torch(mid))
    assert_equals_torch(jit(head)(high, mid), expected)


def test_the_mean_of_a_classifier_heads_logits_is_the_image_classifier():
    head = head_of(ClassifierConfig())
    x = normal(2, 9, 14, 10)
    logits = jit(head)(x).mean((1, 2))
    weights, bias = np.asarray(head.classifier.kernel[0, 0]), np.asarray(head.classifier.bias[...])
    # A mean of 126 float32 values below 5, before or after 10 products.
    np.testing.assert_allclose(logits, x.mean((1, 2)) @ weights + bias, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- shapes and options


def test_aspp_is_usable_alone():
    module = ASPP(3, 4, rates=(2,), rngs=nnx.Rngs(0))
    y = module(jnp.asarray(normal(2, 3, 5, 3)), rngs=nnx.Rngs(dropout=1))
    assert y.shape == (2, 3, 5, 4)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("rates", [(), (1,), (6, 12, 18), (3, 6, 9, 12)])
@pytest.mark.parametrize("separable", [False, True])
def test_aspp_has_a_branch_per_rate_and_keeps_the_size(rates, separable):
    def run(x):
        module = ASPP(6, 4, rates=rates, separable=separable, rngs=nnx.Rngs(0))
        assert len(module.branches) == 1 + len(rates)
        assert module.project.conv.kernel.shape == (1, 1, 4 * (len(rates) + 2), 4)
        for rate, branch in zip(rates, module.branches[1:], strict=True):
            assert (branch.depthwise if separable else branch.conv).dilation == rate
        return module(x, rngs=nnx.Rngs(1))

    x = jax.ShapeDtypeStruct((2, 3, 5, 6), jnp.bfloat16)
    assert jax.eval_shape(run, x) == jax.ShapeDtypeStruct((2, 3, 5, 4), jnp.bfloat16)


@pytest.mark.parametrize(
    ("output_stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))]
)
def test_rates_follow_the_output_stride(output_stride, rates):
    assert rates_for(output_stride) == rates
    for config in (DeepLabV3Config(channels=4), DeepLabV3PlusConfig(channels=4)):
        backbone = FeaturesConfig(high=4, low=4, output_stride=output_stride)
        branches = build(Config(backbone, config)).aspp.branches[1:]
        assert tuple(branch.conv.dilation for branch in branches) == rates


@pytest.mark.parametrize("config", [DeepLabV3Config, DeepLabV3PlusConfig])
@pytest.mark.parametrize("rates", [(), (5, 7)])
def test_given_rates_replace_those_of_the_output_stride(config, rates):
    backbone = FeaturesConfig(high=4, low=4, output_stride=8)
    branches = build(Config(backbone, config(rates=rates, channels=4))).aspp.branches[1:]
    assert tuple(branch.conv.dilation for branch in branches) == rates


@pytest.mark.parametrize(
    ("config", "taps", "size"),
    [
        (DeepLabV3Config(channels=4), ("high",), (3, 4)),
        (DeepLabV3PlusConfig(channels=4), ("high", "low"), (10, 15)),
        (FCNConfig(), ("high",), (3, 4)),
        (FCNConfig(tap="mid", channels=4), ("mid",), (5, 8)),
        (LRASPPConfig(4), ("high", "mid"), (5, 8)),
        (SteppedLRASPPConfig(4), ("high", "low", "half"), (20, 30)),
        (ClassifierConfig(), ("high",), (3, 4)),
        (ClassifierConfig(hidden=6), ("high",), (3, 4)),
    ],
)
def test_logits_have_the_size_of_the_finest_features(config, taps, size):
    sizes = {"half": (20, 30), "low": (10, 15), "mid": (5, 8), "aux": (3, 4), "high": (3, 4)}

    def run(features):
        head = build_head(
            config, CHANNELS, CLASSES, output_stride=16, align_corners=False, rngs=nnx.Rngs(0)
        )
        assert head.taps == taps
        return head(*(features[name] for name in head.taps), rngs=nnx.Rngs(1))

    features = {
        name: jax.ShapeDtypeStruct((2, *sizes[name], CHANNELS[name]), jnp.float32)
        for name in CHANNELS
    }
    assert jax.eval_shape(run, features).shape == (2, *size, CLASSES)


@pytest.mark.parametrize("convs", [1, 2, 3])
@pytest.mark.parametrize("separable", [False, True])
def test_the_decoder_has_its_convolutions_and_their_widths(convs, separable):
    module = nnx.eval_shape(
        lambda: Decoder(
            6,
            CLASSES,
            in_channels=10,
            low_channels=4,
            channels=8,
            convs=convs,
            separable=separable,
            rngs=nnx.Rngs(0),
        )
    )
    kernels = [(c.pointwise if separable else c.conv).kernel.shape for c in module.convs]
    side = 1 if separable else 3
    assert kernels == [(side, side, 14, 8)] + [(side, side, 8, 8)] * (convs - 1)
    assert module.low.conv.kernel.shape == (1, 1, 6, 4)


# ---------------------------------------------------------------------------- training


def norms(module):
    return {path: part for path, part in nnx.iter_modules(module) if isinstance(part, BatchNorm)}


def test_in_training_a_batch_of_one_works_and_leaves_the_pooling_branchs_statistics():
    module = filled(functools.partial(ASPP, 10, 4, rates=(1,)), training=True)
    before = {path: np.array(norm.mean[...]) for path, norm in norms(module).items()}
    y = module(jnp.asarray(normal(1, 5, 7, 10)), rngs=nnx.Rngs(0))
    assert np.isfinite(y).all()
    kept = {path for path, norm in norms(module).items() if (norm.mean[...] == before[path]).all()}
    assert kept == {("pool", "bn")}


@pytest.mark.parametrize(
    "config", [DeepLabV3Config(channels=4), DeepLabV3PlusConfig(channels=4), FCNConfig()]
)
def test_dropout_in_training_asks_for_rngs(config):
    def run(high, low):
        head = build_head(
            config, CHANNELS, CLASSES, output_stride=16, align_corners=False, rngs=nnx.Rngs(0)
        )
        return head(*((high, low)[: len(head.taps)]))

    shapes = [jax.ShapeDtypeStruct((2, 3, 4, CHANNELS[name]), jnp.float32) for name in CHANNELS]
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        jax.eval_shape(run, shapes[-1], shapes[0])


def training_aspp(**options):
    module = filled(functools.partial(ASPP, 10, 8, rates=(1,), **options), training=True)
    graphdef, state = nnx.split(module)
    x = jnp.asarray(normal(2, 5, 7, 10))

    @jit
    def run(state, key):
        return nnx.merge(graphdef, state)(x, rngs=nnx.Rngs(dropout=key))

    return lambda seed: run(state, jax.random.key(seed))


def test_dropout_is_a_function_of_the_key():
    run = training_aspp()
    first, again, other = run(0), run(0), run(1)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_dropout_takes_its_share_and_scales_the_rest():
    dropped, whole = training_aspp(dropout=0.25)(0), training_aspp(dropout=0.0)(0)
    alive = np.asarray(whole) != 0  # the ReLU before made zeros of its own
    # Of some 300 values that are alive a quarter goes, plus or minus 2.5 % (one deviation); four of these.
    assert abs(np.mean(np.asarray(dropped)[alive] == 0) - 0.25) < 0.1
    left = np.asarray(dropped) != 0
    # One multiplication by 1 / 0.75.
    np.testing.assert_allclose(dropped[left], whole[left] / 0.75, rtol=1e-6)


def test_dropout_of_channels_takes_whole_channels_of_an_image():
    dropped, whole = training_aspp(drop_channels=True)(0), training_aspp(dropout=0.0)(0)
    alive = np.asarray(whole) != 0
    gone = (np.asarray(dropped) == 0) & alive
    for image in range(2):
        for channel in range(8):
            one = np.s_[image, :, :, channel]
            assert gone[one].sum() in (0, alive[one].sum())
    assert 0 < gone.sum() < alive.sum()


def test_dropout_in_the_decoder_is_after_the_convolutions_it_is_given_for():
    config = DeepLabV3PlusConfig(
        channels=4, decoder_convs=2, decoder_dropout=(0.5, 0.1), drop_channels=True
    )
    head = build(Config(FeaturesConfig(4, 4), config)).decoder
    assert [d.rate for d in head.dropouts] == [0.5, 0.1]
    assert {tuple(d.broadcast_dims) for d in head.dropouts} == {(1, 2)}


def test_classifiers_start_by_glorots_rule():
    head = fill(build(Config(FeaturesConfig(64, 64), DeepLabV3PlusConfig())), nnx.Rngs(0))
    kernel = head.decoder.classifier.kernel[...]
    # 5376 samples: five times 1 / sqrt(2 * 5376).
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (256 + 21)), rtol=0.05)
    np.testing.assert_array_equal(head.decoder.classifier.bias[...], 0)
