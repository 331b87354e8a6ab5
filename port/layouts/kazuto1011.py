"""kazuto1011's deeplab-pytorch: v2, v3 and v3+ on the ResNets that were born in Caffe.

Their first 1x1 convolution has a block's stride, and max pooling's last windows stick out. The multi-scale
wrapper (`base.`), which takes the largest logits of scales .5, .75 and 1, has no weights: `--scales` of
`deeplab predict` averages probabilities instead.
"""

from typing import ClassVar

from deeplab_jax.backbones import ResNetConfig
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV2Config, DeepLabV3Config, DeepLabV3PlusConfig
from port.layouts.base import Layout, Place
from port.layouts.caffe import CAFFE_BLOCKS, caffe_preprocessing
from port.naming import Names, Shapes

RATES = (6, 12, 18)  # of v3 and v3+ in its configs, at every output stride
MULTI_GRID = (1, 2, 4)


class Kazuto1011(Layout):
    name = "kazuto1011"
    code = "kazuto1011/deeplab-pytorch"
    models = "v2, v3 and v3+ on ResNet-50, 101 and 152"
    choices = ("output_stride", "rates", "multi_grid", "preprocessing")
    takes_others = False
    prefixes = ("",)

    rules: ClassVar = {ResNetConfig: CAFFE_BLOCKS | {"norm_momentum": 1e-3}}

    def recognises(self, shapes: Shapes) -> bool:
        stem = "layer1.conv1.conv.weight" in shapes
        return stem and ("aspp.c0.weight" in shapes or "aspp.stages.c0.conv.weight" in shapes)

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        plus = "fc2.conv1.conv.weight" in shapes
        backbone = self.backbone(shapes, output_stride or (16 if plus else 8))
        preprocessing = caffe_preprocessing(backbone.in_channels)
        if "aspp.c0.weight" in shapes:
            classes = shapes["aspp.c0.weight"][0]
            return Config(backbone, DeepLabV2Config(), classes, preprocessing=preprocessing)
        common = {"rates": RATES, "dropout": 0.0, "channels": shapes["fc1.conv.weight"][0]}
        head = (
            DeepLabV3PlusConfig(**common, low_channels=shapes["reduce.conv.weight"][0])
            if plus
            else DeepLabV3Config(**common, convs=0)
        )
        classes = shapes.get("fc2.conv3.weight" if plus else "fc2.weight", (21,))[0]
        config = Config(backbone, head, classes, preprocessing=preprocessing)
        return config.override(multi_grid=MULTI_GRID)

    def choices_for(self, config: Config) -> tuple[str, ...]:
        """v2 has no multi-grid."""
        v2 = isinstance(config.head, DeepLabV2Config)
        return tuple(choice for choice in self.choices if not (v2 and choice == "multi_grid"))

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        if isinstance(config.head, DeepLabV2Config):
            return names | {
                f"head.classifiers.{i}": f"aspp.c{i}" for i in range(len(config.head.rates))
            }
        for i in range(4):
            names |= _conv_bn_relu(f"head.aspp.branches.{i}", f"aspp.stages.c{i}")
        names |= _conv_bn_relu("head.aspp.pool", "aspp.stages.imagepool.conv")
        names |= _conv_bn_relu("head.aspp.project", "fc1")
        if isinstance(config.head, DeepLabV3Config):
            return names | {"head.classifier": "fc2"}
        names |= _conv_bn_relu("head.decoder.low", "reduce")
        for i in range(2):
            names |= _conv_bn_relu(f"head.decoder.convs.{i}", f"fc2.conv{i + 1}")
        return names | {"head.decoder.classifier": "fc2.conv3"}

    def rolls(self, config: Config) -> dict[str, int]:
        """The decoder concatenates (ASPP, low-level)."""
        plus = isinstance(config.head, DeepLabV3PlusConfig)
        return {"head.decoder.convs.0.conv": config.head.channels} if plus else {}


def _conv_bn_relu(ours: str, theirs: str) -> Names:
    return {f"{ours}.conv": f"{theirs}.conv", f"{ours}.bn": f"{theirs}.bn"}
