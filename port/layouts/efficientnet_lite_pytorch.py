"""efficientnet-lite-pytorch: the EfficientNet-Lite classifiers with TensorFlow's weights."""

from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import efficientnet_lite_names, under
from port.layouts.shapes import count, efficientnet_lite_config

IMAGE_SIZES = (224, 240, 260, 280, 300)  # of variants 0 to 4; "same" padding is fixed for them


class EfficientNetLitePytorch(Layout):
    name = "efficientnet-lite-pytorch"
    code = "efficientnet-lite-pytorch"
    models = "ImageNet EfficientNet-Lite0 to 4 as dilated networks"
    choices = ("output_stride", "same_size", "preprocessing")
    linear = ("head.classifier",)

    def recognises(self, shapes: Shapes) -> bool:
        return "_conv_stem.weight" in shapes and "_blocks.0._project_conv.weight" in shapes

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        projections = [
            shapes[f"_blocks.{i}._project_conv.weight"][0]
            for i in range(count(shapes, "_blocks.{}."))
        ]
        backbone = efficientnet_lite_config(
            projections,
            shapes["_conv_stem.weight"][1],
            output_stride=output_stride or 32,
            last_conv="used",
            padding="same",
            norm_momentum=0.01,
            norm_epsilon=1e-3,
            drop_path=0.2,
        )
        config = Config(
            backbone,
            ClassifierConfig(),
            shapes.get("_fc.weight", (1000,))[0],
            preprocessing=Preprocessing(
                mean=(127 / 255,) * backbone.in_channels, std=(128 / 255,) * backbone.in_channels
            ),
        )
        return config.override(same_size=IMAGE_SIZES[backbone.variant])

    def names(self, config: Config) -> Names:
        names = efficientnet_lite_names(config.backbone)
        return under("backbone", "", names) | {"head.classifier": "_fc"}

    def reference(self, config: Config):
        if config.backbone.output_stride != 32:
            return None  # the package cannot dilate
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(
            f"efficientnet-lite{config.backbone.variant}",
            in_channels=config.backbone.in_channels,
            num_classes=config.num_classes,
        )
