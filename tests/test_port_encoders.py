"""What names alone tell of encoders: those that are refused, and how those that are read are dilated."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from references import (
    assert_agrees,
    copied,
    images,
    quick_comparison,
    randomise,
    without_weights,
)
from segmentation_models_pytorch.encoders._utils import replace_strides_with_dilation

from deeplab_jax import DPNConfig, RegNetConfig, XceptionConfig
from port import load_torch, to_torch, verify
from port.convert import convert
from port.read import CheckpointError


def zeros(make):
    """A checkpoint of a module, with zeros for weights."""
    state = without_weights(make).state_dict()
    return {name: torch.zeros(tensor.shape) for name, tensor in state.items()}


def smp_zeros(encoder, **options):
    return zeros(lambda: smp.DeepLabV3Plus(encoder, encoder_weights=None, **options))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("regnetv_040", "RegNetV and RegNets with group norm are not among those we know"),
        ("regnety_040_sgn", "RegNetV and RegNets with group norm are not among those we know"),
        ("regnetz_005", "64 channels inside and 16 outside: RegNetZ is not among those we know"),
        ("xception41p", "xception41p and 65p are not among those we know"),
    ],
)
def test_networks_that_only_look_like_ours_are_refused_by_their_names(network, message):
    with pytest.raises(CheckpointError, match=message):
        load_torch(zeros(lambda: timm.create_model(network, num_classes=3)))


def test_regnet_of_smp_before_0_5_was_dilated_by_smp():
    state = smp_zeros("tu-regnety_002")
    old = {name.replace("encoder.model.", "encoder."): tensor for name, tensor in state.items()}
    rules = [load_torch(s).config.backbone.first_block_dilation for s in (state, old)]
    assert rules == ["previous", "same"]
    assert load_torch(old).config.backbone == RegNetConfig("y_002", 16, "same")


def test_mobilenet_v3_of_smp_before_0_5_was_dilated_by_smp_under_the_same_names():
    def before_0_5():
        model = smp.DeepLabV3Plus(
            "tu-tf_mobilenetv3_small_100", encoder_weights=None, decoder_channels=8, classes=3
        )
        model.encoder.model = timm.create_model("tf_mobilenetv3_small_100", features_only=True)
        replace_strides_with_dilation(model.encoder.model.blocks[4:], dilation_rate=2)
        return model

    module = randomise(before_0_5(), (2, 3, 64, 96))
    state = copied(module.state_dict())
    assumed = convert(state)
    assert assumed.chosen["first_block_dilation"] == "previous"
    assert "first_block_dilation" in assumed.assumed
    conversion = convert(state, first_block_dilation="same")
    with quick_comparison():
        assert_agrees(verify(conversion.model, module, images(1, 64, 96, 3)))
    assert conversion.layout.reference(conversion.model.config, conversion.place) is None
    assert to_torch(conversion.model, "smp").keys() == state.keys()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("encoder", "family", "std"),
    [("dpn68", DPNConfig, 0.2348), ("tu-xception41", XceptionConfig, 0.5)],
)
def test_images_are_normalised_as_those_of_the_encoders_training(encoder, family, std, channels):
    config = load_torch(smp_zeros(encoder, in_channels=channels)).config
    assert isinstance(config.backbone, family)
    assert len(config.preprocessing.std) == channels
    if channels == 3:
        assert config.preprocessing.std == pytest.approx((std,) * 3, abs=1e-4)
