"""transformers: DeepLabv3 on MobileNetV2 and on MobileViT.

What the weights cannot tell is in the config.json beside them, under transformers' own names.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from deeplab_jax.backbones import MobileViTConfig, mobilenet_v2, mobilevit
from deeplab_jax.config import Config
from deeplab_jax.heads import DeepLabV3Config, rates_for
from deeplab_jax.layers import make_divisible
from deeplab_jax.preprocessing import Preprocessing
from port.layouts.base import Layout, Names, Shapes
from port.layouts.names import under
from port.layouts.shapes import mobilenet_v2_config

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

    def recognises(self, shapes: Shapes) -> bool:
        return all(
            any(name.startswith(prefix) for name in shapes)
            for prefix in (f"{self.model_type}.", "segmentation_head.")
        )

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        if settings.get("model_type") != self.model_type:
            raise ValueError(
                f"model_type is {settings.get('model_type')!r}, but the weights are of a "
                f"{self.model_type!r}. It belongs to another model: take it away, or pass the "
                "folder that transformers saved"
            )
        other = [
            f"{name} is {settings[name]!r}, and we can only do {value!r}"
            for name, value in self.fixed.items()
            if settings.get(name, value) != value
        ]
        if other:
            raise ValueError("; ".join(other))
        told = {
            field: tuple(settings[name]) if isinstance(settings[name], list) else settings[name]
            for name, field in self.options.items()
            if name in settings
        }
        return told | _class_names(settings)


def _class_names(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The labels in order, unless transformers made them up: LABEL_0, LABEL_1, ..."""
    labels = settings.get("id2label") or {}
    names = tuple(labels[index] for index in sorted(labels, key=int))
    made_up = names == tuple(f"LABEL_{index}" for index in range(len(names)))
    return {} if made_up else {"class_names": names}


def _layer(ours: str, theirs: str) -> Names:
    """What transformers calls a ConvLayer."""
    return {f"{ours}.conv": f"{theirs}.convolution", f"{ours}.bn": f"{theirs}.normalization"}


def _block(ours: str, theirs: str, *, expand: bool = True) -> Names:
    """An inverted residual."""
    parts = {"expand": "expand_1x1"} if expand else {}
    parts |= {"depthwise": "conv_3x3", "project": "reduce_1x1"}
    return {
        path: name
        for part, called in parts.items()
        for path, name in _layer(f"{ours}.{part}", f"{theirs}.{called}").items()
    }


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
        told = super().settings(settings)
        if "tf_padding" in settings:
            told["padding"] = "same" if settings["tf_padding"] else "symmetric"
        return told

    def config(self, shapes: Shapes, output_stride: int | None) -> Config:
        stem = "mobilenet_v2.conv_stem."
        reduced = [stem, *(f"mobilenet_v2.layer.{i}." for i in range(16))]
        projections = [shapes[f"{prefix}reduce_1x1.convolution.weight"][0] for prefix in reduced]
        first = shapes[f"{stem}first_conv.convolution.weight"]
        if first[0] == projections[0]:
            raise ValueError(
                "its stem is so narrow that the first block keeps the number of channels: "
                "transformers has no shortcut there, which we cannot express"
            )
        last = shapes.get("mobilenet_v2.conv_1x1.convolution.weight", (1280,))[0]
        backbone = mobilenet_v2_config(
            projections,
            first[1],
            last=last,
            output_stride=output_stride or 32,
            first_expand=f"{stem}expand_1x1.convolution.weight" in shapes,
            padding="same",
            norm_momentum=0.003,
            norm_epsilon=1e-3,
        )
        usual = make_divisible(1280 * max(1.0, backbone.width))
        config = Config(
            backbone,
            DeepLabV3Config(rates=(), dropout=0.8, drop_channels=True, convs=0),
            shapes.get(f"{CLASSIFIER}.weight", (21,))[0],
            preprocessing=Preprocessing(mean=(0.5,) * first[1], std=(0.5,) * first[1]),
        )
        return config.override(last_conv="unused", last_channels=None if last == usual else last)

    def names(self, config: Config) -> Names:
        stem = "conv_stem"
        names = _layer("stem", f"{stem}.first_conv")
        names |= _block("blocks.0", stem, expand=config.backbone.first_expand)
        for i in range(1, len(mobilenet_v2.block_table(config.backbone.width))):
            names |= _block(f"blocks.{i}", f"layer.{i - 1}")
        names |= _layer("last", "conv_1x1")
        names = under("backbone", "mobilenet_v2", names)
        head = _layer("aspp.branches.0", "conv_aspp") | _layer("aspp.pool", "conv_pool")
        head |= _layer("aspp.project", "conv_projection")
        names |= under("head", "segmentation_head", head)
        return names | {"head.classifier": CLASSIFIER}

    def rolls(self, config: Config) -> dict[str, int]:
        """It concatenates (pool, 1x1)."""
        return {"head.aspp.project.conv": config.head.channels}

    def reference(self, config: Config):
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

