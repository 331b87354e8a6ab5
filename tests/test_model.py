"""The whole model: presets, sizes, dtypes, freezing, training, and backbones of one's own."""

import copy
import dataclasses
import functools
import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deeplab_jax import PRESETS, ops
from deeplab_jax.backbones import MobileNetV2Config, ResNet, ResNetConfig
from deeplab_jax.backbones.registry import families
from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.heads import (
    ASPP,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    LRASPPConfig,
    rates_for,
)
from deeplab_jax.layers import BatchNorm, ConvNormAct, Normal
from deeplab_jax.model import (
    DeepLabV3,
    DeepLabV3Plus,
    FeaturesModel,
    SegmentationModel,
    build,
    create,
    fill,
    freeze_backbone,
    freeze_batch_norm,
    named_variables,
    with_values,
)

CLASSES = 5

# Compiling is nearly all that these tests do, and they need no fast code.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def logits_shape(model, *shape):
    """Of the model in eval mode, which is quicker to trace."""
    model.eval()
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, x)
    assert logits.dtype == jnp.float32
    return logits.shape


# ---------------------------------------------------------------------------- presets

BACKBONES = [  # but another test's own
    name for kind, family in families().items() if kind != "stripes" for name in family.presets
]


# Presets are every head on every backbone: each head once, and each backbone once.
@pytest.mark.parametrize(
    "name",
    [
        *(f"deeplabv3plus_{backbone}" for backbone in BACKBONES),
        "deeplabv3_resnet18",
        "fcn_resnet18",
        "lraspp_mobilenet_v3_large",
        "lraspp_mobilenet_v3_small",
    ],
)
def test_a_preset_can_be_built(name):
    config = PRESETS[name]
    model = build(config)
    assert model.config == config
    assert set(model.head.taps) <= set(model.backbone.channels)
    assert model.aux_head is None
    types = {DeepLabV3Config: DeepLabV3, DeepLabV3PlusConfig: DeepLabV3Plus}
    assert type(model) is types.get(type(config.head), SegmentationModel)
    # Nothing is computed, and everything says how it starts.
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        assert isinstance(variable.get_value(), jax.ShapeDtypeStruct)
        assert variable.dtype == jnp.float32
        assert "init" in variable.get_metadata()


def test_the_presets_are_every_head_on_every_backbone():
    heads = ("deeplabv3", "deeplabv3plus", "fcn")
    names = {f"{head}_{backbone}" for head in heads for backbone in BACKBONES}
    ours = {name for name in PRESETS if "stripes" not in name}
    assert ours == names | {"lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_small"}


def test_v3plus_is_separable_on_backbones_that_are():
    dense = DeepLabV3PlusConfig()
    assert PRESETS["deeplabv3plus_resnet101"].head == dense
    light = PRESETS["deeplabv3plus_mobilenet_v2"].head
    assert light == dataclasses.replace(dense, separable=True, separable_decoder=True)


@pytest.mark.parametrize(
    "name", ["deeplabv3_resnet18", "deeplabv3plus_mobilenet_v2", "fcn_efficientnet_lite0"]
)
def test_created_models_take_images_of_any_channels_and_give_any_classes(name):
    model = create(name, num_classes=CLASSES, in_channels=4, output_stride=8, rngs=nnx.Rngs(0))
    assert model.config.backbone.output_stride == 8
    assert model.config.num_classes == CLASSES
    assert logits_shape(model, 2, 33, 50, 4) == (2, 33, 50, CLASSES)


def test_an_unknown_preset_is_refused_with_those_that_are_near():
    match = "no preset is called 'deeplabv4_resnet50'. Did you mean deeplabv3_resnet50 or "
    with pytest.raises(ValueError, match=match) as error:
        create("deeplabv4_resnet50", rngs=nnx.Rngs(0))
    assert f"`deeplab list` prints all {len(PRESETS)}" in str(error.value)


def test_an_unknown_field_is_refused_with_all_that_there_are():
    with pytest.raises(ValueError, match="no such field: dropuot") as error:
        create("deeplabv3_resnet50", dropuot=0.1, rngs=nnx.Rngs(0))
    for name in ("num_classes", "multi_grid", "dropout"):  # the model's, the backbone's, the head's
        assert name in str(error.value)


