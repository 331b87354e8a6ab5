"""The families of backbones, as PyTorch code names them; a file each, which registers its namings."""

from port.backbones import (  # noqa: F401 - each registers its namings
    convnext,
    dpn,
    drn,
    efficientnet_lite,
    hrnet,
    mix_transformer,
    mobilenet_v2,
    mobilenet_v3,
    mobileone,
    mobilevit,
    regnet,
    resnet,
    xception,
)
from port.backbones.base import NAMINGS, Naming, register_naming

__all__ = ["NAMINGS", "Naming", "register_naming"]
