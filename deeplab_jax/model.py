"""The segmentation model, the named presets and `create`."""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones import (
    DRNConfig,
    EfficientNetLiteConfig,
    HRNetConfig,
    MobileNetV2Config,
    MobileNetV3Config,
    MobileViTConfig,
    ResNetConfig,
    XceptionConfig,
)
from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.heads import (
    DeepLabV3Config,
    DeepLabV3PlusConfig,
    FCNConfig,
    HeadConfig,
    LRASPPConfig,
    build_head,
)
from deeplab_jax.layers import BatchNorm, Normal

# ---------------------------------------------------------------------------- the model


class SegmentationModel(nnx.Module):
    """A backbone, a head and perhaps an auxiliary head: images -> logits at their size.

    The backbone is any module `(images, *, rngs)` that turns images into a dict of features and says in
    `channels` how many channels each has; the head reads those that it names. Its `output_stride` sets
    ASPP's rates where the head's config does not.

    Args:
      backbone: for example `ResNet(ResNetConfig(), rngs=rngs)`, or a module of your own.
      num_classes: channels of the logits.
      head: config of the head.
      aux_head: config of a second head for training, None for none.
      align_corners: corner rule of every resize.
      dtype: what the convolutions compute in; batch norm, parameters and logits stay float32.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        num_classes: int = 21,
        *,
        head: HeadConfig,
        aux_head: FCNConfig | None = None,
        align_corners: bool = False,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config: Config | None = None  # set by `build`; what a model folder keeps
        self.align_corners = align_corners
        self.dtype = jnp.dtype(dtype)
        self.backbone_frozen = False
        self.backbone = backbone
        options = {
            "output_stride": getattr(backbone, "output_stride", None),
            "align_corners": align_corners,
            "rngs": rngs,
        }
        self.head = build_head(head, backbone.channels, num_classes, **options)
        self.aux_head = (
            build_head(aux_head, backbone.channels, num_classes, **options) if aux_head else None
        )

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Normalised images `[B, H, W, C]` -> float32 logits `[B, H, W, classes]`, any H and W.

        Args:
          images: see `preprocessing.normalize`.
          rngs: for dropout and stochastic depth, in training only: `nnx.Rngs(dropout=key)`.
        """
        logits = self._head(self.head, self.features(images, rngs=rngs), rngs)
        return self.resize(logits, images.shape[1:3])

    def with_aux(
        self, images: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits of the head and of the auxiliary head (None without one), each at its own size."""
        features = self.features(images, rngs=rngs)
        aux = None if self.aux_head is None else self._head(self.aux_head, features, rngs)
        return self._head(self.head, features, rngs), aux

    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """The backbone's features, without gradient where the backbone is frozen."""
        features = self.backbone(jnp.asarray(images).astype(self.dtype), rngs=rngs)
        return jax.lax.stop_gradient(features) if self.backbone_frozen else features

    def resize(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Logits at (rows, columns) `size` by the model's corner rule, in float32."""
        logits = logits.astype(jnp.float32)
        return ops.resize_bilinear(logits, size, align_corners=self.align_corners)

    def _head(
        self, head: nnx.Module, features: dict[str, jax.Array], rngs: nnx.Rngs | None
    ) -> jax.Array:
        return head(*(features[name] for name in head.taps), rngs=rngs)


class DeepLabV3(SegmentationModel):
    """DeepLabv3 (Chen et al. 2017, arXiv 1706.05587) on any backbone."""

    def __init__(self, backbone, num_classes=21, *, head=DeepLabV3Config(), **options):
        super().__init__(backbone, num_classes, head=head, **options)


class DeepLabV3Plus(SegmentationModel):
    """DeepLabv3+ (Chen et al. 2018, arXiv 1802.02611) on any backbone."""

    def __init__(self, backbone, num_classes=21, *, head=DeepLabV3PlusConfig(), **options):
        super().__init__(backbone, num_classes, head=head, **options)


# ---------------------------------------------------------------------------- presets

_BACKBONES = {
    **{f"resnet{depth}": ResNetConfig(depth) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v2": MobileNetV2Config(),
    "mobilenet_v3_large": MobileNetV3Config("large"),
    "mobilenet_v3_small": MobileNetV3Config("small"),
    **{f"efficientnet_lite{v}": EfficientNetLiteConfig(v) for v in range(5)},
    **{f"mobilevit_{size}": MobileViTConfig(size) for size in ("xxs", "xs", "s")},
    **{f"hrnetv2_w{width}": HRNetConfig(width) for width in (18, 32, 48)},
    **{f"drn_{v}": DRNConfig(v) for v in ("d_22", "d_38", "d_54", "d_105")},
    "xception65": XceptionConfig(),
}
_HEADS = {
    "deeplabv3": DeepLabV3Config(),
    "deeplabv3plus": DeepLabV3PlusConfig(),
    "fcn": FCNConfig(),
    "lraspp": LRASPPConfig(),
}
# The paper's separable ASPP and decoder suit backbones that are made of separable convolutions.
_LIGHT = DeepLabV3PlusConfig(separable=True, separable_decoder=True)
_DENSE = ("resnet", "hrnet", "drn")

PRESETS: dict[str, Config] = {
    f"{head_name}_{backbone_name}": Config(
        backbone,
        _LIGHT if head_name == "deeplabv3plus" and not backbone_name.startswith(_DENSE) else head,
    )
    for head_name, head in _HEADS.items()
    for backbone_name, backbone in _BACKBONES.items()
    if head_name != "lraspp" or "mobilenet_v3" in backbone_name
}


def create(
    name: str,
    *,
    num_classes: int = 21,
    output_stride: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
    **fields: Any,
) -> SegmentationModel:
    """A model with random weights by its preset's name, in training mode.

    Args:
      name: one of `PRESETS`, as `deeplab list` prints them.
      num_classes: channels of the logits.
      output_stride: 8, 16 or 32; None keeps the preset's.
      dtype: what the convolutions compute in.
      rngs: `nnx.Rngs(seed)`.
      **fields: any field of the model's, the backbone's or the head's config, for example
        `in_channels=4`, `multi_grid=(1, 2, 4)`, `aux_head=FCNConfig(tap="aux")`.

    Raises:
      ValueError: for a name that is not a preset, and for fields or values that the config refuses.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    if output_stride is not None:
        fields["output_stride"] = output_stride
    config = PRESETS[name].override(num_classes=num_classes, **fields)
    return fill(build(config, dtype=dtype), rngs)


# ---------------------------------------------------------------------------- construction


def build(config: Config, *, dtype: jax.typing.DTypeLike = jnp.float32) -> nnx.Module:
    """The model of a config with shapes in place of weights: for `fill`, or for weights of your own.

    Nothing is computed: making random weights one layer at a time takes 16 s for a ResNet-50.
    """

    key = jax.random.key(0)

    def make() -> nnx.Module:
        # One key for all: no value is ever drawn, and counting keys would take most of the time.
        rngs = types.SimpleNamespace(params=lambda: key)
        options = {"align_corners": config.align_corners, "rngs": rngs}
        if isinstance(config.backbone, FeaturesConfig):
            channels = {"high": config.backbone.high, "low": config.backbone.low}
            stride = config.backbone.output_stride
            return build_head(
                config.head, channels, config.num_classes, output_stride=stride, **options
            )
        model_type = {DeepLabV3Config: DeepLabV3, DeepLabV3PlusConfig: DeepLabV3Plus}
        return model_type.get(type(config.head), SegmentationModel)(
            config.backbone.build(rngs=rngs),
            config.num_classes,
            head=config.head,
            aux_head=config.aux_head,
            dtype=dtype,
            **options,
        )

    model = nnx.eval_shape(make)
    model.config = config
    return model


def fill(model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
    """Gives every variable of `build`'s model its initial value, all at once."""
    seed = np.asarray(jax.random.key_data(rngs.params())).tolist()
    generator = np.random.default_rng(seed)
    graphdef, state = nnx.split(model)

    def value(variable: nnx.Variable) -> nnx.Variable:
        init, shape = variable.get_metadata()["init"], variable.shape
        if isinstance(init, Normal):
            return variable.replace(init.std * generator.standard_normal(shape, np.float32))
        return variable.replace(np.full(shape, init.value, np.float32))

    state = jax.tree.map(value, state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    return nnx.merge(graphdef, jax.device_put(state))


# ---------------------------------------------------------------------------- variables


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable by its path, such as "backbone.layer1.0.conv1.kernel"."""
    return {_name(path): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def with_values(model: nnx.Module, values: Mapping[str, jax.Array]) -> nnx.Module:
    """A copy of `model`, which may be `build`'s, with these values by the names of its variables."""
    graphdef, state = nnx.split(model)
    filled = [(path, v.replace(values[_name(path)])) for path, v in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _name(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


# ---------------------------------------------------------------------------- freezing


def freeze_batch_norm(module: nnx.Module) -> None:
    """Makes every batch norm in `module` use its running statistics, and keep them, in training too."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, BatchNorm):
            part.frozen = True


def group_batch_norm(module: nnx.Module, groups: int) -> None:
    """Gives each of `groups` equal parts of a batch its own statistics in every batch norm in `module`.

    On a mesh whose batch is sharded over as many devices, or over a multiple, no statistics travel
    further than a group: with one group per device ("local" batch norm) none do, where those of the
    global batch cost an all-reduce per layer, forward and back. The running statistics take the mean
    over the groups. The batch must be divisible by `groups`.
    """
    for _, part in nnx.iter_modules(module):
        if isinstance(part, BatchNorm):
            part.groups = groups


def freeze_backbone(model: SegmentationModel) -> None:
    """Trains the heads alone: no gradient reaches the backbone, its statistics stay, it drops nothing.

    The gradients of its parameters are zero; keep them from an optimiser that decays weights.
    """
    model.backbone_frozen = True
    freeze_batch_norm(model.backbone)
    for _, part in nnx.iter_modules(model.backbone):
        if isinstance(part, nnx.Dropout):
            part.rate = 0.0
