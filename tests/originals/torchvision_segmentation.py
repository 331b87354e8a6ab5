"""torchvision.models.segmentation."""

from collections.abc import Callable

import torchvision
from torch import nn
from torchvision.models import segmentation

from deeplab_jax.backbones import MobileNetV3Config, ResNetConfig
from originals.case import FCN, LRASPP, V3, Case, Cases

NO_WEIGHTS = {"weights": None, "weights_backbone": None}


def _segmentation(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(segmentation, name)(**NO_WEIGHTS, num_classes=7, **options)


def _dilated(head: Callable, depth: int, stride: int, aux: bool) -> Callable[[], nn.Module]:
    """What the public constructors cannot build: they have output stride 8."""

    def make():
        dilated = [False, stride == 8, stride <= 16]
        network = getattr(torchvision.models, f"resnet{depth}")(
            replace_stride_with_dilation=dilated
        )
        return head(network, 7, aux)

    return make


_v3_resnet, _fcn_resnet = segmentation.deeplabv3._deeplabv3_resnet, segmentation.fcn._fcn_resnet
_mobile = MobileNetV3Config("large")
TV = "torchvision"

COMPARED: Cases = {
    "tv-v3-r50-aux-os8": Case(
        TV, _segmentation("deeplabv3_resnet50", aux_loss=True), ResNetConfig(50, 8), V3, True
    ),
    "tv-fcn-r50-aux-os16": Case(
        TV,
        _dilated(_fcn_resnet, 50, 16, aux=True),
        ResNetConfig(50, 16),
        FCN,
        True,
        options={"output_stride": 16},
    ),
    "tv-v3-mbv3-aux": Case(
        TV, _segmentation("deeplabv3_mobilenet_v3_large", aux_loss=True), _mobile, V3, True
    ),
    "tv-lraspp": Case(TV, _segmentation("lraspp_mobilenet_v3_large"), _mobile, LRASPP),
    "tv-lraspp-os32": Case(
        TV,
        lambda: segmentation.lraspp._lraspp_mobilenetv3(
            torchvision.models.mobilenet_v3_large(dilated=False), 7
        ),
        MobileNetV3Config("large", output_stride=32),
        LRASPP,
        options={"output_stride": 32},
    ),
}
DEEPER: Cases = {
    f"tv-{head}-r{depth}-{'aux-' if aux else ''}os8": Case(
        TV,
        _segmentation(f"{name}_resnet{depth}", aux_loss=aux),
        ResNetConfig(depth, 8),
        config,
        aux,
    )
    for head, name, config in (("v3", "deeplabv3", V3), ("fcn", "fcn", FCN))
    for depth in (50, 101)
    for aux in (True, False)
}
DEEPER |= {
    f"tv-{head}-r{depth}-os16": Case(
        TV,
        _dilated(make, depth, 16, aux=False),
        ResNetConfig(depth, 16),
        config,
        options={"output_stride": 16},
    )
    for head, make, config, depth in (("v3", _v3_resnet, V3, 101), ("fcn", _fcn_resnet, FCN, 50))
}
del DEEPER["tv-v3-r50-aux-os8"]  # compared
DEEPER["tv-v3-mbv3"] = Case(TV, _segmentation("deeplabv3_mobilenet_v3_large"), _mobile, V3)
