"""Backbones: their sizes, their atrous rates, and that dilation computes what it claims to."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deeplab_jax.backbones import (
    EfficientNetLiteConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    ResNetConfig,
    dilation,
    resnet,
)
from deeplab_jax.backbones.inverted_residual import Block, last_at_stride
from deeplab_jax.model import fill

SMALL = [
    ResNetConfig(18),
    ResNetConfig(50),
    MobileNetV2Config(width=0.5),
    MobileNetV3Config("large", width=0.5),
    MobileNetV3Config("small", width=0.5),
    EfficientNetLiteConfig(0),
]


def name_of(value):
    """Name of a test's parameter: resnet-18, mobilenet_v3-large-0.5, ...; pytest's own for others."""
    if not dataclasses.is_dataclass(value):
        return None
    first = dataclasses.astuple(value)[: 2 if "mobilenet" in value.kind else 1]
    return "-".join((value.kind, *map(str, first)))


def abstract(config):
    """The backbone with shapes in place of weights."""
    return nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0)))


def filled(config):
    """The backbone in eval mode with random weights and random statistics.

    Fresh statistics are 0 and 1, which would hide a batch norm that is left out.
    """
    backbone = fill(abstract(config), nnx.Rngs(0))
    generator = np.random.default_rng(1)
    for _, variable in nnx.to_flat_state(nnx.state(backbone, nnx.BatchStat)):
        variable[...] = jnp.asarray(generator.uniform(0.5, 1.5, variable.shape), jnp.float32)
    backbone.eval()
    return backbone


def feature_shapes(config, height, width):
    """Shapes of the features, and the `channels` that the backbone claims."""
    claimed = {}

    def run(images):
        backbone = config.build(rngs=nnx.Rngs(0))
        claimed.update(backbone.channels)
        return backbone(images)

    images = jax.ShapeDtypeStruct((2, height, width, config.in_channels), jnp.float32)
    return {k: v.shape for k, v in jax.eval_shape(run, images).items()}, claimed


# ---------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("config", SMALL, ids=name_of)
def test_features_have_the_size_of_their_stride_and_the_channels_they_claim(config, output_stride):
    config = dataclasses.replace(config, output_stride=output_stride)
    # 33 is the smallest side of the papers' kind (multiples of 32 plus one), 50 is neither odd nor so.
    height, width = 33, 50
    shapes, claimed = feature_shapes(config, height, width)
    assert set(shapes) == set(claimed) == {"low", "mid", "aux", "high"}
    for name, stride in (("low", 4), ("mid", 8), ("aux", 16), ("high", output_stride)):
        step = min(stride, output_stride)
        size = (math.ceil(height / step), math.ceil(width / step))
        assert shapes[name] == (2, *size, claimed[name]), name


@pytest.mark.parametrize(
    ("config", "channels"),
    [  # low, mid, aux, high of the papers' networks
        (ResNetConfig(18), (64, 128, 256, 512)),
        (ResNetConfig(50), (256, 512, 1024, 2048)),
        (MobileNetV2Config(), (24, 32, 96, 320)),
        (MobileNetV2Config(last_conv=True), (24, 32, 96, 1280)),
        # 1.4: 1280 widens too (to 1792), unlike at 0.35, where it stays.
        (MobileNetV2Config(width=1.4, last_conv=True), (32, 48, 136, 1792)),
        (MobileNetV2Config(width=0.35, last_conv=True), (8, 16, 32, 1280)),
        # mid is the first block at stride 8, as torchvision's LR-ASPP has it.
        (MobileNetV3Config("large"), (24, 40, 112, 960)),
        (MobileNetV3Config("small"), (16, 24, 48, 576)),
        (MobileNetV3Config("large", width=0.75), (24, 32, 88, 720)),
        (EfficientNetLiteConfig(0), (24, 40, 112, 320)),
        (EfficientNetLiteConfig(4), (32, 56, 160, 448)),
        (EfficientNetLiteConfig(0, last_conv="used"), (24, 40, 112, 1280)),
        (EfficientNetLiteConfig(0, last_conv="unused"), (24, 40, 112, 320)),
    ],
    ids=name_of,
)
def test_channels_are_those_of_the_papers(config, channels):
    assert abstract(config).channels == dict(
        zip(("low", "mid", "aux", "high"), channels, strict=True)
    )


@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        (ResNetConfig(18), 8),
        (ResNetConfig(101), 33),
        (MobileNetV2Config(), 17),
        (MobileNetV3Config("large"), 15),
        (MobileNetV3Config("small"), 11),
        (EfficientNetLiteConfig(0), 16),
        (EfficientNetLiteConfig(4), 30),  # 1 + 4 + 4 + 6 + 6 + 8 + 1
    ],
    ids=name_of,
)
def test_the_number_of_blocks_is_that_of_the_papers(config, blocks):
    backbone = abstract(config)
    stages = (
        [getattr(backbone, f"layer{i}") for i in (1, 2, 3, 4)]
        if config.kind == "resnet"
        else [backbone.blocks]
    )
    assert sum(len(stage) for stage in stages) == blocks


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        # Of the original classifiers, less their last linear layer (512 or 2048 to 1000 classes).
        (ResNetConfig(18), 11.689512 - 0.513),
        (ResNetConfig(50), 25.557032 - 2.049),
        (MobileNetV2Config(last_conv=True), 3.504872 - 1.281),
        # Here less two linear layers: 960 to 1280 and 1280 to 1000, 576 to 1024 and 1024 to 1000.
        (MobileNetV3Config("large"), 5.483032 - 1.23008 - 1.281),
        (MobileNetV3Config("small"), 2.542856 - 0.590848 - 1.025),
        (EfficientNetLiteConfig(0, last_conv="used"), 4.652008 - 1.281),
    ],
    ids=name_of,
)
def test_the_number_of_parameters_is_that_of_the_published_networks(config, millions):
    params = jax.tree.leaves(nnx.state(abstract(config), nnx.Param))
    assert sum(math.prod(p.shape) for p in params) == round(millions * 1e6)


@pytest.mark.parametrize("config", SMALL, ids=name_of)
def test_images_may_have_other_channels_than_three(config):
    shapes, _ = feature_shapes(dataclasses.replace(config, in_channels=5), 32, 32)
    assert shapes["high"][1:3] == (2, 2)


def test_the_deep_stem_is_three_3x3_with_the_same_stride():
    config = ResNetConfig(18, stem="deep")
    stem = abstract(config).stem
    assert [conv.conv.kernel.shape for conv in stem] == [
        (3, 3, 3, 32),
        (3, 3, 32, 32),
        (3, 3, 32, 64),
    ]
    assert [conv.conv.stride for conv in stem] == [2, 1, 1]
    shapes, _ = feature_shapes(config, 33, 50)
    plain_shapes, _ = feature_shapes(ResNetConfig(18), 33, 50)
    assert shapes == plain_shapes


@pytest.mark.parametrize("config", [MobileNetV3Config("small"), EfficientNetLiteConfig(0)])
def test_tensorflows_padding_keeps_the_sizes(config):
    # Both kinds of padding give ceil(size / stride); only where the zeros are differs.
    shapes, _ = feature_shapes(dataclasses.replace(config, padding="same"), 33, 50)
    symmetric, _ = feature_shapes(config, 33, 50)
    assert shapes == symmetric


def test_padding_computed_for_one_size_is_that_of_this_size():
    # At 224 the stem and every strided block of lite0 has an even input: zeros at the bottom and right,
    # one row and column for 3x3, and for 5x5 one before and two after.
    backbone = abstract(
        EfficientNetLiteConfig(0, padding="same", same_size=224, output_stride=32)
    )
    one, five = (0, 1), (1, 2)
    assert backbone.stem.conv.padding == (one, one)
    strided = [b.depthwise.conv.padding for b in backbone.blocks if b.depthwise.conv.stride == 2]
    assert strided == [(one, one), (five, five), (one, one), (five, five)]


def test_padding_before_expansion_and_no_padding_of_the_stem():
    config = MobileNetV2Config(width=0.5, pad_before_expand=True, stem_padding=0)
    backbone = abstract(config)
    assert backbone.stem.conv.padding == 0
    assert {block.depthwise.conv.padding for block in backbone.blocks} == {0}
    # The ring is as wide as the atrous rate: 1 up to stride 16, then 2 past the first such block.
    assert [block.ring for block in backbone.blocks] == [1] * 14 + [2] * 3
    # (65 - 3) // 2 + 1 = 32 rows after the stem, where the padded one has 33.
    shapes, _ = feature_shapes(config, 65, 65)
    assert shapes["low"][1:3] == (16, 16)
    assert shapes["high"][1:3] == (4, 4)


# ---------------------------------------------------------------------------- atrous rates

RESNET50_STRIDES = [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("output_stride", "first_block", "layer2", "layer3", "layer4"),
    [  # (stride, dilation) of the first block of a stage, then of all others
        (32, "previous", [(2, 1), (1, 1)], [(2, 1), (1, 1)], [(2, 1), (1, 1)]),
        (32, "same", [(2, 1), (1, 1)], [(2, 1), (1, 1)], [(2, 1), (1, 1)]),
        (16, "previous", [(2, 1), (1, 1)], [(2, 1), (1, 1)], [(1, 1), (1, 2)]),
        (16, "same", [(2, 1), (1, 1)], [(2, 1), (1, 1)], [(1, 2), (1, 2)]),
        (8, "previous", [(2, 1), (1, 1)], [(1, 1), (1, 2)], [(1, 2), (1, 4)]),
        (8, "same", [(2, 1), (1, 1)], [(1, 2), (1, 2)], [(1, 4), (1, 4)]),
    ],
)
def test_strides_beyond_the_output_stride_become_dilation(
    output_stride, first_block, layer2, layer3, layer4
):
    plan = dilation.dilate(RESNET50_STRIDES, output_stride, start=4, first_block=first_block)
    assert plan == [
        *[(1, 1)] * 3,
        *[layer2[0], *[layer2[1]] * 3],
        *[layer3[0], *[layer3[1]] * 5],
        *[layer4[0], *[layer4[1]] * 2],
    ]


def rates(stage):
    """Dilation of each block's convolutions larger than 1x1."""
    return [
        [c.dilation for c in (block.conv1, block.conv2) if c.kernel.shape[0] == 3]
        for block in stage
    ]


def test_a_bottleneck_has_stride_and_dilation_in_its_3x3():
    backbone = abstract(ResNetConfig(50, output_stride=8))
    assert rates(backbone.layer3) == [[1], [2], [2], [2], [2], [2]]
    assert rates(backbone.layer4) == [[2], [4], [4]]
    assert [block.conv2.stride for block in backbone.layer2] == [2, 1, 1, 1]
    assert {block.conv2.stride for block in (*backbone.layer3, *backbone.layer4)} == {1}
    assert backbone.layer4[0].downsample.conv.stride == 1


def test_multi_grid_multiplies_the_rates_of_layer4_alone():
    config = ResNetConfig(
        50, output_stride=16, first_block_dilation="same", multi_grid=(1, 2, 4)
    )
    backbone = abstract(config)
    assert rates(backbone.layer3) == [[1]] * 6
    assert rates(backbone.layer4) == [[2], [4], [8]]


def test_multi_grid_repeats_where_a_stage_has_more_blocks():
    plan = resnet._plan(ResNetConfig(50, multi_grid=(1, 2)))
    assert [rate for _, _, rate in plan[3]] == [1, 4, 2]


@pytest.mark.parametrize(
    ("config", "dilations"),
    [
        (MobileNetV2Config(output_stride=8), [1] * 6 + [1, 2, 2, 2] + [2] * 3 + [2, 4, 4] + [4]),
        (
            MobileNetV2Config(output_stride=8, first_block_dilation="same"),
            [1] * 6 + [2] * 7 + [4] * 4,
        ),
        (MobileNetV3Config("large"), [1] * 12 + [2] * 3),  # its rule is "same" by default
        (EfficientNetLiteConfig(0), [1] * 11 + [1, 2, 2, 2] + [2]),
    ],
    ids=name_of,
)
def test_rates_of_inverted_residuals(config, dilations):
    assert [b.depthwise.conv.dilation for b in abstract(config).blocks] == dilations


