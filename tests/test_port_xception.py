"""Xceptions, and the three code bases of DeepLabv3+ that have them, against the code re-created in torch.

None of those code bases is in a package. What makes them differ is put together here from torch's own
parts, above all ReLUs that work in place while a shortcut still reads what they overwrite. The networks
are the originals' with few channels and a short middle, so that they run in moments; where golden files
of the real code lie beside the repository, the quickest is compared too.
"""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
import torch
import torchvision
from flax import nnx
from originals.vainf import VainF, VainFPlusHead, VainFV3Head
from references import (
    assert_agrees,
    copied,
    images,
    quick_comparison,
    randomise,
    without_weights,
)
from torch import nn
from torch.nn import functional as F

from deeplab_jax import PRESETS, Config, DeepLabV3PlusConfig, XceptionConfig, build
from deeplab_jax.backbones import (
    BackboneConfig,
    MobileNetV2Config,
    OriginalXceptionConfig,
    ResNetConfig,
    mobilenet_v2,
    original_xception,
    xception,
)
from deeplab_jax.config import from_dict, to_dict
from port import load_torch, to_torch, verify
from port.convert import Conversion, convert
from port.layouts.yassouali import MEAN_STD
from port.read import CheckpointError

# ---------------------------------------------------------------------------- the originals
#
# Aligned Xceptions: NETWORKS and its like are read when a network is built, see `narrow`.


def aligned_blocks() -> list[tuple[int, ...]]:
    """Channels of the blocks of Xception-65."""
    return [block.widths for block in xception.NETWORKS[65]]


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(collections.OrderedDict(modules))


def conv3x3(i: int, o: int, stride: int = 1, dilation: int = 1, **options) -> nn.Conv2d:
    options = {"padding": dilation} | options
    return nn.Conv2d(i, o, 3, stride, dilation=dilation, bias=False, **options)


def pointwise(i: int, o: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, 1, stride, bias=False)


class RepBlock(nn.Module):
    """jfzhang's and yassouali's: one ReLU, in place, wherever `rep` needs one."""

    def __init__(self, channels, widths, stride, dilations, relu_first):
        super().__init__()
        if channels != widths[-1]:
            self.skip = pointwise(channels, widths[-1], stride)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        relu, rep = nn.ReLU(inplace=True), []
        for i, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
            s = stride if i == len(widths) - 1 else 1
            rep += [relu, self.separable(channels, width, s, dilation), nn.BatchNorm2d(width)]
            channels = width
        self.rep = nn.Sequential(*rep[0 if relu_first else 1 :])

    @staticmethod
    def separable(i, o, stride, dilation):
        depthwise = conv3x3(i, i, stride, dilation, groups=i)
        return named(conv1=depthwise, bn=nn.BatchNorm2d(i), pointwise=pointwise(i, o))

    def forward(self, x):
        y = self.rep(x)
        return y + (self.skipbn(self.skip(x)) if hasattr(self, "skip") else x)


class RepXception(nn.Module):
    """`style`: jfzhang or yassouali."""

    def __init__(self, output_stride: int, style: str):
        super().__init__()
        self.style, self.relu = style, nn.ReLU(inplace=True)
        ours = style == "jfzhang"
        a, channels = xception.STEM
        self.conv1, self.bn1 = conv3x3(3, a, 2), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = conv3x3(a, channels), nn.BatchNorm2d(channels)
        middle, end = (1, (1, 2)) if output_stride == 16 else (2, (2, 4))
        count = len(aligned_blocks())
        for n, widths in enumerate(aligned_blocks(), 1):
            stride = 1 if n > 3 or (n == 3 and output_stride == 8) else 2
            dilation = 1 if n <= 3 else end[0] if n == count else middle
            last = 1 if ours and n == count else dilation
            relu_first = n > (2 if ours else 1)
            block = RepBlock(channels, widths, stride, (dilation, dilation, last), relu_first)
            setattr(self, f"block{n}", block)
            channels = widths[-1]
        self.blocks = count
        for n, width in enumerate(xception.EXIT, 3):
            setattr(self, f"conv{n}", RepBlock.separable(channels, width, 1, end[1]))
            setattr(self, f"bn{n}", nn.BatchNorm2d(width))
            channels = width

    def forward(self, x):
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.style == "jfzhang":
            x = low = self.relu(self.block1(self.relu(x)))
        else:
            low = self.block1(x)
            x = F.relu(low)
        for n in range(2, self.blocks + 1):
            x = getattr(self, f"block{n}")(x)
        x = self.relu(x)
        for n in (3, 4, 5):
            x = self.relu(getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(x)))
        return x, low


