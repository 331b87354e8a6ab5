"""ResNets and their relatives, as torchvision, timm, mmsegmentation and others name them."""

import abc
import dataclasses
import re
from collections.abc import Iterable
from typing import Any, ClassVar

from deeplab_jax.backbones import ResNetConfig, resnet
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones import slim
from port.backbones.base import Naming, register_naming
from port.naming import Names, Shapes, conv_bn, count

LETTERS = {  # timm's, by the widths of a deep stem and the shortcut
    (None, "conv"): "",
    ((32, 32, 64), "conv"): "c",
    ((32, 32, 64), "average"): "d",
    ((64, 64, 128), "average"): "e",
    ((64, 64, 128), "conv"): "s",
    ((24, 32, 64), "average"): "t",
}
SMP_ENCODERS = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "resnext50_32x4d",
    *(f"resnext101_32x{width}d" for width in (4, 8, 16, 32, 48)),
)
OTHERS = {  # networks of the same names that we have not, by what only they have
    "layer1.0.conv1.paths.0.conv.weight": "an SKNet (selective kernels)",
    "layer1.0.conv2.paths.0.conv.weight": "an SKNet (selective kernels)",
    "maxpool.0.weight": "a ResNet-RS (a convolution in place of max pooling)",
}


class TorchvisionResNet(Naming):
    """`conv1`, `layer1` to `layer4`: torchvision's, and all that copied them.

    timm's deep stem is a Sequential `conv1`, and its attention over channels is `se`.
    """

    layouts = (
        *("torchvision", "vainf", "smp", "jfzhang", "yudewang", "unimatch"),
        *("adaptsegnet", "adaptsegnet-multi", "coincheung", "torchvision-classification"),
    )
    family = ResNetConfig
    known = (
        "ResNet, ResNeXt, wide ResNet, SE-ResNet, ECA-ResNet, ResNet-C and -D, ResNeSt and Res2Net"
    )
    classifier: ClassVar = {"classifier": "fc"}
    first: ClassVar = ("conv1.", "bn1.")
    """How the names begin that tell it from other namings."""
    attention: ClassVar = "se"

    def recognises(self, shapes: Shapes) -> bool:
        inner = any(name.startswith("layer1.0.conv1.") for name in shapes)
        first = any(name.startswith(self.first) for name in shapes)
        return inner and first and "transition1.0.0.weight" not in shapes

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        _check_known(shapes)
        stem = [f"{conv}.weight" for conv, _ in self.deep_stem()]
        if deep := stem[1] in shapes:
            fields |= {"stem": "deep", "stem_widths": tuple(shapes[name][0] for name in stem)}
        first = shapes.get(stem[0] if deep else f"{self.plain_stem()[0]}.weight", (64, 3, 7, 7))
        return ResNetConfig(
            _depth(shapes),
            in_channels=first[1],
            attention=self.attention_of(shapes),
            **_middle(shapes) | _shortcut(shapes) | fields,
        )

    def plain_stem(self) -> tuple[str, str]:
        """The stem's convolution and norm."""
        return "conv1", "bn1"

    def deep_stem(self) -> tuple[tuple[str, str], ...]:
        """The same of the three convolutions of a deep stem."""
        return ("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")

    def attention_of(self, shapes: Shapes) -> str:
        """The field `attention`."""
        if f"layer1.0.{self.attention}.fc1.weight" in shapes:
            return "se"
        return "eca" if f"layer1.0.{self.attention}.conv.weight" in shapes else "none"

    def names(self, config: ResNetConfig) -> Names:
        if config.stem == "deep":
            names = {}
            for i, (conv, bn) in enumerate(self.deep_stem()):
                names |= conv_bn(f"stem.{i}", conv, bn)
        else:
            names = dict(zip(("conv1", "bn1"), self.plain_stem(), strict=True))
        for stage, blocks in enumerate(resnet.BLOCKS[config.depth], 1):
            for block in range(blocks):
                at = f"layer{stage}.{block}"
                names |= _block_names(config, at)
                if config.attention == "se":
                    parts = ("fc1", "fc2")
                    names |= {f"{at}.attention.{p}": f"{at}.{self.attention}.{p}" for p in parts}
                elif config.attention == "eca":
                    names[f"{at}.attention.kernel"] = f"{at}.{self.attention}.conv.weight"
            widened = config.bottlenecks or config.stem_channels != resnet.FEATURES["low"]
            if stage > 1 or widened:
                at = f"layer{stage}.0.downsample"
                first = 1 if config.shortcut == "average" else 0  # after the pooling
                names |= conv_bn(at, f"{at}.{first}", f"{at}.{first + 1}")
        return names

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        del shapes
        return ClassifierConfig(dropout=0.0)

    def timm_name(self, config: ResNetConfig) -> str | None:
        """The name that timm's system gives it, whether it has that one or not."""
        if config.bottleneck_stride != "3x3" or config.stem_pool != "around":
            return None
        if config.reduce_first > 1:
            return f"senet{config.depth + 2}"  # two convolutions more in the stem
        widths = config.stem_widths if config.stem == "deep" else None
        if (letter := LETTERS.get((widths, config.shortcut))) is None:
            return None
        groups, width = config.groups, config.width_per_group
        if config.radix:
            usual = (config.radix, groups, width) == (2, 1, 64)
            variant = "" if usual else f"_{config.radix}s{groups}x{width}d"
            return f"resnest{config.depth}{letter}{variant}"
        if config.scale > 1:
            if groups > 1:
                return f"res2next{config.depth}{letter}"
            variant = "" if letter else f"_{width}w_{config.scale}s"
            return f"res2net{config.depth}{letter}{variant}"
        attention = "" if config.attention == "none" else config.attention
        if groups > 1:
            return f"{attention}resnext{config.depth}{letter}_{groups}x{width}d"
        if width > 64:
            return f"{attention}wide_resnet{config.depth}{letter}_{width // 64}"
        return f"{attention}resnet{config.depth}{letter}"

    def smp_name(self, config: ResNetConfig) -> str | None:
        name = self.timm_name(config)
        return name if name in SMP_ENCODERS else None

    def classifier_module(self, config: Config):
        from torchvision import models

        stride = config.backbone.output_stride
        make = getattr(models, self.timm_name(config.backbone) or "", None)
        if make is None or (not config.backbone.bottlenecks and stride < 32):
            return super().classifier_module(config)
        dilated = {"replace_stride_with_dilation": [False, stride == 8, stride <= 16]}
        return make(num_classes=config.num_classes, **(dilated if stride < 32 else {}))