LINEAR = {  # of a transformer's layer: ours -> theirs
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
FIRST = 4
"""Index of the first of our blocks with a transformer."""


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
    linear = tuple(
        f"backbone.blocks.{FIRST + i}.transformer.{layer}.{part}"
        for i, layers in enumerate(mobilevit.LAYERS)
        for layer in range(layers)
        for part in LINEAR
    )
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
        widths = tuple(
            shapes[f"mobilevit.encoder.layer.{stage}.conv_1x1.convolution.weight"][0]
            for stage in (2, 3, 4)
        )
        sizes = [size for size, known in mobilevit.WIDTHS.items() if known.transformers == widths]
        if not sizes:
            raise ValueError(
                f"no MobileViT that we know has transformers of {widths} channels; there are "
                + ", ".join(f"{s} {known.transformers}" for s, known in mobilevit.WIDTHS.items())
            )
        in_channels = shapes["mobilevit.conv_stem.convolution.weight"][1]
        width = shapes["segmentation_head.aspp.project.convolution.weight"][0]
        return Config(
            MobileViTConfig(sizes[0], output_stride or 32, in_channels),
            DeepLabV3Config((6, 12, 18), width, dropout=0.1, convs=0, classifier_dropout=0.1),
            shapes.get(f"{CLASSIFIER}.weight", (21,))[0],
            preprocessing=Preprocessing(
                (0.0,) * in_channels, (1.0,) * in_channels, channel_order="bgr"
            ),
        )

    def names(self, config: Config) -> Names:
        names = _layer("stem", "conv_stem") | _block("blocks.0", "encoder.layer.0.layer.0")
        for i in range(3):
            names |= _block(f"blocks.{1 + i}", f"encoder.layer.1.layer.{i}")
        for i, layers in enumerate(mobilevit.LAYERS):
            names |= under(f"blocks.{FIRST + i}", f"encoder.layer.{2 + i}", _stage(layers))
        names = under("backbone", "mobilevit", names)
        head = _layer("aspp.project", "aspp.project")
        for i in range(4):
            head |= _layer(f"aspp.branches.{i}", f"aspp.convs.{i}")
        head |= _layer("aspp.pool", "aspp.convs.4.conv_1x1")
        names |= under("head", "segmentation_head", head)
        return names | {"head.classifier": CLASSIFIER}

    def reference(self, config: Config):
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


def _stage(layers: int) -> Names:
    """A stage with a transformer of so many layers."""
    names = _block("down", "downsampling_layer") | _layer("local", "conv_kxk")
    names |= {"embed": "conv_1x1.convolution", "norm": "layernorm"}
    for i in range(layers):
        names |= under(f"transformer.{i}", f"transformer.layer.{i}", LINEAR | NORMS)
    return names | _layer("project", "conv_projection") | _layer("fuse", "fusion")