def test_a_value_that_the_config_refuses_is_refused():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 12"):
        create("deeplabv3_resnet50", output_stride=12, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        create("deeplabv3_resnet50", num_classes=0, rngs=nnx.Rngs(0))


def test_a_model_can_be_made_of_any_config():
    config = PRESETS["deeplabv3_resnet18"].override(num_classes=1, align_corners=True)
    assert create(config, rngs=nnx.Rngs(0)).config == config
    changed = create(config, num_classes=3, output_stride=8, channels=16, rngs=nnx.Rngs(0)).config
    assert changed == config.override(num_classes=3, output_stride=8, channels=16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create("fcn_resnet18"), r"random weights need rngs=nnx.Rngs\(0\)"),
        (
            lambda: create("fcn_resnet18", rngs=jax.random.key(0)),
            r"rngs=nnx.Rngs\(0\) .*, got .*Arr",
        ),
        (lambda: ASPP(8, rngs=3), r"need rngs=nnx.Rngs\(3\) .*, got 3"),
        (lambda: build("fcn_resnet18"), "build takes a Config, .* got 'fcn_resnet18'"),
        (lambda: create("fcn_resnet18", rngs=7), r"need rngs=nnx.Rngs\(7\) .*, got 7"),
        (
            lambda: create(ResNetConfig(), rngs=nnx.Rngs(0)),
            "a preset's name or a Config, got ResNet",
        ),
        (lambda: ResNet(50), r"its config first, as in ResNet\(ResNetConfig\(\), rngs=.*, got 50"),
        (
            lambda: ResNet(rngs=nnx.Rngs(0)),
            r"as in ResNet\(ResNetConfig\(\), rngs=nnx.Rngs\(0\)\)$",
        ),
        (
            lambda: ResNet(MobileNetV2Config(), rngs=nnx.Rngs(0)),
            r"as in ResNet.*, got MobileNetV2C",
        ),
        (lambda: ResNet(ResNetConfig(18)), r"random weights need rngs=nnx.Rngs\(0\)"),
        (lambda: ResNet(config=ResNetConfig(18), rngs=0), r"need rngs=nnx.Rngs\(0\) .*, got 0"),
        (
            lambda: DeepLabV3Plus("resnet50", rngs=nnx.Rngs(0)),
            "must be a module, .* got 'resnet50'",
        ),
        (
            lambda: DeepLabV3(ResNetConfig(), rngs=nnx.Rngs(0)),
            "must be a module, .* got ResNetConfig",
        ),
    ],
)
def test_near_misses_say_what_to_write(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_images_that_are_not_nhwc_are_refused():
    model = build(PRESETS["fcn_resnet18"])
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\] \(NHWC\), got \[2, 3, 32, 48\]: .*NCHW"):
        model(images(2, 3, 32, 48))
    with pytest.raises(ValueError, match=r"got \[32, 48, 3\]: images\[None\] is a batch of one"):
        model.with_aux(images(32, 48, 3))
    with pytest.raises(ValueError, match=r"images must be .*, got \[2, 32, 48, 4\]$"):
        model(images(2, 32, 48, 4))
    with pytest.raises(ValueError, match=r"must be normalised floats, got uint8: see .*normalize"):
        model(jnp.zeros((2, 32, 48, 3), jnp.uint8))


def test_making_a_large_model_is_quick():
    # Drawing one layer at a time takes half a minute and more, as each shape compiles. The processor's
    # time counts, not the clock's, as other programs may run beside the tests; 4 s is usual.
    start = time.process_time()
    create("deeplabv3plus_resnet101", rngs=nnx.Rngs(0))
    assert time.process_time() - start < 15


def test_building_a_large_model_by_hand_is_quick():
    # Where XLA compiles each draw, it takes 10 s and more; 1.5 s is usual.
    start = time.process_time()
    rngs = nnx.Rngs(0)
    model = DeepLabV3Plus(ResNet(ResNetConfig(101), rngs=rngs), rngs=rngs)
    assert time.process_time() - start < 5
    kernels = [
        np.asarray(v[...]) for n, v in named_variables(model).items() if n.endswith("kernel")
    ]
    assert len({float(kernel.flat[0]) for kernel in kernels}) == len(kernels)


def test_models_are_copied_and_pickled():
    model = small_model()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nnx.clone(model)):
        assert copied.config == model.config
        for name, variable in named_variables(copied).items():
            np.testing.assert_array_equal(variable[...], named_variables(model)[name][...])


def test_variables_go_from_one_model_to_another():
    source = small_model()
    values = {name: variable[...] for name, variable in named_variables(source).items()}
    copy = with_values(build(source.config), values)
    for name, variable in named_variables(copy).items():
        np.testing.assert_array_equal(variable[...], values[name])


# ---------------------------------------------------------------------------- initial values


@functools.cache
def values_of(seed):
    model = create("deeplabv3plus_resnet18", channels=32, rngs=nnx.Rngs(seed))
    return dict(nnx.to_flat_state(nnx.state(model)))


