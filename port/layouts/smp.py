"""segmentation_models_pytorch: DeepLabV3 and V3Plus on its own encoders and on timm's.

Its own encoders are dilated by its own rule: every block of a dilated stage has the stage's rate. Those
of timm (`tu-resnet50`, whose names begin `encoder.model.`) are dilated by timm, whose first block has the
rate of the stage before. What the weights cannot tell is in the config.json that `save_pretrained` writes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from deeplab_jax.backbones import (
    EfficientNetConfig,
    EfficientNetLiteConfig,
    MixTransformerConfig,
    MobileNetV3Config,
)
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, DeepLabV3PlusConfig
from deeplab_jax.preprocessing import Preprocessing
from port.backbones.efficientnet import LukeMelasEfficientNet, TimmEfficientNet
from port.backbones.inverted_residual import TENSORFLOWS, TIMM_NORM, conventions
from port.backbones.resnet import check_strides
from port.layouts.base import Layout, Place, check_fixed
from port.layouts.heads import aspp_names, separable_names
from port.layouts.timm import default_preprocessing
from port.naming import Names, Shapes, conv_bn, under

OWN, TIMMS = "encoder.", "encoder.model."
TIMMS_NAMES = "tu-"  # how the names of timm's encoders begin
RATES = (12, 24, 36)  # the default at every output stride
OLD_NAMES = {
    "decoder.0.": "decoder.aspp.",
    "decoder.1.": "decoder.conv.",
    "decoder.2.": "decoder.bn.",
}
_EFFICIENTNET = {"first_block_dilation": "same", "last_conv": "unused", "drop_path": 0.2}
EARLY_BLOCKS = {"b0": 2}
"""Variant of smp's own EfficientNet -> `early_blocks`."""
TENSORFLOWS_MOBILENETS = ("small_075", "small_100", "large_075", "large_100")
"""timm has them twice, with the same names and shapes; smp's own name, `timm-mobilenetv3_large_100`, is
that of the one born in TensorFlow."""
BORN_TWICE = (EfficientNetConfig, EfficientNetLiteConfig, MobileNetV3Config)
"""The families that timm has as its own and as born in TensorFlow."""


DILATED_TWICE = (MobileNetV3Config,)
"""The families with one name for two dilations: `timm-mobilenetv3_*` was dilated by smp's own rule until
0.4, which is `first_block_dilation="same"`, and is timm's (tu-) since."""


