"""Google's research/deeplab, the papers' own code, in TensorFlow: v3 and v3+.

Its variables come with PyTorch's names and layout, see `port.tensorflow_files`. What its flags choose and
variables do not tell, a frozen graph does, see `port.tensorflow_graph`.

Image pooling is over the whole image, as there unless image_pooling_crop_size says otherwise. Its exported
graphs fill pictures up to a fixed size, 513 x 513 as a rule, with the mean, which is 0 once they are
normalised; ours take them at their own size.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from deeplab_jax.backbones import BackboneConfig, MobileNetV2Config, ResNetConfig, XceptionConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import ASPPConfig, DeepLabV3Config, DeepLabV3PlusConfig
from deeplab_jax.preprocessing import Preprocessing
from port.backbones.slim import conv_norm, separable
from port.layouts.base import Layout, Place, of_bytes
from port.naming import Names, Shapes, under

CLASSIFIER = "logits.semantic"
MULTI_GRID = (1, 2, 4)  # of its ResNets beta, as its README says
MEAN = (123.15, 115.90, 103.06)  # of pixels from 0 to 255
BRANCHES = 3  # atrous ones of an ASPP that has any


class Google(Layout):
    name = "google"
    code = "Google's research/deeplab (TensorFlow)"
    models = (
        "v3+ and v3 on Xception-41, 65 and 71, MobileNetV2, ResNet-50 and 101 (v1, and beta); checkpoints "
        "and frozen graphs"
    )
    choices = ("output_stride", "rates", "multi_grid")
    prefixes = ("",)
    takes_others = False
    to_verify = (
        "Pass the archive or folder that has its frozen_inference_graph.pb too: that is run."
    )
    rules: ClassVar = {
        MobileNetV2Config: {
            "padding": "same",
            "norm_momentum": 3e-3,
            "norm_epsilon": 1e-3,
            "low": "depthwise",
        },
        ResNetConfig: {
            "stage_stride": "last",
            "strided_shortcut": "subsample",
            "stem_pool": "same",
            "low": "residual",
            "norm_momentum": 0.05,
        },
        XceptionConfig: {"norm_momentum": 3e-4, "norm_epsilon": 1e-3, "keep_shortcut": True},
    }

    def recognises(self, shapes: Shapes) -> bool:
        own = {
            "aspp0.weight",
            "concat_projection.weight",
            "image_pooling.weight",
            "logits.semantic.weight",
        }
        return len(own & shapes.keys()) > 1

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        if not {"aspp0.weight", "concat_projection.weight"} <= shapes.keys():
            raise ValueError(
                "its head is neither v3's nor v3+'s ASPP with a projection: MobileNetV3's, dense "
                "prediction cells and heads without batch norm are not among those we know"
            )
        common = {
            "rates": None if _atrous(shapes) else (),
            "channels": shapes["concat_projection.weight"][0],
            "separable": "aspp1_depthwise.weight" in shapes,
            "norm_between": True,
            "dropout": 0.1,
        }
        if "decoder.feature_projection0.weight" in shapes:
            head = DeepLabV3PlusConfig(
                **common,
                low_channels=shapes["decoder.feature_projection0.weight"][0],
                separable_decoder="decoder.decoder_conv0_depthwise.weight" in shapes,
            )
        else:
            head = DeepLabV3Config(**common, convs=0)
        backbone = self.backbone(shapes, output_stride or 16)
        if _is_beta(backbone):
            backbone = dataclasses.replace(backbone, multi_grid=MULTI_GRID)
        return Config(
            backbone,
            head,
            shapes.get(f"{CLASSIFIER}.weight", (21,))[0],
            align_corners=True,
        )

    def preprocessing(self, config: Config, source: Mapping[str, np.ndarray]) -> Preprocessing:
        """To [-1, 1]; of ResNets that are not beta, the mean of ImageNet's pixels is subtracted."""
        del source
        backbone = config.backbone
        if isinstance(backbone, ResNetConfig) and not _is_beta(backbone):
            return of_bytes(MEAN, backbone.in_channels)
        half = (0.5,) * backbone.in_channels
        return Preprocessing(mean=half, std=half)

    def choices_for(self, config: Config) -> tuple[str, ...]:
        """Where ASPP has no atrous branches there are no rates."""
        if config.head.rates == ():
            return tuple(choice for choice in self.choices if choice != "rates")
        return self.choices

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        head = config.head
        inner = conv_norm("aspp.pool", "image_pooling") | conv_norm("aspp.branches.0", "aspp0")
        branch = separable if head.separable else conv_norm
        for i in range(1, _branches(head) + 1):
            inner |= branch(f"aspp.branches.{i}", f"aspp{i}")
        inner |= conv_norm("aspp.project", "concat_projection")
        if isinstance(head, DeepLabV3PlusConfig):
            inner |= conv_norm("decoder.low", "decoder.feature_projection0")
            for i in range(head.decoder_convs):
                ours, theirs = f"decoder.convs.{i}", "decoder.decoder_conv"
                if head.separable_decoder:
                    inner |= separable(ours, f"{theirs}{i}")
                else:
                    inner |= conv_norm(ours, f"{theirs}0.decoder_conv0_{i + 1}")
        classifier = "decoder.classifier" if isinstance(head, DeepLabV3PlusConfig) else "classifier"
        return names | under("head", "", inner | {classifier: CLASSIFIER})

    def rolls(self, config: Config) -> dict[str, int]:
        """ASPP concatenates (image pooling, branches) and the decoder (ASPP, low-level)."""
        rolls = {"head.aspp.project.conv": config.head.channels}
        if isinstance(config.head, DeepLabV3PlusConfig):
            for part in ("conv", "depthwise", "depthwise_bn", "pointwise"):
                rolls[f"head.decoder.convs.0.{part}"] = config.head.channels
        return rolls


def _is_beta(backbone: BackboneConfig) -> bool:
    """Whether it is a ResNet with three convolutions for a stem, which Google calls beta."""
    return isinstance(backbone, ResNetConfig) and backbone.stem == "deep"


def _atrous(shapes: Shapes) -> bool:
    """Whether ASPP has branches of 3x3 convolutions."""
    return bool({"aspp1.weight", "aspp1_depthwise.weight"} & shapes.keys())


def _branches(head: ASPPConfig) -> int:
    """How many there are."""
    return BRANCHES if head.rates is None else len(head.rates)