def test_a_model_is_a_function_of_its_seed():
    first, again, other = values_of(0), values_of.__wrapped__(0), values_of(1)
    for path, variable in first.items():
        np.testing.assert_array_equal(variable[...], again[path][...])
        if path[-1] == "kernel":
            assert (variable[...] != other[path][...]).any()


def test_initial_kernels_have_their_standard_deviation_and_are_all_different():
    seen = set()
    for path, variable in values_of(0).items():
        value = np.asarray(variable[...])
        if path[-1] != "kernel":
            np.testing.assert_array_equal(value, 1.0 if path[-1] in ("scale", "var") else 0.0)
            continue
        init = variable.get_metadata()["init"]
        # The deviation of n samples is known to 1 / sqrt(2 n), and this is six of those, as there are
        # 30 kernels; the mean is known to std / sqrt(n).
        assert abs(value.std() / init.std - 1) < 6 / np.sqrt(2 * value.size), path
        assert abs(value.mean()) < 6 * init.std / np.sqrt(value.size), path
        seen.add(float(value.flat[0]) / init.std)
    assert len(seen) == sum(path[-1] == "kernel" for path in values_of(0))


def test_filled_models_start_as_those_made_one_layer_at_a_time():
    eager = ConvNormAct(32, 64, 3, rngs=nnx.Rngs(0))
    quick = fill(nnx.eval_shape(lambda: ConvNormAct(32, 64, 3, rngs=nnx.Rngs(0))), nnx.Rngs(0))
    assert eager.conv.kernel.get_metadata()["init"] == Normal(np.sqrt(2 / (9 * 64)))
    # 18432 samples: five times 1 / sqrt(2 * 18432), for each of the two.
    np.testing.assert_allclose(
        eager.conv.kernel[...].std(), quick.conv.kernel[...].std(), rtol=2 * 0.026
    )
    for name in ("scale", "bias", "mean", "var"):
        np.testing.assert_array_equal(getattr(eager.bn, name)[...], getattr(quick.bn, name)[...])


# ---------------------------------------------------------------------------- any size, any dtype


@functools.cache
def small_model(dtype="float32"):
    """ResNet-18 with a narrow v3+ head, in eval mode."""
    model = create(
        "deeplabv3plus_resnet18",
        num_classes=CLASSES,
        channels=16,
        low_channels=8,
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    model.eval()
    return model


@functools.cache
def small_model_compiled(dtype="float32"):
    return jit(small_model(dtype))


@pytest.mark.parametrize("size", [(17, 33), (1, 1)], ids=str)
def test_logits_are_at_the_images_size_even_where_it_is_smaller_than_the_rates(size):
    logits = small_model_compiled()(images(2, *size, 3))
    assert logits.shape == (2, *size, CLASSES)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    "size", [(2, 1), (32, 32), (33, 33), (40, 23), (64, 127), (513, 7)], ids=str
)
def test_any_size_has_logits_of_its_size(size):
    assert logits_shape(small_model(), 3, *size, 3) == (3, *size, CLASSES)


def test_each_image_of_a_batch_is_on_its_own():
    x = images(2, 17, 33, 3)
    run = small_model_compiled()
    # Two shapes of program round their sums in different orders: some roundings of the largest.
    alone, together = run(x[1:]), run(x)[1:]
    np.testing.assert_allclose(alone, together, rtol=0, atol=2e-5 * np.abs(together).max())


def test_bfloat16_computes_logits_in_float32_that_are_near_the_exact_ones():
    x = images(2, 17, 33, 3)
    model = small_model("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    rough, exact = small_model_compiled("bfloat16")(x), small_model_compiled()(x)
    assert rough.dtype == jnp.float32
    assert (rough != exact).any()
    # Some 25 layers round to 8 bits (2^-9 of each value, at random): 2^-9 * sqrt(25) = 1 % of the
    # largest, and five times that for the worst of 5610 logits.
    np.testing.assert_allclose(rough, exact, rtol=0, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_in_the_models_dtype_whatever_the_images_are(dtype):
    graphdef, state = nnx.split(small_model(dtype))
    x = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float16)
    features = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).features(x), state, x)
    assert {feature.dtype for feature in features.values()} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("align_corners", [False, True])
def test_one_corner_rule_is_for_the_whole_model(align_corners):
    config = PRESETS["deeplabv3plus_resnet18"].override(align_corners=align_corners)
    model = build(config)
    assert model.head.decoder.align_corners == align_corners
    logits = images(1, 3, 4, 2)
    np.testing.assert_array_equal(
        model.resize(logits, (9, 9)),
        ops.resize_bilinear(logits, (9, 9), align_corners=align_corners),
    )


FEATURES = FeaturesConfig(high=8, low=6)


def test_a_model_of_features_is_the_head_alone():
    config = Config(FEATURES, DeepLabV3PlusConfig(channels=4), CLASSES)
    model = create(config, rngs=nnx.Rngs(0))
    assert type(model) is FeaturesModel
    assert isinstance(model, SegmentationModel)
    assert model.config == config
    assert model.aspp is model.head.aspp
    assert model.decoder is model.head.decoder
    assert {name.partition(".")[0] for name in named_variables(model)} == {"head"}
    model.eval()
    high, low = images(2, 3, 4, 8), images(2, 9, 13, 6)
    logits = jit(model)(high, low)
    assert logits.shape == (2, 9, 13, CLASSES)
    np.testing.assert_array_equal(logits, jit(lambda h, x: model.with_aux(h, x)[0])(high, low))


def test_a_head_that_reads_no_low_level_features_needs_none():
    config = Config(FEATURES, DeepLabV3Config(channels=4), CLASSES, aux_head=FCNConfig(channels=2))
    model = create(config, dtype="bfloat16", rngs=nnx.Rngs(0))
    model.eval()
    assert jit(model)(images(2, 3, 4, 8)).dtype == jnp.float32
    logits, aux = jit(model.with_aux)(images(2, 3, 4, 8))
    assert logits.shape == aux.shape == (2, 3, 4, CLASSES)
    with pytest.raises(AttributeError, match="decoder"):
        _ = model.decoder


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([(2, 3, 4, 8)], r"the low features must be \[B, h, w, 6\] \(NHWC\), got none"),
        ([(2, 8, 3, 4), (2, 9, 13, 6)], r"the high features .* 8\] \(NHWC\), got \[2, 8, 3, 4\]"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, message):
    model = build(Config(FEATURES, DeepLabV3PlusConfig(channels=4), CLASSES))
    with pytest.raises(ValueError, match=message):
        model(*(images(*shape) for shape in features))


def test_features_that_there_are_not_are_refused():
    with pytest.raises(
        ValueError, match=r"LRASPPConfig reads the features 'mid', .* only high, low"
    ):
        build(Config(FEATURES, LRASPPConfig()))


# ---------------------------------------------------------------------------- auxiliary head


def test_the_auxiliary_head_has_logits_of_its_own_size():
    model = create(
        "deeplabv3_resnet18",
        num_classes=CLASSES,
        output_stride=8,
        aux_head=FCNConfig(tap="low", channels=8),
        rngs=nnx.Rngs(0),
    )
    model.eval()
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.float32)
    logits, aux = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).with_aux(x), state, x)
    assert logits.shape == (2, 5, 7, CLASSES)
    assert aux.shape == (2, 9, 13, CLASSES)


def test_without_an_auxiliary_head_there_are_no_such_logits():
    _, aux = small_model().with_aux(jnp.zeros((1, 9, 9, 3)))
    assert aux is None


# ---------------------------------------------------------------------------- your own backbone


class Backbone(nnx.Module):
    """What the README promises to be enough."""

    def __init__(self, *, rngs):
        self.channels = {"low": 8, "high": 12}
        self.low = ConvNormAct(3, 8, 3, stride=4, rngs=rngs)
        self.high = ConvNormAct(8, 12, 3, stride=4, rngs=rngs)

    def __call__(self, images, *, rngs=None):
        low = self.low(images)
        return {"low": low, "high": self.high(low)}


HEAD = DeepLabV3PlusConfig(channels=8, low_channels=4, rates=(1, 2))


def own_model():
    """In training mode."""

    def make():
        rngs = nnx.Rngs(0)
        return DeepLabV3Plus(Backbone(rngs=rngs), CLASSES, head=HEAD, rngs=rngs)

    return fill(nnx.eval_shape(make), nnx.Rngs(0))


def test_a_backbone_of_a_few_lines_is_enough():
    rngs = nnx.Rngs(0)
    model = DeepLabV3(
        Backbone(rngs=rngs), CLASSES, head=DeepLabV3Config(rates=(), channels=4), rngs=rngs
    )
    with pytest.raises(
        ValueError, match=r"has no config; make it with create, .* or set model.config"
    ):
        _ = model.config
    run = nnx.jit(lambda model, x: model(x, rngs=nnx.Rngs(dropout=0)))
    assert run(model, images(2, 17, 33, 3)).shape == (2, 17, 33, CLASSES)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_heads_read_the_backbones_output_stride(stride):
    def make():
        rngs = nnx.Rngs(0)
        return DeepLabV3Plus(ResNet(ResNetConfig(18, stride), rngs=rngs), CLASSES, rngs=rngs)

    branches = nnx.eval_shape(make).head.aspp.branches
    assert tuple(branch.conv.dilation for branch in branches[1:]) == rates_for(stride)