class SepConv(nn.Module):
    """bubbliiiing's."""

    def __init__(self, i, o, stride, dilation, *, before=True, inplace=True):
        super().__init__()
        self.relu0 = nn.ReLU(inplace=inplace) if before else nn.Identity()
        self.depthwise, self.bn1 = conv3x3(i, i, stride, dilation, groups=i), nn.BatchNorm2d(i)
        self.pointwise, self.bn2 = pointwise(i, o), nn.BatchNorm2d(o)
        self.relu = nn.Identity() if before else nn.ReLU()

    def forward(self, x):
        x = self.relu(self.bn1(self.depthwise(self.relu0(x))))
        return self.relu(self.bn2(self.pointwise(x)))


class SepBlock(nn.Module):
    def __init__(self, channels, widths, stride, dilation, *, inplace):
        super().__init__()
        changes = channels != widths[-1]
        if changes:
            self.skip = pointwise(channels, widths[-1], stride)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        a, b, c = widths
        self.sepconv1 = SepConv(channels, a, 1, dilation, inplace=not changes)
        self.sepconv2 = SepConv(a, b, 1, dilation)
        self.sepconv3 = SepConv(b, c, stride, dilation, inplace=inplace)

    def forward(self, x):
        skip = self.skipbn(self.skip(x)) if hasattr(self, "skip") else x
        inner = self.sepconv2(self.sepconv1(x))
        return self.sepconv3(inner) + skip, inner


class SepXception(nn.Module):
    def __init__(self, output_stride: int):
        super().__init__()
        a, channels = xception.STEM
        self.conv1, self.bn1 = conv3x3(3, a, 2), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = conv3x3(a, channels), nn.BatchNorm2d(channels)
        rate = 16 // output_stride
        for n, widths in enumerate(aligned_blocks(), 1):
            stride = 2 if n < 3 or (n == 3 and rate == 1) else 1
            dilation = rate if n > 3 else 1
            block = SepBlock(channels, widths, stride, dilation, inplace=n != 2)
            setattr(self, f"block{n}", block)
            channels = widths[-1]
        self.blocks = len(aligned_blocks())
        for n, width in enumerate(xception.EXIT, 3):
            setattr(self, f"conv{n}", SepConv(channels, width, 1, rate, before=False))
            channels = width

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        for n in range(1, self.blocks + 1):
            x, inner = getattr(self, f"block{n}")(x)
            if n == 2:
                low = inner
        return self.conv5(self.conv4(self.conv3(x))), low


# ---- the other backbones


class FlatMobileNetV2(nn.Module):
    """jfzhang's (`aliased`: padded before the expansion, and registered twice) or bubbliiiing's."""

    def __init__(self, output_stride: int, aliased: bool):
        super().__init__()
        features, reached, rate, self.rings = [], 2, 1, [0]
        blocks = iter(torchvision.models.mobilenet_v2().features[:18])
        features.append(next(blocks))
        for row, (_, _, count, s) in enumerate(mobilenet_v2.TABLE):
            lost = reached * s > output_stride if not aliased else reached == output_stride
            before, stride = rate, 1 if lost else s
            rate, reached = (rate * s, reached) if lost else (rate, reached * s)
            for i in range(count):
                block = next(blocks)
                block.conv = nn.Sequential(*flatten(block.conv))
                depthwise = block.conv[0 if row == 0 else 3]
                depthwise.stride = stride if i == 0 else 1
                # jfzhang's whole row stays at the rate before; bubbliiiing's first block alone
                d = depthwise.dilation = before if aliased or i == 0 else rate
                depthwise.padding = 0 if aliased else d
                self.rings.append(d if aliased else 0)
                features.append(block)
        self.features = nn.Sequential(*features)
        if aliased:
            self.low_level_features, self.high_level_features = self.features[:4], self.features[4:]

    def forward(self, x):
        for i, (block, ring) in enumerate(zip(self.features, self.rings, strict=True)):
            if i == 0:
                x = block(x)
                continue
            y = block.conv(F.pad(x, [ring] * 4))
            x = x + y if block.use_res_connect else y
            if i == 3:
                low = x
        return x, low


