"""The names of EfficientNet-PyTorch by Luke Melas-Kyriazi, which its copies have kept."""

from deeplab_jax.backbones.inverted_residual import Network
from port.backbones.inverted_residual import parts
from port.naming import Names, Shapes, conv_bn, count


def is_lukemelas(shapes: Shapes, *, squeezed: bool) -> bool:
    """Whether names are these, of a network with or without squeeze-excite."""
    has_se = any(name.startswith("_blocks.0._se_reduce.") for name in shapes)
    return any(name.startswith("_blocks.0.") for name in shapes) and has_se == squeezed


def lukemelas_projections(shapes: Shapes) -> list[int]:
    """Output channels of the blocks."""
    blocks = range(count(shapes, "_blocks.{}."))
    return [shapes[f"_blocks.{i}._project_conv.weight"][0] for i in blocks]


def lukemelas_names(network: Network, *, last: bool) -> Names:
    """`_blocks.{i}._expand_conv` and the like; `last`: with the classifier's convolution."""
    names, channels = conv_bn("stem", "_conv_stem", "_bn0"), network.stem
    for i, block in enumerate(network.blocks):
        found = parts(block, channels)
        for at, part in enumerate(("expand", "depthwise", "project")):
            if part in found:
                conv, bn = f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{at}"
                names |= conv_bn(f"blocks.{i}.{part}", conv, bn)
        if "se" in found:
            names[f"blocks.{i}.se.fc1"] = f"_blocks.{i}._se_reduce"
            names[f"blocks.{i}.se.fc2"] = f"_blocks.{i}._se_expand"
        channels = block.channels
    return names | (conv_bn("last", "_conv_head", "_bn1") if last else {})
