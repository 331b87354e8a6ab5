"""What a model of an original code base is for the tests, and how those of the packages are built."""

import dataclasses
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torchvision
from torch import nn

from deeplab_jax.backbones import (
    BackboneConfig,
    MobileNetV2Config,
)
from deeplab_jax.config import FeaturesConfig
from deeplab_jax.heads import (
    ClassifierConfig,
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    LRASPPConfig,
)

V3, V3PLUS, FCN, LRASPP = DeepLabV3Config, DeepLabV3PlusConfig, FCNConfig, LRASPPConfig


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of an original code base.

    Attributes:
      layout: that must be found.
      make: the torch module.
      backbone, head: what the config must have.
      aux: whether there is an auxiliary head.
      options: for `convert`, where the original was not built with its code's defaults.
      shapes: of the inputs, `[B, H, W, C]`.
    """

    layout: str
    make: Callable[[], nn.Module]
    backbone: BackboneConfig | FeaturesConfig
    head: type
    aux: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((2, 65, 97, 3),)


Cases = dict[str, Case]


def smp_model(
    name: str,
    encoder: str,
    backbone: BackboneConfig,
    options: dict[str, Any] | None = None,
    **model,
) -> Case:
    stride = backbone.output_stride
    model |= {"encoder_weights": None, "classes": 7, "encoder_output_stride": stride}
    fields = {}
    if hasattr(backbone, "first_block_dilation"):
        rule = "previous" if encoder.startswith("tu-") else "same"  # timm's own, or smp's
        fields = {"first_block_dilation": rule}
    return Case(
        "smp",
        lambda: getattr(smp, name)(encoder, **model),
        dataclasses.replace(backbone, **fields),
        V3PLUS if "Plus" in name else V3,
        options={"output_stride": stride} | (options or {}),
        shapes=((2, 48, 80, backbone.in_channels),),
    )


def classifier(
    make: Callable[..., nn.Module], backbone: BackboneConfig, layout: str, **options
) -> Case:
    stride = {} if backbone.output_stride == 32 else {"output_stride": backbone.output_stride}
    return Case(
        layout,
        lambda: make(num_classes=7),
        backbone,
        ClassifierConfig,
        options=stride | options,
    )


def torchvision_classifier(name: str, backbone: BackboneConfig, **model) -> Case:
    make = getattr(torchvision.models, name)
    return classifier(
        lambda num_classes: make(num_classes=num_classes, **model),
        backbone,
        "torchvision-classification",
    )


def timm_classifier(
    name: str, backbone: BackboneConfig, options: dict[str, Any] | None = None
) -> Case:
    stride = backbone.output_stride
    layout = "torchvision-classification" if "resnet" in name else "timm"
    return classifier(
        lambda num_classes: timm.create_model(
            name,
            num_classes=num_classes,
            **({"output_stride": stride} if stride < 32 else {}),  # MobileNetV3 does not take it
        ),
        backbone,
        layout,
        **(options or {}),
    )


def v2(width: float, stride: int = 32) -> MobileNetV2Config:
    return MobileNetV2Config(width, stride, last_conv="used")
