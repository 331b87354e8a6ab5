"""What holds for any shape and config, on random ones; `HYPOTHESIS_PROFILE=long` tries 50 times as many."""

import dataclasses
import functools
import json
import math
import os

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, Phase, assume, given, settings
from jax import lax
from originals.standalone import Standalone
from references import randomise, without_weights
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from deeplab_jax import lowering, ops
from deeplab_jax.config import Config, from_dict, kinds, to_dict
from deeplab_jax.heads import HEAD_CONFIGS, FCNConfig
from port import load_torch, to_torch
from port.convert import convert
from train import metrics, sharding
from train.config import MeshConfig
from train.data import AugmentConfig, augment

# Compiling takes what time it takes, and the same examples are tried by everybody: a test that fails
# now and then would tell of nothing that the change at hand has done.
for profile, examples in (("quick", 12), ("long", 600)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        derandomize=profile == "quick",
        database=None,
        phases=set(Phase) - {Phase.explain},  # which takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Compiling is nearly all that these tests do, and they need no fast code.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def many(test):
    """Tries ten times as many examples, of what compiles nothing."""
    return settings(max_examples=10 * settings.default.max_examples)(test)


seeds = st.integers(0, 2**32 - 1)


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---------------------------------------------------------------------------- resize

sides = st.integers(1, 40)


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.booleans(), seeds)
def test_a_resize_of_any_size_equals_torchs_by_both_corner_rules(source, target, align, seed):
    x = normal(1, *source, 2, seed=seed)
    theirs = F.interpolate(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()), target, mode="bilinear", align_corners=align
    )
    ours = jit(functools.partial(ops.resize_bilinear, size=target, align_corners=align))(x)
    # A position is a float32 below 40, which PyTorch may round once less than we (2^-18 = 4e-6), times a
    # slope of up to 8 per pixel. By the wrong rule positions are off by 1 / 80 and more.
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), rtol=0, atol=4e-5)


# ---------------------------------------------------------------------------- convolutions


@dataclasses.dataclass(frozen=True)
class Convolution:
    image: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    spec: lowering.Spec

    @property
    def size(self) -> tuple[int, int]:
        return lowering._conv_size(self.image, self.kernel, self.spec)


@st.composite
def convolutions(draw, *kinds):
    """Any convolution that has a result, with paddings that differ on all sides and exceed the image."""
    kind = draw(st.sampled_from(kinds))
    width, groups, out = draw(
        {
            "dense": st.tuples(st.integers(1, 5), st.just(1), st.integers(1, 5)),
            "1x1": st.tuples(st.integers(1, 5), st.just(1), st.integers(1, 5)),
            "grouped": st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(1, 3)),
            "depthwise": st.tuples(st.just(1), st.integers(2, 6), st.just(1)),
        }[kind]
    )
    taps = st.just(1) if kind == "1x1" else st.integers(1, 4)
    side, pad = st.integers(1, 9), st.just(0) if kind == "1x1" else st.integers(0, 11)
    found = Convolution(
        (draw(st.integers(1, 2)), draw(side), draw(side), width * groups),
        (draw(taps), draw(taps), width, out * groups),
        lowering.Spec(
            draw(st.integers(1, 3)),
            draw(st.integers(1, 6)),
            ((draw(pad), draw(pad)), (draw(pad), draw(pad))),
            groups,
        ),
    )
    assume(min(found.size) > 0)
    return found


def by_lax(x, kernel, spec):
    """Written out once more, so that no form is compared with itself."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (spec.stride, spec.stride),
        spec.pads,
        rhs_dilation=(spec.dilation, spec.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


def assert_computes(form, gradients, convolution, dtype, seed):
    """That a form and its gradients are those of XLA's convolution in float32 of the same numbers."""
    spec = convolution.spec
    shapes = convolution.image, convolution.kernel
    x, kernel = (jnp.asarray(normal(*s, seed=seed + i), dtype) for i, s in enumerate(shapes))
    cotangent = normal(x.shape[0], *convolution.size, kernel.shape[3], seed=seed + 2)
    arguments = x, kernel, jnp.asarray(cotangent, dtype)

    @jit
    def ours(x, kernel, cotangent):
        return form(x, kernel, spec), *gradients(x, kernel, cotangent, spec)

    @jit
    def theirs(x, kernel, cotangent):
        value, transpose = jax.vjp(lambda *a: by_lax(*a, spec), x, kernel)
        return value, *transpose(cotangent)

    exact = theirs(*(a.astype(jnp.float32) for a in arguments))
    for name, a, b in zip(("value", "x", "kernel"), ours(*arguments), exact, strict=True):
        assert a.dtype == dtype, name
        # Float32: at most 16 taps x 5 channels, or 2 x 31 x 31 pixels, added up in another order; 16
        # roundings (2^-23 each) of the largest. Bfloat16: each of up to 16 taps is rounded before the
        # gradient of x adds them up (2^-9 each). One product too many or too few is more than both.
        tolerance = 2e-6 if dtype == jnp.float32 else 2**-5
        scale = max(float(jnp.abs(b).max()), 1.0)
        np.testing.assert_allclose(
            a.astype(jnp.float32), b, rtol=0, atol=tolerance * scale, err_msg=name
        )


