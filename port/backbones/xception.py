"""The aligned Xception and Cadene's, as timm, jfzhang, yassouali, bubbliiiing and VainF name them."""

import abc
import itertools
import re
from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

from deeplab_jax.backbones import (
    OriginalXceptionConfig,
    XceptionConfig,
    original_xception,
    xception,
)
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming, register_naming
from port.backbones.slim import conv_norm, separable
from port.naming import Names, Shapes, conv_bn, count


class _Xception(Naming):
    """What the namings share: `conv1` and `conv2`, blocks of three convolutions, `skip`, the exit.

    Attributes:
      network: our module of the family, which has its tables.
    """

    network: ClassVar[ModuleType]

    def blocks(self) -> Sequence[tuple[int, ...]]:
        """Channels of the convolutions of each block: those of Xception-65, but for Cadene's."""
        return [block.widths for block in xception.NETWORKS[65]]

    def config(self, shapes: Shapes, **fields):
        return self.family(in_channels=shapes.get("conv1.weight", (32, 3))[1], **fields)

    def names(self, config) -> Names:
        names = conv_bn("stem.0", "conv1", "bn1") | conv_bn("stem.1", "conv2", "bn2")
        blocks = itertools.pairwise([xception.STEM, *self.blocks()])
        for number, (before, widths) in enumerate(blocks, 1):
            ours, theirs = f"blocks.{number - 1}", f"block{number}"
            for i in range(len(widths)):
                names |= self.separable(f"{ours}.convs.{i}", *self.in_block(number, i))
            if before[-1] != widths[-1]:
                names |= conv_bn(f"{ours}.shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
        for i in range(len(self.network.EXIT)):
            names |= self.separable(f"exit.{i}", f"conv{i + 3}", f"bn{i + 3}")
        return names

    @abc.abstractmethod
    def in_block(self, number: int, i: int) -> tuple[str, str]:
        """A separable convolution of `block{number}`, and the norm after it."""

    @abc.abstractmethod
    def separable(self, ours: str, conv: str, bn: str) -> Names:
        """The parts of a separable convolution, and the norm after it."""


class YassoualiXception(_Xception):
    """`block{1..20}`, each with a Sequential `rep`, which begins with a ReLU but in block1."""

    layouts = ("yassouali",)
    family = XceptionConfig
    known = "Xception"
    network = xception
    without_relu: tuple[int, ...] = (1,)
    """The blocks whose `rep` begins with a convolution."""

    def recognises(self, shapes: Shapes) -> bool:
        at = int(2 not in self.without_relu)
        return _is_aligned(shapes) and f"block2.rep.{at}.conv1.weight" in shapes

    def in_block(self, number: int, i: int) -> tuple[str, str]:
        at = 3 * i + (number not in self.without_relu)
        return f"block{number}.rep.{at}", f"block{number}.rep.{at + 1}"

    def separable(self, ours: str, conv: str, bn: str) -> Names:
        parts = {"depthwise": "conv1", "depthwise_bn": "bn", "pointwise": "pointwise"}
        names = {f"{ours}.{part}": f"{conv}.{called}" for part, called in parts.items()}
        return names | {f"{ours}.bn": bn}


class JFZhangXception(YassoualiXception):
    """The same with the ReLU before block2 outside it: it works on the low-level features too."""

    layouts = ("jfzhang",)
    without_relu = (1, 2)


class BubbliiiingXception(_Xception):
    """`block{1..20}` of `sepconv{1..3}`, which have both of their norms inside."""

    layouts = ("bubbliiiing",)
    family = XceptionConfig
    known = "Xception"
    network = xception

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("block1.sepconv1.") for name in shapes)

    def in_block(self, number: int, i: int) -> tuple[str, str]:
        conv = f"block{number}.sepconv{i + 1}"
        return conv, conv

    def separable(self, ours: str, conv: str, bn: str) -> Names:
        del bn  # inside
        parts = {"depthwise": "depthwise", "depthwise_bn": "bn1", "pointwise": "pointwise"}
        return {f"{ours}.{p}": f"{conv}.{called}" for p, called in (parts | {"bn": "bn2"}).items()}


class CadeneXception(_Xception):
    """`block{1..12}` of the network that is not aligned: no norm between depthwise and pointwise."""

    layouts = ("vainf",)
    family = OriginalXceptionConfig
    known = "Cadene's Xception"
    network = original_xception

    def recognises(self, shapes: Shapes) -> bool:
        return not _is_aligned(shapes) and any(n.startswith("block1.rep.") for n in shapes)

    def blocks(self) -> Sequence[tuple[int, ...]]:
        return original_xception.BLOCKS

    def names(self, config: OriginalXceptionConfig) -> Names:
        names = super().names(config)
        if not config.last_norm:
            del names[f"exit.{len(original_xception.EXIT) - 1}.bn"]
        return names

    def in_block(self, number: int, i: int) -> tuple[str, str]:
        at = 3 * i + (number != 1)  # all but the first begin with a ReLU
        return f"block{number}.rep.{at}", f"block{number}.rep.{at + 1}"

    def separable(self, ours: str, conv: str, bn: str) -> Names:
        parts = {"depthwise": "conv1", "pointwise": "pointwise"}
        names = {f"{ours}.{part}": f"{conv}.{called}" for part, called in parts.items()}
        return names | {f"{ours}.bn": bn}


