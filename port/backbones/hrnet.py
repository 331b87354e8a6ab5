"""HRNetV2, as its authors and VainF name it."""

from deeplab_jax.backbones import HRNetConfig, hrnet
from port.backbones.base import Naming, register_naming
from port.backbones.resnet import residual_names
from port.naming import Names, Shapes, conv_bn, under


class VainFHRNet(Naming):
    """`stage{2..4}`; `transition{n}` makes the new streams of stage n + 1."""

    layouts = ("vainf",)
    family = HRNetConfig
    known = "HRNetV2"

    def recognises(self, shapes: Shapes) -> bool:
        return "transition1.0.0.weight" in shapes

    def config(self, shapes: Shapes, **fields) -> HRNetConfig:
        channels = shapes.get("conv1.weight", (64, 3, 3, 3))[1]
        return HRNetConfig(shapes["transition1.0.0.weight"][0], in_channels=channels, **fields)

    def names(self, config: HRNetConfig) -> Names:
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
                names |= under(f"stage{stage}.units.{unit}", f"stage{stage}.{unit}", _unit(stage))
        return names


def _unit(streams: int) -> Names:
    """An exchange unit of so many streams."""
    names = {}
    for i in range(streams):
        blocks = residual_names(f"{i}", hrnet.BLOCKS, 2, shortcut=False)
        names |= under("streams", "branches", blocks)
        for j in range(streams):
            ours, theirs = f"fuse.{i}.{j}", f"fuse_layers.{i}.{j}"
            if j > i:
                names |= conv_bn(f"{ours}.0", f"{theirs}.0", f"{theirs}.1")
            for step in range(i - j):
                names |= conv_bn(f"{ours}.{step}", f"{theirs}.{step}.0", f"{theirs}.{step}.1")
    return names


register_naming(VainFHRNet())
