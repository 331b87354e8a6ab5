"""Reading a backbone's config off the names and shapes of its checkpoint."""

from deeplab_jax.backbones import (
    DRNConfig,
    EfficientNetLiteConfig,
    HRNetConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    ResNetConfig,
    drn,
    efficientnet_lite,
    mobilenet_v2,
    mobilenet_v3,
    resnet,
)
from deeplab_jax.backbones.resnet import Bottleneck
from port.layouts.base import Shapes

WIDTHS = tuple(n / 100 for n in range(5, 305, 5))  # the multipliers that we look for


def within(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The names below `prefix`, without it."""
    return {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}


def count(shapes: Shapes, pattern: str) -> int:
    """How many of `pattern.format(0)`, `pattern.format(1)`, ... begin a name, without a gap."""
    n = 0
    while any(name.startswith(pattern.format(n)) for name in shapes):
        n += 1
    return n


def resnet_config(shapes: Shapes, **fields) -> ResNetConfig:
    """Depth, stem and input channels of a ResNet whose names begin at `conv1` and `layer1`."""
    blocks = tuple(count(shapes, f"layer{stage}.{{}}.") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in shapes
    depths = [d for d, b in resnet.BLOCKS.items() if b == blocks and (d >= 50) == bottleneck]
    if not depths:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(
            f"no ResNet that we know has {blocks} {kind} blocks; there are 18, 34, 50, 101 and 152"
        )
    deep = "stem.0.weight" in shapes
    first = shapes.get("stem.0.weight" if deep else "conv1.weight", (64, 3, 7, 7))
    stem = "deep" if deep else "plain"
    return ResNetConfig(depths[0], stem=stem, in_channels=first[1], **fields)


def mobilenet_v2_config(
    projections: list[int], in_channels: int, *, last: int | None, **fields
) -> MobileNetV2Config:
    """Width of a MobileNetV2 from the output channels of its blocks."""
    for width in WIDTHS:
        if [block.channels for block in mobilenet_v2.block_table(width)] == projections:
            return MobileNetV2Config(
                width, last_conv=last is not None, in_channels=in_channels, **fields
            )
    raise ValueError(_no_width("MobileNetV2", projections))


def mobilenet_v3_config(projections: list[int], in_channels: int, **fields) -> MobileNetV3Config:
    """Size and width of a MobileNetV3 from the output channels of its blocks."""
    for size in mobilenet_v3.TABLES:
        for width in WIDTHS:
            table = mobilenet_v3.block_table(size, width)
            if [block.channels for block in table] == projections:
                return MobileNetV3Config(size, width, in_channels=in_channels, **fields)
    raise ValueError(_no_width("MobileNetV3", projections))


def efficientnet_lite_config(
    projections: list[int], in_channels: int, **fields
) -> EfficientNetLiteConfig:
    """Variant of an EfficientNet-Lite from the output channels of its blocks."""
    for variant in efficientnet_lite.SCALING:
        table = efficientnet_lite.block_table(variant)
        if [block.channels for block in table] == projections:
            return EfficientNetLiteConfig(variant, in_channels=in_channels, **fields)
    raise ValueError(_no_width("EfficientNet-Lite", projections))


def hrnet_config(shapes: Shapes, **fields) -> HRNetConfig:
    """Width and input channels of an HRNetV2."""
    channels = shapes.get("conv1.weight", (64, 3, 3, 3))[1]
    return HRNetConfig(shapes["transition1.0.0.weight"][0], in_channels=channels, **fields)


def drn_config(shapes: Shapes) -> DRNConfig:
    """Variant of a DRN-D, whose names are `layer0.0` to `layer8.0`, from its blocks."""
    bottleneck = "layer3.0.conv3.weight" in shapes
    counts = tuple(count(shapes, f"layer{level}.{{}}.conv1.") for level in (3, 4, 5, 6))
    last = 2 if "layer8.3.weight" in shapes else 1
    for variant, (block_type, known) in drn.VARIANTS.items():
        same = (known[2:6], known[7], block_type is Bottleneck) == (counts, last, bottleneck)
        if same and variant.startswith("d"):
            return DRNConfig(variant, in_channels=shapes.get("layer0.0.weight", (16, 3))[1])
    kind = "bottleneck" if bottleneck else "basic"
    known = ", ".join(v for v in drn.VARIANTS if v.startswith("d"))
    raise ValueError(f"no DRN-D that we know has {counts} {kind} blocks; there are {known}")


def _no_width(family: str, projections: list[int]) -> str:
    return (
        f"no {family} that we know has blocks of {projections} channels: neither a width multiplier "
        "in steps of .05 nor a named variant gives them"
    )


# ---------------------------------------------------------------------------- blocks' outputs


def torchvision_v2_projections(shapes: Shapes) -> list[int]:
    """Output channels of MobileNetV2's blocks: the last convolution of each, one before its norm."""
    return [
        shapes[f"features.{i}.conv.{count(shapes, f'features.{i}.conv.{{}}.') - 2}.weight"][0]
        for i in range(1, 18)
    ]


def flat_v2_projections(shapes: Shapes) -> list[int]:
    """The same where a block is one flat Sequential, see `names.flat_mobilenet_v2_names`."""
    return [shapes[f"features.{i}.conv.{3 if i == 1 else 6}.weight"][0] for i in range(1, 18)]


def torchvision_v3_projections(shapes: Shapes) -> list[int]:
    """Output channels of MobileNetV3's blocks `1.block`, `2.block`, ...: the last convolution of each."""
    parts = {i: count(shapes, f"{i}.block.{{}}.") for i in range(1, count(shapes, "{}."))}
    return [shapes[f"{i}.block.{n - 1}.0.weight"][0] for i, n in parts.items() if n]


def timm_projections(shapes: Shapes) -> list[int]:
    """Output channels of the blocks of timm's MobileNets and EfficientNets."""
    projections = []
    for stage in range(count(shapes, "blocks.{}.")):
        for block in range(count(shapes, f"blocks.{stage}.{{}}.")):
            prefix = f"blocks.{stage}.{block}."
            kinds = ("conv_pwl", "conv", "conv_pw")
            last = next((conv for conv in kinds if f"{prefix}{conv}.weight" in shapes), kinds[-1])
            projections.append(shapes[f"{prefix}{last}.weight"][0])
    return projections
