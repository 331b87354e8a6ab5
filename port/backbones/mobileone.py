"""MobileOne, as its authors and segmentation_models_pytorch name it, and as timm does."""

import abc
from typing import ClassVar

from deeplab_jax.backbones import MobileOneConfig, mobileone
from deeplab_jax.heads import ClassifierConfig
from port.backbones.base import Naming, register_naming
from port.naming import Names, Shapes, conv_bn


class _MobileOne(Naming):
    """What the namings share.

    Attributes:
      first: what the stem is called.
      convs, one, skip: the branches of a layer: those of the kernel's size, the 1x1, the norm alone.
      attention: squeeze-excite, and the first and the second of its convolutions.
    """

    family = MobileOneConfig
    known = "MobileOne s0 to s4"
    first: ClassVar[str]
    convs: ClassVar[str]
    one: ClassVar[str]
    skip: ClassVar[str]
    attention: ClassVar[tuple[str, str, str]]
    atrous: ClassVar = True

    @abc.abstractmethod
    def layer(self, stage: int, i: int) -> str:
        """A layer of a stage, both counted from 0."""

    def recognises(self, shapes: Shapes) -> bool:
        first = self.layer(0, 0)
        return f"{first}.{self.convs}.0.conv.weight" in shapes or self._is_fused(shapes)

    def config(self, shapes: Shapes, **fields) -> MobileOneConfig:
        """The size from the channels of the stages."""
        fused = self._is_fused(shapes)
        kernel = "reparam_conv.weight" if fused else f"{self.convs}.0.conv.weight"
        channels = tuple(
            shapes[f"{self.layer(stage, 2 * blocks - 1)}.{kernel}"][0]
            for stage, blocks in enumerate(mobileone.BLOCKS)
        )
        stem = shapes.get(f"{self.first}.{kernel}", (64, 3))
        for size, network in mobileone.NETWORKS.items():
            if network.channels == channels:
                return MobileOneConfig(
                    size,
                    in_channels=stem[1],
                    **{"atrous": self.atrous, "reparameterised": fused} | fields,
                )
        raise ValueError(f"no MobileOne that we know has stages of {channels} channels")

    def names(self, config: MobileOneConfig) -> Names:
        network = mobileone.NETWORKS[config.size]
        names = self._layer_names("stem", self.first, config, 1, kernel_size=3, skip=False)
        before = network.stem
        for stage, blocks in enumerate(mobileone.BLOCKS):
            channels = network.channels[stage]
            for i in range(2 * blocks):
                ours, theirs = f"layer{stage + 1}.{i}", self.layer(stage, i)
                depthwise = i % 2 == 0
                skip = i > 0 if depthwise else before == channels
                names |= self._layer_names(
                    ours,
                    theirs,
                    config,
                    network.convs,
                    kernel_size=3 if depthwise else 1,
                    skip=skip,
                )
                if i // 2 >= blocks - network.attended[stage]:
                    module, *called = self.attention
                    for part, name in zip(("fc1", "fc2"), called, strict=True):
                        names[f"{ours}.attention.{part}"] = f"{theirs}.{module}.{name}"
                before = before if depthwise else channels
        return names

    def classifier_config(self, shapes: Shapes) -> ClassifierConfig:
        del shapes
        return ClassifierConfig(dropout=0.0)

    def _is_fused(self, shapes: Shapes) -> bool:
        return f"{self.layer(0, 0)}.reparam_conv.weight" in shapes

    def _layer_names(
        self,
        ours: str,
        theirs: str,
        config: MobileOneConfig,
        convs: int,
        *,
        kernel_size: int,
        skip: bool,
    ) -> Names:
        if config.reparameterised:
            return {f"{ours}.fused": f"{theirs}.reparam_conv"}
        names: Names = {}
        for i in range(convs):
            part = f"{theirs}.{self.convs}.{i}"
            names |= conv_bn(f"{ours}.parts.{i}", f"{part}.conv", f"{part}.bn")
        if kernel_size > 1:
            one = f"{theirs}.{self.one}"
            names |= conv_bn(f"{ours}.one", f"{one}.conv", f"{one}.bn")
        return names | ({f"{ours}.skip": f"{theirs}.{self.skip}"} if skip else {})


class AuthorsMobileOne(_MobileOne):
    """`stage0` is the stem; `stage{1..4}` are of `rbr_conv`, `rbr_scale` and `rbr_skip`."""

    layouts = ("smp",)
    first = "stage0"
    convs, one, skip = "rbr_conv", "rbr_scale", "rbr_skip"
    attention = ("se", "reduce", "expand")

    def layer(self, stage: int, i: int) -> str:
        return f"stage{stage + 1}.{i}"

    def smp_name(self, config: MobileOneConfig) -> str | None:
        made = config.atrous and not config.reparameterised
        return f"mobileone_{config.size}" if made else None


class TimmMobileOne(_MobileOne):
    """`stages.{0..3}`, of `conv_kxk`, `conv_scale` and `identity`.

    timm does not tell the convolutions their atrous rates.
    """

    layouts = ("timm",)
    classifier: ClassVar = {"classifier": "head.fc"}
    first = "stem"
    convs, one, skip = "conv_kxk", "conv_scale", "identity"
    attention = ("attn", "fc1", "fc2")
    atrous = False
    joint = "."
    """Between `stages` and its number; an extractor of features has them as attributes, `stages_0`."""

    def layer(self, stage: int, i: int) -> str:
        return f"stages{self.joint}{stage}.{i}"

    def timm_name(self, config: MobileOneConfig) -> str | None:
        alike = not config.atrous or config.output_stride == 32
        return f"mobileone_{config.size}" if alike and not config.reparameterised else None


class TimmFeaturesMobileOne(TimmMobileOne):
    """The same as an extractor of features (`features_only`), which has no classifier."""

    layouts = ("smp",)
    classifier: ClassVar = {}
    joint = "_"


register_naming(AuthorsMobileOne())
register_naming(TimmMobileOne())
register_naming(TimmFeaturesMobileOne())
