"""ASPP and Decoder as two modules without a backbone, each under a prefix of its own."""

from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.heads import DeepLabV3PlusConfig
from port.layouts.base import Layout, Place
from port.naming import Names, Shapes, conv_bn


class Standalone(Layout):
    name = "standalone"
    code = "ASPP (`aspp.aspp1.0`) and Decoder (`decoder.output.3`)"
    models = "ASPP and Decoder alone"

    def recognises(self, shapes: Shapes) -> bool:
        return "aspp.aspp1.0.weight" in shapes and "decoder.output.0.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        features = FeaturesConfig(
            high=shapes["aspp.aspp1.0.weight"][1],
            low=shapes.get("decoder.conv1.weight", (48, 256))[1],
            output_stride=output_stride or 16,
        )
        # rates 6, 12, 18 or twice that, as `rates_for` has them
        head = DeepLabV3PlusConfig(decoder_convs=1)
        classes = shapes.get("decoder.output.3.weight", (21,))[0]
        return Config(features, head, classes, align_corners=True)

    def names(self, config: Config, place: Place | None = None) -> Names:
        del config, place
        names = {}
        for i in range(4):
            names |= conv_bn(
                f"head.aspp.branches.{i}", f"aspp.aspp{i + 1}.0", f"aspp.aspp{i + 1}.1"
            )
        names |= conv_bn("head.aspp.pool", "aspp.avg_pool.1", "aspp.avg_pool.2")
        names |= conv_bn("head.aspp.project", "aspp.conv1", "aspp.bn1")
        names |= conv_bn("head.decoder.low", "decoder.conv1", "decoder.bn1")
        names |= conv_bn("head.decoder.convs.0", "decoder.output.0", "decoder.output.1")
        return names | {"head.decoder.classifier": "decoder.output.3"}
