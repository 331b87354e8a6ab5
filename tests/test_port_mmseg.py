"""mmsegmentation: what its names tell, and what the tests of all layouts do not ask for.

mmsegmentation itself needs compiled operators and old versions, so its golden files and
`originals.mmseg` stand in for it. Weights are random, see `references.randomise`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from originals.mmseg import (
    COMPARED,
    SHAPE,
    v3_r50b,
    v3plus_mobilenet,
    v3plus_r18,
    v3plus_r50_mg124,
)
from references import (
    copied,
    images,
    nhwc,
    quick_comparison,
    randomise,
    relative_error,
    run_torch,
)

from deeplab_jax import Config, create
from deeplab_jax.backbones import MobileNetV2Config, MobileNetV3Config, ResNetConfig
from deeplab_jax.heads import (
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    SteppedLRASPPConfig,
)
from port import CheckpointError, load_torch, to_torch
from port.convert import convert


@pytest.fixture(scope="module", autouse=True)
def _quick():
    # Per channel of a depthwise convolution in float64, torch starts its threads anew: on a busy machine
    # they wait for each other, and one thread is seventy times faster than two.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with quick_comparison():
        yield
    torch.set_num_threads(threads)


@functools.cache
def original(name):
    make, options = COMPARED[name].make, COMPARED[name].options
    b, h, w, c = SHAPE
    module = randomise(make(), (b, c, h, w))
    return module, copied(module.state_dict()), options


def skeleton(make):
    """A state_dict of zeros: for names, shapes and configs."""
    with torch.device("meta"):
        state = make().state_dict()
    return {name: np.broadcast_to(np.zeros((), np.float32), t.shape) for name, t in state.items()}


def apply(model, *inputs, method="__call__"):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *x: getattr(nnx.merge(graphdef, state), method)(*x))(
        state, *inputs
    )


# ---------------------------------------------------------------------------- outputs and bits


def test_both_heads_logits_are_those_of_pytorch():
    # The same without verify: PyTorch's own rounding is 1e-6 here, mistakes are 1e-3 and above.
    module, state, options = original("mmseg-v3-r18b-d16-mg-align")
    x, model = images(*SHAPE, seed=2), load_torch(state, **options)
    theirs = run_torch(module, x)
    out, aux = apply(model, x, method="with_aux")
    assert relative_error(model.resize(out, SHAPE[1:3]), nhwc(theirs["out"])) < 1e-4
    assert relative_error(aux, nhwc(theirs["aux"])) < 1e-4


# ---------------------------------------------------------------------------- what names tell


def test_resnet_config_is_read_off_names_and_shapes():
    conversion = convert(skeleton(v3_r50b))
    config = conversion.model.config
    assert conversion.layout.name == "mmseg"
    assert config.backbone == ResNetConfig(
        50, 8, absolute_multi_grid=True, basic_block_dilation="first"
    )
    assert config.head == DeepLabV3Config(
        channels=24, dropout=0.1, project_kernel=3, convs=0, drop_channels=True
    )
    assert config.aux_head == FCNConfig(tap="aux", channels=16, drop_channels=True)
    assert not config.align_corners
    assert config.num_classes == 7


def test_d16_mg124_has_the_rates_1_2_4_in_its_last_stage():
    options = {"output_stride": 16, "multi_grid": [1, 2, 4], "align_corners": True}
    model = load_torch(skeleton(v3plus_r50_mg124), **options)
    assert model.config.backbone.stem == "deep"
    assert model.config.backbone.multi_grid == (1, 2, 4)
    assert [block.conv2.dilation for block in model.backbone.layer4] == [1, 2, 4]
    assert {block.conv2.dilation for block in model.backbone.layer3} == {1}
    assert [b.depthwise.dilation for b in list(model.head.aspp.branches)[1:]] == [6, 12, 18]
    assert model.head.decoder.align_corners


def test_mobilenet_dilates_the_first_block_of_a_row():
    model = load_torch(skeleton(v3plus_mobilenet))
    assert model.config.backbone == MobileNetV2Config(
        1.0, 8, first_block_dilation="same", dilated_blocks="first"
    )
    dilations = [block.depthwise.conv.dilation for block in model.backbone.blocks]
    assert dilations == [1] * 6 + [2, 1, 1, 1, 2, 1, 1, 4, 1, 1, 4]
    assert isinstance(model.config.head, DeepLabV3PlusConfig)
    assert model.config.head.low_channels == 48
    at_16 = load_torch(skeleton(v3plus_mobilenet), output_stride=16)
    dilations = [block.depthwise.conv.dilation for block in at_16.backbone.blocks]
    assert dilations == [1] * 13 + [2, 1, 1, 2]


def test_dropout_takes_whole_channels():
    head = load_torch(skeleton(v3plus_r18)).head
    head.train()
    assert [d.rate for d in head.decoder.dropouts] == [0.0, 0.1]
    dropped = head.decoder.dropouts[1](jnp.ones((2, 5, 5, 128)), rngs=nnx.Rngs(dropout=0))
    kept = (dropped != 0).all((1, 2))
    np.testing.assert_array_equal(kept, (dropped != 0).any((1, 2)))
    assert 0.7 < kept.mean() < 1


# ---------------------------------------------------------------------------- errors


def test_missing_and_unknown_tensors_are_listed():
    state = skeleton(v3plus_r18)
    del state["decode_head.sep_bottleneck.1.depthwise_conv.bn.weight"]
    state["decode_head.sep_bottleneck.2.depthwise_conv.bn.weight"] = np.ones(128, np.float32)
    state["auxiliary_head.conv_seg.bias"] = np.ones(8, np.float32)
    with pytest.raises(CheckpointError) as error:
        load_torch(state)
    for part in (
        "1 unknown: decode_head.sep_bottleneck.2.depthwise_conv.bn.weight",
        "1 missing: decode_head.sep_bottleneck.1.depthwise_conv.bn.weight",
        "auxiliary_head.conv_seg.bias is [8], expected [7]",
    ):
        assert part in str(error.value)


def test_another_backbone_is_refused_by_name():
    state = {
        name.replace("backbone.layer", "backbone.stage"): tensor
        for name, tensor in skeleton(v3plus_r18).items()
    }
    with pytest.raises(
        CheckpointError, match=r"backbone is not one that we know.* are called stem\.0\.weight, "
    ):
        load_torch(state)


def test_a_model_of_other_rules_is_not_exported():
    model = load_torch(skeleton(v3plus_r18), basic_block_dilation="both")
    with pytest.raises(ValueError, match="basic_block_dilation is 'both' here"):
        to_torch(model, "mmseg")
    model = load_torch(skeleton(v3plus_mobilenet), first_block_dilation="previous")
    with pytest.raises(ValueError, match="first_block_dilation is 'previous' here"):
        to_torch(model, "mmseg")


def test_contract_dilation_is_an_option_of_resnets_that_weights_do_not_tell():
    conversion = convert(skeleton(v3plus_r18))
    assert conversion.chosen["first_block_dilation"] == "previous"
    assert "first_block_dilation" in conversion.assumed
    told = convert(skeleton(v3plus_r18), first_block_dilation="same")
    assert "first_block_dilation" not in told.assumed
    assert to_torch(told.model, "mmseg").keys() == to_torch(conversion.model, "mmseg").keys()


# ---------------------------------------------------------------------------- LR-ASPP


@pytest.mark.parametrize(("size", "channels"), [("large", (24, 16)), ("small", (16, 16))])
def test_lr_aspp_is_the_same_there_and_back(size, channels):
    # Its layers are held against a recorded output in test_golden.py.
    backbone = MobileNetV3Config(size, output_stride=8, padding="same", norm_momentum=0.1)
    config = Config(backbone, SteppedLRASPPConfig(channels=8), 5)
    model = create(config, rngs=nnx.Rngs(0))
    branches = [branch.kernel.shape[2] for branch in model.head.branches]
    assert branches == list(channels)
    state = to_torch(model, "mmseg")
    assert state["decode_head.conv_ups.conv_up1.conv.weight"].shape[:2] == (8, 8 + 64)
    assert load_torch(state).config == config
