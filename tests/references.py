"""Torch modules to hold the port against, with weights that leave nothing to chance.

Two of the code bases that we read are in no package. VainF's models are put together here from
torchvision's parts, and the standalone ASPP and decoder are written out, both as small as can be.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

from port import Report

# ---- weights and images ----


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose tensors are shapes only: most of the time that a large one takes goes into drawing
    weights that are thrown away. Code that reads values of tensors on the way gets weights."""
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError:  # torch's own, "no data"; whatever else is wrong is so again
        return make()


def randomise(module: nn.Module, *shapes: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Gives a torch module weights and batch norms that a port can get wrong; returns it in eval mode.

    Fresh batch norms are 0 and 1 and prove nothing; statistics drawn blindly make activations explode
    or die in a deep network, which proves little more. So gains and biases are drawn, the statistics
    are measured on a random batch of `shapes` (`[B, C, H, W]`, one for each input), and then moved.
    Without shapes they are drawn: enough where nothing is computed.
    """
    torch.manual_seed(seed)  # of the dropout too
    module.to_empty(device="cpu")
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.normal_(0, 0.3)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
            norm.num_batches_tracked.zero_()
        if shapes:
            _measure(module, norms, shapes)
    return module.eval()


def _measure(
    module: nn.Module, norms: list[nn.BatchNorm2d], shapes: tuple[tuple[int, ...], ...]
) -> None:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # forget what was there
    module.train()(*(torch.randn(shape) for shape in shapes))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        # Little: a network without its own normalisation multiplies what it is given, layer after layer,
        # and MobileNetV3 more than that.
        mean, var = norm.running_mean, norm.running_var
        mean += 0.1 * var.sqrt() * torch.randn_like(mean)
        # A tenth of the mean at least: the few values of the image-pooling branch may nearly coincide,
        # and dividing by nothing would make noise of rounding.
        var.clamp_(min=var.mean().item() / 10).mul_(torch.empty_like(var).uniform_(0.8, 1.25))


def images(*shape: int, seed: int = 1) -> np.ndarray:
    """Random float32 `[B, H, W, C]`."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run_torch(module: nn.Module, *inputs: np.ndarray):
    """The module's output for inputs `[B, H, W, C]`, as the module has it."""
    with torch.no_grad():
        return module(*(torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous() for x in inputs))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().transpose(0, 2, 3, 1)


def relative_error(value: jax.Array | np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the largest value."""
    value = np.asarray(value)
    assert value.shape == reference.shape
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


# ---- running the comparison ----


@contextlib.contextmanager
def quick_comparison() -> Iterator[None]:
    """Settings that are faster for many small networks, each run once.

    XLA skips its optimisations, which compiles a network in half to an eighth of the time; the
    program computes the same, only slower on larger images. Torch's threads would spin
    while XLA's work, which on a busy machine doubles the time.
    """
    flag, threads = "jax_disable_most_optimizations", torch.get_num_threads()
    before = jax.config.read(flag)
    jax.config.update(flag, True)
    torch.set_num_threads(1)
    yield
    jax.config.update(flag, before)
    torch.set_num_threads(threads)


def assert_agrees(report: Report) -> None:
    """Every layer within the rounding of PyTorch itself, and the classes of (nearly) all pixels.

    verify's own bar for the classes is set for photographs: of the few thousand pixels of a test,
    one or two that fall the other way may be ties of random logits, so that it is one in a thousand here.
    """
    assert report.first_difference is None, report.to_json()
    assert report.agreement is None or report.agreement >= 0.999


# ---- VainF/DeepLabV3Plus-Pytorch ----


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


# ---- ASPP and decoder alone ----


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
