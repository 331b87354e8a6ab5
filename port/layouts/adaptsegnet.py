"""DeepLabv2 as domain adaptation has it: AdaptSegNet, ADVENT and what was made of them.

On the ResNet-101 that was born in Caffe. `layer5`, or `layer6` where there is an auxiliary classifier on
layer3 too, has four atrous classifiers. AdaptSegNet's code returns once two of them are added, ADVENT's
adds all: `summed` tells.
"""

from typing import ClassVar

from deeplab_jax.backbones import ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV2Config
from port.layouts.base import Layout, Place
from port.layouts.caffe import CAFFE_BLOCKS, caffe_preprocessing
from port.naming import Names, Shapes, count


class AdaptSegNet(Layout):
    """Single-level: `layer5` is the classifier."""

    name = "adaptsegnet"
    code = "AdaptSegNet and its kin, single-level"
    models = "DeepLabv2 on ResNet-101"
    layer = "layer5"
    choices = ("output_stride", "summed", "preprocessing")
    prefixes = ("",)

    rules: ClassVar = {ResNetConfig: CAFFE_BLOCKS}
    rule: ClassVar = {"first_block_dilation": "same"}

    def recognises(self, shapes: Shapes) -> bool:
        return self.layer == max(_classifiers(shapes), default="")

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        classes = shapes[f"{self.layer}.conv2d_list.0.weight"][0]
        branches = count(shapes, f"{self.layer}.conv2d_list.{{}}.")
        head = DeepLabV2Config(rates=tuple(6 * (i + 1) for i in range(branches)))
        backbone = self.backbone(shapes, output_stride or 8)
        return Config(
            backbone,
            head,
            classes,
            align_corners=True,
            preprocessing=caffe_preprocessing(backbone.in_channels),
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        for i in range(len(config.head.rates)):
            names[f"head.classifiers.{i}"] = f"{self.layer}.conv2d_list.{i}"
        return names


class AdaptSegNetMulti(AdaptSegNet):
    """Multi-level: `layer6` is the classifier, and `layer5` an auxiliary one on layer3, if it is there."""

    name = "adaptsegnet-multi"
    code = "AdaptSegNet, ADVENT and their kin, multi-level"
    layer = "layer6"
    apart = ("layer5.",)


def _classifiers(shapes: Shapes) -> list[str]:
    layers = ("layer5", "layer6")
    return [layer for layer in layers if f"{layer}.conv2d_list.0.weight" in shapes]
