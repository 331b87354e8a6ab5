"""mmsegmentation's models, written out small in torch, against what the port makes of their weights.

mmsegmentation itself needs compiled operators and old versions, so its golden files and the modules
below, named and wired as its own, stand in for it. Weights are random, see `references.randomise`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from references import (
    assert_agrees,
    copied,
    images,
    nhwc,
    quick_comparison,
    randomise,
    relative_error,
    run_torch,
)
from timm.models import resnet as timm_resnet
from timm.models.resnest import ResNestBottleneck
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet

from deeplab_jax.backbones import MobileNetV2Config, ResNetConfig
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig, FCNConfig
from port import CheckpointError, load_torch, to_torch, verify
from port.convert import convert

# ---------------------------------------------------------------------------- the original


class ConvModule(nn.Module):
    def __init__(self, cin, cout, kernel=1, stride=1, dilation=1, groups=1, act=F.relu):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, bias=False)
        self.bn, self.act = nn.BatchNorm2d(cout), act

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class SeparableConvModule(nn.Module):
    def __init__(self, cin, cout, dilation=1):
        super().__init__()
        self.depthwise_conv = ConvModule(cin, cin, 3, dilation=dilation, groups=cin)
        self.pointwise_conv = ConvModule(cin, cout)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class ResNet(nn.Module):
    """torchvision's blocks; `stages` are the (stride, dilation) of layer3 and layer4."""

    def __init__(self, depth, stages, multi_grid=None, deep_stem=True):
        super().__init__()
        whole = getattr(resnet, f"resnet{depth}")()
        if deep_stem:
            parts, channels = [], 3
            for width, stride in ((32, 2), (32, 1), (64, 1)):
                conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
                parts += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            self.stem = nn.Sequential(*parts)
        else:
            self.conv1, self.bn1 = whole.conv1, whole.bn1
        for i in (1, 2, 3, 4):
            setattr(self, f"layer{i}", getattr(whole, f"layer{i}"))
        for layer, (stride, dilation) in zip((self.layer3, self.layer4), stages, strict=True):
            first = layer[0].conv2 if depth >= 50 else layer[0].conv1
            first.stride = layer[0].downsample[0].stride = stride
            grid = [dilation] * len(layer)
            grid[0] = max(dilation // 2, 1)  # contract_dilation
            if multi_grid and layer is self.layer4:
                grid = multi_grid
            for block, rate in zip(layer, grid, strict=True):
                # of a basic block's two convolutions, the second is never dilated
                conv = block.conv2 if depth >= 50 else block.conv1
                conv.dilation = conv.padding = (rate, rate)

    def forward(self, x):
        x = self.stem(x) if hasattr(self, "stem") else F.relu(self.bn1(self.conv1(x)))
        x, outputs = F.max_pool2d(x, 3, 2, 1), []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            outputs.append(x)
        return outputs


class ResNeSt(ResNet):
    """timm's, which has the same blocks under the same names, with one block in each stage; d8.

    mmsegmentation's shortcuts average over as many pixels as they stride, which here is one.
    """

    def __init__(self):
        nn.Module.__init__(self)
        whole = timm_resnet.ResNet(
            ResNestBottleneck,
            (1, 1, 1, 1),
            output_stride=8,
            stem_width=32,
            stem_type="deep",
            avg_down=True,
            block_args={"radix": 2, "avd": True},
        )
        self.stem = nn.Sequential(*whole.conv1, whole.bn1, nn.ReLU())
        for i in (1, 2, 3, 4):
            setattr(self, f"layer{i}", getattr(whole, f"layer{i}"))
        for layer in (self.layer3, self.layer4):
            layer[0].downsample[0] = nn.AvgPool2d(1, 1)


class InvertedResidual(nn.Module):
    def __init__(self, cin, cout, expansion, stride, dilation):
        super().__init__()
        width, relu6 = cin * expansion, functools.partial(ConvModule, act=F.relu6)
        parts = [relu6(cin, width)] if expansion > 1 else []
        parts.append(relu6(width, width, 3, stride=stride, dilation=dilation, groups=width))
        self.conv = nn.Sequential(*parts, ConvModule(width, cout, act=lambda x: x))
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, strides=(1, 2, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 2, 4, 4)):
        super().__init__()
        self.conv1 = ConvModule(3, 32, 3, stride=2, act=F.relu6)
        table = (
            (1, 16, 1),
            (6, 24, 2),
            (6, 32, 3),
            (6, 64, 4),
            (6, 96, 3),
            (6, 160, 3),
            (6, 320, 1),
        )
        cin = 32
        for i, (expansion, cout, count) in enumerate(table):
            blocks = []
            for block in range(count):  # stride and dilation are the first block's alone
                first = (strides[i], dilations[i]) if block == 0 else (1, 1)
                blocks.append(InvertedResidual(cin, cout, expansion, *first))
                cin = cout
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x, outputs = self.conv1(x), []
        for i in range(1, 8):
            x = getattr(self, f"layer{i}")(x)
            outputs.append(x)
        return [outputs[i] for i in (1, 2, 4, 6)]


