"""A trained model for other classes and other images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from references import images, relative_error
from timm.models._manipulate import adapt_input_conv

from deeplab_jax import (
    Config,
    DeepLabV3Config,
    FCNConfig,
    FeaturesConfig,
    Preprocessing,
    create,
    named_variables,
    reset_classifier,
    with_backbone_of,
    with_input_channels,
)
from deeplab_jax.layers import BatchNorm

run = jax.jit(lambda model, x: model(x), compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def model():
    made = create(
        "deeplabv3plus_mobilenet_v2", aux_head=FCNConfig(tap="aux"), num_classes=3, rngs=nnx.Rngs(0)
    )
    made.eval()
    return made


def test_a_classifier_that_is_reset_has_new_classes_and_all_else_stays(model):
    other = reset_classifier(model, 5, class_names=tuple("abcde"), rngs=nnx.Rngs(1))
    assert other.config == model.config.override(num_classes=5, class_names=tuple("abcde"))
    before, after = named_variables(model), named_variables(other)
    changed = {name for name in before if before[name].shape != after[name].shape}
    heads = {"head.decoder.classifier", "aux_head.classifier"}
    assert changed == {f"{head}.{leaf}" for head in heads for leaf in ("kernel", "bias")}
    for name in before.keys() - changed:
        np.testing.assert_array_equal(before[name][...], after[name][...])
    assert after["head.decoder.classifier.kernel"][...].std() > 0
    assert jax.eval_shape(other, images(1, 33, 33, 3)).shape == (1, 33, 33, 5)
    # The original is as it was.
    assert jax.eval_shape(model, images(1, 33, 33, 3)).shape == (1, 33, 33, 3)
    assert all(
        part.use_running_average
        for _, part in nnx.iter_modules(other)
        if isinstance(part, BatchNorm)
    )


def test_one_class_gets_a_sigmoid(model):
    assert reset_classifier(model, 1, rngs=nnx.Rngs(0)).config.activation == "sigmoid"


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_kernels_are_adapted_as_timm_does(model, channels):
    theirs = adapt_input_conv(channels, torch.from_numpy(_first_kernel(model)))
    ours = _first_kernel(with_input_channels(model, channels))
    # float32 rounds the factor and the sum in another order
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-7)


def _first_kernel(model) -> np.ndarray:
    kernel = named_variables(model)["backbone.stem.conv.kernel"][...]
    return np.array(kernel).transpose(3, 2, 0, 1)


def test_an_image_whose_channels_repeat_in_whole_turns_gives_the_same_logits(model):
    other = with_input_channels(model, 6)
    assert other.config.in_channels == 6
    x = images(1, 33, 33, 3)
    # float32 adds the same numbers in another order
    assert relative_error(run(other, np.tile(x, 2)), np.asarray(run(model, x))) < 1e-4


def test_for_one_channel_the_kernels_are_added(model):
    other = with_input_channels(model, 1)
    x = images(1, 33, 33, 1)
    grey = jnp.broadcast_to(x, (1, 33, 33, 3))
    assert relative_error(run(other, x), np.asarray(run(model, grey))) < 1e-4
    mean = Preprocessing().mean
    assert other.config.preprocessing.mean == (pytest.approx(sum(mean) / 3),)


def test_statistics_of_the_images_repeat(model):
    mean = Preprocessing().mean
    assert with_input_channels(model, 4).config.preprocessing.mean == (*mean, mean[0])


def test_a_backbone_of_another_model_is_taken_and_the_head_stays(model):
    other = create("deeplabv3_mobilenet_v2", num_classes=7, rngs=nnx.Rngs(5))
    mixed, ours, theirs = (
        named_variables(m) for m in (with_backbone_of(model, other), model, other)
    )
    for path, variable in mixed.items():
        expected = theirs if path.startswith("backbone.") else ours
        np.testing.assert_array_equal(variable[...], expected[path][...], err_msg=path)
    wider = create("deeplabv3_mobilenet_v2", width=1.4, rngs=nnx.Rngs(5))
    with pytest.raises(ValueError, match=r"is not this one's: .* of .* tensors are missing"):
        with_backbone_of(model, wider)


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        with_input_channels(model, 0)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        reset_classifier(model, 0, rngs=nnx.Rngs(0))
    head = create(Config(FeaturesConfig(64, 24), DeepLabV3Config(), 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no backbone"):
        with_input_channels(head, 4)
