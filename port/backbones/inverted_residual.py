"""What the namings of networks of inverted residuals share: widths by channels, and timm's names."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deeplab_jax.backbones import (
    EfficientNetConfig,
    EfficientNetLiteConfig,
    MnasNetConfig,
    MobileNetV2Config,
    MobileNetV3Config,
)
from deeplab_jax.backbones.inverted_residual import Block, has_expansion
from port.naming import Names, Shapes, conv_bn, count

WIDTHS = tuple(n / 100 for n in range(5, 305, 5))
"""The width multipliers that are looked for."""

TIMM_NORM = {"norm_momentum": 0.1, "norm_epsilon": 1e-5}
"""timm's batch norm, but for weights born in TensorFlow."""

TENSORFLOWS = {"padding": "same", "norm_epsilon": 1e-3}
"""What timm builds otherwise for weights born in TensorFlow (`tf_*`), and no weight tells."""

FOREIGN = {  # part of a name -> the networks of timm that have it
    ".pw_exp.": "MobileNetV4",
    ".routing_fn.": "EfficientNet-CondConv",
    ".conv_s2d.": "EfficientNet-X and H",
    ".conv_dw.0.": "MixNet",
    ".ghost1.": "GhostNet",
    ".se.conv_attn.": "an EfficientNetV2 with global context in place of squeeze-excite",
}
"""What tells networks of timm that we do not have."""


def no_width(family: str, projections: list[int]) -> ValueError:
    """The error of blocks that no network of a family has."""
    return ValueError(
        f"no {family} that we know has blocks of {projections} channels: neither a width multiplier "
        "in steps of .05 nor a named variant gives them"
    )


def born_in(padding: str, name: str) -> str:
    """timm's name of a network, or of the one whose weights were born in TensorFlow."""
    return f"tf_{name}" if padding == "same" else name


def conventions(architecture: str) -> dict[str, object]:
    """What timm's name of a network says that its weights do not; nothing of other families.

    Raises ValueError for one that we do not have and whose weights look like those of one that we have.
    """
    if "blur" in architecture:
        raise ValueError(
            f"it is of {architecture}, which blurs where it halves its size: we cannot"
        )
    name = architecture.removeprefix("tf_")
    if not name.startswith(("mobilenetv2", "mobilenetv3", "efficientnet")):
        return {}
    if name != architecture:
        return TENSORFLOWS
    return {"padding": "symmetric", "norm_epsilon": TIMM_NORM["norm_epsilon"]}


def timm_family(shapes: Shapes) -> type | None:
    """Our family of one of timm's networks of inverted residuals; None where names are not of one."""
    named = any(name.startswith("blocks.0.0.") for name in shapes)
    if not named or not any(name.startswith(("conv_stem.", "bn1.")) for name in shapes):
        return None
    squeezed = {name.split(".se.")[0] for name in shapes if ".se." in name}
    stages = count(shapes, "blocks.{}.")
    if f"blocks.{stages - 1}.0.conv.weight" in shapes or "conv_head.bias" in shapes:
        return MobileNetV3Config
    first = "blocks.0.0"
    if first in squeezed or {f"{first}.conv.weight", f"{first}.conv_exp.weight"} & shapes.keys():
        return EfficientNetConfig
    if squeezed:
        return MnasNetConfig
    if shapes.get("blocks.2.0.conv_dw.weight", (0,))[-1] == 3:
        return MobileNetV2Config
    expanded, channels, *_ = shapes.get("blocks.1.0.conv_pw.weight", (0, 0))
    return MnasNetConfig if expanded == 3 * channels else EfficientNetLiteConfig


class BlockShape(NamedTuple):
    """What the tensors of a block say: channels inside it, of its output, and inside squeeze-excite."""

    expanded: int
    channels: int
    squeezed: int | None


def timm_shapes(shapes: Shapes) -> list[BlockShape]:
    """The blocks of one of timm's networks.

    Raises ValueError, naming it, for a network whose blocks are of another form.
    """
    for part, networks in FOREIGN.items():
        if other := next((name for name in shapes if part in name), None):
            raise ValueError(f"{other} is of {networks}, which we do not have")
    return [_block_shape(shapes, prefix) for prefix in _blocks(shapes)]


