"""ConvNeXt, as torchvision and timm name it, alone and within segmentation_models_pytorch."""

from typing import ClassVar

from deeplab_jax.backbones import ConvNeXtConfig, convnext
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming
from port.naming import Names, Shapes, count


class _ConvNeXt(Naming):
    family = ConvNeXtConfig
    known = "ConvNeXt tiny to large"

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        del shapes
        return ClassifierConfig(dropout=0.0, head_norm_epsilon=1e-6)

    def linear(self, config: ConvNeXtConfig) -> tuple[str, ...]:
        return tuple(
            f"{block}.{part}" for block in _blocks(config) for part in ("expand", "project")
        )

    def channels_last(self, config: ConvNeXtConfig) -> tuple[str, ...]:
        norms = tuple(f"{block}.norm" for block in _blocks(config))
        return norms + self.linear(config)


class TorchvisionConvNeXt(_ConvNeXt):
    """`{0..7}`: the stem, and stages and downsamplings in turn."""

    classifier: ClassVar = {"norm": "classifier.0", "classifier": "classifier.2"}

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("1.0.layer_scale") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> ConvNeXtConfig:
        stem = shapes["0.0.weight"]
        counts = tuple(count(shapes, f"{2 * stage + 1}.{{}}.") for stage in range(4))
        return _config(counts, stem, **fields)

    def names(self, config: ConvNeXtConfig) -> Names:
        names = {"stem.conv": "0.0", "stem.norm": "0.1"}
        for stage in range(1, 4):
            theirs = 2 * stage
            names |= {
                f"stages.{stage}.down.norm": f"{theirs}.0",
                f"stages.{stage}.down.conv": f"{theirs}.1",
            }
        parts = {"depthwise": 0, "norm": 2, "expand": 3, "project": 5}
        for block in _blocks(config):
            _, stage, _, i = block.split(".")
            theirs = f"{2 * int(stage) + 1}.{i}"
            names |= {f"{block}.{part}": f"{theirs}.block.{at}" for part, at in parts.items()}
            names[f"{block}.scale.gamma"] = f"{theirs}.layer_scale"
        return names

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

    classifier: ClassVar = {"norm": "head.norm", "classifier": "head.fc"}
    joint = "."
    """Between `stages` and its number; an extractor of features has them as attributes, `stages_0`."""

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith(f"stages{self.joint}0.blocks.0.conv_dw.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> ConvNeXtConfig:
        stem = shapes[f"stem{self.joint}0.weight"]
        stages = f"stages{self.joint}"
        if f"{stages}0.blocks.0.gamma" not in shapes:
            raise ValueError(
                "it has no layer scale: ConvNeXt-V2 and its kin are not among those we know"
            )
        counts = tuple(count(shapes, f"{stages}{stage}.blocks.{{}}.") for stage in range(4))
        return _config(counts, stem, **fields)

    def names(self, config: ConvNeXtConfig) -> Names:
        names = {"stem.conv": f"stem{self.joint}0", "stem.norm": f"stem{self.joint}1"}
        for stage in range(1, 4):
            theirs = f"stages{self.joint}{stage}.downsample"
            names |= {
                f"stages.{stage}.down.norm": f"{theirs}.0",
                f"stages.{stage}.down.conv": f"{theirs}.1",
            }
        parts = {"depthwise": "conv_dw", "norm": "norm", "expand": "mlp.fc1", "project": "mlp.fc2"}
        for block in _blocks(config):
            _, stage, _, i = block.split(".")
            theirs = f"stages{self.joint}{stage}.blocks.{i}"
            names |= {f"{block}.{part}": f"{theirs}.{called}" for part, called in parts.items()}
            names[f"{block}.scale.gamma"] = f"{theirs}.gamma"
        return names

    def classifier_module(self, config: Config):
        import timm

        return timm.create_model(
            f"convnext_{config.backbone.size}",
            num_classes=config.num_classes,
            in_chans=config.backbone.in_channels,
            output_stride=config.backbone.output_stride,
        )


class TimmFeaturesConvNeXt(TimmConvNeXt):
    """The same as an extractor of features (`features_only`), which has no classifier."""

    classifier: ClassVar = {}
    joint = "_"


def _config(counts: tuple[int, ...], stem: tuple[int, ...], **fields) -> ConvNeXtConfig:
    """The size from the blocks of the stages and the channels of the first."""
    for size, network in convnext.NETWORKS.items():
        if (network.blocks, network.channels[0]) == (counts, stem[0]):
            return ConvNeXtConfig(size, in_channels=stem[1], **fields)
    raise ValueError(
        f"no ConvNeXt that we know has {counts} blocks and {stem[0]} channels at first"
    )


def _blocks(config: ConvNeXtConfig) -> list[str]:
    """The paths of all blocks."""
    counts = convnext.NETWORKS[config.size].blocks
    return [f"stages.{stage}.blocks.{i}" for stage in range(4) for i in range(counts[stage])]