def flatten(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from flatten(child) if isinstance(child, nn.Sequential) else (child,)


class ResNet(nn.Module):
    """torchvision's, where every block of a dilated stage has the stage's rate, the first too."""

    def __init__(self, depth: int, output_stride: int, style: str):
        super().__init__()
        network = getattr(torchvision.models, f"resnet{depth}")()
        if style == "yassouali":
            parts = (network.conv1, network.bn1, network.relu, network.maxpool)
            self.layer0 = nn.Sequential(*parts)
        else:
            self.conv1, self.bn1 = network.conv1, network.bn1
        self.style = style
        for n in range(1, 5):
            layer, rate = getattr(network, f"layer{n}"), 2 ** max(0, n - (3, 2)[output_stride == 8])
            for i, block in enumerate(layer):
                d = rate * 2**i if style == "jfzhang" and n == 4 else rate
                if rate > 1:
                    block.conv2.stride, block.conv2.dilation, block.conv2.padding = (
                        1,
                        (d, d),
                        (d, d),
                    )
                    if i == 0:
                        block.downsample[0].stride = 1
            setattr(self, f"layer{n}", layer)

    def forward(self, x):
        if self.style == "yassouali":
            x = self.layer0(x)
        else:
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        low = self.layer1(x)
        return self.layer4(self.layer3(self.layer2(low))), low


# ---- the whole models


def plant(root: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Registers a module under a dotted name."""
    *parents, leaf = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(leaf, module)
    return module


NAMES = {  # (convolution, norm) of ASPP's branches, pool, project, low-level, two convolutions; classifier
    "jfzhang": (
        *((f"aspp.aspp{i}.atrous_conv", f"aspp.aspp{i}.bn") for i in (1, 2, 3, 4)),
        ("aspp.global_avg_pool.1", "aspp.global_avg_pool.2"),
        ("aspp.conv1", "aspp.bn1"),
        ("decoder.conv1", "decoder.bn1"),
        ("decoder.last_conv.0", "decoder.last_conv.1"),
        ("decoder.last_conv.4", "decoder.last_conv.5"),
        "decoder.last_conv.8",
    ),
    "yassouali": (
        *((f"ASSP.aspp{i}.0", f"ASSP.aspp{i}.1") for i in (1, 2, 3, 4)),
        ("ASSP.avg_pool.1", "ASSP.avg_pool.2"),
        ("ASSP.conv1", "ASSP.bn1"),
        ("decoder.conv1", "decoder.bn1"),
        ("decoder.output.0", "decoder.output.1"),
        ("decoder.output.3", "decoder.output.4"),
        "decoder.output.7",
    ),
    "bubbliiiing": (
        *((f"aspp.branch{i}.0", f"aspp.branch{i}.1") for i in (1, 2, 3, 4)),
        ("aspp.branch5_conv", "aspp.branch5_bn"),
        ("aspp.conv_cat.0", "aspp.conv_cat.1"),
        ("shortcut_conv.0", "shortcut_conv.1"),
        ("cat_conv.0", "cat_conv.1"),
        ("cat_conv.4", "cat_conv.5"),
        "cls_conv",
    ),
}


class Original(nn.Module):
    """DeepLabv3+ of a code base, around a backbone that gives (high, low)."""

    def __init__(self, style, backbone, high, low, output_stride, classes=7, width=256):
        super().__init__()
        self.style, self.backbone = style, backbone
        rates = [rate * 16 // output_stride for rate in (6, 12, 18)]
        shapes = [(high, width, 1, 1), *((high, width, 3, rate) for rate in rates)]
        shapes += [(high, width, 1, 1), (5 * width, width, 1, 1), (low, 48, 1, 1)]
        shapes += [(48 + width, width, 3, 1), (width, width, 3, 1)]
        *names, classifier = NAMES[style]
        bias = style == "bubbliiiing"
        self.parts = []  # a plain list: the modules are registered by their names
        for (i, o, k, d), (conv_name, bn_name) in zip(shapes, names, strict=True):
            conv = nn.Conv2d(i, o, k, padding=d * (k // 2), dilation=d, bias=bias)
            plant(self, conv_name, conv)
            self.parts.append((conv, plant(self, bn_name, nn.BatchNorm2d(o))))
        self.classifier = [plant(self, classifier, nn.Conv2d(width, classes, 1))]

    def part(self, i, x):
        conv, bn = self.parts[i]
        return F.relu(bn(conv(x)))

    def forward(self, images):
        x, low = self.backbone(images)
        pooled = self.part(4, x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        x = self.part(5, torch.cat([*(self.part(i, x) for i in range(4)), pooled], dim=1))
        low = self.part(6, low)
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=True)
        pair = (low, x) if self.style == "yassouali" else (x, low)
        x = self.classifier[0](self.part(8, self.part(7, torch.cat(pair, dim=1))))
        return F.interpolate(x, images.shape[2:], mode="bilinear", align_corners=True)


class CadeneBlock(nn.Module):
    """The original Xception's: the first ReLU is not in place, and pooling shrinks."""

    def __init__(self, channels, widths, stride, dilation, relu_first):
        super().__init__()
        if channels != widths[-1]:
            self.skip = pointwise(channels, widths[-1], stride)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        rep = []
        for i, width in enumerate(widths):
            rep += [nn.ReLU(inplace=i > 0), self.separable(channels, width, dilation, dilation)]
            rep.append(nn.BatchNorm2d(width))
            channels = width
        rep += [nn.MaxPool2d(3, stride, 1)] if stride > 1 else []
        self.rep = nn.Sequential(*rep[0 if relu_first else 1 :])

    @staticmethod
    def separable(i, o, dilation, padding):
        depthwise = conv3x3(i, i, 1, dilation, groups=i, padding=padding)
        return named(conv1=depthwise, pointwise=pointwise(i, o))

    def forward(self, x):
        y = self.rep(x)
        return y + (self.skipbn(self.skip(x)) if hasattr(self, "skip") else x)


class CadeneXception(nn.Module):
    """As VainF cuts it: after conv4, before its batch norm."""

    def __init__(self, output_stride: int):
        super().__init__()
        a, channels = xception.STEM
        self.conv1, self.bn1 = conv3x3(3, a, 2, padding=0), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = conv3x3(a, channels, padding=0), nn.BatchNorm2d(channels)
        rate, count = 1, len(original_xception.BLOCKS)
        for n, widths in enumerate(original_xception.BLOCKS, 1):
            stride = 2 if n < 4 or n == count else 1
            if n == count or (n == 3 and output_stride == 8):
                rate, stride = rate * stride, 1
            setattr(self, f"block{n}", CadeneBlock(channels, widths, stride, rate, n > 1))
            channels = widths[-1]
        self.blocks = count
        a, b = original_xception.EXIT
        self.conv3, self.bn3 = CadeneBlock.separable(channels, a, rate, 1), nn.BatchNorm2d(a)
        self.conv4 = CadeneBlock.separable(a, b, rate, 1)

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = low = self.block1(x)
        for n in range(2, self.blocks + 1):
            x = getattr(self, f"block{n}")(x)
        return {"low_level": low, "out": self.conv4(F.relu(self.bn3(self.conv3(x))))}


class VainFXception(VainF):
    def __init__(self, output_stride: int, *, plus: bool, classes: int = 7):
        nn.Module.__init__(self)
        rates = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
        self.backbone = CadeneXception(output_stride)
        high, low = original_xception.EXIT[-1], original_xception.BLOCKS[0][-1]
        head = (high, low, classes, rates) if plus else (high, classes, rates)
        self.classifier = (VainFPlusHead if plus else VainFV3Head)(*head)


# ---------------------------------------------------------------------------- cases


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of an original code base.

    Attributes:
      layout: that must be found.
      make: the torch module.
      backbone: the config that must be found.
      shape: of the images, `[B, H, W, C]`.
    """

    layout: str
    make: Callable[[], nn.Module]
    backbone: BackboneConfig
    shape: tuple[int, ...] = (2, 33, 49, 3)


def _rep(style: str, stride: int) -> Case:
    def make() -> nn.Module:
        high, low = xception.EXIT[-1], aligned_blocks()[0][-1]
        return Original(style, RepXception(stride, style), high, low, stride)

    quirks = {
        "jfzhang": {"low": "block1_relu", "dilate_exit_last": False},
        "yassouali": {"low": "block1", "stem_relu": False},
    }[style]
    config = XceptionConfig(stride, shortcut_relu="all", exit_relu="before", **quirks)
    return Case(style, make, config)


def _sep(stride: int) -> Case:
    def make() -> nn.Module:
        high, low = xception.EXIT[-1], aligned_blocks()[1][-1]
        return Original("bubbliiiing", SepXception(stride), high, low, stride)

    config = XceptionConfig(stride, shortcut_relu="identity", exit_stride=1, norm_momentum=3e-4)
    return Case("bubbliiiing", make, config)


def _cadene(stride: int, *, plus: bool) -> Case:
    config = OriginalXceptionConfig(
        stride, first_block_dilation="same", exit_padding=1, last_norm=False
    )
    # conv3 and conv4 take 2 pixels each at output stride 16, and 6 at 8
    return Case("vainf", lambda: VainFXception(stride, plus=plus), config, (2, 117, 133, 3))


def _mobile(style: str, stride: int) -> Case:
    aliased = style == "jfzhang"
    quirks = {"dilated_blocks": "none", "pad_before_expand": True} if aliased else {}
    backbone = FlatMobileNetV2
    return Case(
        style,
        lambda: Original(style, backbone(stride, aliased), 320, 24, stride),
        MobileNetV2Config(1.0, stride, **quirks),
    )


def _resnet(style: str, depth: int, stride: int) -> Case:
    quirks = {"multi_grid": (1, 2, 4)} if style == "jfzhang" else {}
    return Case(
        style,
        lambda: Original(style, ResNet(depth, stride, style), 2048, 256, stride),
        ResNetConfig(depth, stride, first_block_dilation="same", **quirks),
    )


COMPARED = {
    "jfzhang-xception-os8": _rep("jfzhang", 8),
    "yassouali-xception-os16": _rep("yassouali", 16),
    "bubbliiiing-xception-os8": _sep(8),
    "vainf-v3-xception-os8": _cadene(8, plus=False),
    "jfzhang-mobilenet-os8": _mobile("jfzhang", 8),
}
"""Each quirk where it shows: run on both sides."""
CASES = COMPARED | {
    "jfzhang-xception-os16": _rep("jfzhang", 16),
    "yassouali-xception-os8": _rep("yassouali", 8),
    "bubbliiiing-xception-os16": _sep(16),
    "vainf-v3plus-xception-os16": _cadene(16, plus=True),
    "jfzhang-mobilenet-os16": _mobile("jfzhang", 16),
    "bubbliiiing-mobilenet-os8": _mobile("bubbliiiing", 8),
    "bubbliiiing-mobilenet-os16": _mobile("bubbliiiing", 16),
    "jfzhang-resnet50-os8": _resnet("jfzhang", 50, 8),
    "yassouali-resnet50-os16": _resnet("yassouali", 50, 16),
}


@pytest.fixture(scope="module", autouse=True)
def _quick_comparison() -> Iterator[None]:
    with quick_comparison():
        yield


@contextlib.contextmanager
def narrow_tables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (xception, original_xception):
            patch.setattr(module, "STEM", (8, 12))
        middle = ((24,) * 3,) * 2
        widths = ((16,) * 3, (20,) * 3, (24,) * 3, *middle, (24, 28, 28))
        strides = (2, 2, 2, *(1 for _ in middle), 2)
        blocks = tuple(map(xception.BlockShape, widths, strides))
        patch.setitem(xception.NETWORKS, 65, blocks)
        patch.setattr(xception, "EXIT", (32, 32, 40))
        patch.setattr(
            original_xception, "BLOCKS", ((16,) * 2, (20,) * 2, (24,) * 2, *middle, (24, 28))
        )
        patch.setattr(original_xception, "EXIT", (32, 40))
        yield


@pytest.fixture
def narrow() -> Iterator[None]:
    """The Xceptions with few channels, and two blocks in the middle."""
    with narrow_tables():
        yield


@dataclasses.dataclass(frozen=True)
class Ported:
    """A case, its torch module with random weights, a copy of those, and what the port made of them."""

    case: Case
    module: nn.Module
    state: dict[str, torch.Tensor]
    conversion: Conversion

    @property
    def model(self) -> nnx.Module:
        return self.conversion.model


def original(name: str) -> nn.Module:
    """The torch module of a case with random weights, measured ones where it is to be run."""
    case = CASES[name]
    b, h, w, c = case.shape
    shapes = [(b, c, h, w)] if name in COMPARED else []
    return randomise(without_weights(case.make), *shapes)


@pytest.fixture(scope="module")
def ported(request: pytest.FixtureRequest) -> Ported:
    case = CASES[request.param]
    with narrow_tables():
        module = original(request.param)
        state = copied(module.state_dict())
        conversion = convert(state, output_stride=case.backbone.output_stride)
    return Ported(case, module, state, conversion)


# ---------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("ported", CASES, indirect=True)
def test_names_alone_tell_the_layout_and_the_config(ported, narrow):
    assert ported.conversion.layout.name == ported.case.layout
    assert ported.model.config.backbone == ported.case.backbone
    assert ported.model.config.num_classes == 7


@pytest.mark.parametrize("ported", CASES, indirect=True)
def test_export_has_the_names_and_bits_of_the_checkpoint(ported, narrow):
    exported = to_torch(ported.model, ported.case.layout)
    assert exported.keys() == ported.state.keys()
    for name, tensor in ported.state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(exported[name], tensor), name
            assert exported[name].dtype == tensor.dtype
    ported.module.load_state_dict(exported, strict=True)


@pytest.mark.parametrize("ported", COMPARED, indirect=True)
def test_every_layer_agrees_with_the_original(ported, narrow):
    assert_agrees(verify(ported.model, ported.module, images(*ported.case.shape)))


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("jfzhang-xception-os16", "backbone.block4.rep.1.bn.running_var"),
        ("yassouali-xception-os16", "backbone.bn5.bias"),
        ("bubbliiiing-xception-os16", "aspp.branch5_conv.bias"),
        ("vainf-v3plus-xception-os16", "backbone.conv3.conv1.weight"),
        ("jfzhang-mobilenet-os16", "backbone.high_level_features.17.conv.7.bias"),
    ],
)
def test_a_missing_and_an_unknown_tensor_are_refused(narrow, name, gone):
    state = original(name).state_dict()
    with pytest.raises(CheckpointError, match=r"1 unknown: backbone\.block99\.weight"):
        convert(state | {"backbone.block99.weight": torch.zeros(1)})
    del state[gone]
    with pytest.raises(CheckpointError, match=f"1 missing: {re.escape(gone)}"):
        convert(state)


def test_yassouali_under_data_parallel_with_voc_preprocessing(narrow):
    state = original("yassouali-xception-os16").state_dict()
    parallel = {"arch": "DeepLab", "epoch": 3}
    parallel["state_dict"] = {f"module.{name}": tensor for name, tensor in state.items()}
    model = load_torch(parallel)
    assert model.config.backbone.output_stride == 16
    assert model.config.preprocessing == MEAN_STD["voc"]
    other = load_torch(parallel, preprocessing=MEAN_STD["cityscapes"])
    exported = to_torch(other, "yassouali")
    assert all(torch.equal(exported[name], state[name]) for name in state if "num_b" not in name)


def test_bubbliiiing_images_are_scaled_to_one_and_no_more(narrow):
    model = load_torch(original("bubbliiiing-xception-os16").state_dict())
    assert set(model.config.preprocessing.mean) == {0.0}
    assert set(model.config.preprocessing.std) == {1.0}


def test_a_quirk_that_the_code_does_not_have_is_not_exported(narrow):
    model = load_torch(original("jfzhang-xception-os16").state_dict())
    with pytest.raises(ValueError, match=r"low is 'block1_relu' here and 'block1' there"):
        to_torch(model, "yassouali")


# ---- two names for one tensor


def test_of_two_names_that_disagree_the_one_that_pytorch_loads_last_counts():
    module = original("jfzhang-mobilenet-os16")
    state = copied(module.state_dict())
    name = "backbone.features.0.0.weight"
    state[name] = torch.zeros_like(state[name])
    module.load_state_dict(state)
    conversion = convert(state)
    exported = to_torch(conversion.model, "jfzhang")
    loaded = module.state_dict()
    assert loaded[name].abs().min() > 0
    assert all(torch.equal(exported[n], loaded[n]) for n in loaded if "num_batches" not in n)
    assert any("1 tensors whose second name has other values" in x for x in conversion.dropped)
    assert any(name in line for line in conversion.dropped)


def test_equal_values_under_two_names_are_no_news():
    conversion = convert(original("jfzhang-mobilenet-os16").state_dict())
    assert not any("second name" in line for line in conversion.dropped)


# ---- the networks themselves


def rates(config: BackboneConfig) -> list[int]:
    backbone = nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0)))
    return [layer.dilation for layer in backbone.spatial_layers()]


def test_atrous_rates_of_jfzhangs_mobilenet():
    # blocks 7-10, 11-13, 14-16 and 17, after the stem's and six blocks'
    quirks = {"dilated_blocks": "none", "pad_before_expand": True}
    assert rates(MobileNetV2Config(output_stride=16, **quirks))[7:] == [1] * 10 + [2]
    expected = [1] * 4 + [2] * 6 + [4]
    assert rates(MobileNetV2Config(output_stride=8, **quirks))[7:] == expected


@pytest.mark.parametrize(
    ("fields", "middle", "last", "end"),
    [
        ({"output_stride": 32}, 1, [1, 1, 1], 1),
        ({"output_stride": 16}, 1, [1, 1, 1], 2),
        ({"output_stride": 8}, 2, [2, 2, 2], 4),
        ({"output_stride": 8, "dilate_exit_last": False}, 2, [2, 2, 1], 4),
        ({"output_stride": 16, "exit_stride": 1}, 1, [1, 1, 1], 1),
        ({"output_stride": 8, "exit_stride": 1}, 2, [2, 2, 2], 2),
    ],
)
def test_atrous_rates_of_xception(narrow, fields, middle, last, end):
    stem, entry, exits = [1] * 2, [1] * 9, [end] * 3
    assert rates(XceptionConfig(**fields)) == stem + entry + [middle] * 6 + last + exits


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("config", [XceptionConfig, OriginalXceptionConfig])
def test_features_are_at_their_strides(narrow, config, stride):
    def run(images):
        network = config(stride).build(rngs=nnx.Rngs(0))
        network.eval()
        return network(images)

    features = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 193, 257, 3), np.float32))
    channels = nnx.eval_shape(lambda: config(stride).build(rngs=nnx.Rngs(0))).channels
    assert {name: x.shape[-1] for name, x in features.items()} == channels
    heights = {"low": 4, "mid": 8, "aux": 16, "high": 32}
    for name, x in features.items():
        height = 192 // min(heights[name], stride) + 1
        # two unpadded convolutions of the original's stem take a few pixels
        assert height - 2 <= x.shape[1] <= height, name


def test_output_stride_32_needs_the_last_stride():
    with pytest.raises(ValueError, match="output_stride 32 needs the last block's stride"):
        XceptionConfig(32, exit_stride=1)


def test_config_survives_json_and_the_graph_is_hashable(narrow):
    for config in (_rep("jfzhang", 8).backbone, _cadene(8, plus=True).backbone):
        assert from_dict(to_dict(config)) == config
        network = nnx.eval_shape(lambda config=config: config.build(rngs=nnx.Rngs(0)))
        hash(nnx.split(network)[0])


def test_preset():
    config = PRESETS["deeplabv3plus_xception65"]
    assert config.backbone == XceptionConfig()
    assert config.head.separable
    assert config.head.separable_decoder


@pytest.mark.parametrize(
    ("name", "head", "parameters"),
    [  # counted on the originals, with 21 classes
        ("jfzhang-xception-os16", DeepLabV3PlusConfig(), 54_705_317),
        ("vainf-v3plus-xception-os16", DeepLabV3PlusConfig(decoder_convs=1), 37_050_525),
    ],
)
def test_as_many_parameters_as_the_original(name, head, parameters):
    model = build(Config(CASES[name].backbone, head))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters
