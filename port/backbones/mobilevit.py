"""MobileViT, as transformers names it."""

from deeplab_jax.backbones import MobileViTConfig, mobilevit
from port.backbones.base import Naming, register_naming
from port.backbones.mobilenet_v2 import conv_layer, inverted_residual
from port.naming import Names, Shapes, under

LINEAR = {  # of a transformer's layer: ours -> theirs
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
FIRST = 4
"""Index of the first of our blocks with a transformer."""


class TransformersMobileViT(Naming):
    """`encoder.layer.{0..4}`, the last three of which have transformers."""

    layouts = ("transformers-mobilevit",)
    family = MobileViTConfig
    known = "MobileViT small, x-small and xx-small"

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith("encoder.layer.0.layer.0.") for name in shapes)

    def config(self, shapes: Shapes, **fields) -> MobileViTConfig:
        """The size from the transformers' channels."""
        widths = tuple(
            shapes[f"encoder.layer.{stage}.conv_1x1.convolution.weight"][0] for stage in (2, 3, 4)
        )
        sizes = [size for size, known in mobilevit.WIDTHS.items() if known.transformers == widths]
        if not sizes:
            raise ValueError(
                f"no MobileViT that we know has transformers of {widths} channels; there are "
                + ", ".join(f"{s} {known.transformers}" for s, known in mobilevit.WIDTHS.items())
            )
        channels = shapes["conv_stem.convolution.weight"][1]
        return MobileViTConfig(sizes[0], in_channels=channels, **fields)

    def names(self, config: MobileViTConfig) -> Names:
        del config  # the size changes no name
        names = conv_layer("stem", "conv_stem")
        names |= inverted_residual("blocks.0", "encoder.layer.0.layer.0")
        for i in range(3):
            names |= inverted_residual(f"blocks.{1 + i}", f"encoder.layer.1.layer.{i}")
        for i, layers in enumerate(mobilevit.LAYERS):
            names |= under(f"blocks.{FIRST + i}", f"encoder.layer.{2 + i}", _stage(layers))
        return names

    def linear(self, config: MobileViTConfig) -> tuple[str, ...]:
        return tuple(
            f"blocks.{FIRST + i}.transformer.{layer}.{part}"
            for i, layers in enumerate(mobilevit.LAYERS)
            for layer in range(layers)
            for part in LINEAR
        )


def _stage(layers: int) -> Names:
    """A stage with a transformer of so many layers."""
    names = inverted_residual("down", "downsampling_layer") | conv_layer("local", "conv_kxk")
    names |= {"embed": "conv_1x1.convolution", "norm": "layernorm"}
    for i in range(layers):
        names |= under(f"transformer.{i}", f"transformer.layer.{i}", LINEAR | NORMS)
    return names | conv_layer("project", "conv_projection") | conv_layer("fuse", "fusion")


register_naming(TransformersMobileViT())