class MMSegResNet(TorchvisionResNet):
    """The same, but where the stem is deep: a Sequential `stem`, with norms and activations in it."""

    layouts = ("mmseg",)
    classifier: ClassVar = {}
    first: ClassVar = ("stem.",)

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        config = super().config(shapes, **fields)
        average = config.shortcut == "average"
        return dataclasses.replace(
            config,
            dilated_average="none" if average else "same",  # over as many pixels as the stride has
            split_pool="after",
        )

    def deep_stem(self) -> tuple[tuple[str, str], ...]:
        return ("stem.0", "stem.1"), ("stem.3", "stem.4"), ("stem.6", "stem.7")


class YassoualiResNet(TorchvisionResNet):
    """torchvision's, but for the first convolution, which is in a Sequential `layer0`."""

    layouts = ("yassouali",)
    classifier: ClassVar = {}
    first: ClassVar = ("layer0.0.", "layer0.1.")

    def plain_stem(self) -> tuple[str, str]:
        return "layer0.0", "layer0.1"


class CadeneSENet(TorchvisionResNet):
    """The SENets of Cadene's pretrained-models, which segmentation_models_pytorch has: `layer0.conv1`.

    They are made as their authors' in Caffe: the windows of the max pooling stick out, and SE-ResNet, the
    one without groups, has its stride in the first 1x1 convolution.
    """

    layouts = ("smp",)
    known = "Cadene's SENets"
    classifier: ClassVar = {}
    first: ClassVar = ("layer0.conv1.", "layer0.bn1.")
    attention: ClassVar = "se_module"

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        config = super().config(shapes, **fields)
        stride = "1x1" if config.groups == 1 else "3x3"
        return dataclasses.replace(config, stem_pool="ceil", bottleneck_stride=stride)

    def plain_stem(self) -> tuple[str, str]:
        return "layer0.conv1", "layer0.bn1"

    def deep_stem(self) -> tuple[tuple[str, str], ...]:
        first, second, third = ((f"layer0.conv{i}", f"layer0.bn{i}") for i in (1, 2, 3))
        return first, second, third

    def timm_name(self, config: ResNetConfig) -> None:
        """None: timm has them, but cannot dilate them."""
        del config

    def smp_name(self, config: ResNetConfig) -> str | None:
        if config.stem_pool != "ceil" or config.attention != "se":
            return None
        if config.reduce_first > 1:
            return f"senet{config.depth + 2}"
        if config.groups == 1:
            return f"se_resnet{config.depth}"
        return f"se_resnext{config.depth}_{config.groups}x{config.width_per_group}d"


def check_strides(network: str) -> None:
    """Raises ValueError for a ResNet of timm's that filters where it strides: weights do not tell.

    Args:
      network: its name, such as "resnetaa50d" or "tu-resnetblur50".
    """
    if re.search(r"resnex?t(aa|blur)", network):
        raise ValueError(
            f"the network is {network}, which averages or blurs before each stride, and we cannot"
        )


# ---------------------------------------------------------------------------- the config from shapes


def _check_known(shapes: Shapes) -> None:
    """Raises ValueError, naming it, for a network that only looks like ours."""
    for name, network in OTHERS.items():
        if name in shapes:
            raise ValueError(f"it is {network}, which is not among the ResNets that we know")
    if not any(name.endswith(".running_mean") for name in shapes):
        raise ValueError(
            "its norms have no running statistics: group norm is not among those we know"
        )


def _depth(shapes: Shapes) -> int:
    blocks = tuple(count(shapes, f"layer{stage}.{{}}.") for stage in (1, 2, 3, 4))
    bottleneck = _bottleneck(shapes)
    known = {
        depth: counts
        for depth, counts in resnet.BLOCKS.items()
        if (depth not in resnet.BASIC) == bottleneck
    }
    depths = [depth for depth, counts in known.items() if counts == blocks]
    if not depths:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(
            f"no ResNet that we know has {blocks} {kind} blocks; there are "
            + ", ".join(f"ResNet-{depth} {counts}" for depth, counts in known.items())
        )
    return depths[0]


def _bottleneck(shapes: Shapes) -> bool:
    return "layer1.0.conv3.weight" in shapes


