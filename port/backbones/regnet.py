"""RegNetX and RegNetY, as timm and torchvision name them."""

import abc
from collections.abc import Mapping
from typing import ClassVar

from deeplab_jax.backbones import RegNetConfig, regnet
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming, register_naming
from port.naming import Names, Shapes, conv_bn

TORCHVISIONS = {  # our variants -> torchvision's names, behind "regnet_"
    "x_004_tv": "x_400mf",
    "x_008": "x_800mf",
    "x_016": "x_1_6gf",
    "x_032": "x_3_2gf",
    "x_080": "x_8gf",
    "x_160": "x_16gf",
    "x_320": "x_32gf",
    "y_004": "y_400mf",
    "y_008_tv": "y_800mf",
    "y_016": "y_1_6gf",
    "y_032": "y_3_2gf",
    "y_080_tv": "y_8gf",
    "y_160": "y_16gf",
    "y_320": "y_32gf",
    "y_1280": "y_128gf",
}


class _RegNet(Naming):
    """What the namings share.

    Attributes:
      stem: the stem's convolution and norm.
      parts: our parts of a block -> theirs.
      pair: what the convolution and the norm of a part are called.
    """

    family = RegNetConfig
    known = "RegNetX and RegNetY"
    stem: ClassVar[tuple[str, str]]
    parts: ClassVar[Mapping[str, str]]
    pair: ClassVar[tuple[str, str]]

    @abc.abstractmethod
    def block(self, stage: int, i: int) -> str:
        """A block of a stage, both counted from 0."""

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith(f"{self.block(0, 0)}.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> RegNetConfig:
        """The variant from the blocks and channels of the stages, the groups, and squeeze-excite."""
        first = f"{self.block(0, 0)}.{self.parts['conv1']}"
        if not any(n.startswith(f"{first}.") and n.endswith(".running_mean") for n in shapes):
            raise ValueError(
                "its norms are before the convolutions, or have no running statistics: RegNetV and "
                "RegNets with group norm are not among those we know"
            )
        blocks = tuple(self._count(shapes, stage) for stage in range(4))
        at = [f"{self.block(stage, 0)}." for stage in range(4)]
        conv2, conv3 = (f"{self.parts[part]}.{self.pair[0]}.weight" for part in ("conv2", "conv3"))
        channels = tuple(shapes[f"{block}{conv3}"][0] for block in at)
        if (inside := shapes[f"{at[0]}{conv2}"][0]) != channels[0]:
            raise ValueError(
                f"its first block has {inside} channels inside and {channels[0]} outside: RegNetZ is "
                "not among those we know"
            )
        kind = "y" if f"{at[0]}{self.parts['attention']}.fc1.weight" in shapes else "x"
        group_width = shapes[f"{at[3]}{conv2}"][1]
        in_channels = shapes.get(f"{self.stem[0]}.weight", (32, 3))[1]
        found = regnet.Network(blocks, channels, group_width)
        for variant, network in regnet.NETWORKS.items():
            if variant.startswith(kind) and network == found:
                return RegNetConfig(variant, in_channels=in_channels, **fields)
        raise ValueError(
            f"no RegNet{kind.upper()} that we know has {blocks} blocks of {channels} channels in groups "
            f"of {group_width}"
        )

    def names(self, config: RegNetConfig) -> Names:
        names = conv_bn("stem", *self.stem)
        for stage, blocks in enumerate(regnet.NETWORKS[config.variant].blocks):
            for i in range(blocks):
                ours, theirs = f"layer{stage + 1}.{i}", self.block(stage, i)
                for part in ("conv1", "conv2", "conv3", *(["downsample"] if i == 0 else [])):
                    called = f"{theirs}.{self.parts[part]}"
                    names |= conv_bn(f"{ours}.{part}", *(f"{called}.{of}" for of in self.pair))
                if config.squeeze_excite:
                    called = f"{theirs}.{self.parts['attention']}"
                    names |= {f"{ours}.attention.{fc}": f"{called}.{fc}" for fc in ("fc1", "fc2")}
        return names

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        del shapes
        return ClassifierConfig(dropout=0.0)

    def _count(self, shapes: Shapes, stage: int) -> int:
        """Blocks of a stage."""
        n = 0
        while any(name.startswith(f"{self.block(stage, n)}.") for name in shapes):
            n += 1
        return n


class TimmRegNet(_RegNet):
    """`s1` to `s4`, each of `b1`, `b2`, ..."""

    layouts = ("smp", "timm")
    classifier: ClassVar = {"classifier": "head.fc"}
    stem = ("stem.conv", "stem.bn")
    parts: ClassVar = {
        **{part: part for part in ("conv1", "conv2", "conv3", "downsample")},
        "attention": "se",
    }
    pair = ("conv", "bn")

    def block(self, stage: int, i: int) -> str:
        return f"s{stage + 1}.b{i + 1}"

    def timm_name(self, config: RegNetConfig) -> str:
        return f"regnet{config.variant}"


class TorchvisionRegNet(_RegNet):
    """`trunk_output.block{1..4}`, each of `block1-0`, `block1-1`, ... with `f` and `proj`."""

    layouts = ("torchvision-classification",)
    classifier: ClassVar = {"classifier": "fc"}
    stem = ("stem.0", "stem.1")
    parts: ClassVar = {
        "conv1": "f.a",
        "conv2": "f.b",
        "attention": "f.se",
        "conv3": "f.c",
        "downsample": "proj",
    }
    pair = ("0", "1")

    def block(self, stage: int, i: int) -> str:
        return f"trunk_output.block{stage + 1}.block{stage + 1}-{i}"

    def classifier_module(self, config: Config):
        from torchvision import models

        name = TORCHVISIONS.get(config.backbone.variant)
        if name is None or config.backbone.output_stride < 32:
            return None
        return getattr(models, f"regnet_{name}")(num_classes=config.num_classes)


register_naming(TimmRegNet())
register_naming(TorchvisionRegNet())
