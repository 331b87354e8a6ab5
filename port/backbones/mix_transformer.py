"""The Mix Transformer, as SegFormer's authors and segmentation_models_pytorch name it."""

from deeplab_jax.backbones import MixTransformerConfig, mix_transformer
from port.backbones.base import Naming, register_naming
from port.naming import Names, Shapes, count

LINEAR = {  # of a block: ours -> theirs
    "query": "attn.q",
    "key_value": "attn.kv",
    "out": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
OTHERS = {"norm1": "norm1", "norm2": "norm2", "depthwise": "mlp.dwconv.dwconv"}
REDUCTION = {"reduce": "attn.sr", "reduce_norm": "attn.norm"}


class AuthorsMixTransformer(Naming):
    """`patch_embed{1..4}`, `block{1..4}` and `norm{1..4}`."""

    layouts = ("smp",)
    family = MixTransformerConfig
    known = "Mix Transformer (MiT) b0 to b5"

    def recognises(self, shapes: Shapes) -> bool:
        return "block1.0.mlp.dwconv.dwconv.weight" in shapes

    def config(self, shapes: Shapes, **fields) -> MixTransformerConfig:
        """The size from the blocks and channels of the stages."""
        stages = range(1, 5)
        found = mix_transformer.Network(
            tuple(count(shapes, f"block{stage}.{{}}.") for stage in stages),
            tuple(shapes[f"norm{stage}.weight"][0] for stage in stages),
        )
        in_channels = shapes.get("patch_embed1.proj.weight", (64, 3))[1]
        for size, network in mix_transformer.NETWORKS.items():
            if network == found:
                return MixTransformerConfig(size, in_channels=in_channels, **fields)
        raise ValueError(
            f"no Mix Transformer that we know has {found.blocks} blocks of {found.channels} channels"
        )

    def names(self, config: MixTransformerConfig) -> Names:
        names: Names = {}
        for stage, blocks in enumerate(mix_transformer.NETWORKS[config.size].blocks, 1):
            ours = f"layer{stage}"
            names |= {
                f"{ours}.patches": f"patch_embed{stage}.proj",
                f"{ours}.patches_norm": f"patch_embed{stage}.norm",
                f"{ours}.norm": f"norm{stage}",
            }
            reduction = REDUCTION if mix_transformer.REDUCTIONS[stage - 1] > 1 else {}
            for i in range(blocks):
                names |= {
                    f"{ours}.transformer.{i}.{part}": f"block{stage}.{i}.{called}"
                    for part, called in (LINEAR | OTHERS | reduction).items()
                }
        return names

    def linear(self, config: MixTransformerConfig) -> tuple[str, ...]:
        return tuple(
            f"layer{stage}.transformer.{i}.{part}"
            for stage, blocks in enumerate(mix_transformer.NETWORKS[config.size].blocks, 1)
            for i in range(blocks)
            for part in LINEAR
        )

    def smp_name(self, config: MixTransformerConfig) -> str:
        return f"mit_{config.size}"


register_naming(AuthorsMixTransformer())
