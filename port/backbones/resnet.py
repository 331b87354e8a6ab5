"""ResNets, as torchvision, timm and mmsegmentation name them, and as yassouali does."""

from typing import ClassVar

from deeplab_jax.backbones import ResNetConfig, resnet
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming, register_naming
from port.naming import Names, Shapes, conv_bn, count


class TorchvisionResNet(Naming):
    """`conv1`, `layer1` to `layer4`: torchvision's, and all that copied them.

    mmsegmentation's v1c has a Sequential `stem` in place of `conv1`.
    """

    layouts = ("torchvision", "vainf", "smp", "mmseg", "jfzhang", "torchvision-classification")
    family = ResNetConfig
    known = "ResNet-18 to 152"
    classifier: ClassVar = {"classifier": "fc"}

    def recognises(self, shapes: Shapes) -> bool:
        inner = any(name.startswith("layer1.0.conv1.") for name in shapes)
        first = any(name.startswith(("conv1.weight", "bn1.", "stem.")) for name in shapes)
        return inner and first and "transition1.0.0.weight" not in shapes

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        deep = "stem.0.weight" in shapes
        first = shapes.get("stem.0.weight" if deep else "conv1.weight", (64, 3, 7, 7))
        stem = "deep" if deep else "plain"
        return ResNetConfig(_depth(shapes), stem=stem, in_channels=first[1], **fields)

    def names(self, config: ResNetConfig) -> Names:
        names = {"conv1": "conv1", "bn1": "bn1"}
        if config.stem == "deep":  # conv, norm and ReLU thrice in one Sequential
            names = {}
            for i in range(3):
                names |= conv_bn(f"stem.{i}", f"stem.{3 * i}", f"stem.{3 * i + 1}")
        convs = 2 if config.depth < 50 else 3
        for stage, blocks in enumerate(resnet.BLOCKS[config.depth], 1):
            names |= residual_names(
                f"layer{stage}", blocks, convs, shortcut=stage > 1 or convs == 3
            )
        return names

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        del shapes
        return ClassifierConfig(dropout=0.0)

    def timm_name(self, config: ResNetConfig) -> str | None:
        return f"resnet{config.depth}" if config.stem == "plain" else None

    def smp_name(self, config: ResNetConfig) -> str | None:
        return self.timm_name(config)

    def classifier_module(self, config: Config):
        from torchvision import models

        depth, stride = config.backbone.depth, config.backbone.output_stride
        if depth < 50 and stride < 32:
            return None
        dilated = {"replace_stride_with_dilation": [False, stride == 8, stride <= 16]}
        make = getattr(models, f"resnet{depth}")
        return make(num_classes=config.num_classes, **(dilated if stride < 32 else {}))


class YassoualiResNet(TorchvisionResNet):
    """torchvision's, but for the first convolution, which is in a Sequential `layer0`."""

    layouts = ("yassouali",)
    classifier: ClassVar = {}

    def recognises(self, shapes: Shapes) -> bool:
        inner = any(name.startswith("layer1.0.conv1.") for name in shapes)
        return inner and any(name.startswith("layer0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        channels = shapes["layer0.0.weight"][1]
        return ResNetConfig(_depth(shapes), in_channels=channels, **fields)

    def names(self, config: ResNetConfig) -> Names:
        return super().names(config) | {"conv1": "layer0.0", "bn1": "layer0.1"}


def _depth(shapes: Shapes) -> int:
    blocks = tuple(count(shapes, f"layer{stage}.{{}}.") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in shapes
    depths = [d for d, b in resnet.BLOCKS.items() if b == blocks and (d >= 50) == bottleneck]
    if not depths:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(
            f"no ResNet that we know has {blocks} {kind} blocks; there are 18, 34, 50, 101 and 152"
        )
    return depths[0]


def residual_names(layer: str, blocks: int, convs: int, *, shortcut: bool) -> Names:
    """A Sequential of residual blocks; `shortcut`: the first one's has a convolution."""
    names = {}
    for block in range(blocks):
        for i in range(1, convs + 1):
            names |= {
                f"{layer}.{block}.{part}{i}": f"{layer}.{block}.{part}{i}"
                for part in ("conv", "bn")
            }
    if shortcut:
        prefix = f"{layer}.0.downsample"
        names |= conv_bn(prefix, f"{prefix}.0", f"{prefix}.1")
    return names


register_naming(TorchvisionResNet())
register_naming(YassoualiResNet())
