"""yassouali's pytorch-segmentation: DeepLabv3+ on ResNet and the aligned Xception.

Its ASPP is called `ASSP`. Images are normalised with the mean and deviation of the dataset that a
model was trained on. Weights do not tell it: `MEAN_STD` has them, and Pascal VOC's are the default.
"""

from typing import ClassVar

from deeplab_jax.backbones import ResNetConfig, XceptionConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3PlusConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes, conv_bn

MEAN_STD = {
    "voc": Preprocessing((0.45734706, 0.43338275, 0.40058118), (0.23965294, 0.23532275, 0.2398498)),
    "cityscapes": Preprocessing(
        (0.28689529, 0.32513294, 0.28389176), (0.17613647, 0.18099176, 0.17772235)
    ),
    "ade20k": Preprocessing((0.48897059, 0.46548275, 0.4294), (0.22861765, 0.22948039, 0.24054667)),
    "coco": Preprocessing(
        (0.43931922, 0.41310471, 0.37480941), (0.24272706, 0.23649098, 0.23429529)
    ),
}


class Yassouali(Layout):
    name = "yassouali"
    code = "yassouali/pytorch-segmentation"
    models = "v3+ on ResNet and Xception"
    choices = ("output_stride", "preprocessing")

    rules: ClassVar = {
        ResNetConfig: {"first_block_dilation": "same"},
        XceptionConfig: {
            "low": "block1",
            "stem_relu": False,
            "shortcut_relu": "all",
            "exit_relu": "before",
        },
    }

    def recognises(self, shapes: Shapes) -> bool:
        return "ASSP.aspp1.0.weight" in shapes and "decoder.output.0.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 16)
        return Config(
            backbone,
            DeepLabV3PlusConfig(decoder_dropout=(0.0, 0.1)),
            shapes.get("decoder.output.7.weight", (21,))[0],
            align_corners=True,
            preprocessing=MEAN_STD["voc"] if backbone.in_channels == 3 else Preprocessing(),
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        for i in range(4):
            theirs = f"ASSP.aspp{i + 1}"
            names |= conv_bn(f"head.aspp.branches.{i}", f"{theirs}.0", f"{theirs}.1")
        names |= conv_bn("head.aspp.pool", "ASSP.avg_pool.1", "ASSP.avg_pool.2")
        names |= conv_bn("head.aspp.project", "ASSP.conv1", "ASSP.bn1")
        names |= conv_bn("head.decoder.low", "decoder.conv1", "decoder.bn1")
        names |= conv_bn("head.decoder.convs.0", "decoder.output.0", "decoder.output.1")
        names |= conv_bn("head.decoder.convs.1", "decoder.output.3", "decoder.output.4")
        return names | {"head.decoder.classifier": "decoder.output.7"}
