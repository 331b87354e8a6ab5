"""CoinCheung's DeepLab: what its recorded output in `tests/golden` does not show."""

import numpy as np
import pytest
import recorded

from port import load_torch, to_torch

NAME = "coincheung_deeplabv3plus_r50_os16"
NORM = "decoder.conv_low.bn.weight"


@pytest.fixture(scope="module")
def state():
    return recorded.read(NAME)[1]


def gain(model):
    return np.asarray(model.head.decoder.low.bn.scale[...])


def test_gains_are_absolute_and_come_back_as_they_were(state):
    model = load_torch(state | {NORM: -state[NORM]})
    np.testing.assert_array_equal(gain(model), state[NORM] + np.float32(1e-5))
    back = to_torch(model, "coincheung")
    for name, array in state.items():
        if not name.endswith("num_batches_tracked"):
            # A gain of at most 1.5 loses half a unit in its last place, 2^-24, twice.
            np.testing.assert_allclose(back[name], array, rtol=0, atol=2.0**-23, err_msg=name)


def test_a_gain_that_it_cannot_have_is_not_exported(state):
    model = load_torch(state)
    model.head.decoder.low.bn.scale[...] = -model.head.decoder.low.bn.scale[...]
    with pytest.raises(ValueError, match=f"{NORM} would be below 0"):
        to_torch(model, "coincheung")


def test_its_activation_is_not_that_of_separable_convolutions(state):
    with pytest.raises(ValueError, match="separable ones have a ReLU"):
        load_torch(state, separable_decoder=True)
    with pytest.raises(ValueError, match="nonlinearity must be one of relu, leaky_relu"):
        load_torch(state, nonlinearity="leaky")


def test_without_image_pooling_there_is_none(state):
    left = {name: array for name, array in state.items() if "conv1x1" not in name}
    left["aspp.conv_out.conv.weight"] = left["aspp.conv_out.conv.weight"][:, :1024]
    model = load_torch(left)
    assert not model.config.head.image_pooling
    assert "aspp.conv1x1.conv.weight" not in to_torch(model, "coincheung")
