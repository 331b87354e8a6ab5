"""VainF's models, put together from torchvision's parts, as small as can be: it is in no package."""

import collections

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

from deeplab_jax.backbones import BackboneConfig, MobileNetV2Config, ResNetConfig
from originals.case import V3, V3PLUS, Case, Cases


class VainFBlock(nn.Module):
    """MobileNetV2's block with the zeros around its *input*, before the expansion."""

    def __init__(self, block: nn.Module, stride: int, dilation: int):
        super().__init__()
        self.conv, self.shortcut, self.dilation = block.conv, block.use_res_connect, dilation
        depthwise = self.conv[-3][0]
        depthwise.stride, depthwise.dilation, depthwise.padding = stride, dilation, (0, 0)

    def forward(self, x):
        y = self.conv(F.pad(x, [self.dilation] * 4))
        return x + y if self.shortcut else y


class VainFMobileNetV2(nn.Module):
    # features.{i} where a stage begins: 2, 4, 7 and 14 have stride 2 in the classifier. A stage that
    # lost it starts with the dilation of the stage before and goes on with its own.
    STRIDES = {2: 2, 4: 2, 7: 2, 14: 2}  # noqa: RUF012

    def __init__(self, output_stride: int):
        super().__init__()
        blocks = list(torchvision.models.mobilenet_v2().features)[:18]
        blocks[0][0].padding = (0, 0)
        reached, dilation = 2, 1
        for i in range(1, 18):
            stride, previous = self.STRIDES.get(i, 1), dilation
            if reached * stride > output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            blocks[i] = VainFBlock(blocks[i], stride, previous)
        named = [(str(i), block) for i, block in enumerate(blocks)]
        self.low_level_features = nn.Sequential(collections.OrderedDict(named[:4]))
        self.high_level_features = nn.Sequential(collections.OrderedDict(named[4:]))

    def forward(self, x):
        low = self.low_level_features(x)
        return {"low_level": low, "out": self.high_level_features(low)}


class VainFPlusHead(nn.Module):
    def __init__(self, high: int, low: int, classes: int, rates: tuple[int, ...]):
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(low, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU(inplace=True)
        )
        self.aspp = ASPP(high, rates)
        self.classifier = nn.Sequential(
            nn.Conv2d(304, 256, 3, padding=1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, classes, 1),
        )

    def forward(self, features):
        low = self.project(features["low_level"])
        high = F.interpolate(
            self.aspp(features["out"]), low.shape[2:], mode="bilinear", align_corners=False
        )
        return self.classifier(torch.cat([low, high], dim=1))


class VainFV3Head(nn.Module):
    def __init__(self, high: int, classes: int, rates: tuple[int, ...]):
        super().__init__()
        self.classifier = DeepLabHead(high, classes, rates)

    def forward(self, features):
        return self.classifier(features["out"])


class AtrousSeparable(nn.Module):
    """Depthwise at the rate of the convolution that it replaces, then pointwise; nothing between."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        i, o, options = conv.in_channels, conv.out_channels, {"bias": False}
        self.body = nn.Sequential(
            nn.Conv2d(i, i, 3, padding=conv.padding, dilation=conv.dilation, groups=i, **options),
            nn.Conv2d(i, o, 1, **options),
        )

    def forward(self, x):
        return self.body(x)


def make_separable(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
            setattr(module, name, AtrousSeparable(child))
        else:
            make_separable(child)


class VainF(nn.Module):
    """DeepLabv3 or v3+ (`plus`) on ResNet-50 or MobileNetV2."""

    def __init__(
        self,
        backbone: str,
        *,
        plus: bool,
        output_stride: int,
        separable: bool = False,
        classes: int = 7,
    ):
        super().__init__()
        rates = (12, 24, 36) if output_stride == 8 else (6, 12, 18)
        if backbone == "resnet50":
            network = torchvision.models.resnet50(
                replace_stride_with_dilation=[False, output_stride == 8, True]
            )
            taps = {"layer4": "out", "layer1": "low_level"}
            self.backbone = IntermediateLayerGetter(network, taps)
            high, low = 2048, 256
        else:
            self.backbone, high, low = VainFMobileNetV2(output_stride), 320, 24
        if plus:
            self.classifier = VainFPlusHead(high, low, classes, rates)
        else:
            self.classifier = VainFV3Head(high, classes, rates)
        if separable:
            make_separable(self.classifier)

    def forward(self, x):
        logits = self.classifier(self.backbone(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


def _vainf(backbone_config: BackboneConfig, head: type, **options) -> Case:
    backbone = "resnet50" if isinstance(backbone_config, ResNetConfig) else "mobilenet_v2"
    stride = options["output_stride"] = backbone_config.output_stride
    return Case(
        "vainf",
        lambda: VainF(backbone, plus=head is V3PLUS, **options),
        backbone_config,
        head,
        options={"output_stride": stride},
    )


def _v2_vainf(stride: int) -> MobileNetV2Config:
    return MobileNetV2Config(1.0, stride, pad_before_expand=True, stem_padding=0)


COMPARED: Cases = {
    "vainf-v3plus-r50-os16-separable": _vainf(ResNetConfig(50, 16), V3PLUS, separable=True),
    "vainf-v3plus-mbv2-os8": _vainf(_v2_vainf(8), V3PLUS),
    "vainf-v3-mbv2-os16": _vainf(_v2_vainf(16), V3),
}
DEEPER: Cases = {
    "vainf-v3-r50-os8": _vainf(ResNetConfig(50, 8), V3),
    "vainf-v3plus-r50-os16": _vainf(ResNetConfig(50, 16), V3PLUS),
    "vainf-v3plus-mbv2-os16-separable": _vainf(_v2_vainf(16), V3PLUS, separable=True),
}