def test_a_block_that_lost_its_stride_gets_no_shortcut():
    # The classification network had none there, and so its weights were not trained for one.
    same_channels = [
        block
        for block in abstract(MobileNetV3Config("small", width=0.75, output_stride=8)).blocks
        if block.depthwise.conv.dilation > 1
    ]
    assert same_channels[0].shortcut is False


def test_the_last_block_at_a_stride():
    blocks = [Block(3, 8, 8, stride) for stride in (1, 2, 1, 2, 1, 1, 2)]
    assert [last_at_stride(blocks, stride) for stride in (2, 4, 8, 16)] == [0, 2, 5, 6]


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(18),
        ResNetConfig(18, multi_grid=(1, 2)),
        MobileNetV2Config(width=0.5),
        EfficientNetLiteConfig(0),
    ],
    ids=["resnet18", "resnet18-multi-grid", "mobilenet_v2", "efficientnet_lite0"],
)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_network_is_the_original_one_at_more_places(config, output_stride):
    """Every n-th feature is the undilated network's, borders included.

    That is what atrous convolution is for (Chen et al. 2017, fig. 3), and holds for the rule "previous",
    where a block that lost its stride still looks at its input as it did before.
    """
    original = filled(dataclasses.replace(config, output_stride=32))
    dilated = abstract(dataclasses.replace(config, output_stride=output_stride))
    dilated = nnx.merge(nnx.graphdef(dilated), nnx.state(original))
    dilated.eval()
    images = np.random.default_rng(0).standard_normal((1, 71, 103, 3), np.float32)
    sparse, dense = jax.jit(lambda x: (original(x), dilated(x)))(images)
    for name, stride in (("aux", 16), ("high", 32)):
        step = max(1, stride // output_stride)
        every_nth = dense[name][:, ::step, ::step]
        # Float32 rounding alone, through some 20 layers: 1e-7 each and growing; a single value from
        # beyond the border would be off by as much as the features themselves.
        np.testing.assert_allclose(
            every_nth, sparse[name], rtol=0, atol=2e-5 * np.abs(sparse[name]).max()
        )
    assert dense["high"].shape[1:3] == (math.ceil(71 / output_stride), math.ceil(103 / output_stride))


def test_the_rule_same_looks_further():
    # What the test before this one proves of "previous" does not hold for "same".
    original = filled(ResNetConfig(18, output_stride=32))
    dilated = abstract(ResNetConfig(18, output_stride=16, first_block_dilation="same"))
    dilated = nnx.merge(nnx.graphdef(dilated), nnx.state(original))
    dilated.eval()
    images = np.random.default_rng(0).standard_normal((1, 65, 65, 3), np.float32)
    sparse, dense = jax.jit(lambda x: (original(x)["high"], dilated(x)["high"]))(images)
    assert np.abs(dense[:, ::2, ::2] - sparse).max() > 0.1 * np.abs(sparse).max()


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("config", SMALL, ids=name_of)
def test_other_output_strides_are_refused(config):
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 12"):
        dataclasses.replace(config, output_stride=12)


def test_sizes_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match=r"one of \[18, 34, 50, 101, 152\], got 20"):
        ResNetConfig(20)
    with pytest.raises(ValueError, match="large or small, got 'tiny'"):
        MobileNetV3Config("tiny")
    with pytest.raises(ValueError, match="0 to 4, got 5"):
        EfficientNetLiteConfig(5)
