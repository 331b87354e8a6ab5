"""The aligned Xception and Cadene's, as jfzhang, yassouali, bubbliiiing and VainF name them."""

import itertools

from deeplab_jax.backbones import (
    OriginalXceptionConfig,
    XceptionConfig,
    original_xception,
    xception,
)
from port.backbones.base import Naming
from port.naming import Names, Shapes, conv_bn


class YassoualiXception(Naming):
    """`block{1..20}`, each with a Sequential `rep`, which begins with a ReLU but in block1."""

    family = XceptionConfig
    known = "Xception"
    without_relu: tuple[int, ...] = (1,)
    """The blocks whose `rep` begins with a convolution."""

    def recognises(self, shapes: Shapes) -> bool:
        at = int(2 not in self.without_relu)
        return _is_aligned(shapes) and f"block2.rep.{at}.conv1.weight" in shapes

    def config(self, shapes: Shapes, **fields) -> XceptionConfig:
        return XceptionConfig(in_channels=_in_channels(shapes), **fields)

    def names(self, config: XceptionConfig) -> Names:
        names = _stem()
        blocks = itertools.pairwise([xception.STEM, *xception.BLOCKS])
        for number, (before, widths) in enumerate(blocks, 1):
            ours, theirs = f"blocks.{number - 1}", f"block{number}"
            for i in range(len(widths)):
                at = 3 * i + (number not in self.without_relu)
                conv, bn = f"{theirs}.rep.{at}", f"{theirs}.rep.{at + 1}"
                names |= self._separable(f"{ours}.convs.{i}", conv, bn)
            if before[-1] != widths[-1]:
                names |= conv_bn(f"{ours}.shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
        for i in range(len(xception.EXIT)):
            names |= self._separable(f"exit.{i}", f"conv{i + 3}", f"bn{i + 3}")
        return names

    def _separable(self, ours: str, conv: str, bn: str) -> Names:
        parts = {"depthwise": "conv1", "depthwise_bn": "bn", "pointwise": "pointwise"}
        names = {f"{ours}.{part}": f"{conv}.{called}" for part, called in parts.items()}
        return names | {f"{ours}.bn": bn}


class JFZhangXception(YassoualiXception):
    """The same with the ReLU before block2 outside it: it works on the low-level features too."""

    without_relu = (1, 2)


class BubbliiiingXception(Naming):
    """`block{1..20}` of `sepconv{1..3}`."""

    family = XceptionConfig
    known = "Xception"

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("block1.sepconv1.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> XceptionConfig:
        return XceptionConfig(in_channels=_in_channels(shapes), **fields)

    def names(self, config: XceptionConfig) -> Names:
        names = _stem()
        blocks = itertools.pairwise([xception.STEM, *xception.BLOCKS])
        for i, (before, widths) in enumerate(blocks):
            theirs = f"block{i + 1}"
            for conv in range(len(widths)):
                names |= self._separable(f"blocks.{i}.convs.{conv}", f"{theirs}.sepconv{conv + 1}")
            if before[-1] != widths[-1]:
                names |= conv_bn(f"blocks.{i}.shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
        for i in range(len(xception.EXIT)):
            names |= self._separable(f"exit.{i}", f"conv{i + 3}")
        return names

    def _separable(self, ours: str, theirs: str) -> Names:
        parts = {"depthwise": "depthwise", "depthwise_bn": "bn1", "pointwise": "pointwise"}
        return {
            f"{ours}.{p}": f"{theirs}.{called}" for p, called in (parts | {"bn": "bn2"}).items()
        }


class CadeneXception(Naming):
    """`block{1..12}` of the network that is not aligned: no norm between depthwise and pointwise."""

    family = OriginalXceptionConfig
    known = "Cadene's Xception"

    def recognises(self, shapes: Shapes) -> bool:
        return not _is_aligned(shapes) and any(n.startswith("block1.rep.") for n in shapes)

    def config(self, shapes: Shapes, **fields) -> OriginalXceptionConfig:
        return OriginalXceptionConfig(in_channels=_in_channels(shapes), **fields)

    def names(self, config: OriginalXceptionConfig) -> Names:
        names = _stem()
        blocks = itertools.pairwise([xception.STEM, *original_xception.BLOCKS])
        for number, (before, widths) in enumerate(blocks, 1):
            ours, theirs = f"blocks.{number - 1}", f"block{number}"
            for i in range(len(widths)):
                at = 3 * i + (number != 1)  # all but the first begin with a ReLU
                conv, bn = f"{theirs}.rep.{at}", f"{theirs}.rep.{at + 1}"
                names |= self._separable(f"{ours}.convs.{i}", conv) | {f"{ours}.convs.{i}.bn": bn}
            if before[-1] != widths[-1]:
                names |= conv_bn(f"{ours}.shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
        last = len(original_xception.EXIT) - 1
        for i in range(last + 1):
            names |= self._separable(f"exit.{i}", f"conv{i + 3}")
            names |= {f"exit.{i}.bn": f"bn{i + 3}"} if i < last or config.last_norm else {}
        return names

    def _separable(self, ours: str, conv: str) -> Names:
        return {f"{ours}.depthwise": f"{conv}.conv1", f"{ours}.pointwise": f"{conv}.pointwise"}


def _stem() -> Names:
    return conv_bn("stem.0", "conv1", "bn1") | conv_bn("stem.1", "conv2", "bn2")


def _is_aligned(shapes: Shapes) -> bool:
    """Whether a norm follows the depthwise convolutions, as in no other Xception."""
    return any(name.startswith("block1.rep.0.bn.") for name in shapes)


def _in_channels(shapes: Shapes) -> int:
    return shapes.get("conv1.weight", (32, 3))[1]
