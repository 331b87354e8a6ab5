"""transformers: DeepLabv3 on MobileNetV2 and on MobileViT.

What the weights cannot tell is in the config.json beside them, under transformers' own names.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.backbones import MobileNetV2Config, MobileViTConfig, mobilevit
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, rates_for
from deeplab_jax.layers import make_divisible
from deeplab_jax.preprocessing import Preprocessing
from port.backbones.mobilenet_v2 import conv_layer
from port.layouts.base import Layout, Place, check_fixed
from port.naming import Names, Shapes, under

CLASSIFIER = "segmentation_head.classifier.convolution"


class _Transformers(Layout):
    """What the two families share.

    Attributes:
      model_type: what config.json calls the family.
      options: its options -> the fields of our config that they are.
      fixed: options that we have only with this value, which is their default.
    """

    model_type: str
    options: ClassVar[Mapping[str, str]]
    fixed: ClassVar[Mapping[str, Any]]
    takes_others = False

    def recognises(self, shapes: Shapes) -> bool:
        return all(
            any(name.startswith(prefix) for name in shapes)
            for prefix in (f"{self.model_type}.", "segmentation_head.")
        )

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        if settings.get("model_type") != self.model_type:
            raise ValueError(
                f"model_type is {settings.get('model_type')!r}, but the weights are of a "
                f"{self.model_type!r}. It belongs to another model: remove it, or pass the "
                "folder that transformers saved"
            )
        check_fixed(settings, {name: (value,) for name, value in self.fixed.items()})
        fields = {
            field: tuple(settings[name]) if isinstance(settings[name], list) else settings[name]
            for name, field in self.options.items()
            if name in settings
        }
        return fields | _class_names(settings)


def _class_names(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The labels in order, unless transformers made them up: LABEL_0, LABEL_1, ..."""
    labels = settings.get("id2label") or {}
    names = tuple(labels[index] for index in sorted(labels, key=int))
    made_up = names == tuple(f"LABEL_{index}" for index in range(len(names)))
    return {} if made_up else {"class_names": names}


# ---------------------------------------------------------------------------- MobileNetV2


class TransformersMobileNetV2(_Transformers):
    """`MobileNetV2ForSemanticSegmentation`; nothing reads what its 1280-channel convolution makes.

    Its batch norms have TensorFlow's decay of .997 where PyTorch wants the weight of the new value:
    fine-tuning there forgets all but the last batch. The backbone's take .003 here, which is what
    the decay means; `norm_momentum` changes it.
    """

    name = "transformers-mobilenet-v2"
    code = "transformers' MobileNetV2ForSemanticSegmentation"
    models = "DeepLabv3 on MobileNetV2 as Google converted it; options from config.json"
    choices = ("output_stride", "padding", "norm_epsilon", "norm_momentum", "dropout")
    prefixes = ("mobilenet_v2.",)
    rules: ClassVar = {
        MobileNetV2Config: {
            "padding": "same",
            "norm_momentum": 0.003,
            "norm_epsilon": 1e-3,
            "last_conv": "unused",
        }
    }
    model_type = "mobilenet_v2"
    options: ClassVar = {
        "output_stride": "output_stride",
        "layer_norm_eps": "norm_epsilon",
        "classifier_dropout_prob": "dropout",
    }
    fixed: ClassVar = {
        "hidden_act": "relu6",
        "expand_ratio": 6.0,
        "depth_divisible_by": 8,
        "min_depth": 8,
    }

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().settings(settings)
        if "tf_padding" in settings:
            fields["padding"] = "same" if settings["tf_padding"] else "symmetric"
        return fields

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 32)
        last = shapes.get("mobilenet_v2.conv_1x1.convolution.weight", (1280,))[0]
        usual = make_divisible(1280 * max(1.0, backbone.width))
        half = (0.5,) * backbone.in_channels
        config = Config(
            backbone,
            DeepLabV3Config(rates=(), dropout=0.8, drop_channels=True, convs=0),
            shapes.get(f"{CLASSIFIER}.weight", (21,))[0],
            preprocessing=Preprocessing(mean=half, std=half),
        )
        return config.override(last_channels=None if last == usual else last)

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        head = conv_layer("aspp.branches.0", "conv_aspp") | conv_layer("aspp.pool", "conv_pool")
        head |= conv_layer("aspp.project", "conv_projection")
        names |= under("head", "segmentation_head", head)
        return names | {"head.classifier": CLASSIFIER}

    def rolls(self, config: Config) -> dict[str, int]:
        """It concatenates (pool, 1x1)."""
        return {"head.aspp.project.conv": config.head.channels}

    def reference(self, config: Config, place: Place | None = None):
        del place
        import transformers

        backbone = config.backbone
        wide = backbone.last_channels in (None, 1280)
        return transformers.MobileNetV2ForSemanticSegmentation(
            transformers.MobileNetV2Config(
                num_labels=config.num_classes,
                num_channels=backbone.in_channels,
                depth_multiplier=backbone.width,
                finegrained_output=wide,
                first_layer_is_expansion=not backbone.first_expand,
                output_stride=backbone.output_stride,
                tf_padding=backbone.padding == "same",
                layer_norm_eps=backbone.norm_epsilon,
                classifier_dropout_prob=config.head.dropout,
            )
        )


