"""ASPP and Decoder as two modules alone, written out."""

import torch
from torch import nn
from torch.nn import functional as F

from deeplab_jax.config import FeaturesConfig
from originals.case import V3PLUS, Case, Cases


class StandaloneASPP(nn.Module):
    def __init__(self, channels: int, output_stride: int):
        super().__init__()
        branches = [nn.Conv2d(channels, 256, 1, bias=False)]
        for rate in (12, 24, 36) if output_stride == 8 else (6, 12, 18):
            branches.append(nn.Conv2d(channels, 256, 3, padding=rate, dilation=rate, bias=False))
        for i, conv in enumerate(branches, 1):
            setattr(self, f"aspp{i}", nn.Sequential(conv, nn.BatchNorm2d(256), nn.ReLU()))
        self.avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, 256, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(),
        )
        self.conv1, self.bn1 = nn.Conv2d(1280, 256, 1, bias=False), nn.BatchNorm2d(256)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x)]
        pooled = F.interpolate(self.avg_pool(x), x.shape[2:], mode="bilinear", align_corners=True)
        fused = self.conv1(torch.cat([*branches, pooled], dim=1))
        return self.dropout(F.relu(self.bn1(fused)))


class StandaloneDecoder(nn.Module):
    def __init__(self, low_level_channels: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(low_level_channels, 48, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(48)
        self.output = nn.Sequential(
            nn.Conv2d(304, 256, 3, padding=1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.Conv2d(256, classes, 1),
        )

    def forward(self, x, low):
        low = F.relu(self.bn1(self.conv1(low)))
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=True)
        return self.output(torch.cat([low, x], dim=1))


class Standalone(nn.Module):
    """High-level and low-level features -> logits at the size of the latter."""

    def __init__(self, high: int, low: int, output_stride: int, classes: int = 7):
        super().__init__()
        self.aspp = StandaloneASPP(high, output_stride)
        self.decoder = StandaloneDecoder(low, classes)

    def forward(self, high, low):
        return self.decoder(self.aspp(high), low)


def _standalone(stride: int) -> Case:
    return Case(
        "standalone",
        lambda: Standalone(160, 24, stride),
        FeaturesConfig(160, 24, stride),
        V3PLUS,
        options={"output_stride": stride},
        shapes=((2, 9, 13, 160), (2, 33, 49, 24)),
    )


COMPARED: Cases = {
    "standalone-os16": _standalone(16),
    "standalone-os8": _standalone(8),
}

DEEPER: Cases = {}
