"""The families of backbones, as PyTorch code names them; a file each."""

from port.backbones.base import Naming
from port.backbones.convnext import TimmConvNeXt, TimmFeaturesConvNeXt, TorchvisionConvNeXt
from port.backbones.drn import AuthorsDRN
from port.backbones.efficientnet_lite import LukeMelasEfficientNetLite, TimmEfficientNetLite
from port.backbones.hrnet import VainFHRNet
from port.backbones.mobilenet_v2 import (
    FlatMobileNetV2,
    MMSegMobileNetV2,
    TimmMobileNetV2,
    TorchvisionMobileNetV2,
    TransformersMobileNetV2,
    VainFMobileNetV2,
)
from port.backbones.mobilenet_v3 import TimmMobileNetV3, TorchvisionMobileNetV3
from port.backbones.mobilevit import TransformersMobileViT
from port.backbones.resnet import TorchvisionResNet, YassoualiResNet
from port.backbones.xception import (
    BubbliiiingXception,
    CadeneXception,
    JFZhangXception,
    YassoualiXception,
)

__all__ = ["NAMINGS", "Naming", "register_naming"]

NAMINGS: list[Naming] = [
    TorchvisionResNet(),
    YassoualiResNet(),
    TorchvisionMobileNetV2(),
    VainFMobileNetV2(),
    FlatMobileNetV2(),
    TimmMobileNetV2(),
    MMSegMobileNetV2(),
    TransformersMobileNetV2(),
    TorchvisionMobileNetV3(),
    TimmMobileNetV3(),
    TimmEfficientNetLite(),
    LukeMelasEfficientNetLite(),
    TransformersMobileViT(),
    VainFHRNet(),
    AuthorsDRN(),
    YassoualiXception(),
    JFZhangXception(),
    BubbliiiingXception(),
    CadeneXception(),
    TorchvisionConvNeXt(),
    TimmConvNeXt(),
    TimmFeaturesConvNeXt(),
]
"""All namings; a layout's own come first where it is concerned."""


def register_naming(naming: Naming) -> None:
    """Makes the names of a backbone of your own known to every layout.

    The command knows them with `--plugin MODULE`, the module that calls this. A naming of the same class
    is replaced, as where a notebook runs a cell twice.
    """
    same = [known for known in NAMINGS if type(known).__qualname__ == type(naming).__qualname__]
    for known in same:
        NAMINGS.remove(known)
    NAMINGS.append(naming)
