"""What the namings of networks of inverted residuals share: widths by channels, and timm's names."""

from collections.abc import Sequence

from deeplab_jax.backbones.inverted_residual import Block
from port.naming import Names, Shapes, conv_bn, count

WIDTHS = tuple(n / 100 for n in range(5, 305, 5))
"""The width multipliers that are looked for."""

TIMM_NORM = {"norm_momentum": 0.1, "norm_epsilon": 1e-5}
"""timm's batch norm, but for weights born in TensorFlow."""


def no_width(family: str, projections: list[int]) -> ValueError:
    """The error of blocks that no network of a family has."""
    return ValueError(
        f"no {family} that we know has blocks of {projections} channels: neither a width multiplier "
        "in steps of .05 nor a named variant gives them"
    )


def born_in(padding: str, name: str) -> str:
    """timm's name of a network, or of the one whose weights were born in TensorFlow."""
    return f"tf_{name}" if padding == "same" else name


def is_timms(shapes: Shapes) -> bool:
    """Whether names are those of timm's `EfficientNet` and `MobileNetV3`."""
    return any(name.startswith("blocks.0.0.") for name in shapes) and any(
        name.startswith(("conv_stem.", "bn1.")) for name in shapes
    )


def is_plain_timms(shapes: Shapes, kernel_size: int) -> bool:
    """Whether they are, of a network without squeeze-excite whose third stage has such kernels."""
    squeezed = any(".se." in name for name in shapes)
    kernel = shapes.get("blocks.2.0.conv_dw.weight", (0,))[-1]
    plain = not squeezed and "conv_head.bias" not in shapes and kernel == kernel_size
    return is_timms(shapes) and plain


def timm_projections(shapes: Shapes) -> list[int]:
    """Output channels of timm's blocks."""
    projections = []
    for stage in range(count(shapes, "blocks.{}.")):
        for block in range(count(shapes, f"blocks.{stage}.{{}}.")):
            prefix = f"blocks.{stage}.{block}."
            kinds = ("conv_pwl", "conv", "conv_pw")
            last = next((conv for conv in kinds if f"{prefix}{conv}.weight" in shapes), kinds[-1])
            projections.append(shapes[f"{prefix}{last}.weight"][0])
    return projections


def timm_names(table: Sequence[Block], stem: int) -> Names:
    """`blocks.{stage}.{block}`, norms numbered in order.

    The classifier's convolution is not among them: timm puts it before or after pooling.

    Args:
      table: the blocks of the network.
      stem: channels of the first convolution.
    """
    names = conv_bn("stem", "conv_stem", "bn1")
    for i, (stage, block, parts) in enumerate(timm_blocks(table, stem)):
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


def timm_blocks(table: Sequence[Block], stem: int) -> list[tuple[int, int, list[str]]]:
    """(stage, block within it, parts) of each block; timm's stages change with stride or channels."""
    blocks, stage, within, channels = [], -1, 0, stem
    for i, block in enumerate(table):
        new = i == 0 or block.stride > 1 or block.channels != table[i - 1].channels
        stage, within = (stage + 1, 0) if new else (stage, within + 1)
        blocks.append((stage, within, parts(block, channels)))
        channels = block.channels
    return blocks


def parts(block: Block, channels: int) -> list[str]:
    """What a block has, in order, where its input has so many channels."""
    expand = ["expand"] if block.expanded != channels else []
    return [*expand, "depthwise", *(["se"] if block.squeezed else []), "project"]