# ---------------------------------------------------------------------------- MobileViT


class TransformersMobileViT(_Transformers):
    """`MobileViTForSemanticSegmentation`; its images are BGR in [0, 1]."""

    name = "transformers-mobilevit"
    code = "transformers' MobileViTForSemanticSegmentation"
    models = "DeepLabv3 on MobileViT small, x-small and xx-small; options from config.json"
    choices = (
        "output_stride",
        "rates",
        "layer_norm_epsilon",
        "hidden_dropout",
        "dropout",
        "classifier_dropout",
    )
    prefixes = ("mobilevit.",)
    rules: ClassVar = {MobileViTConfig: {}}
    model_type = "mobilevit"
    options: ClassVar = {
        "output_stride": "output_stride",
        "layer_norm_eps": "layer_norm_epsilon",
        "atrous_rates": "rates",
        "hidden_dropout_prob": "hidden_dropout",
        "aspp_dropout_prob": "dropout",
        "classifier_dropout_prob": "classifier_dropout",
    }
    fixed: ClassVar = {
        "hidden_act": "silu",
        "num_attention_heads": mobilevit.HEADS,
        "patch_size": mobilevit.PATCH,
        "mlp_ratio": 2.0,
        "conv_kernel_size": 3,
        "qkv_bias": True,
    }

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        backbone = self.backbone(shapes, output_stride or 32)
        in_channels = backbone.in_channels
        width = shapes["segmentation_head.aspp.project.convolution.weight"][0]
        return Config(
            backbone,
            DeepLabV3Config((6, 12, 18), width, dropout=0.1, convs=0, classifier_dropout=0.1),
            shapes.get(f"{CLASSIFIER}.weight", (21,))[0],
            preprocessing=Preprocessing(
                (0.0,) * in_channels, (1.0,) * in_channels, channel_order="bgr"
            ),
        )

    def names(self, config: Config, place: Place | None = None) -> Names:
        names = self.backbone_names(config, place)
        head = conv_layer("aspp.project", "aspp.project")
        for i in range(4):
            head |= conv_layer(f"aspp.branches.{i}", f"aspp.convs.{i}")
        head |= conv_layer("aspp.pool", "aspp.convs.4.conv_1x1")
        names |= under("head", "segmentation_head", head)
        return names | {"head.classifier": CLASSIFIER}

    def reference(self, config: Config, place: Place | None = None):
        del place
        import transformers

        backbone, head = config.backbone, config.head
        widths = mobilevit.WIDTHS[backbone.size]
        return transformers.MobileViTForSemanticSegmentation(
            transformers.MobileViTConfig(
                num_labels=config.num_classes,
                num_channels=backbone.in_channels,
                hidden_sizes=list(widths.transformers),
                neck_hidden_sizes=[widths.stem, *widths.stages, 4 * widths.stages[-1]],
                expand_ratio=float(widths.expansion),
                output_stride=backbone.output_stride,
                layer_norm_eps=backbone.layer_norm_epsilon,
                hidden_dropout_prob=backbone.hidden_dropout,
                aspp_out_channels=head.channels,
                atrous_rates=list(head.rates or rates_for(backbone.output_stride)),
                aspp_dropout_prob=head.dropout,
                classifier_dropout_prob=head.classifier_dropout,
            )
        )
