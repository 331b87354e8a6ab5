"""Names that several families share, as tables from our modules to theirs."""

import itertools

from deeplab_jax.backbones import (
    DRNConfig,
    EfficientNetLiteConfig,
    HRNetConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    OriginalXceptionConfig,
    ResNetConfig,
    XceptionConfig,
    drn,
    efficientnet_lite,
    hrnet,
    mobilenet_v2,
    mobilenet_v3,
    original_xception,
    resnet,
    xception,
)
from deeplab_jax.backbones.resnet import Bottleneck
from deeplab_jax.layers import ConvNormAct
from port.layouts.base import Names


def conv_bn(ours: str, conv: str, bn: str) -> Names:
    """A convolution and its batch norm."""
    return {f"{ours}.conv": conv, f"{ours}.bn": bn}


def under(ours: str, theirs: str, names: Names) -> Names:
    """The table one level down on both sides; an empty `theirs` is the top level."""
    theirs = f"{theirs}." if theirs else ""
    return {f"{ours}.{path}": theirs + name for path, name in names.items()}


# ---------------------------------------------------------------------------- backbones


def resnet_names(config: ResNetConfig) -> Names:
    """torchvision, timm, and all that copied them."""
    names = {"conv1": "conv1", "bn1": "bn1"}
    if config.stem == "deep":  # conv, norm and ReLU thrice in one Sequential
        names = {}
        for i in range(3):
            names |= conv_bn(f"stem.{i}", f"stem.{3 * i}", f"stem.{3 * i + 1}")
    convs = 2 if config.depth < 50 else 3
    for stage, blocks in enumerate(resnet.BLOCKS[config.depth], 1):
        names |= residual_names(f"layer{stage}", blocks, convs, shortcut=stage > 1 or convs == 3)
    return names


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


def drn_names(config: DRNConfig) -> Names:
    """DRN-D as its authors' `drn.py` has it: `layer0` to `layer8`, each a Sequential."""
    names = conv_bn("layer0", "layer0.0", "layer0.1")
    counts, types = drn.VARIANTS[config.variant][1], drn.block_types(config.variant)
    for level, (count, block_type) in enumerate(zip(counts, types, strict=True), 1):
        layer = f"layer{level}"
        if block_type is ConvNormAct:  # with its ReLU, three modules in a row
            for i in range(count):
                names |= conv_bn(f"{layer}.{i}", f"{layer}.{3 * i}", f"{layer}.{3 * i + 1}")
        else:
            convs = 3 if block_type is Bottleneck else 2
            names |= residual_names(layer, count, convs, shortcut=True)
    return names


def hrnet_names(config: HRNetConfig) -> Names:
    """VainF's HRNetV2. Its `transition{n}` makes the new streams of stage n + 1."""
    del config  # the width changes no name
    names = conv_bn("stem.0", "conv1", "bn1") | conv_bn("stem.1", "conv2", "bn2")
    names |= residual_names("layer1", hrnet.BLOCKS, 3, shortcut=True)
    names |= conv_bn("stage2.transition.0", "transition1.0.0", "transition1.0.1")
    names |= conv_bn("stage2.transition.1", "transition1.1.0.0", "transition1.1.0.1")
    for stage in (3, 4):
        theirs = f"transition{stage - 1}"
        names |= conv_bn(f"stage{stage}.transition.0", f"{theirs}.0", f"{theirs}.1")
    for stage, units in hrnet.UNITS.items():
        for unit in range(units):
            ours, theirs = f"stage{stage}.units.{unit}", f"stage{stage}.{unit}"
            for i in range(stage):
                blocks = residual_names(f"{i}", hrnet.BLOCKS, 2, shortcut=False)
                names |= under(f"{ours}.streams", f"{theirs}.branches", blocks)
                for j in range(stage):
                    to, path = f"{ours}.fuse.{i}.{j}", f"{theirs}.fuse_layers.{i}.{j}"
                    if j > i:
                        names |= conv_bn(f"{to}.0", f"{path}.0", f"{path}.1")
                    for step in range(i - j):
                        names |= conv_bn(f"{to}.{step}", f"{path}.{step}.0", f"{path}.{step}.1")
    return names