class TimmXception(Naming):
    """`stem.{0,1}`, `blocks.{0..}`, each with a `stack` of `conv{1..3}`; the last block is the exit."""

    layouts = ("timm",)
    family = XceptionConfig
    known = "Xception-41, 65 and 71"
    classifier: ClassVar = {"classifier": "head.fc"}
    joint = "."
    """Before a number; an extractor of features has its parts as attributes, `blocks_0`."""

    def recognises(self, shapes: Shapes) -> bool:
        return any(n.startswith(f"blocks{self.joint}0.stack.conv1.conv_dw.") for n in shapes)

    def config(self, shapes: Shapes, **fields) -> XceptionConfig:
        """The depth from the number of blocks."""
        if f"blocks{self.joint}0.norm.weight" in shapes:
            raise ValueError(
                "its norms come before the convolutions: xception41p and 65p are not among those we know"
            )
        blocks = count(shapes, f"blocks{self.joint}{{}}.")
        depths = [d for d, known in xception.NETWORKS.items() if len(known) + 1 == blocks]
        if not depths:
            raise ValueError(
                f"no Xception that we know has {blocks} blocks; there are "
                + ", ".join(f"Xception-{d} ({len(k) + 1})" for d, k in xception.NETWORKS.items())
            )
        in_channels = shapes.get(f"stem{self.joint}0.conv.weight", (32, 3))[1]
        fields = {"low": "block2_relu", "norm_epsilon": 1e-3} | fields
        return XceptionConfig(depth=depths[0], in_channels=in_channels, **fields)

    def names(self, config: XceptionConfig) -> Names:
        names: Names = {}
        for i in range(len(xception.STEM)):
            at = f"stem{self.joint}{i}"
            names |= conv_bn(f"stem.{i}", f"{at}.conv", f"{at}.bn")
        blocks = xception.NETWORKS[config.depth]
        plan = xception.plan(config)
        before = xception.STEM[-1]
        for i, (block, (stride, _)) in enumerate(zip(blocks, plan, strict=False)):
            at = f"blocks{self.joint}{i}"
            for j in range(len(block.widths)):
                names |= _timm_separable(f"blocks.{i}.convs.{j}", f"{at}.stack.conv{j + 1}")
            if stride > 1 or before != block.widths[-1]:
                shortcut = f"{at}.shortcut"
                names |= conv_bn(f"blocks.{i}.shortcut", f"{shortcut}.conv", f"{shortcut}.bn")
            before = block.widths[-1]
        for j in range(len(xception.EXIT)):
            at = f"blocks{self.joint}{len(blocks)}.stack.conv{j + 1}"
            names |= _timm_separable(f"exit.{j}", at)
        return names

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        del shapes
        return ClassifierConfig(dropout=0.0)

    def timm_name(self, config: XceptionConfig) -> str:
        return f"xception{config.depth}"


class TimmFeaturesXception(TimmXception):
    """The same as an extractor of features (`features_only`), which has no classifier."""

    layouts = ("smp",)
    classifier: ClassVar = {}
    joint = "_"


class SlimXception(Naming):
    """`xception_65.entry_flow`, `middle_flow` and `exit_flow`: the names of TF-slim's variables."""

    layouts = ("google",)
    family = XceptionConfig
    known = "Xception-41, 65 and 71"

    def recognises(self, shapes: Shapes) -> bool:
        return any(re.match(r"xception_\d+\.entry_flow\.conv1_1\.", name) for name in shapes)

    def config(self, shapes: Shapes, **fields) -> XceptionConfig:
        """The depth from the scope."""
        (scope,) = {n.partition(".")[0] for n in shapes if n.startswith("xception_")}
        depth = int(scope.removeprefix("xception_"))
        in_channels = shapes[f"{scope}.entry_flow.conv1_1.weight"][1]
        return XceptionConfig(depth=depth, in_channels=in_channels, **fields)

    def names(self, config: XceptionConfig) -> Names:
        names: Names = {}
        for i in range(len(xception.STEM)):
            names |= conv_norm(f"stem.{i}", f"entry_flow.conv1_{i + 1}")
        *inner, last = self._blocks(config)
        channels = xception.STEM[-1]
        for i, unit in enumerate(inner):
            widths, stride = xception.NETWORKS[config.depth][i]
            for j in range(len(widths)):
                names |= separable(f"blocks.{i}.convs.{j}", f"{unit}.separable_conv{j + 1}")
            if stride > 1 or channels != widths[-1]:
                names |= conv_norm(f"blocks.{i}.shortcut", f"{unit}.shortcut")
            channels = widths[-1]
        for j in range(len(xception.EXIT)):
            names |= separable(f"exit.{j}", f"{last}.separable_conv{j + 1}")
        return {path: f"xception_{config.depth}.{name}" for path, name in names.items()}

    def _blocks(self, config: XceptionConfig) -> list[str]:
        """The scopes of the blocks, and of the last three convolutions, which are one there."""
        *blocks, _ = xception.NETWORKS[config.depth]
        entry = max(i for i, block in enumerate(blocks, 1) if block.stride > 1)
        scopes = [f"entry_flow.block{i + 1}.unit_1" for i in range(entry)]
        scopes += [f"middle_flow.block1.unit_{i + 1}" for i in range(len(blocks) - entry)]
        scopes += ["exit_flow.block1.unit_1", "exit_flow.block2.unit_1"]
        return [f"{scope}.xception_module" for scope in scopes]


def _timm_separable(ours: str, theirs: str) -> Names:
    parts = {"depthwise": "conv_dw", "depthwise_bn": "bn_dw", "pointwise": "conv_pw", "bn": "bn_pw"}
    return {f"{ours}.{part}": f"{theirs}.{called}" for part, called in parts.items()}


def _is_aligned(shapes: Shapes) -> bool:
    """Whether a norm follows the depthwise convolutions, as in no other Xception."""
    return any(name.startswith("block1.rep.0.bn.") for name in shapes)


register_naming(YassoualiXception())
register_naming(JFZhangXception())
register_naming(BubbliiiingXception())
register_naming(CadeneXception())
register_naming(TimmXception())
register_naming(TimmFeaturesXception())
register_naming(SlimXception())
