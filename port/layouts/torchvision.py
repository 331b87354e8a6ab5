"""torchvision.models.segmentation: DeepLabv3 and FCN on ResNet, DeepLabv3 and LR-ASPP on MobileNetV3.

Its own ResNets are 50 and 101; people build the same on its ResNeXts and wide ResNets.
"""

import functools
from typing import ClassVar

from deeplab_jax.backbones import MobileNetV3Config, ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, FCNConfig, LRASPPConfig
from port.layouts.base import Layout, Place
from port.layouts.heads import aspp_names
from port.naming import Names, Shapes, conv_bn, under

RATES = (12, 24, 36)  # at every output stride


class Torchvision(Layout):
    name = "torchvision"
    code = "torchvision.models.segmentation"
    models = (
        "DeepLabv3 and FCN on ResNet-50/101, ResNeXt and wide ResNet, DeepLabv3 and LR-ASPP on "
        "MobileNetV3; auxiliary heads"
    )
    rules: ClassVar = {ResNetConfig: {}, MobileNetV3Config: {"first_block_dilation": "same"}}
    rule: ClassVar = {"first_block_dilation": "previous"}

    def recognises(self, shapes: Shapes) -> bool:
        return any(
            f"{key}.weight" in shapes
            for key in ("classifier.0.convs.0.0", "classifier.4", "classifier.cbr.0")
        ) and any(name.startswith("backbone.") for name in shapes)

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        default = 16 if "backbone.0.0.weight" in shapes else 8
        backbone = self.backbone(shapes, output_stride or default)
        if isinstance(backbone, ResNetConfig) and not backbone.bottlenecks:
            raise ValueError(
                "its heads are for bottlenecks (ResNet-50, 101 and 152), and this is a "
                f"ResNet-{backbone.depth}"
            )
        if "classifier.cbr.0.weight" in shapes:
            channels = shapes["classifier.cbr.0.weight"][0]
            classes = shapes.get("classifier.high_classifier.weight", (21,))[0]
            return Config(backbone, LRASPPConfig(channels), classes)
        classes = shapes.get("classifier.4.weight", (21,))[0]
        v3 = "classifier.0.convs.0.0.weight" in shapes
        head = DeepLabV3Config(rates=RATES) if v3 else FCNConfig()
        aux = None
        if "aux_classifier.0.weight" in shapes:
            aux = FCNConfig(tap="mid" if isinstance(backbone, MobileNetV3Config) else "aux")
        return Config(backbone, head, classes, aux)

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        match config.head:
            case DeepLabV3Config():
                names |= under("head.aspp", "classifier.0", aspp_names(branches=1 + len(RATES)))
                names |= conv_bn("head.convs.0", "classifier.1", "classifier.2")
                names["head.classifier"] = "classifier.4"
            case FCNConfig():
                names |= _fcn_names("head", "classifier")
            case LRASPPConfig():
                names |= conv_bn("head.cbr", "classifier.cbr.0", "classifier.cbr.1")
                names["head.scale"] = "classifier.scale.1"
                names["head.mid_classifier"] = "classifier.low_classifier"
                names["head.high_classifier"] = "classifier.high_classifier"
        if config.aux_head:
            names |= _fcn_names("aux_head", "aux_classifier")
        return names

    def reference(self, config: Config, place: Place | None = None):
        from torchvision.models import mobilenetv3, resnet
        from torchvision.models.segmentation import deeplabv3, fcn, lraspp

        backbone, stride, aux = config.backbone, config.backbone.output_stride, config.aux_head
        options = {"num_classes": config.num_classes, "aux": aux is not None}
        if isinstance(backbone, ResNetConfig):
            make = {DeepLabV3Config: deeplabv3._deeplabv3_resnet, FCNConfig: fcn._fcn_resnet}
            naming = (place or self.place(config)).naming
            build = getattr(resnet, naming.timm_name(backbone) or "", None)  # the same names
            if build is None:
                return None
            network = build(replace_stride_with_dilation=[False, stride == 8, stride <= 16])
            return make[type(config.head)](network, **options)
        if stride == 8:  # torchvision's MobileNetV3 dilates one stage or none
            return None
        network = functools.partial(
            mobilenetv3.mobilenet_v3_large
            if backbone.size == "large"
            else mobilenetv3.mobilenet_v3_small,
            dilated=stride == 16,
        )(width_mult=backbone.width)
        if isinstance(config.head, LRASPPConfig):
            return lraspp._lraspp_mobilenetv3(network, config.num_classes)
        return deeplabv3._deeplabv3_mobilenetv3(network, **options)


def _fcn_names(ours: str, theirs: str) -> Names:
    names = conv_bn(f"{ours}.conv", f"{theirs}.0", f"{theirs}.1")
    return names | {f"{ours}.classifier": f"{theirs}.4"}