def _middle(shapes: Shapes) -> dict[str, Any]:
    """Groups, width and the like of the 3x3 convolution of a bottleneck."""
    if not _bottleneck(shapes):
        return {}
    first, out = shapes["layer1.0.conv1.weight"][0], shapes["layer1.0.conv3.weight"][0]
    if "layer1.0.conv2.fc1.weight" in shapes:
        groups = first // shapes["layer1.0.conv2.fc1.weight"][1]
        radix = shapes["layer1.0.conv2.conv.weight"][0] // first
        # Weights do not tell where the pooling is; of timm's, all that are not the paper's have it before.
        pool = "after" if (radix, groups) == (2, 1) else "before"
        fields = {"radix": radix, "split_pool": pool}
        inner = first
    elif "layer1.0.convs.0.weight" in shapes:
        inner, each = shapes["layer1.0.convs.0.weight"][:2]
        groups = inner // each
        fields = {"scale": first // inner}
    else:
        inner, each = shapes["layer1.0.conv2.weight"][:2]
        groups = first // each
        fields = {"reduce_first": max(1, inner // first)}
    if out != 256 or groups < 1 or inner % groups:
        raise ValueError(
            f"the convolutions of its first block have {first}, {inner} and {out} channels, which no "
            "ResNet that we know has (a pruned one perhaps?)"
        )
    return fields | {"groups": groups, "width_per_group": inner // groups}


def _shortcut(shapes: Shapes) -> dict[str, Any]:
    """What shortcuts do where the shape changes."""
    at = "layer2.0.downsample"
    if len(shapes.get(f"{at}.1.weight", ())) == 4:  # behind the pooling, which has index 0
        return {"shortcut": "average"}
    return {"shortcut_kernel": shapes.get(f"{at}.0.weight", (1,))[-1]}


# ---------------------------------------------------------------------------- names


class _RenamedResNet(TorchvisionResNet):
    """torchvision's under other names."""

    classifier: ClassVar = {}

    @abc.abstractmethod
    def _theirs(self, name: str) -> str:
        """The name of a module, from torchvision's."""

    @abc.abstractmethod
    def _torchvisions(self, name: str) -> str:
        """torchvision's name of a tensor, from theirs."""

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        return super().config({self._torchvisions(n): s for n, s in shapes.items()}, **fields)

    def names(self, config: ResNetConfig) -> Names:
        return {path: self._theirs(name) for path, name in super().names(config).items()}

    def timm_name(self, config: ResNetConfig) -> None:
        """None: timm has none with these names."""
        del config


class Kazuto1011ResNet(_RenamedResNet):
    """torchvision's under other names: `layer1` is the stem, `layer2.block1.reduce.conv` a convolution."""

    layouts = ("kazuto1011",)
    parts: ClassVar = {
        "conv1": "reduce.conv",
        "bn1": "reduce.bn",
        "conv2": "conv3x3.conv",
        "bn2": "conv3x3.bn",
        "conv3": "increase.conv",
        "bn3": "increase.bn",
        "downsample.0": "shortcut.conv",
        "downsample.1": "shortcut.bn",
    }
    """torchvision's parts of a block -> theirs."""

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("layer2.block1.reduce.") for name in shapes)

    def _theirs(self, name: str) -> str:
        if (match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name)) is None:
            return {"conv1": "layer1.conv1.conv", "bn1": "layer1.conv1.bn"}[name]
        stage, block, part = match.groups()
        return f"layer{int(stage) + 1}.block{int(block) + 1}.{self.parts[part]}"

    def _torchvisions(self, name: str) -> str:
        if (match := re.fullmatch(r"layer(\d)\.block(\d+)\.(.+)\.(\w+)", name)) is None:
            name = name.replace("layer1.conv1.conv.", "conv1.")
            return name.replace("layer1.conv1.bn.", "bn1.")
        stage, block, part, leaf = match.groups()
        ours = next((ours for ours, theirs in self.parts.items() if theirs == part), part)
        return f"layer{int(stage) - 1}.{int(block) - 1}.{ours}.{leaf}"


class Detectron2ResNet(_RenamedResNet):
    """torchvision's with a norm inside of each convolution: `res2.0.conv1.norm`, and `shortcut`."""

    layouts = ("detectron2",)

    def recognises(self, shapes: Shapes) -> bool:
        return "res2.0.conv1.weight" in shapes and "stem.conv1.weight" in shapes

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        if any(".conv2_offset." in name for name in shapes):
            raise ValueError("its convolutions are deformable, and we have none such")
        return super().config(shapes, **fields)

    def plain_stem(self) -> tuple[str, str]:
        return "stem.conv1", "stem.conv1.norm"

    def deep_stem(self) -> tuple[tuple[str, str], ...]:
        first, second, third = ((f"stem.conv{i}", f"stem.conv{i}.norm") for i in (1, 2, 3))
        return first, second, third

    def _theirs(self, name: str) -> str:
        if (match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name)) is None:
            return name
        stage, block, part = match.groups()
        part = part.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        part = re.sub(r"bn(\d)", r"conv\1.norm", part)
        return f"res{int(stage) + 1}.{block}.{part}"

    def _torchvisions(self, name: str) -> str:
        if (match := re.fullmatch(r"res(\d)\.(\d+)\.(\w+)(\.norm)?\.(\w+)", name)) is None:
            return name
        stage, block, conv, norm, leaf = match.groups()
        if conv == "shortcut":
            conv = "downsample.1" if norm else "downsample.0"
        elif norm:
            conv = conv.replace("conv", "bn")
        return f"layer{int(stage) - 1}.{block}.{conv}.{leaf}"


class SlimResNet(Naming):
    """`resnet_v1_50.block1.unit_1.bottleneck_v1`: the names of TF-slim's variables."""

    layouts = ("google",)
    family = ResNetConfig
    known = "ResNet-50 and 101 (v1 and v1 beta)"

    def recognises(self, shapes: Shapes) -> bool:
        return any(
            re.match(r"resnet_v1_\d+\.block1\.unit_1\.bottleneck_v1\.", name) for name in shapes
        )

    def config(self, shapes: Shapes, **fields) -> ResNetConfig:
        (scope,) = {n.partition(".")[0] for n in shapes if n.startswith("resnet_v1_")}
        stem = [f"{scope}.conv1_{i}.weight" for i in (1, 2, 3)]
        if deep := stem[0] in shapes:
            fields |= {"stem": "deep", "stem_widths": tuple(shapes[name][0] for name in stem)}
        in_channels = shapes[stem[0] if deep else f"{scope}.conv1.weight"][1]
        depth = int(scope.removeprefix("resnet_v1_"))
        return ResNetConfig(depth, in_channels=in_channels, **fields)

    def names(self, config: ResNetConfig) -> Names:
        if config.stem == "deep":
            names = {}
            for i in range(len(config.stem_widths)):
                names |= slim.conv_norm(f"stem.{i}", f"conv1_{i + 1}")
        else:
            names = {"conv1": "conv1", "bn1": "conv1.BatchNorm"}
        for stage, blocks in enumerate(resnet.BLOCKS[config.depth], 1):
            for block in range(blocks):
                ours, unit = f"layer{stage}.{block}", f"block{stage}.unit_{block + 1}.bottleneck_v1"
                for i in (1, 2, 3):
                    names |= {f"{ours}.conv{i}": f"{unit}.conv{i}"}
                    names |= {f"{ours}.bn{i}": f"{unit}.conv{i}.BatchNorm"}
                if block == 0:
                    names |= slim.conv_norm(f"{ours}.downsample", f"{unit}.shortcut")
        return {path: f"resnet_v1_{config.depth}.{name}" for path, name in names.items()}


def _block_names(config: ResNetConfig, at: str) -> Names:
    """The convolutions and norms of a block, without its shortcut."""
    if config.radix:
        names = _plain_names(at, (1, 3))
        names |= conv_bn(f"{at}.conv2", f"{at}.conv2.conv", f"{at}.conv2.bn0")
        parts = {"fc1": "fc1", "fc1_bn": "bn1", "fc2": "fc2"}
        return names | {f"{at}.conv2.{part}": f"{at}.conv2.{p}" for part, p in parts.items()}
    if config.scale > 1:
        names = _plain_names(at, (1, 3))
        for i in range(config.scale - 1):
            names |= conv_bn(f"{at}.conv2.parts.{i}", f"{at}.convs.{i}", f"{at}.bns.{i}")
        return names
    return _plain_names(at, (1, 2, 3) if config.bottlenecks else (1, 2))


def _plain_names(at: str, numbers: Iterable[int]) -> Names:
    return {f"{at}.{part}{i}": f"{at}.{part}{i}" for i in numbers for part in ("conv", "bn")}


def residual_names(layer: str, blocks: int, convs: int, *, shortcut: bool) -> Names:
    """A Sequential of residual blocks; `shortcut`: the first one's has a convolution."""
    names = {}
    for block in range(blocks):
        names |= _plain_names(f"{layer}.{block}", range(1, convs + 1))
    if shortcut:
        prefix = f"{layer}.0.downsample"
        names |= conv_bn(prefix, f"{prefix}.0", f"{prefix}.1")
    return names


register_naming(TorchvisionResNet())
register_naming(MMSegResNet())
register_naming(YassoualiResNet())
register_naming(CadeneSENet())
register_naming(Kazuto1011ResNet())
register_naming(Detectron2ResNet())
register_naming(SlimResNet())
