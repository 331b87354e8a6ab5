"""The relatives of ResNet, as small as they come: a block or two in each stage.

Networks of this depth are in no package. They are put together from the packages' own blocks.
"""

import dataclasses
from typing import Any

import segmentation_models_pytorch as smp
import torchvision
from segmentation_models_pytorch.encoders import _senet, senet
from segmentation_models_pytorch.encoders import resnet as smp_resnet
from timm.models import res2net, resnest, resnet
from torch import nn
from torchvision.models.segmentation import deeplabv3

from deeplab_jax.backbones import ResNetConfig
from originals.case import V3, Case, Cases, classifier, smp_model

ONCE, TWICE = (1, 1, 1, 1), (2, 2, 2, 2)
CHANNELS = (3, 64, 256, 512, 1024, 2048)


def _smp_own(name: str, encoder: type, backbone: ResNetConfig, **options: Any) -> Case:
    """A model of segmentation_models_pytorch on one of its encoders."""

    def make() -> nn.Module:
        stride = backbone.output_stride
        model = getattr(smp, name)(
            "resnet50", encoder_weights=None, classes=7, encoder_output_stride=stride
        )
        model.encoder = encoder(
            out_channels=list(CHANNELS), layers=list(ONCE), output_stride=stride, **options
        )
        model.encoder.make_dilated(stride)
        return model

    case = smp_model(name, "resnet50", backbone)
    return dataclasses.replace(case, make=make)


def _timm(block: type, backbone: ResNetConfig, layers: tuple[int, ...], **options: Any) -> Case:
    """A classifier of timm."""
    stride = backbone.output_stride
    return classifier(
        lambda num_classes: resnet.ResNet(
            block, layers, num_classes=num_classes, output_stride=stride, **options
        ),
        backbone,
        "torchvision-classification",
    )


def _torchvision_wide() -> nn.Module:
    network = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck,
        list(ONCE),
        width_per_group=128,
        replace_stride_with_dilation=[False, True, True],
    )
    return deeplabv3._deeplabv3_resnet(network, 7, aux=False)


_deep_average: dict[str, Any] = {"stem": "deep", "shortcut": "average"}
_senet_options = {"groups": 64, "reduction": 16, "dropout_p": None}
_plain_senet = {
    "inplanes": 64,
    "input_3x3": False,
    "downsample_kernel_size": 1,
    "downsample_padding": 0,
}

COMPARED: Cases = {
    "smp-v3plus-resnext-os16": _smp_own(
        "DeepLabV3Plus",
        smp_resnet.ResNetEncoder,
        ResNetConfig(14, 16, groups=32, width_per_group=4),
        block=torchvision.models.resnet.Bottleneck,
        groups=32,
        width_per_group=4,
    ),
    "smp-v3plus-se-resnet-os16": _smp_own(
        "DeepLabV3Plus",
        senet.SENetEncoder,
        ResNetConfig(14, 16, attention="se", bottleneck_stride="1x1", stem_pool="ceil"),
        block=_senet.SEResNetBottleneck,
        **_senet_options | _plain_senet | {"groups": 1},
    ),
    "smp-v3-senet-os8": _smp_own(
        "DeepLabV3",
        senet.SENetEncoder,
        ResNetConfig(
            14,
            8,
            groups=64,
            width_per_group=4,
            reduce_first=2,
            attention="se",
            shortcut_kernel=3,
            stem="deep",
            stem_widths=(64, 64, 128),
            stem_pool="ceil",
        ),
        block=_senet.SEBottleneck,
        **_senet_options,
    ),
    "smp-v3-tu-resnest-os8": smp_model(
        "DeepLabV3", "tu-resnest14d", ResNetConfig(14, 8, radix=2, **_deep_average)
    ),
    "tv-v3-wide-resnet-os8": Case(
        "torchvision", _torchvision_wide, ResNetConfig(14, 8, width_per_group=128), V3
    ),
    "timm-ecaresnet-t-os8": _timm(
        resnet.Bottleneck,
        ResNetConfig(14, 8, attention="eca", stem_widths=(24, 32, 64), **_deep_average),
        ONCE,
        stem_width=32,
        stem_type="deep_tiered",
        avg_down=True,
        block_args={"attn_layer": "eca"},
    ),
    "timm-seresnet-c-os16": _timm(
        resnet.BasicBlock,
        ResNetConfig(10, 16, attention="se", stem="deep"),
        ONCE,
        stem_width=32,
        stem_type="deep",
        block_args={"attn_layer": "se"},
    ),
    "timm-resnest-groups-os32": _timm(
        resnest.ResNestBottleneck,
        ResNetConfig(
            14,
            32,
            radix=4,
            groups=2,
            width_per_group=40,
            split_pool="before",
            **_deep_average,
        ),
        ONCE,
        stem_width=32,
        stem_type="deep",
        avg_down=True,
        cardinality=2,
        base_width=40,
        block_args={"radix": 4, "avd": True, "avd_first": True},
    ),
    "timm-res2net-os16": _timm(
        res2net.Bottle2neck,
        ResNetConfig(26, 16, width_per_group=26, scale=4),
        TWICE,
        base_width=26,
        block_args={"scale": 4},
    ),
}
DEEPER: Cases = {}