class SMP(Layout):
    name = "smp"
    code = "segmentation_models_pytorch"
    models = (
        "DeepLabV3 and DeepLabV3Plus on resnet18 to 152, resnext50 and 101, se_resnet50 to 152, "
        "se_resnext50 and 101, senet154, mobilenet_v2, efficientnet-b0 to b7, timm-efficientnet-b0 to l2, "
        "timm-tf_efficientnet_lite0 to 4, timm-mobilenetv3_*, timm-regnet*, timm-resnest14d to 269e, "
        "timm-res2net50 and 101, mobileone_s0 to s4, mit_b0 to b5, dpn68 to 131; of timm's own (tu-) "
        "resnet*, wide_resnet*, resnext*, seresne*, ecaresne*, regnetx_*, regnety_*, efficientnet_*, "
        "efficientnetv2_*, mobilenetv2_*, mobilenetv3_*, mnasnet_*, mobileone_*, xception41 to 71 and "
        "convnext_*; options from config.json"
    )
    choices = (
        "output_stride",
        "rates",
        "preprocessing",
        "padding",
        "norm_epsilon",
        "first_block_dilation",
    )
    apart = ("classification_head.",)
    prefixes = (OWN, TIMMS)
    rules: ClassVar = {
        EfficientNetLiteConfig: _EFFICIENTNET,
        TimmEfficientNet: {**_EFFICIENTNET, **TIMM_NORM, "padding": "symmetric"},
        LukeMelasEfficientNet: {
            **_EFFICIENTNET,
            "padding": "same",
            "norm_momentum": 0.01,
            "norm_epsilon": 1e-3,
        },
        MixTransformerConfig: {"drop_path": 0.1},
    }

    def canonical(self, name: str) -> str:
        """DeepLabV3's decoder was a Sequential before 0.4."""
        for old, new in OLD_NAMES.items():
            if name.startswith(old):
                return name.replace(old, new, 1)
        return name

    def recognises(self, shapes: Shapes) -> bool:
        return "segmentation_head.0.weight" in shapes and (
            "decoder.aspp.0.convs.0.0.weight" in shapes or "decoder.aspp.convs.0.0.weight" in shapes
        )

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        plus = "decoder.aspp.0.convs.0.0.weight" in shapes
        stride = output_stride or (16 if plus else 8)
        aspp = "decoder.aspp.0." if plus else "decoder.aspp."
        common = {
            "rates": RATES,
            "channels": shapes[f"{aspp}convs.0.0.weight"][0],
            "separable": f"{aspp}convs.1.0.1.weight" in shapes,
        }
        if plus:
            head = DeepLabV3PlusConfig(
                **common, refine=True, decoder_convs=1, separable_decoder=True
            )
        else:
            head = DeepLabV3Config(**common)
        classes = shapes["segmentation_head.0.weight"][0]
        return Config(self.backbone(shapes, stride), head, classes, align_corners=True)

    def backbone(self, shapes: Shapes, output_stride: int) -> Any:
        backbone, place = super().backbone(shapes, output_stride), self.find_place(shapes)
        if isinstance(place.naming, LukeMelasEfficientNet):
            return dataclasses.replace(backbone, early_blocks=EARLY_BLOCKS.get(backbone.variant, 0))
        if isinstance(backbone, MobileNetV3Config) and place.prefix == TIMMS:
            name = place.naming.timm_name(backbone).removeprefix("mobilenetv3_")
            if name in TENSORFLOWS_MOBILENETS:
                return dataclasses.replace(backbone, **TENSORFLOWS)
        return backbone

    def preprocessing(self, config: Config, source: Mapping[str, np.ndarray]) -> Preprocessing:
        """ImageNet's statistics or Inception's, as the encoder's weights have them by default."""
        del source
        name = _encoder_name(config, self.place(config)) or ""
        name = name.removeprefix("timm-").removeprefix(TIMMS_NAMES)
        statistics = default_preprocessing(name, config.backbone.in_channels)
        return dataclasses.replace(statistics, size_multiple=config.backbone.output_stride)

    def choices_for(self, config: Config) -> tuple[str, ...]:
        """Those that are open for all networks, and for timm's that it or smp has two kinds of."""
        backbone = config.backbone
        closed = {*TENSORFLOWS, "first_block_dilation"}
        if isinstance(backbone, BORN_TWICE) and self.place(config).prefix == TIMMS:
            closed -= TENSORFLOWS.keys()
        if isinstance(backbone, DILATED_TWICE):
            closed.remove("first_block_dilation")
        return tuple(choice for choice in self.choices if choice not in closed)

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        if not {"encoder_name", "encoder_output_stride"} <= settings.keys():
            raise ValueError(
                "it has no encoder_name and encoder_output_stride, so it is not "
                "segmentation_models_pytorch's. Remove it, or pass the folder of save_pretrained"
            )
        check_strides(str(settings["encoder_name"]))
        stride = settings["encoder_output_stride"]
        # What brings the logits back to the image's size, and what is not built otherwise.
        sizes = {"DeepLabV3": stride, "DeepLabV3Plus": 4}
        fixed = {"encoder_depth": (5,)}
        if (size := sizes.get(settings.get("_model_class"))) is not None:
            fixed["upsampling"] = (size, None)
        check_fixed(settings, fixed)
        fields = {"output_stride": stride}
        if rates := settings.get("decoder_atrous_rates"):
            fields["rates"] = tuple(rates)
        if (dropout := settings.get("decoder_aspp_dropout")) is not None:
            fields["dropout"] = dropout
        encoder = str(settings["encoder_name"])
        if encoder.startswith(TIMMS_NAMES):
            network = encoder.removeprefix(TIMMS_NAMES)
            fields |= conventions(network)
            if network.removeprefix("tf_").startswith("mobilenetv3"):
                fields["first_block_dilation"] = "previous"  # of these there is one kind
        elif encoder.startswith("timm-mobilenetv3_"):
            fields |= TENSORFLOWS
        return fields

    def fields(self, place: Place) -> Mapping[str, Any]:
        """timm dilates its own networks; smp dilates all others, each block of a stage alike."""
        fields = super().fields(place)
        if place.prefix != TIMMS:
            return fields
        return {"first_block_dilation": "previous"} if "first_block_dilation" in fields else {}

    def place(self, config: Config) -> Place:
        """Among its own encoders if one is dilated so, else among timm's."""
        either = isinstance(config.backbone, DILATED_TWICE)
        for naming in self._namings():
            if naming.family is type(config.backbone):
                for place in (Place(OWN, naming), Place(TIMMS, naming)):
                    rule = self.fields(place).get("first_block_dilation")
                    alike = getattr(config.backbone, "first_block_dilation", rule) == rule
                    if (alike or either) and _encoder_name(config, place):
                        return place
        return super().place(config)

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        plus = isinstance(config.head, DeepLabV3PlusConfig)
        aspp = aspp_names(branches=4, separable="" if config.head.separable else None)
        names |= under("head.aspp", "decoder.aspp.0" if plus else "decoder.aspp", aspp)
        if not plus:
            names |= conv_bn("head.convs.0", "decoder.conv", "decoder.bn")
            return names | {"head.classifier": "segmentation_head.0"}
        names |= separable_names("head.refine", "decoder.aspp.1.")
        names |= {"head.refine.bn": "decoder.aspp.2"}
        names |= conv_bn("head.decoder.low", "decoder.block1.0", "decoder.block1.1")
        names |= separable_names("head.decoder.convs.0", "decoder.block2.0.")
        names |= {"head.decoder.convs.0.bn": "decoder.block2.1"}
        return names | {"head.decoder.classifier": "segmentation_head.0"}

    def rolls(self, config: Config) -> dict[str, int]:
        """The decoder concatenates (ASPP, low-level)."""
        if isinstance(config.head, DeepLabV3Config):
            return {}
        conv = "head.decoder.convs.0"
        return dict.fromkeys((f"{conv}.depthwise", f"{conv}.pointwise"), config.head.channels)

    def reference(self, config: Config, place: Place | None = None):
        import segmentation_models_pytorch as smp

        encoder = _encoder_name(config, place or self.place(config))
        if encoder is None or not _exists(encoder):
            return None
        backbone = config.backbone
        if isinstance(backbone, DILATED_TWICE) and backbone.first_block_dilation == "same":
            return None  # of a version before 0.5
        plus = isinstance(config.head, DeepLabV3PlusConfig)
        return (smp.DeepLabV3Plus if plus else smp.DeepLabV3)(
            encoder_name=encoder,
            encoder_weights=None,
            encoder_output_stride=config.backbone.output_stride,
            in_channels=config.backbone.in_channels,
            classes=config.num_classes,
            decoder_channels=config.head.channels,
            decoder_atrous_rates=config.head.rates,
            decoder_aspp_separable=config.head.separable,
        )


def _encoder_name(config: Config, place: Place) -> str | None:
    if place.prefix == OWN:
        return place.naming.smp_name(config.backbone)
    name = place.naming.timm_name(config.backbone)
    return name and f"{TIMMS_NAMES}{name}"


def _exists(encoder: str) -> bool:
    """Whether there is an encoder of that name.

    Raises ImportError when the package is not installed.
    """
    import segmentation_models_pytorch as smp
    import timm

    if encoder.startswith(TIMMS_NAMES):
        return timm.is_model(encoder.removeprefix(TIMMS_NAMES))
    return encoder in smp.encoders.get_encoder_names()
