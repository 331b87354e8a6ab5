"""MnasNet, as torchvision and timm name it."""

from typing import ClassVar

from deeplab_jax.backbones import MnasNetConfig, mnasnet
from deeplab_jax.config import Config
from port.backbones.base import Naming, register_naming
from port.backbones.inverted_residual import (
    TIMM_NORM,
    WIDTHS,
    no_width,
    output_channels,
    same_blocks,
    timm_family,
    timm_names,
    timm_shapes,
    within_stage,
)
from port.naming import Names, Shapes, conv_bn, count

STEM = (0, 3, 6)
"""The convolutions of torchvision's stem and first block among its `layers`; a norm follows each."""
STAGE = 7
"""Stage 1 is the one after this of its `layers`, and so on."""


class _MnasNet(Naming):
    family = MnasNetConfig
    known = "MnasNet"


class TimmMnasNet(_MnasNet):
    """`blocks.{stage}.{block}`, see `inverted_residual.timm_names`."""

    layouts = ("timm",)
    classifier: ClassVar = {"classifier": "classifier"}

    def recognises(self, shapes: Shapes) -> bool:
        return timm_family(shapes) is self.family

    def config(self, shapes: Shapes, **fields) -> MnasNetConfig:
        last = "used" if "conv_head.weight" in shapes else "none"
        fields = TIMM_NORM | {"last_conv": last} | fields
        theirs, in_channels = timm_shapes(shapes), shapes["conv_stem.weight"][1]
        for variant in mnasnet.STAGES:
            for width in WIDTHS:
                if same_blocks(mnasnet.network(variant, width).blocks, theirs):
                    return MnasNetConfig(variant, width, in_channels=in_channels, **fields)
        raise no_width("MnasNet", output_channels(theirs))

    def names(self, config: MnasNetConfig) -> Names:
        network = mnasnet.network(config.variant, config.width)
        names = timm_names(network.blocks, network.stem)
        return names | (conv_bn("last", "conv_head", "bn2") if config.last_conv != "none" else {})

    def timm_name(self, config: MnasNetConfig) -> str | None:
        if config.variant == "small":
            return "mnasnet_small" if config.width == 1 else None
        name = {"b1": "mnasnet", "a1": "semnasnet"}[config.variant]
        return f"{name}_{round(100 * config.width):03d}"


class TorchvisionMnasNet(_MnasNet):
    """`{0..15}`: stem and first block flat, then a Sequential for each stage."""

    layouts = ("torchvision-classification",)
    classifier_prefix = "layers."
    classifier: ClassVar = {"classifier": "classifier.1"}

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith(f"{STAGE + 1}.0.layers.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MnasNetConfig:
        channels = [shapes[f"{STEM[-1]}.weight"][0]]
        for stage in range(1, len(mnasnet.STAGES["b1"])):
            for i in range(count(shapes, f"{STAGE + stage}.{{}}.")):
                channels.append(shapes[f"{STAGE + stage}.{i}.layers.6.weight"][0])
        stem, in_channels, *_ = shapes["0.weight"]
        fields = {"norm_momentum": 1 - 0.9997, "last_conv": "used"} | fields
        for width in WIDTHS:
            network = mnasnet.network("b1", width)
            if (network.stem, output_channels(network.blocks)) == (stem, channels):
                return MnasNetConfig("b1", width, in_channels=in_channels, **fields)
        raise no_width("MnasNet", channels)

    def names(self, config: MnasNetConfig) -> Names:
        stem, depthwise, project = STEM
        names = conv_bn("stem", f"{stem}", f"{stem + 1}")
        names |= conv_bn("blocks.0.depthwise", f"{depthwise}", f"{depthwise + 1}")
        names |= conv_bn("blocks.0.project", f"{project}", f"{project + 1}")
        blocks = mnasnet.network("b1", config.width).blocks
        for i, (block, at) in enumerate(zip(blocks, within_stage(blocks), strict=True)):
            if block.stage > 0:
                theirs = f"{STAGE + block.stage}.{at}.layers"
                for j, part in enumerate(("expand", "depthwise", "project")):
                    conv, bn = f"{theirs}.{3 * j}", f"{theirs}.{3 * j + 1}"
                    names |= conv_bn(f"blocks.{i}.{part}", conv, bn)
        last = STAGE + len(mnasnet.STAGES["b1"])
        return names | (
            conv_bn("last", f"{last}", f"{last + 1}") if config.last_conv != "none" else {}
        )

    def classifier_module(self, config: Config):
        from torchvision import models

        if config.backbone.output_stride < 32:
            return None

        class MNASNet(models.MNASNet):
            """It refuses a state_dict that does not say the version of its format; ours say none."""

            def _load_from_state_dict(self, state, prefix, metadata, *rest):
                versioned = metadata | {"version": self._version}
                super()._load_from_state_dict(state, prefix, versioned, *rest)

        return MNASNet(config.backbone.width, num_classes=config.num_classes)


register_naming(TimmMnasNet())
register_naming(TorchvisionMnasNet())
