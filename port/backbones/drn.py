"""DRN-D, as its authors name it and jfzhang copied it."""

from deeplab_jax.backbones import DRNConfig, drn
from deeplab_jax.backbones.residual import Bottleneck
from deeplab_jax.layers import ConvNormAct
from port.backbones.base import Naming, register_naming
from port.backbones.resnet import residual_names
from port.naming import Names, Shapes, conv_bn, count


class AuthorsDRN(Naming):
    """`layer0` to `layer8`, each a Sequential."""

    layouts = ("jfzhang",)
    family = DRNConfig
    known = "DRN-D"

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("layer0.0.") for name in shapes) and any(
            name.startswith("layer8.") for name in shapes
        )

    def config(self, shapes: Shapes, **fields) -> DRNConfig:
        """The variant from its blocks."""
        bottleneck = "layer3.0.conv3.weight" in shapes
        counts = tuple(count(shapes, f"layer{level}.{{}}.conv1.") for level in (3, 4, 5, 6))
        last = 2 if "layer8.3.weight" in shapes else 1
        channels = shapes.get("layer0.0.weight", (16, 3))[1]
        for variant, (block_type, known) in drn.VARIANTS.items():
            same = (known[2:6], known[7], block_type is Bottleneck) == (counts, last, bottleneck)
            if same and variant.startswith("d"):
                return DRNConfig(variant, in_channels=channels, **fields)
        kind = "bottleneck" if bottleneck else "basic"
        known = ", ".join(v for v in drn.VARIANTS if v.startswith("d"))
        raise ValueError(f"no DRN-D that we know has {counts} {kind} blocks; there are {known}")

    def names(self, config: DRNConfig) -> Names:
        names = conv_bn("layer0", "layer0.0", "layer0.1")
        counts, types = drn.VARIANTS[config.variant][1], drn.block_types(config.variant)
        for level, (blocks, block_type) in enumerate(zip(counts, types, strict=True), 1):
            layer = f"layer{level}"
            if block_type is ConvNormAct:  # with its ReLU, three modules in a row
                for i in range(blocks):
                    names |= conv_bn(f"{layer}.{i}", f"{layer}.{3 * i}", f"{layer}.{3 * i + 1}")
            else:
                convs = 3 if block_type is Bottleneck else 2
                names |= residual_names(layer, blocks, convs, shortcut=True)
        return names


register_naming(AuthorsDRN())