class ASPPHead(nn.Module):
    """DeepLabv3's head, and v3+'s where it is told the low-level features' channels."""

    def __init__(self, cin, channels, rates, low=None, align_corners=False, classes=7):
        super().__init__()
        self.align_corners = align_corners
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(cin, channels))
        self.aspp_modules = nn.ModuleList([ConvModule(cin, channels)])
        for rate in rates:
            self.aspp_modules.append(
                SeparableConvModule(cin, channels, rate)
                if low
                else ConvModule(cin, channels, 3, dilation=rate)
            )
        self.bottleneck = ConvModule(5 * channels, channels, 3)
        self.c1_bottleneck = None
        if low:
            self.c1_bottleneck = ConvModule(*low)
            self.sep_bottleneck = nn.Sequential(
                SeparableConvModule(channels + low[1], channels),
                SeparableConvModule(channels, channels),
            )
        self.dropout, self.conv_seg = nn.Dropout2d(0.1), nn.Conv2d(channels, classes, 1)

    def resize(self, x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)

    def forward(self, features):
        low, x = features[0], features[-1]
        pooled = self.resize(self.image_pool(x), x.shape[2:])
        x = self.bottleneck(torch.cat([pooled, *(m(x) for m in self.aspp_modules)], dim=1))
        if self.c1_bottleneck is not None:
            low = self.c1_bottleneck(low)
            x = self.sep_bottleneck(torch.cat([self.resize(x, low.shape[2:]), low], dim=1))
        return self.conv_seg(self.dropout(x))


class FCNHead(nn.Module):
    def __init__(self, cin, channels, classes=7):
        super().__init__()
        self.convs = nn.Sequential(ConvModule(cin, channels, 3))
        self.dropout, self.conv_seg = nn.Dropout2d(0.1), nn.Conv2d(channels, classes, 1)

    def forward(self, features):
        return self.conv_seg(self.dropout(self.convs(features[2])))


class EncoderDecoder(nn.Module):
    def __init__(self, backbone, decode_head, auxiliary_head):
        super().__init__()
        self.backbone, self.decode_head = backbone, decode_head
        self.auxiliary_head = auxiliary_head

    def forward(self, x):
        features = self.backbone(x)
        out = self.decode_head.resize(self.decode_head(features), x.shape[2:])
        return {"out": out, "aux": self.auxiliary_head(features)}


D8, D16 = ((1, 2), (1, 4)), ((2, 1), (1, 2))
RATES = {8: (12, 24, 36), 16: (6, 12, 18)}


def v3plus_r18():
    """DeepLabv3+ on ResNetV1c, d8."""
    head = ASPPHead(512, 32, RATES[8], low=(64, 12))
    return EncoderDecoder(ResNet(18, D8), head, FCNHead(256, 64))


def v3_r18b_mg14():
    """DeepLabv3 on ResNet as torchvision has it, at output stride 16, absolute multi-grid."""
    head = ASPPHead(512, 32, RATES[16], align_corners=True)
    backbone = ResNet(18, D16, multi_grid=(1, 4), deep_stem=False)
    return EncoderDecoder(backbone, head, FCNHead(256, 64))


def v3plus_mobilenet():
    """d8; the golden file is of this one, with 512 channels in the head."""
    head = ASPPHead(320, 64, RATES[8], low=(24, 48), align_corners=True)
    return EncoderDecoder(MobileNetV2(), head, FCNHead(96, 40))


def v3_resnest():
    return EncoderDecoder(ResNeSt(), ASPPHead(2048, 32, RATES[8]), FCNHead(1024, 16))


def v3_r50b():
    head = ASPPHead(2048, 24, RATES[8])
    return EncoderDecoder(ResNet(50, D8, deep_stem=False), head, FCNHead(1024, 16))


def v3plus_r50_mg124():
    head = ASPPHead(2048, 24, RATES[16], low=(256, 48), align_corners=True)
    return EncoderDecoder(ResNet(50, D16, (1, 2, 4)), head, FCNHead(1024, 24))


CASES = {  # the original, the options that its weights do not tell
    "v3plus-r18-d8": (v3plus_r18, {}),
    "v3-r18b-d16-mg-align": (
        v3_r18b_mg14,
        {"output_stride": 16, "multi_grid": [1, 4], "align_corners": True},
    ),
    "v3plus-mobilenet-d8-align": (v3plus_mobilenet, {"align_corners": True}),
    "v3-resnest-d8": (v3_resnest, {}),
}
SHAPE = (2, 33, 97, 3)


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
    make, options = CASES[name]
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


@pytest.mark.parametrize("name", CASES)
def test_every_layer_agrees_with_pytorch(name):
    module, state, options = original(name)
    report = verify(load_torch(state, **options), module, images(*SHAPE))
    assert_agrees(report)
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    biased = sum(getattr(part, "bias", None) is not None for part in module.modules())
    assert biased >= norms + 2  # both classifiers, and ResNeSt's attention
    assert len(report.layers) == biased + 1  # and the logits


def test_both_heads_logits_are_those_of_pytorch():
    # The same without verify: PyTorch's own rounding is 1e-6 here, mistakes are 1e-3 and above.
    module, state, options = original("v3-r18b-d16-mg-align")
    x, model = images(*SHAPE, seed=2), load_torch(state, **options)
    theirs = run_torch(module, x)
    out, aux = apply(model, x, method="with_aux")
    assert relative_error(model.resize(out, SHAPE[1:3]), nhwc(theirs["out"])) < 1e-4
    assert relative_error(aux, nhwc(theirs["aux"])) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_export_has_the_names_and_bits_of_the_checkpoint(name):
    module, state, options = original(name)
    exported = to_torch(load_torch(state, **options), "mmseg")
    assert exported.keys() == state.keys()
    for key, tensor in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(exported[key], tensor), key
    module.load_state_dict(exported, strict=True)


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