def _blocks(shapes: Shapes) -> Iterator[str]:
    for stage in range(count(shapes, "blocks.{}.")):
        for block in range(count(shapes, f"blocks.{stage}.{{}}.")):
            yield f"blocks.{stage}.{block}."


def _block_shape(shapes: Shapes, prefix: str) -> BlockShape:
    def outputs(*convs: str) -> int | None:
        names = (f"{prefix}{conv}.weight" for conv in convs)
        return next((shapes[name][0] for name in names if name in shapes), None)

    channels = outputs("conv_pwl", "conv", "conv_pw")
    if channels is None:
        raise KeyError(f"{prefix}conv_pw.weight")
    dense = shapes.get(f"{prefix}conv.weight")
    expanded = dense[1] if dense else outputs("conv_dw", "conv_exp")
    if expanded is None:
        raise KeyError(f"{prefix}conv_dw.weight")
    return BlockShape(expanded, channels, outputs("se.conv_reduce"))


def output_channels(blocks: Sequence[Block | BlockShape]) -> list[int]:
    """Channels of the outputs."""
    return [block.channels for block in blocks]


def same_blocks(ours: Sequence[Block], theirs: Sequence[BlockShape]) -> bool:
    """Whether all blocks have the same channels, inside and at the end."""
    return [(b.expanded, b.channels) for b in ours] == [(b.expanded, b.channels) for b in theirs]


def timm_names(table: Sequence[Block], stem: int) -> Names:
    """`blocks.{stage}.{block}`, norms numbered in order.

    The classifier's convolution is not among them: timm puts it before or after pooling.

    Args:
      table: the blocks of the network.
      stem: channels of the first convolution.
    """
    names, channels = conv_bn("stem", "conv_stem", "bn1"), stem
    for i, (block, within) in enumerate(zip(table, within_stage(table), strict=True)):
        ours, theirs = f"blocks.{i}", f"blocks.{block.stage}.{within}"
        found = parts(block, channels)
        convs = {
            ("project",): ("conv",),
            ("expand", "project"): ("conv_exp", "conv_pwl"),
            ("depthwise", "project"): ("conv_dw", "conv_pw"),
            ("expand", "depthwise", "project"): ("conv_pw", "conv_dw", "conv_pwl"),
        }[tuple(part for part in found if part != "se")]
        normed = [part for part in found if part != "se"]
        for at, (part, conv) in enumerate(zip(normed, convs, strict=True), 1):
            names |= conv_bn(f"{ours}.{part}", f"{theirs}.{conv}", f"{theirs}.bn{at}")
        if "se" in found:
            names[f"{ours}.se.fc1"] = f"{theirs}.se.conv_reduce"
            names[f"{ours}.se.fc2"] = f"{theirs}.se.conv_expand"
        channels = block.channels
    return names


def within_stage(table: Sequence[Block]) -> list[int]:
    """Which of its stage's blocks each block is."""
    stages = [block.stage for block in table]
    return [i - stages.index(stage) for i, stage in enumerate(stages)]


def torchvision_names(ours: str, theirs: str, block: Block, channels: int) -> Names:
    """A block of torchvision's, a Sequential of its parts; its input has so many channels."""
    names = {}
    for at, part in enumerate(parts(block, channels)):
        if part == "se":
            names |= {f"{ours}.se.{fc}": f"{theirs}.{at}.{fc}" for fc in ("fc1", "fc2")}
        else:
            names |= conv_bn(f"{ours}.{part}", f"{theirs}.{at}.0", f"{theirs}.{at}.1")
    return names


def parts(block: Block, channels: int) -> list[str]:
    """What a block has, in order, where its input has so many channels."""
    expand = ["expand"] if has_expansion(block, channels) else []
    depthwise = ["depthwise"] if block.form == "inverted" else []
    return [*expand, *depthwise, *(["se"] if block.squeezed else []), "project"]
