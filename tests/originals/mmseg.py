"""mmsegmentation's models, written out small in torch, named and wired as its own.

mmsegmentation itself needs compiled operators and old versions.
"""

import functools

import torch
from timm.models import resnet as timm_resnet
from timm.models.resnest import ResNestBottleneck
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet

from deeplab_jax.backbones import BackboneConfig, MobileNetV2Config, ResNetConfig
from originals.case import V3, V3PLUS, Case, Cases


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


def _case(make, backbone: BackboneConfig, head: type, **options) -> Case:
    return Case("mmseg", make, backbone, head, aux=True, options=options, shapes=(SHAPE,))


SHAPE = (2, 33, 97, 3)
_RESNET = {"absolute_multi_grid": True, "basic_block_dilation": "first"}
COMPARED: Cases = {
    "mmseg-v3plus-r18-d8": _case(v3plus_r18, ResNetConfig(18, 8, stem="deep", **_RESNET), V3PLUS),
    "mmseg-v3-r18b-d16-mg-align": _case(
        v3_r18b_mg14,
        ResNetConfig(18, 16, multi_grid=(1, 4), **_RESNET),
        V3,
        output_stride=16,
        multi_grid=[1, 4],
        align_corners=True,
    ),
    "mmseg-v3plus-mobilenet-d8-align": _case(
        v3plus_mobilenet,
        MobileNetV2Config(output_stride=8, first_block_dilation="same", dilated_blocks="first"),
        V3PLUS,
        align_corners=True,
    ),
    "mmseg-v3-resnest-d8": _case(
        v3_resnest,
        ResNetConfig(
            14, 8, stem="deep", radix=2, shortcut="average", dilated_average="none", **_RESNET
        ),
        V3,
    ),
}
DEEPER: Cases = {}
