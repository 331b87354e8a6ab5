"""ConvNeXt, as torchvision and timm name it, alone and within segmentation_models_pytorch."""

import abc
from collections.abc import Mapping
from typing import ClassVar

from deeplab_jax.backbones import ConvNeXtConfig, convnext
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming, register_naming
from port.naming import Names, Shapes, count


class _ConvNeXt(Naming):
    """What the namings share.

    Attributes:
      parts: our parts of a block -> theirs.
      scale: what a block's layer scale is called.
    """

    family = ConvNeXtConfig
    known = "ConvNeXt tiny to large"
    parts: ClassVar[Mapping[str, str]]
    scale: ClassVar[str]

    @abc.abstractmethod
    def stem(self, at: int) -> str:
        """The stem's convolution (0) or norm (1)."""

    @abc.abstractmethod
    def down(self, stage: int) -> str:
        """The downsampling before a stage."""

    @abc.abstractmethod
    def block(self, stage: int, i: int | str) -> str:
        """A block of a stage."""

    def config(self, shapes: Shapes, **fields) -> ConvNeXtConfig:
        """The size from the blocks of the stages and the channels of the first."""
        channels, in_channels, *_ = shapes[f"{self.stem(0)}.weight"]
        counts = tuple(count(shapes, f"{self.block(stage, '{}')}.") for stage in range(4))
        for size, network in convnext.NETWORKS.items():
            if (network.blocks, network.channels[0]) == (counts, channels):
                return ConvNeXtConfig(size, in_channels=in_channels, **fields)
        raise ValueError(
            f"no ConvNeXt that we know has {counts} blocks and {channels} channels at first"
        )

    def names(self, config: ConvNeXtConfig) -> Names:
        names = {"stem.conv": self.stem(0), "stem.norm": self.stem(1)}
        for stage in range(1, 4):
            for at, part in enumerate(("norm", "conv")):
                names[f"stages.{stage}.down.{part}"] = f"{self.down(stage)}.{at}"
        for block in _blocks(config):
            _, stage, _, i = block.split(".")
            theirs = self.block(int(stage), i)
            names |= {
                f"{block}.{part}": f"{theirs}.{called}" for part, called in self.parts.items()
            }
            names[f"{block}.scale.gamma"] = f"{theirs}.{self.scale}"
        return names

    def linear(self, config: ConvNeXtConfig) -> tuple[str, ...]:
        return tuple(
            f"{block}.{part}" for block in _blocks(config) for part in ("expand", "project")
        )

    def channels_last(self, config: ConvNeXtConfig) -> tuple[str, ...]:
        norms = tuple(f"{block}.norm" for block in _blocks(config))
        return norms + self.linear(config)

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        del shapes
        return ClassifierConfig(dropout=0.0, head_norm_epsilon=1e-6)


class TorchvisionConvNeXt(_ConvNeXt):
    """`{0..7}`: the stem, and stages and downsamplings in turn."""

    layouts = ("torchvision-classification",)
    classifier_prefix = "features."
    classifier: ClassVar = {"norm": "classifier.0", "classifier": "classifier.2"}
    parts: ClassVar = {
        "depthwise": "block.0",
        "norm": "block.2",
        "expand": "block.3",
        "project": "block.5",
    }
    scale = "layer_scale"

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("1.0.layer_scale") for name in shapes)

    def stem(self, at: int) -> str:
        return f"0.{at}"

    def down(self, stage: int) -> str:
        return f"{2 * stage}"

    def block(self, stage: int, i: int | str) -> str:
        return f"{2 * stage + 1}.{i}"

    def reshaped(self, config: ConvNeXtConfig) -> dict[str, tuple[int, ...]]:
        widths = convnext.NETWORKS[config.size].channels
        return {
            f"{block}.scale.gamma": (widths[int(block.split(".")[1])], 1, 1)
            for block in _blocks(config)
        }

    def classifier_module(self, config: Config):
        from torchvision import models

        if config.backbone.output_stride < 32:
            return None
        return getattr(models, f"convnext_{config.backbone.size}")(num_classes=config.num_classes)


class TimmConvNeXt(_ConvNeXt):
    """`stem`, `stages.{0..3}`, each with a `downsample` but the first, and `blocks`."""

    layouts = ("timm",)
    classifier: ClassVar = {"norm": "head.norm", "classifier": "head.fc"}
    parts: ClassVar = {
        "depthwise": "conv_dw",
        "norm": "norm",
        "expand": "mlp.fc1",
        "project": "mlp.fc2",
    }
    scale = "gamma"
    joint = "."
    """Between `stages` and its number; an extractor of features has them as attributes, `stages_0`."""

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith(f"{self.block(0, 0)}.conv_dw.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> ConvNeXtConfig:
        if f"{self.block(0, 0)}.gamma" not in shapes:
            raise ValueError(
                "it has no layer scale: ConvNeXt-V2 and its kin are not among those we know"
            )
        return super().config(shapes, **fields)

    def stem(self, at: int) -> str:
        return f"stem{self.joint}{at}"

    def down(self, stage: int) -> str:
        return f"stages{self.joint}{stage}.downsample"

    def block(self, stage: int, i: int | str) -> str:
        return f"stages{self.joint}{stage}.blocks.{i}"

    def timm_name(self, config: ConvNeXtConfig) -> str:
        return f"convnext_{config.size}"


class TimmFeaturesConvNeXt(TimmConvNeXt):
    """The same as an extractor of features (`features_only`), which has no classifier."""

    layouts = ("smp",)
    classifier: ClassVar = {}
    joint = "_"


def _blocks(config: ConvNeXtConfig) -> list[str]:
    """The paths of all blocks."""
    counts = convnext.NETWORKS[config.size].blocks
    return [f"stages.{stage}.blocks.{i}" for stage in range(4) for i in range(counts[stage])]


register_naming(TorchvisionConvNeXt())
register_naming(TimmConvNeXt())
register_naming(TimmFeaturesConvNeXt())