def mobilenet_v2_names(config: MobileNetV2Config) -> Names:
    """torchvision's: `features.{0..18}`, blocks as nested Sequentials called `conv`."""
    names = conv_bn("stem", "features.0.0", "features.0.1")
    blocks = len(mobilenet_v2.block_table(config.width))
    for i in range(blocks):
        ours, theirs = f"blocks.{i}", f"features.{i + 1}.conv"
        parts = ["depthwise"] if i == 0 else ["expand", "depthwise"]  # the first expands nothing
        for at, part in enumerate(parts):
            names |= conv_bn(f"{ours}.{part}", f"{theirs}.{at}.0", f"{theirs}.{at}.1")
        at = len(parts)
        names |= conv_bn(f"{ours}.project", f"{theirs}.{at}", f"{theirs}.{at + 1}")
    if config.last_conv:
        names |= conv_bn("last", f"features.{blocks + 1}.0", f"features.{blocks + 1}.1")
    return names


def flat_mobilenet_v2_names(config: MobileNetV2Config) -> Names:
    """`features.{0..17}`, blocks as one flat Sequential called `conv` (jfzhang, bubbliiiing)."""
    names = conv_bn("stem", "features.0.0", "features.0.1")
    for i in range(len(mobilenet_v2.block_table(config.width))):
        parts = ["depthwise", "project"] if i == 0 else ["expand", "depthwise", "project"]
        for at, part in enumerate(parts):  # convolution, norm and ReLU of each
            conv = f"features.{i + 1}.conv.{3 * at}"
            names |= conv_bn(f"blocks.{i}.{part}", conv, f"features.{i + 1}.conv.{3 * at + 1}")
    return names


