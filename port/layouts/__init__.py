"""The families of PyTorch code that we can read; a file each."""

from port.layouts.adaptsegnet import AdaptSegNet, AdaptSegNetMulti
from port.layouts.base import Layout, Place
from port.layouts.bubbliiiing import Bubbliiiing
from port.layouts.coincheung import CoinCheung
from port.layouts.detectron2 import Detectron2
from port.layouts.efficientnet_lite_pytorch import EfficientNetLitePytorch
from port.layouts.google import Google
from port.layouts.jfzhang import JFZhang
from port.layouts.kazuto1011 import Kazuto1011
from port.layouts.mmseg import MMSeg
from port.layouts.smp import SMP
from port.layouts.standalone import Standalone
from port.layouts.timm import Timm
from port.layouts.torchvision import Torchvision
from port.layouts.torchvision_classification import TorchvisionClassification
from port.layouts.transformers import TransformersMobileNetV2, TransformersMobileViT
from port.layouts.unimatch import UniMatch
from port.layouts.vainf import VainF
from port.layouts.yassouali import Yassouali
from port.layouts.yudewang import YudeWang

__all__ = ["LAYOUTS", "Layout", "Place"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Torchvision(),
        VainF(),
        SMP(),
        MMSeg(),
        JFZhang(),
        Yassouali(),
        Bubbliiiing(),
        YudeWang(),
        UniMatch(),
        Kazuto1011(),
        AdaptSegNet(),
        AdaptSegNetMulti(),
        Detectron2(),
        CoinCheung(),
        Standalone(),
        TorchvisionClassification(),
        Timm(),
        EfficientNetLitePytorch(),
        TransformersMobileNetV2(),
        TransformersMobileViT(),
        Google(),
    )
}
