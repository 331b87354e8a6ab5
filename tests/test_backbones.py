"""Backbones: their sizes, their atrous rates, and that dilation computes what it claims to."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from deeplab_jax.backbones import (
    ConvNeXtConfig,
    DPNConfig,
    DRNConfig,
    EfficientNetConfig,
    EfficientNetLiteConfig,
    HRNetConfig,
    MixTransformerConfig,
    MnasNetConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    MobileOneConfig,
    MobileViTConfig,
    OriginalXceptionConfig,
    RegNetConfig,
    ResNetConfig,
    XceptionConfig,
    dilation,
    mobilenet_v2,
    resnet,
)
from deeplab_jax.backbones.inverted_residual import (
    Block,
    InvertedResidual,
    inverted_residuals,
    last_at_stride,
)
from deeplab_jax.backbones.residual import BlockForm, downsample
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, FCNConfig
from deeplab_jax.layers import Norm
from deeplab_jax.model import build, fill, freeze_backbone
from deeplab_jax.presets import PRESETS
from deeplab_jax.summary import summarize

SMALL = [
    ResNetConfig(18),
    ResNetConfig(50),
    ResNetConfig(14, radix=2, stem="deep", shortcut="average"),
    ResNetConfig(26, scale=4, width_per_group=26, attention="eca"),
    ResNetConfig(
        26, stage_stride="last", strided_shortcut="subsample", low="residual", stem_pool="same"
    ),
    RegNetConfig("y_002"),
    DPNConfig("68b"),
    MobileOneConfig("s0"),
    MixTransformerConfig("b0"),
    MobileNetV2Config(width=0.5),
    MobileNetV2Config(width=0.35, divisor=1, low="depthwise"),
    MobileNetV3Config("large", width=0.5),
    MobileNetV3Config("small", width=0.5),
    MobileNetV3Config("small", width=0.5, rounding="expanded", minimal=True),
    EfficientNetLiteConfig(0),
    EfficientNetConfig("b0"),
    EfficientNetConfig("v2_b0", padding="same"),
    MnasNetConfig("small"),
    MobileViTConfig("xxs"),
    ConvNeXtConfig("tiny"),
]


def name_of(value):
    """Name of a test's parameter: resnet-18, mobilenet_v3-large-0.5, ...; pytest's own for others."""
    if not dataclasses.is_dataclass(value):
        return None
    fields = dataclasses.asdict(value)
    names = ("depth", "size", "width", "variant")
    return "-".join((value.kind, *(str(fields[name]) for name in names if name in fields)))


@functools.cache
def abstract(config):
    """The backbone in eval mode, which is quicker to trace, with shapes in place of weights."""
    backbone = build(Config(config, FCNConfig())).backbone
    backbone.eval()
    return backbone


def filled(config):
    """The backbone with random weights and random statistics.

    Fresh statistics are 0 and 1, which would hide a batch norm that is left out.
    """
    backbone = fill(abstract(config), nnx.Rngs(0))
    generator = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(backbone, nnx.BatchStat)):
        low, high = (-0.2, 0.2) if path[-1] == "mean" else (0.2, 1.0)
        variable[...] = jnp.asarray(generator.uniform(low, high, variable.shape), jnp.float32)
    return backbone


def feature_shapes(config, height, width):
    graphdef, state = nnx.split(abstract(config))
    images = jax.ShapeDtypeStruct((2, height, width, config.in_channels), jnp.float32)
    features = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images)
    return {name: feature.shape for name, feature in features.items()}


def shapes_by_rule(config, height, width):
    """ceil(size / stride), but no smaller than at the output stride, and the claimed channels.

    ConvNeXt pads nothing: there it is the floor.
    """
    rounded = math.floor if isinstance(config, ConvNeXtConfig) else math.ceil
    shapes = {}
    strides = {"half": 2, "low": 4, "mid": 8, "aux": 16, "high": config.output_stride}
    for name, stride in strides.items():
        if name not in abstract(config).channels:  # half is MobileNetV3's alone
            continue
        step = min(stride, config.output_stride)
        size = (rounded(height / step), rounded(width / step))
        shapes[name] = (2, *size, abstract(config).channels[name])
    return shapes


# ---------------------------------------------------------------------------- sizes


def test_convnext_fills_up_images_that_are_smaller_than_its_windows():
    assert feature_shapes(ConvNeXtConfig("tiny", 32), 3, 70)["high"] == (2, 1, 2, 768)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("config", SMALL, ids=name_of)
def test_features_have_the_size_of_their_stride_and_the_channels_they_claim(config, output_stride):
    # Images may have other channels than three; 33 is of the papers' kind (a multiple of 32 plus one),
    # 50 is neither odd nor a multiple of any stride.
    config = dataclasses.replace(config, output_stride=output_stride, in_channels=5)
    assert feature_shapes(config, 33, 50) == shapes_by_rule(config, 33, 50)


@pytest.mark.parametrize(
    ("config", "strides"),
    [  # of low, mid, aux and high
        (HRNetConfig(18), (4, 8, 16, 4)),
        (DRNConfig("d_22"), (4, 8, 8, 8)),
        (XceptionConfig(), (4, 8, 16, 16)),
        (XceptionConfig(8, depth=71), (4, 8, 8, 8)),
    ],
    ids=name_of,
)
def test_features_of_the_others_have_their_strides(config, strides):
    channels = abstract(config).channels
    assert feature_shapes(config, 33, 50) == {
        name: (2, math.ceil(33 / stride), math.ceil(50 / stride), channels[name])
        for name, stride in zip(("low", "mid", "aux", "high"), strides, strict=True)
    }


@pytest.mark.parametrize(
    ("config", "blocks", "millions", "channels"),
    [
        # Parameters of the published classifiers less their linear layers (features to 1000 classes).
        (ResNetConfig(18), 8, 11.689512 - 0.513, (64, 128, 256, 512)),
        (ResNetConfig(50), 16, 25.557032 - 2.049, (256, 512, 1024, 2048)),
        (PRESETS["fcn_resnext50_32x4d"].backbone, 16, 25.028904 - 2.049, (256, 512, 1024, 2048)),
        (PRESETS["fcn_wide_resnet50_2"].backbone, 16, 68.883240 - 2.049, (256, 512, 1024, 2048)),
        (PRESETS["fcn_resnet18d"].backbone, 8, 11.708744 - 0.513, (64, 128, 256, 512)),
        (PRESETS["fcn_ecaresnet50d"].backbone, 16, 25.576350 - 2.049, (256, 512, 1024, 2048)),
        (PRESETS["fcn_resnest50d"].backbone, 16, 27.483240 - 2.049, (256, 512, 1024, 2048)),
        (PRESETS["fcn_res2net50_26w_4s"].backbone, 16, 25.699120 - 2.049, (256, 512, 1024, 2048)),
        (PRESETS["fcn_se_resnet50"].backbone, 16, 28.088024 - 2.049, (256, 512, 1024, 2048)),
        (PRESETS["fcn_senet154"].backbone, 50, 115.088984 - 2.049, (256, 512, 1024, 2048)),
        (RegNetConfig("x_008"), 16, 7.259656 - 0.673, (64, 128, 288, 672)),
        (RegNetConfig("y_032"), 21, 19.436338 - 1.513, (72, 216, 576, 1512)),
        (DPNConfig("68"), 22, 12.611602 - 0.833, (144, 320, 704, 832)),
        (DPNConfig("92"), 30, 37.668392 - 2.689, (336, 704, 1552, 2688)),
        (MobileOneConfig("s1"), 42, 4.825192 - 1.281, (96, 192, 512, 1280)),
        (MobileNetV2Config(last_conv="used"), 17, 3.504872 - 1.281, (24, 32, 96, 1280)),
        # These have two linear layers: 960 to 1280 and to 1000, 576 to 1024 and to 1000. And mid is the
        # *first* block at stride 8, as torchvision's LR-ASPP has it.
        (MobileNetV3Config("large"), 15, 5.483032 - 1.23008 - 1.281, (24, 40, 112, 960)),
        (MobileNetV3Config("small"), 11, 2.542856 - 0.590848 - 1.025, (16, 24, 48, 576)),
        (EfficientNetLiteConfig(0, last_conv="used"), 16, 4.652008 - 1.281, (24, 40, 112, 1280)),
        (EfficientNetLiteConfig(4, last_conv="used"), 30, 13.006568 - 1.281, (32, 56, 160, 1280)),
        (EfficientNetConfig("b0", last_conv="used"), 16, 5.288548 - 1.281, (24, 40, 112, 1280)),
        (EfficientNetConfig("b7", last_conv="used"), 55, 66.34796 - 2.561, (48, 80, 224, 2560)),
        (EfficientNetConfig("v2_s", last_conv="used"), 40, 21.458488 - 1.281, (48, 64, 160, 1280)),
        (MnasNetConfig(last_conv="used"), 17, 4.383312 - 1.281, (24, 40, 96, 1280)),
    ],
    ids=name_of,
)
def test_blocks_parameters_and_channels_are_those_of_the_published_networks(
    config, blocks, millions, channels
):
    backbone = abstract(config)
    stages = (
        [getattr(backbone, f"layer{i}") for i in (1, 2, 3, 4)]
        if hasattr(backbone, "layer1")
        else [backbone.blocks]
    )
    assert sum(len(getattr(stage, "parts", stage)) for stage in stages) == blocks
    params = jax.tree.leaves(nnx.state(backbone, nnx.Param))
    assert sum(math.prod(p.shape) for p in params) == round(millions * 1e6)
    assert tuple(backbone.channels[name] for name in ("low", "mid", "aux", "high")) == channels


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        # 1280 widens too, but is never narrowed.
        (MobileNetV2Config(width=1.4, last_conv="used"), (32, 48, 136, 1792)),
        (MobileNetV2Config(width=0.35, last_conv="used"), (8, 16, 32, 1280)),
        (MobileNetV3Config("large", width=0.75), (24, 32, 88, 720)),
    ],
    ids=name_of,
)
def test_width_multiplies_the_channels(config, channels):
    assert (
        tuple(abstract(config).channels[name] for name in ("low", "mid", "aux", "high")) == channels
    )


def test_the_deep_stem_is_three_3x3_with_the_same_stride():
    config = ResNetConfig(18, stem="deep")
    stem = abstract(config).stem
    assert [conv.conv.kernel.shape for conv in stem] == [
        (3, 3, 3, 32),
        (3, 3, 32, 32),
        (3, 3, 32, 64),
    ]
    assert [conv.conv.stride for conv in stem] == [2, 1, 1]
    assert feature_shapes(config, 33, 50) == shapes_by_rule(config, 33, 50)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("size", [(9, 14), (2, 3), (8, 7)])
def test_caffes_max_pooling_is_torchs_ceil_mode(size, before):
    x = np.abs(np.random.default_rng(0).standard_normal((2, *size, 3), np.float32))
    theirs = torch.nn.functional.max_pool2d(
        torch.from_numpy(x).permute(0, 3, 1, 2), 3, stride=2, padding=before, ceil_mode=True
    )
    np.testing.assert_array_equal(
        resnet._ceil_max_pool(jnp.asarray(x), before), theirs.permute(0, 2, 3, 1).numpy()
    )


def test_the_atrous_rate_of_a_shortcut_is_that_of_its_blocks_first_convolution():
    config = ResNetConfig(50, 8, first_block_dilation="same", shortcut_kernel=3)
    backbone = abstract(config)
    stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    shortcuts = [stage[0].downsample.conv for stage in stages]
    assert [conv.kernel.shape[0] for conv in shortcuts] == [1, 3, 3, 3]
    assert [(conv.stride, conv.dilation) for conv in shortcuts[1:]] == [(2, 1), (1, 2), (1, 4)]


def test_an_average_where_the_stride_was_lost_is_over_two_pixels_or_one():
    image = np.arange(6, dtype=np.float32).reshape(1, 1, 6, 1)
    for dilated, expected in (
        ("same", [0.25, 0.75, 1.25, 1.75, 2.25, 1.25]),
        ("none", image[0, 0]),
    ):
        form = BlockForm(shortcut="average", dilated_average=dilated)
        options = {"stride": 1, "dilation": 2, "lost_stride": True, "norm": Norm()}
        shortcut = downsample(form, 1, 2, **options, rngs=nnx.Rngs(0))
        shortcut.conv.kernel[...] = jnp.ones((1, 1, 1, 2))
        shortcut.eval()
        # The norm's epsilon divides by 1.000005.
        np.testing.assert_allclose(shortcut(image)[0, 0, :, 0], np.ravel(expected), rtol=1e-5)


def test_tensorflows_padding_keeps_the_sizes():
    # Both kinds of padding give ceil(size / stride); only where the zeros are differs.
    config = MobileNetV3Config("small", padding="same")
    assert feature_shapes(config, 33, 50) == shapes_by_rule(config, 33, 50)


def test_padding_computed_for_one_size_is_that_of_this_size():
    # At 224 the stem and every strided block of lite0 has an even input: zeros at the bottom and right,
    # one row and column for 3x3, and for 5x5 one before and two after.
    backbone = abstract(EfficientNetLiteConfig(0, padding="same", same_size=224, output_stride=32))
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
    shapes = feature_shapes(config, 65, 65)
    assert shapes["low"][1:3] == (16, 16)
    assert shapes["high"][1:3] == (4, 4)


def test_no_receptive_field_is_told_behind_attention_among_all_pixels():
    rows = summarize(build(Config(MixTransformerConfig("b0"), DeepLabV3Config())), (65, 65))
    assert {row.receptive_field for row in rows} == {None}


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
    config = ResNetConfig(50, output_stride=16, first_block_dilation="same", multi_grid=(1, 2, 4))
    backbone = abstract(config)
    assert rates(backbone.layer3) == [[1]] * 6
    assert rates(backbone.layer4) == [[2], [4], [8]]


def test_multi_grid_repeats_where_a_stage_has_more_blocks():
    plan = resnet._plan(ResNetConfig(50, multi_grid=(1, 2)))
    assert [step.dilation for step in plan[3]] == [1, 4, 2]


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
        (EfficientNetConfig("b0", first_block_dilation="same"), [1] * 11 + [2] * 5),
        (EfficientNetConfig("b0", 8, "same", early_blocks=2), [1] * 5 + [2] * 4 + [4] * 7),
    ],
    ids=name_of,
)
def test_rates_of_inverted_residuals(config, dilations):
    assert [b.spatial.dilation for b in abstract(config).blocks] == dilations


def test_fused_and_plain_blocks_have_stride_and_rate_in_their_dense_convolution():
    plain, fused, *_ = abstract(EfficientNetConfig("v2_b0", output_stride=8)).blocks
    assert plain.expand is plain.depthwise is fused.depthwise is None
    assert (plain.spatial, fused.spatial) == (plain.project.conv, fused.expand.conv)
    assert (plain.spatial.groups, plain.spatial.stride) == (1, 1)
    assert (fused.spatial.kernel.shape, fused.spatial.stride) == ((3, 3, 16, 64), 2)
    assert plain.project.activation == "silu"
    assert fused.project.activation == "none"


def test_channels_inside_squeeze_excite_follow_the_input_of_the_block():
    squeezed = [b.se.fc1.kernel.shape[2:] for b in abstract(EfficientNetConfig("b0")).blocks]
    assert squeezed[:3] == [(32, 8), (96, 4), (144, 6)]


def test_timm_expands_the_rounded_channels_of_a_block():
    widths = {
        rounding: [
            (b.depthwise.conv.kernel.shape[3], b.project.conv.kernel.shape[3])
            for b in abstract(MobileNetV3Config("small", 0.5, rounding=rounding)).blocks
        ]
        for rounding in ("scaled", "expanded")
    }
    assert widths["scaled"][:3] == [(8, 8), (40, 16), (48, 16)]
    assert widths["expanded"][:3] == [(16, 8), (40, 16), (56, 16)]


def test_a_deeper_mobilenet_v2_keeps_its_ends():
    backbone = abstract(MobileNetV2Config(1.1, depth=1.2))
    stages = [block.stage for block in mobilenet_v2.block_table(1.1, 1.2)]
    assert [stages.count(stage) for stage in range(7)] == [1, 3, 4, 5, 4, 4, 1]
    assert backbone.stem.conv.kernel.shape[3] == 32


def test_a_block_that_lost_its_stride_gets_no_shortcut():
    # The classification network had none there, and so its weights were not trained for one.
    # So narrow, the stage at stride 16 has as many channels as that at 8.
    backbone = abstract(MobileNetV2Config(width=0.1, output_stride=8))
    block = backbone.blocks[6]
    assert block.expand.conv.kernel.shape[2] == block.project.conv.kernel.shape[3] == 8
    assert block.depthwise.conv.stride == 1
    assert not block.shortcut
    assert backbone.blocks[7].shortcut


def test_the_last_block_at_a_stride():
    blocks = [Block(3, 8, 8, stride) for stride in (1, 2, 1, 2, 1, 1, 2)]
    assert [last_at_stride(blocks, stride) for stride in (2, 4, 8, 16)] == [0, 2, 5, 6]


# ---------------------------------------------------------------------------- stochastic depth


def test_stochastic_depth_takes_the_branch_from_whole_images_and_scales_the_rest():
    block = InvertedResidual(
        4, Block(3, 8, 4, 1), stride=1, dilation=1, drop_path=0.25, norm=Norm(), rngs=nnx.Rngs(0)
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((400, 3, 3, 4), np.float32))

    def added():
        run = nnx.jit(lambda block, x: block(x, rngs=nnx.Rngs(dropout=0)) - x)
        return np.asarray(run(block, x))

    some = added()
    gone = (some == 0).all(axis=(1, 2, 3))
    assert abs(gone.mean() - 0.25) < 0.09  # four deviations of the share among 400
    block.drop_path.rate = 0.0
    # A difference of a sum: a few float32 roundings of numbers up to 10.
    np.testing.assert_allclose(some[~gone], added()[~gone] / 0.75, rtol=0, atol=1e-5)


def test_stochastic_depth_grows_linearly_to_the_last_block():
    blocks = inverted_residuals(
        4,
        [Block(3, 8, 4, 1)] * 4,
        output_stride=32,
        first_block_dilation="previous",
        drop_path=0.2,
        norm=Norm(),
        rngs=nnx.Rngs(0),
    )
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0, 0.05, 0.1, 0.15])


@pytest.mark.parametrize(
    "config",
    [EfficientNetLiteConfig(drop_path=0.2), MobileViTConfig("xxs", hidden_dropout=0.1)],
    ids=name_of,
)
def test_what_is_random_in_training_asks_for_rngs_unless_frozen(config):
    model = build(Config(config, FCNConfig(dropout=0.0)))
    shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        nnx.eval_shape(lambda model, x: model(x), model, shape)
    freeze_backbone(model)
    nnx.eval_shape(lambda model, x: model(x), model, shape)


# Compiling is nearly all that these tests do, and they need no fast code.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(50, output_stride=16),
        ResNetConfig(18, output_stride=8, multi_grid=(1, 2)),
        MobileNetV2Config(width=0.5, output_stride=8),
        EfficientNetLiteConfig(0, output_stride=16),
    ],
    ids=name_of,
)
def test_a_dilated_network_is_the_original_one_at_more_places(config):
    """Every n-th feature is the undilated network's, borders included.

    That is what atrous convolution is for (Chen et al. 2017, fig. 3), and holds for the rule "previous",
    where a block that lost its stride still looks at its input as it did before.
    """
    original = filled(dataclasses.replace(config, output_stride=32))
    dilated = nnx.merge(nnx.graphdef(abstract(config)), nnx.state(original))
    images = np.random.default_rng(0).standard_normal((1, 71, 103, 3), np.float32)
    sparse, dense = jit(lambda x: (original(x), dilated(x)))(images)
    for name, stride in (("aux", 16), ("high", 32)):
        step = max(1, stride // config.output_stride)
        every_nth = dense[name][:, ::step, ::step]
        largest = np.abs(sparse[name]).max()
        assert np.mean(np.abs(sparse[name]) > 0.01 * largest) > 0.1  # the features are alive
        # Float32 rounding alone, through 20 to 50 layers (3e-5 was seen); a single value from
        # beyond the border would be off by as much as the features themselves.
        np.testing.assert_allclose(every_nth, sparse[name], rtol=0, atol=1e-4 * largest)


def test_the_rule_same_looks_further():
    # What the test before this one proves of "previous" does not hold for "same".
    original = filled(ResNetConfig(18, output_stride=32))
    same = ResNetConfig(18, output_stride=16, first_block_dilation="same")
    dilated = nnx.merge(nnx.graphdef(abstract(same)), nnx.state(original))
    images = np.random.default_rng(0).standard_normal((1, 71, 103, 3), np.float32)
    sparse, dense = jit(lambda x: (original(x)["high"], dilated(x)["high"]))(images)
    assert np.abs(dense[:, ::2, ::2] - sparse).max() > 0.1 * np.abs(sparse).max()


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "config", [*SMALL, XceptionConfig(), OriginalXceptionConfig()], ids=name_of
)
def test_other_output_strides_are_refused(config):
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 12"):
        dataclasses.replace(config, output_stride=12)


def test_sizes_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match=r"one of \[10, 14, 18, .* 269\], got 20"):
        ResNetConfig(20)
    with pytest.raises(ValueError, match="large or small, got 'tiny'"):
        MobileNetV3Config("tiny")
    with pytest.raises(ValueError, match=r"x_002, .*, y_2560, got 'y_033'"):
        RegNetConfig("y_033")
    with pytest.raises(ValueError, match="68, 68b, 92, 98, 107, 131, got '50'"):
        DPNConfig("50")
    with pytest.raises(ValueError, match="b0, b1, b2, b3, b4, b5, got 'b6'"):
        MixTransformerConfig("b6")
    with pytest.raises(ValueError, match="s0, s1, s2, s3, s4, got 's5'"):
        MobileOneConfig("s5")
    with pytest.raises(ValueError, match="41, 65 or 71, got 50"):
        XceptionConfig(depth=50)
    with pytest.raises(ValueError, match="0 to 4, got 5"):
        EfficientNetLiteConfig(5)
    with pytest.raises(ValueError, match=r"b0, b1, .*, got 'b9'"):
        EfficientNetConfig("b9")
    with pytest.raises(ValueError, match="b1, a1 or small, got 'c1'"):
        MnasNetConfig("c1")
    with pytest.raises(ValueError, match="xxs, xs or s, got 'm'"):
        MobileViTConfig("m")
    with pytest.raises(ValueError, match="18, 32 or 48, got 64"):
        HRNetConfig(64)
    with pytest.raises(ValueError, match=r"c_26, .*; got 'd_23'"):
        DRNConfig("d_23")


@pytest.mark.parametrize(
    ("depth", "fields", "message"),
    [
        (18, {"groups": 32}, r"groups is for bottlenecks .* leave it at 1, got 32"),
        (50, {"groups": 0}, r"groups must be at least 1, got 0"),
        (50, {"radix": 2, "scale": 4}, r"both replace the 3x3 convolution: give one"),
        (50, {"width_per_group": 5, "reduce_first": 2}, r"a multiple of reduce_first, 2, got 5"),
        (50, {"shortcut": "average", "shortcut_kernel": 3}, r"with \"average\" it is 1"),
        (50, {"stage_stride": "last"}, r"no stage at stride 4: low must be \"residual\""),
        (18, {"stage_stride": "last"}, r"stage_stride and low are for bottlenecks"),
        (50, {"stem_widths": (32, 64)}, r"three numbers of channels, got \(32, 64\)"),
    ],
)
def test_blocks_of_resnet_that_cannot_be_are_refused(depth, fields, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(depth, **fields)