def xception_names(
    config: XceptionConfig | OriginalXceptionConfig, *, without_relu: tuple[int, ...] = (1,)
) -> Names:
    """`block{1..20}`, each with a Sequential `rep` (Cadene's; jfzhang and yassouali copied it).

    Args:
      without_relu: the blocks whose `rep` begins with a convolution, not with a ReLU.
    """
    aligned = isinstance(config, XceptionConfig)
    network = xception if aligned else original_xception
    names = conv_bn("stem.0", "conv1", "bn1") | conv_bn("stem.1", "conv2", "bn2")
    places = []  # of each separable convolution and the norm after it
    for number, (before, widths) in enumerate(
        itertools.pairwise([xception.STEM, *network.BLOCKS]), 1
    ):
        ours, theirs = f"blocks.{number - 1}", f"block{number}"
        for i in range(len(widths)):
            at = 3 * i + (number not in without_relu)
            places.append((f"{ours}.convs.{i}", f"{theirs}.rep.{at}", f"{theirs}.rep.{at + 1}"))
        if before[-1] != widths[-1]:
            names |= conv_bn(f"{ours}.shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
    places += [(f"exit.{i}", f"conv{i + 3}", f"bn{i + 3}") for i in range(len(network.EXIT))]
    for ours, conv, bn in places:
        names |= {f"{ours}.depthwise": f"{conv}.conv1", f"{ours}.pointwise": f"{conv}.pointwise"}
        names |= {f"{ours}.depthwise_bn": f"{conv}.bn"} if aligned else {}
        names[f"{ours}.bn"] = bn
    if not aligned and not config.last_norm:
        del names[f"exit.{len(network.EXIT) - 1}.bn"]
    return names


def mobilenet_v3_names(config: MobileNetV3Config) -> Names:
    """torchvision's: `{0..16}`, blocks as a Sequential called `block`."""
    names = conv_bn("stem", "0.0", "0.1")
    table = mobilenet_v3.block_table(config.size, config.width)
    channels = mobilenet_v3.stem_channels(config.width)
    for i, block in enumerate(table):
        ours, theirs = f"blocks.{i}", f"{i + 1}.block"
        parts = ["expand"] if block.expanded != channels else []
        parts += ["depthwise"] + (["se"] if block.squeezed else []) + ["project"]
        for at, part in enumerate(parts):
            if part == "se":
                names |= {f"{ours}.se.{fc}": f"{theirs}.{at}.{fc}" for fc in ("fc1", "fc2")}
            else:
                names |= conv_bn(f"{ours}.{part}", f"{theirs}.{at}.0", f"{theirs}.{at}.1")
        channels = block.channels
    return names | conv_bn("last", f"{len(table) + 1}.0", f"{len(table) + 1}.1")


def timm_names(config: MobileNetV2Config | MobileNetV3Config | EfficientNetLiteConfig) -> Names:
    """timm's `EfficientNet` and `MobileNetV3`: `blocks.{stage}.{block}`, norms numbered in order.

    The classifier's convolution is not among them: timm puts it before or after pooling.
    """
    names = conv_bn("stem", "conv_stem", "bn1")
    for i, (stage, block, parts) in enumerate(_timm_blocks(config)):
        ours, theirs = f"blocks.{i}", f"blocks.{stage}.{block}"
        called = {
            ("depthwise", "project"): ("conv_dw", "conv_pw"),
            ("expand", "depthwise", "project"): ("conv_pw", "conv_dw", "conv_pwl"),
        }[tuple(part for part in parts if part != "se")]
        norms = [part for part in parts if part != "se"]
        for at, (part, conv) in enumerate(zip(norms, called, strict=True), 1):
            names |= conv_bn(f"{ours}.{part}", f"{theirs}.{conv}", f"{theirs}.bn{at}")
        if "se" in parts:
            names[f"{ours}.se.fc1"] = f"{theirs}.se.conv_reduce"
            names[f"{ours}.se.fc2"] = f"{theirs}.se.conv_expand"
    return names


def _timm_blocks(config) -> list[tuple[int, int, list[str]]]:
    """(stage, block within it, parts) of each block; timm's stages change with stride or channels."""
    if isinstance(config, MobileNetV3Config):
        table = mobilenet_v3.block_table(config.size, config.width)
        channels = mobilenet_v3.stem_channels(config.width)
    elif isinstance(config, MobileNetV2Config):
        table = mobilenet_v2.block_table(config.width)
        channels = table[0].expanded
    else:
        table = efficientnet_lite.block_table(config.variant)
        channels = efficientnet_lite.STEM
    blocks, stage, within = [], -1, 0
    for i, block in enumerate(table):
        new = i == 0 or block.stride > 1 or block.channels != table[i - 1].channels
        stage, within = (stage + 1, 0) if new else (stage, within + 1)
        parts = ["expand"] if block.expanded != channels else []
        parts += ["depthwise"] + (["se"] if block.squeezed else []) + ["project"]
        blocks.append((stage, within, parts))
        channels = block.channels
    return blocks


def efficientnet_lite_names(config: EfficientNetLiteConfig) -> Names:
    """efficientnet-lite-pytorch's: `_blocks.{i}._expand_conv` and the like."""
    names = conv_bn("stem", "_conv_stem", "_bn0")
    for i in range(len(efficientnet_lite.block_table(config.variant))):
        parts = ("expand", "depthwise", "project")
        for at, part in enumerate(parts):
            if (i, part) != (0, "expand"):
                prefix = f"_blocks.{i}."
                names |= conv_bn(f"blocks.{i}.{part}", f"{prefix}_{part}_conv", f"{prefix}_bn{at}")
    return names | (conv_bn("last", "_conv_head", "_bn1") if config.last_conv != "none" else {})


# ---------------------------------------------------------------------------- heads


def aspp_names(*, branches: int, separable: str | None = None) -> Names:
    """ASPP as torchvision names it: `convs.{0..4}` and `project`.

    Args:
      branches: convolutions in it, the 1x1 included and image pooling not.
      separable: where the two halves of a separable branch are: "body." (VainF), "" (smp), None
        for dense branches.
    """
    names = conv_bn("branches.0", "convs.0.0", "convs.0.1")
    for i in range(1, branches):
        names[f"branches.{i}.bn"] = f"convs.{i}.1"
        if separable is None:
            names[f"branches.{i}.conv"] = f"convs.{i}.0"
        else:
            names |= separable_names(f"branches.{i}", f"convs.{i}.0.{separable}")
    names |= conv_bn("pool", f"convs.{branches}.1", f"convs.{branches}.2")
    return names | conv_bn("project", "project.0", "project.1")


def separable_names(ours: str, theirs: str) -> Names:
    """Depthwise and pointwise, the first two of a Sequential; `theirs` ends with a dot."""
    return {f"{ours}.depthwise": f"{theirs}0", f"{ours}.pointwise": f"{theirs}1"}
