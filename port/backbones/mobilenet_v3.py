"""MobileNetV3, as torchvision and timm name it."""

from typing import ClassVar

from deeplab_jax.backbones import MobileNetV3Config, mobilenet_v3
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming, register_naming
from port.backbones.inverted_residual import (
    TIMM_NORM,
    WIDTHS,
    born_in,
    is_timms,
    no_width,
    parts,
    timm_blocks,
    timm_names,
    timm_projections,
)
from port.naming import Names, Shapes, conv_bn, count


def _config(projections: list[int], in_channels: int, **fields) -> MobileNetV3Config:
    """Size and width from the output channels of the blocks."""
    for size in mobilenet_v3.TABLES:
        for width in WIDTHS:
            table = mobilenet_v3.block_table(size, width)
            if [block.channels for block in table] == projections:
                return MobileNetV3Config(size, width, in_channels=in_channels, **fields)
    raise no_width("MobileNetV3", projections)


class _MobileNetV3(Naming):
    family = MobileNetV3Config
    known = "MobileNetV3"


class TorchvisionMobileNetV3(_MobileNetV3):
    """`{0..16}`, blocks as a Sequential called `block`."""

    layouts = ("torchvision", "torchvision-classification")
    classifier_prefix = "features."
    classifier: ClassVar = {"hidden": "classifier.0", "classifier": "classifier.3"}

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("1.block.0.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV3Config:
        parts = {i: count(shapes, f"{i}.block.{{}}.") for i in range(1, count(shapes, "{}."))}
        projections = [shapes[f"{i}.block.{n - 1}.0.weight"][0] for i, n in parts.items() if n]
        return _config(projections, shapes["0.0.weight"][1], **fields)

    def names(self, config: MobileNetV3Config) -> Names:
        names = conv_bn("stem", "0.0", "0.1")
        table = mobilenet_v3.block_table(config.size, config.width)
        channels = mobilenet_v3.stem_channels(config.width)
        for i, block in enumerate(table):
            ours, theirs = f"blocks.{i}", f"{i + 1}.block"
            for at, part in enumerate(parts(block, channels)):
                if part == "se":
                    names |= {f"{ours}.se.{fc}": f"{theirs}.{at}.{fc}" for fc in ("fc1", "fc2")}
                else:
                    names |= conv_bn(f"{ours}.{part}", f"{theirs}.{at}.0", f"{theirs}.{at}.1")
            channels = block.channels
        return names | conv_bn("last", f"{len(table) + 1}.0", f"{len(table) + 1}.1")

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        return ClassifierConfig(shapes.get("classifier.0.weight", (1280,))[0])

    def classifier_module(self, config: Config):
        from torchvision import models

        backbone, stride = config.backbone, config.backbone.output_stride
        if stride == 8:
            return None
        make = getattr(models, f"mobilenet_v3_{backbone.size}")
        options = {"width_mult": backbone.width, "dilated": stride == 16}
        return make(num_classes=config.num_classes, **options)


class TimmMobileNetV3(_MobileNetV3):
    """`blocks.{stage}.{block}`, see `inverted_residual.timm_names`; the last convolution is a stage too."""

    layouts = ("timm",)
    classifier: ClassVar = {"hidden": "conv_head", "classifier": "classifier"}

    def recognises(self, shapes: Shapes) -> bool:
        squeezed = any(name.startswith("blocks.2.0.se.") for name in shapes)
        return is_timms(shapes) and (squeezed or "conv_head.bias" in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileNetV3Config:
        fields = TIMM_NORM | fields
        *projections, _ = timm_projections(shapes)
        return _config(projections, shapes["conv_stem.weight"][1], **fields)

    def names(self, config: MobileNetV3Config) -> Names:
        table = mobilenet_v3.block_table(config.size, config.width)
        stem = mobilenet_v3.stem_channels(config.width)
        last = timm_blocks(table, stem)[-1][0] + 1
        names = timm_names(table, stem)
        return names | conv_bn("last", f"blocks.{last}.0.conv", f"blocks.{last}.0.bn1")

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        return ClassifierConfig(shapes.get("conv_head.weight", (1280,))[0])

    def timm_name(self, config: MobileNetV3Config) -> str:
        name = f"mobilenetv3_{config.size}_{round(100 * config.width):03d}"
        return born_in(config.padding, name)

    def classifier_module(self, config: Config):
        if config.backbone.output_stride < 32:
            return None  # timm dilates it as an extractor of features only
        return super().classifier_module(config)


register_naming(TorchvisionMobileNetV3())
register_naming(TimmMobileNetV3())
