"""Dual Path Networks, as Ross Wightman's port and segmentation_models_pytorch name them."""

from deeplab_jax.backbones import DPNConfig, dpn
from port.backbones.base import Naming, register_naming
from port.naming import Names, Shapes, conv_bn

PARTS = {  # of a block: ours -> theirs; each of their modules has the norm before its convolution
    "norm1": "c1x1_a.bn",
    "conv1": "c1x1_a.conv",
    "bn1": "c3x3_b.bn",
    "conv2": "c3x3_b.conv",
    "bn2": "c1x1_c.bn",
}
LAST = {"conv3": "c1x1_c.conv"}
SPLIT_LAST = {"conv3": "c1x1_c1", "grow": "c1x1_c2"}


class WightmanDPN(Naming):
    """`features`, of `conv1_1`, blocks `conv2_1` to `conv5_3`, and `conv5_bn_ac`."""

    layouts = ("smp",)
    family = DPNConfig
    known = "DPN-68 to 131"

    def recognises(self, shapes: Shapes) -> bool:
        return "features.conv2_1.c1x1_a.conv.weight" in shapes

    def config(self, shapes: Shapes, **fields) -> DPNConfig:
        """The variant from the blocks of the stages and the channels of the stem."""
        blocks = tuple(_count(shapes, stage) for stage in range(4))
        stem, in_channels = shapes["features.conv1_1.conv.weight"][:2]
        split = "features.conv2_1.c1x1_c1.weight" in shapes
        for variant, network in dpn.NETWORKS.items():
            if (network.stem, network.blocks, network.split) == (stem, blocks, split):
                return DPNConfig(variant, in_channels=in_channels, **fields)
        raise ValueError(
            f"no DPN that we know has {blocks} blocks and {stem} channels at first"
            + (" (DPN-48b, whose activations are others, perhaps?)" if split else "")
        )

    def names(self, config: DPNConfig) -> Names:
        network = dpn.NETWORKS[config.variant]
        names = conv_bn("stem", "features.conv1_1.conv", "features.conv1_1.bn")
        parts = PARTS | (SPLIT_LAST if network.split else LAST)
        for stage, blocks in enumerate(network.blocks):
            for i in range(blocks):
                ours, theirs = f"layer{stage + 1}.parts.{i}", _block(stage, i)
                names |= {f"{ours}.{part}": f"{theirs}.{called}" for part, called in parts.items()}
            # called after its stride in the classification network
            shortcut = f"{_block(stage, 0)}.c1x1_w_s{1 if stage == 0 else 2}"
            names[f"layer{stage + 1}.parts.0.shortcut"] = f"{shortcut}.conv"
            names[f"layer{stage + 1}.parts.0.shortcut_norm"] = f"{shortcut}.bn"
        return names | {"layer4.norm": "features.conv5_bn_ac.bn"}

    def smp_name(self, config: DPNConfig) -> str:
        return f"dpn{config.variant}"


def _block(stage: int, i: int) -> str:
    """A block of a stage, both counted from 0."""
    return f"features.conv{stage + 2}_{i + 1}"


def _count(shapes: Shapes, stage: int) -> int:
    """Blocks of a stage."""
    n = 0
    while f"{_block(stage, n)}.c1x1_a.conv.weight" in shapes:
        n += 1
    return n


register_naming(WightmanDPN())
