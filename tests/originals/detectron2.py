"""detectron2's DeepLab, written out small in torch, named and wired as its own: it is in no package.

One block in each stage, few channels in the head.
"""

import torch
from torch import nn
from torch.nn import functional as F

from deeplab_jax.backbones import ResNetConfig
from originals.case import V3, V3PLUS, Case, Cases

HEAD = 24  # channels


class Conv(nn.Conv2d):
    """A convolution with its norm inside."""

    def __init__(self, cin, cout, kernel=1, stride=1, dilation=1, groups=1, relu=True):
        padding = dilation * (kernel // 2)
        super().__init__(cin, cout, kernel, stride, padding, dilation, groups, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(cout), relu

    def forward(self, x):
        x = self.norm(super().forward(x))
        return F.relu(x) if self.relu else x


class Separable(nn.Module):
    def __init__(self, cin, cout, kernel, dilation=1):
        super().__init__()
        self.depthwise = Conv(cin, cin, kernel, dilation=dilation, groups=cin)
        self.pointwise = Conv(cin, cout)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class Stem(nn.Module):
    def __init__(self, deep):
        super().__init__()
        self.conv1 = Conv(3, 64, 3 if deep else 7, stride=2)
        if deep:
            self.conv2, self.conv3 = Conv(64, 64, 3), Conv(64, 128, 3)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return F.max_pool2d(x, 3, 2, 1)


class Bottleneck(nn.Module):
    def __init__(self, cin, cout, stride, dilation, stride_in_1x1):
        super().__init__()
        strides, inner = (stride, 1) if stride_in_1x1 else (1, stride), cout // 4
        self.shortcut = Conv(cin, cout, stride=stride, relu=False)
        self.conv1 = Conv(cin, inner, stride=strides[0])
        self.conv2 = Conv(inner, inner, 3, stride=strides[1], dilation=dilation)
        self.conv3 = Conv(inner, cout, relu=False)

    def forward(self, x):
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """At output stride 16; the only block of res5 has the first factor of multi-grid, which is 1."""

    def __init__(self, deep):
        super().__init__()
        self.stem, channels = Stem(deep), 128 if deep else 64
        for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (2, 1), (1, 2))):
            width = 256 << stage
            block = Bottleneck(channels, width, stride, dilation, stride_in_1x1=not deep)
            setattr(self, f"res{stage + 2}", nn.Sequential(block))
            channels = width

    def forward(self, x):
        low = self.res2(self.stem(x))
        return low, self.res5(self.res4(self.res3(low)))


class ASPP(nn.Module):
    def __init__(self, window, separable):
        super().__init__()
        pool = nn.AvgPool2d(window, stride=1) if window else nn.AdaptiveAvgPool2d(1)
        atrous = [
            Separable(2048, HEAD, 3, rate) if separable else Conv(2048, HEAD, 3, dilation=rate)
            for rate in (6, 12, 18)
        ]
        image = nn.Sequential(pool, nn.Conv2d(2048, HEAD, 1), nn.ReLU())
        self.convs = nn.ModuleList([Conv(2048, HEAD), *atrous, image])
        self.project = Conv(5 * HEAD, HEAD)

    def forward(self, x):
        *branches, image = (conv(x) for conv in self.convs)
        image = F.interpolate(image, x.shape[2:], mode="bilinear")
        return self.project(torch.cat([*branches, image], dim=1))


class V3Head(nn.Module):
    def __init__(self, window, separable):
        super().__init__()
        self.aspp, self.predictor = ASPP(window, separable), nn.Conv2d(HEAD, 7, 1)

    def forward(self, low, high):
        logits = self.predictor(self.aspp(high))
        return F.interpolate(logits, scale_factor=16, mode="bilinear")


class V3PlusHead(nn.Module):
    def __init__(self, window, separable):
        super().__init__()
        width = HEAD + 12
        fuse = nn.Sequential(Conv(width, HEAD, 3), Conv(HEAD, HEAD, 3))
        low = {
            "project_conv": Conv(256, 12),
            "fuse_conv": Separable(width, HEAD, 5) if separable else fuse,
        }
        aspp = nn.ModuleDict({"project_conv": ASPP(window, separable)})
        self.decoder = nn.ModuleDict({"res2": nn.ModuleDict(low), "res5": aspp})
        self.predictor = nn.Conv2d(HEAD, 7, 1)

    def forward(self, low, high):
        low = self.decoder["res2"]["project_conv"](low)
        high = self.decoder["res5"]["project_conv"](high)
        high = F.interpolate(high, low.shape[2:], mode="bilinear")
        logits = self.predictor(self.decoder["res2"]["fuse_conv"](torch.cat([low, high], dim=1)))
        return F.interpolate(logits, scale_factor=4, mode="bilinear")


class Segmentor(nn.Module):
    def __init__(self, head, *, deep=True, window=None, separable=False):
        super().__init__()
        self.backbone, self.sem_seg_head = ResNet(deep), head(window, separable)

    def forward(self, x):
        return self.sem_seg_head(*self.backbone(x))[:, :, : x.shape[2], : x.shape[3]]


_DEEP = ResNetConfig(
    14,
    16,
    first_block_dilation="same",
    multi_grid=(1, 2, 4),
    stem="deep",
    stem_widths=(64, 64, 128),
)
_PLAIN = ResNetConfig(14, 16, first_block_dilation="same", bottleneck_stride="1x1")

COMPARED: Cases = {
    "detectron2-v3plus-deep-windows": Case(
        "detectron2",
        lambda: Segmentor(V3PlusHead, window=(2, 4)),
        _DEEP,
        V3PLUS,
        options={"pool_window": (2, 4)},
        shapes=((2, 61, 125, 3),),  # four times eight features
    ),
    "detectron2-v3plus-plain-separable": Case(
        "detectron2",
        lambda: Segmentor(V3PlusHead, deep=False, separable=True),
        _PLAIN,
        V3PLUS,
        options={"pool_window": None},
    ),
    "detectron2-v3-deep": Case(
        "detectron2", lambda: Segmentor(V3Head), _DEEP, V3, options={"pool_window": None}
    ),
}
DEEPER: Cases = {}