dtypes = st.sampled_from([jnp.float32, jnp.bfloat16])


@given(convolutions("dense", "1x1", "grouped", "depthwise"), dtypes, seeds)
def test_the_form_that_a_cpu_chooses_computes_the_convolution(convolution, dtype, seed):
    forms = lowering.cpu_forms(convolution.image, convolution.kernel, convolution.spec)
    assert_computes(*forms, convolution, dtype, seed)


@given(convolutions("dense"), dtypes, seeds)
def test_cropped_products_compute_any_convolution(convolution, dtype, seed):
    gradients = lowering.gradient_of(lowering.atrous_taps)
    assert_computes(lowering.atrous_taps, gradients, convolution, dtype, seed)


@given(convolutions("depthwise"), dtypes, seeds)
def test_shifted_images_compute_any_depthwise_convolution(convolution, dtype, seed):
    assert_computes(lowering.depthwise_taps, lowering.depthwise_gradients, convolution, dtype, seed)


@given(convolutions("grouped", "depthwise"), dtypes, seeds)
def test_dense_slices_compute_any_grouped_convolution(convolution, dtype, seed):
    gradients = lowering.gradient_of(lowering.grouped_slices)
    assert_computes(lowering.grouped_slices, gradients, convolution, dtype, seed)


@given(convolutions("dense", "grouped"), dtypes, seeds)
def test_the_gradients_without_a_rate_are_those_of_any_convolution(convolution, dtype, seed):
    assert_computes(lowering.native, lowering.atrous_gradients, convolution, dtype, seed)


# ---------------------------------------------------------------------------- metrics

PIXELS = 400


@given(st.sampled_from([2, 3, 19, 150]), st.integers(1, PIXELS), st.integers(1, 150), seeds)
def test_confusions_are_scikit_learns(classes, counted, occurring, seed):
    rng = np.random.default_rng(seed)
    ids = list(range(classes))
    labels = np.full(PIXELS, 255, np.uint8)
    labels[:counted] = rng.choice(ids[:occurring], counted)
    predictions = rng.choice(ids[-occurring:], PIXELS).astype(np.uint8)
    ours = np.asarray(metrics.confusion_matrix(labels, predictions, classes))
    both = labels[:counted], predictions[:counted]
    np.testing.assert_array_equal(ours, sklearn_metrics.confusion_matrix(*both, labels=ids))
    found = metrics.scores(ours, np.zeros(classes), np.zeros(classes))
    iou = sklearn_metrics.jaccard_score(*both, labels=ids, average=None, zero_division=0)
    iou[~np.isin(ids, both)] = np.nan  # neither labelled nor predicted
    # The same quotients of whole numbers in float64.
    np.testing.assert_allclose(found.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(found.miou, np.nanmean(iou), rtol=1e-12)
    right = sklearn_metrics.accuracy_score(*both)
    np.testing.assert_allclose(found.pixel_accuracy, right, rtol=1e-12)


BOUNDARY_CLASSES = 3
TOLERANCE = 2.5  # pixels


def boundary_scores_by_scipy(labels, predictions):
    """From the distance of each boundary pixel to the nearest one of its class in the other."""
    valid = labels != 255
    cross = ndimage.generate_binary_structure(2, 1)

    def boundary(ids, c):
        others = valid & (ids != c)
        return valid & (ids == c) & ndimage.binary_dilation(others, cross)

    def share(of, near):
        if not of.any():
            return 0.0
        distance = ndimage.distance_transform_edt(~near) if near.any() else np.full(of.shape, 1e9)
        return (distance[of] <= TOLERANCE).mean()

    result = np.full(BOUNDARY_CLASSES, np.nan)
    for c in range(BOUNDARY_CLASSES):
        drawn, wanted = boundary(predictions, c), boundary(labels, c)
        if drawn.any() or wanted.any():
            precision, recall = share(drawn, wanted), share(wanted, drawn)
            total = precision + recall
            result[c] = 2 * precision * recall / total if total else 0.0
    return result


@given(seeds, st.integers(1, 8))
def test_boundary_scores_are_those_of_scipys_distances(seed, cell):
    rng = np.random.default_rng(seed)
    shape = (24, 31)

    def patches(ids):
        drawn = rng.choice(ids, [-(-n // cell) for n in shape])
        return np.kron(drawn, np.ones((cell, cell), int))[: shape[0], : shape[1]].astype(np.uint8)

    labels, predictions = patches([0, 1, 2, 255]), patches([0, 1, 2])
    # The size stands for the diagonal only, of which the tolerance is a part; compiled for one shape.
    side = TOLERANCE / metrics.BOUNDARY_TOLERANCE
    padded = [
        np.pad(a, ((0, 300), (0, 300)), constant_values=v)
        for a, v in ((labels, 255), (predictions, 0))
    ]
    ours, there = metrics.boundary_scores(*padded, jnp.asarray([side, 0.0]), BOUNDARY_CLASSES)
    expected = boundary_scores_by_scipy(labels, predictions)
    # Shares are quotients of whole numbers, in float32 here.
    np.testing.assert_allclose(np.where(there, ours, np.nan), expected, rtol=1e-6)


# ---------------------------------------------------------------------------- augmentation


@st.composite
def augmentations(draw):
    low = draw(st.floats(0.3, 2.0))
    return AugmentConfig(
        crop=(draw(st.integers(8, 80)), draw(st.integers(8, 80))),
        scale=(low, draw(st.floats(low, 2.5))),
        scale_step=draw(st.sampled_from([0.0, 0.25])),
        flip=draw(st.sampled_from([0.0, 0.5, 1.0])),
        rotation=draw(st.sampled_from([0.0, 10.0, 180.0])),
        fill=(255, 255, 255),
    )


@many
@given(augmentations(), st.integers(16, 90), st.integers(16, 90), st.integers(1, 5), seeds)
def test_a_picture_and_its_label_map_stay_together(config, height, width, multiple, seed):
    # A smooth picture that is its own label, 0 to 200; outside of it both are 255.
    rows, columns = np.mgrid[:height, :width]
    label = (100 * rows / height + 100 * columns / width).astype(np.uint8)
    image = np.repeat(label[..., None], 3, axis=-1)
    out, out_label = augment(
        image, label, config, np.random.default_rng(seed), height_multiple=multiple
    )
    assert out.dtype == out_label.dtype == np.uint8
    assert out_label.shape == (config.crop[0] + -config.crop[0] % multiple, config.crop[1])
    assert out.shape == (*out_label.shape, 3)
    assert ((out_label <= 200) | (out_label == 255)).all()
    # Within two pixels of an edge a turned picture has the fill colour mixed in.
    seen = np.pad(out_label != 255, 1)
    inside = ndimage.binary_erosion(seen, iterations=3)[1:-1, 1:-1]
    apart = np.abs(out[..., 0].astype(int) - out_label)[inside]
    # The nearest pixel is up to half a pixel off along each side, of the result or of the picture; both
    # roundings add 1. A label map that moves alone is off by tens.
    slope = 100 / height + 100 / width
    assert apart.max(initial=0) <= slope * (1 + 0.5 / min(1, config.scale[0])) + 2


# ---------------------------------------------------------------------------- configs

names = st.text(min_size=1, max_size=8)


@st.composite
def configs(draw):
    """Of any backbone and head, with whatever fields both can have, as far as they accept each other."""
    found = kinds()
    heads = {kind: config for kind, config in found.items() if config in HEAD_CONFIGS}
    backbone = draw(st.sampled_from(sorted(found.keys() - heads.keys())))
    head = draw(st.sampled_from(sorted(heads)))
    classes = draw(st.integers(1, 30))
    config = Config(
        found[backbone](),
        heads[head](),
        classes,
        aux_head=draw(st.none() | st.builds(FCNConfig, channels=st.integers(1, 99) | st.none())),
        align_corners=draw(st.booleans()),
        class_names=draw(
            st.none()
            | st.lists(names, min_size=max(2, classes), max_size=max(2, classes)).map(tuple)
        ),
    )
    changes = {
        "output_stride": st.sampled_from([8, 16, 32]),
        "rates": st.lists(st.integers(1, 40), max_size=4).map(tuple),
        "width": st.sampled_from([0.25, 0.5, 1.4]),
        "in_channels": st.integers(1, 6),
        "dropout": st.floats(0, 0.9),
        "channels": st.integers(1, 300),
    }
    fields = {f.name for part in (config.backbone, config.head) for f in dataclasses.fields(part)}
    for name in sorted(changes.keys() & fields):
        if draw(st.booleans()):
            try:
                config = config.override(**{name: draw(changes[name])})
            except (TypeError, ValueError):  # no such network
                continue
    return config


@many
@given(configs())
def test_any_config_is_the_same_after_json(config):
    text = json.dumps(to_dict(config))
    again = from_dict(json.loads(text))
    assert again == config
    assert hash(again) == hash(config)  # tuples are tuples again, everywhere
    assert json.dumps(to_dict(again)) == text


# ---------------------------------------------------------------------------- checkpoints


def _mobilenet(width, classes):
    return torchvision.models.MobileNetV2(num_classes=classes, width_mult=width)


def _smp(channels, rates, stride, classes):
    return smp.DeepLabV3Plus(
        "tu-mobilenetv3_small_050",
        encoder_weights=None,
        encoder_output_stride=stride,
        decoder_channels=channels,
        decoder_atrous_rates=rates,
        classes=classes,
    )


originals = st.one_of(
    st.builds(
        functools.partial,
        st.just(_mobilenet),
        st.sampled_from([0.25, 0.35, 0.5, 0.75]),
        st.integers(1, 30),
    ),
    st.builds(
        functools.partial,
        st.just(_smp),
        st.integers(1, 24),
        st.tuples(*[st.integers(1, 40)] * 3),
        st.sampled_from([8, 16]),
        st.integers(1, 30),
    ),
    st.builds(
        functools.partial,
        st.just(Standalone),
        st.integers(1, 40),
        st.integers(1, 40),
        st.sampled_from([8, 16]),
        st.integers(1, 30),
    ),
)


@given(originals, seeds)
def test_any_checkpoint_is_the_same_as_a_model_and_back(make, seed):
    state = randomise(without_weights(make), seed=seed).state_dict()
    conversion = convert({name: tensor.numpy() for name, tensor in state.items()})
    back = to_torch(conversion.model, conversion.layout.name)
    kept = {name for name in state if not name.endswith("num_batches_tracked")}
    assert {name for name in back if not name.endswith("num_batches_tracked")} == kept
    for name in kept:
        assert torch.equal(back[name], state[name]), name
    assert load_torch(back).config == conversion.model.config


# ---------------------------------------------------------------------------- sharding


@many
@given(
    st.lists(st.lists(st.sampled_from([1, 2, 3, 8, 12, 96, 257, 1024]), max_size=4), max_size=6),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
)
def test_arrays_are_cut_where_it_saves_memory_and_only_into_equal_parts(shapes, data, fsdp):
    mesh = sharding.make_mesh(MeshConfig(data=data, space=8 // data))
    state = [jax.ShapeDtypeStruct(tuple(shape), np.float32) for shape in shapes]
    found = sharding.state_shardings(state, mesh, fsdp=fsdp)
    for array, laid_out in zip(state, found, strict=True):
        part = laid_out.shard_shape(array.shape)  # raises where parts are unequal
        cut = [(n, m) for n, m in zip(array.shape, part, strict=True) if n != m]
        large = math.prod(array.shape) >= sharding.SMALLEST_SHARDED
        fitting = [n for n in array.shape if n % data == 0]
        if fsdp and large and fitting and data > 1:
            assert cut == [(max(fitting), max(fitting) // data)]
        else:
            assert cut == []


@many
@given(st.integers(1, 600), st.sampled_from([1, 2, 4]), st.sampled_from([8, 16, 32]))
def test_padded_rows_are_cut_evenly_at_every_stride(rows, space, stride):
    padded = rows + -rows % sharding.row_multiple(MeshConfig(space=space), stride)
    assert rows <= padded < rows + space * stride
    if space > 1:
        for features in (2**i for i in range(stride.bit_length())):
            assert padded % features == 0
            assert padded // features % space == 0