def test_a_backbone_that_does_not_tell_its_stride_needs_rates():
    with pytest.raises(
        ValueError, match=r"no attribute output_stride: add it, or give the rates, Deep"
    ):
        nnx.eval_shape(lambda: DeepLabV3(Backbone(rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)))


def test_a_model_is_split_and_merged_for_jit():
    model = own_model()
    model.eval()
    graphdef, state = nnx.split(model)
    x = images(2, 17, 33, 3)
    split = jit(lambda s, x: nnx.merge(graphdef, s)(x))(state, x)
    # The same program, but for weights that are its arguments here and constants there.
    np.testing.assert_allclose(split, jit(model)(x), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- training


def training_steps(model, count=1, rate=0.5):
    """Losses before each of `count` steps, the last gradient, and the model after.

    The data is random images; the class of every pixel is the number of its image.
    """
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    x = images(4, 17, 17, 3)
    labels = jnp.broadcast_to(jnp.arange(4)[:, None, None], (4, 17, 17))

    @jit
    def step(params, statistics, key):
        def loss(params):
            model = nnx.merge(graphdef, params, statistics, copy=True)
            logits = jax.nn.log_softmax(model(x, rngs=nnx.Rngs(dropout=key)))
            loss = -jnp.take_along_axis(logits, labels[..., None], -1).mean()
            return loss, nnx.split(model, nnx.Param, ...)[2]

        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
        return value, gradient, params, statistics

    losses = []
    for i in range(count):
        loss, gradient, params, statistics = step(params, statistics, jax.random.key(i))
        losses.append(float(loss))
    return losses, gradient, nnx.merge(graphdef, params, statistics)


def arrays(model, kind, part):
    return {
        path: np.asarray(variable[...])
        for path, variable in nnx.to_flat_state(nnx.state(model, kind))
        if path[0] == part
    }


def changed(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


def test_training_reduces_the_loss():
    losses, _, model = training_steps(own_model(), count=20)
    # Log 5 = 1.61 is what equally likely classes lose. The first logits have a variance of .6 (Glorot's
    # 2 / 13 on 8 channels whose mean square is a half), which costs .4 of that, .25, give or take.
    assert losses[0] == pytest.approx(np.log(CLASSES), abs=0.3)
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    fresh = own_model()
    for part in ("backbone", "head"):
        for kind in (nnx.Param, nnx.BatchStat):
            before, after = arrays(fresh, kind, part), arrays(model, kind, part)
            assert changed(before, after) == set(before)


def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics():
    model = own_model()
    freeze_backbone(model)
    model.train()  # does not thaw it
    _, gradient, after = training_steps(model)
    for part, frozen in (("backbone", True), ("head", False)):
        for path, variable in nnx.to_flat_state(gradient):
            if path[0] == part:
                assert (np.asarray(variable[...]) == 0).all() == frozen, path
        before = arrays(own_model(), nnx.BatchStat, part)
        expected = set() if frozen else set(before)
        assert changed(before, arrays(after, nnx.BatchStat, part)) == expected


def test_frozen_batch_norms_keep_their_statistics_and_let_the_gradient_through():
    model = own_model()
    freeze_batch_norm(model)
    model.train()
    _, gradient, after = training_steps(model)
    for part in ("backbone", "head"):
        before = arrays(own_model(), nnx.BatchStat, part)
        assert changed(before, arrays(after, nnx.BatchStat, part)) == set()
    for path, variable in nnx.to_flat_state(gradient):
        assert (np.asarray(variable[...]) != 0).any(), path


def test_a_part_can_be_frozen():
    model = own_model()
    freeze_batch_norm(model.head.aspp)
    frozen = {
        path
        for path, part in nnx.iter_modules(model)
        if isinstance(part, BatchNorm) and part.frozen
    }
    assert len(frozen) == 5  # 1x1, two rates, pooling, projection
    assert {path[:2] for path in frozen} == {("head", "aspp")}


def test_eval_mode_is_deterministic_and_needs_no_rngs():
    model = own_model()
    model.eval()
    x = images(2, 17, 17, 3)
    statistics = arrays(model, nnx.BatchStat, "backbone")
    run = nnx.jit(lambda model, x: model(x))
    np.testing.assert_array_equal(run(model, x), run(model, x))
    assert changed(statistics, arrays(model, nnx.BatchStat, "backbone")) == set()
