"""The segmentation model, and how to make one: by `create`, by `build` or by hand."""

import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax import ops
from deeplab_jax.backbones.base import Backbone
from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.heads import (
    ASPP,
    Decoder,
    DeepLabV3Config,
    DeepLabV3Head,
    DeepLabV3PlusConfig,
    DeepLabV3PlusHead,
    FCNConfig,
    Head,
    HeadConfig,
    build_head,
)
from deeplab_jax.layers import BatchNorm, Normal, check_rngs, generator_of
from deeplab_jax.presets import named_config

ModuleT = TypeVar("ModuleT", bound=nnx.Module)

LOW_STRIDE = 4
"""Of the low-level features of every backbone."""

# ---------------------------------------------------------------------------- the model


class SegmentationModel(nnx.Module):
    """A backbone, a head and perhaps an auxiliary head: images -> logits at their size.

    Args:
      backbone: for example `ResNet(ResNetConfig(), rngs=rngs)`, or a module of your own: see `Backbone`.
        Its `channels` say what the head may read, its `output_stride` sets ASPP's rates where the head's
        config does not.
      num_classes: channels of the logits.
      head: config of the head.
      aux_head: config of a second head for training, None for none.
      align_corners: corner rule of every resize.
      upsampling: how logits are brought to the image's size, see `Config`.
      dtype: what the convolutions compute in; batch norm, parameters and logits stay float32.
      rngs: `nnx.Rngs(seed)`, for the heads' weights.
    """

    def __init__(
        self,
        backbone: Backbone[Any],
        num_classes: int = 21,
        *,
        head: HeadConfig,
        aux_head: FCNConfig | None = None,
        align_corners: bool = False,
        upsampling: Literal["to_image", "by_stride"] = "to_image",
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        if not isinstance(backbone, nnx.Module):
            raise TypeError(
                "the backbone must be a module, such as ResNet(ResNetConfig(50), rngs=nnx.Rngs(0)), got "
                f"{backbone!r}; `create` makes models by name or of a Config"
            )
        check_rngs(rngs)
        self._config: Config | None = None
        self.align_corners, self.upsampling = align_corners, upsampling
        self.dtype = jnp.dtype(dtype)
        self.backbone_frozen = False
        self.backbone = backbone
        options: dict[str, Any] = {
            "output_stride": getattr(backbone, "output_stride", None),
            "align_corners": align_corners,
            "rngs": rngs,
        }
        self.head: Head = build_head(head, backbone.channels, num_classes, **options)
        self.aux_head: Head | None = (
            build_head(aux_head, backbone.channels, num_classes, **options) if aux_head else None
        )

    @property
    def config(self) -> Config:
        """What the model was made of, and what a model folder keeps.

        Raises ValueError for a model built by hand, until it is set.
        """
        if self._config is None:
            raise ValueError(
                "the model has no config; make it with create, load or load_torch, or set model.config to "
                "the Config that describes it"
            )
        return self._config

    @config.setter
    def config(self, config: Config) -> None:
        self._config = config

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Normalised images `[B, H, W, C]` -> float32 logits `[B, H, W, classes]`, any H and W.

        Args:
          images: see `preprocessing.normalize`.
          rngs: for dropout and stochastic depth, in training only: `nnx.Rngs(dropout=key)`.
        """
        logits = self._head(self.head, self.features(images, rngs=rngs), rngs)
        _, rows, columns, _ = images.shape
        return self.resize(logits, (rows, columns))

    def with_aux(
        self, images: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits of the head and of the auxiliary head (None without one), each at its own size."""
        return self._both(self.features(images, rngs=rngs), rngs)

    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """The backbone's features, without gradient where the backbone is frozen.

        Raises ValueError for images that are not NHWC with as many channels as the backbone takes.
        """
        self._check_images(images)
        features = self.backbone(jnp.asarray(images).astype(self.dtype), rngs=rngs)
        return jax.lax.stop_gradient(features) if self.backbone_frozen else features

    def resize(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Logits at (rows, columns) `size` by the model's corner rule, in float32."""
        logits = logits.astype(jnp.float32)
        factor = self.logits_stride if self.upsampling == "by_stride" else None
        return ops.resize_bilinear(logits, size, align_corners=self.align_corners, factor=factor)

    @property
    def logits_stride(self) -> int:
        """How many rows and columns of images a pixel of the logits stands for, of DeepLabv3 and v3+."""
        return LOW_STRIDE if "low" in self.head.taps else self.backbone.output_stride

    def _both(
        self, features: dict[str, jax.Array], rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        aux = None if self.aux_head is None else self._head(self.aux_head, features, rngs)
        return self._head(self.head, features, rngs), aux

    def _head(self, head: Head, features: dict[str, jax.Array], rngs: nnx.Rngs | None) -> jax.Array:
        return head(*(features[name] for name in head.taps), rngs=rngs)

    def _check_images(self, images: jax.Array) -> None:
        if not jnp.issubdtype(dtype := jnp.result_type(images), jnp.floating):
            raise ValueError(
                f"images must be normalised floats, got {dtype}: see deeplab_jax.normalize, or let "
                "deeplab_jax.predict do it"
            )
        shape = jnp.shape(images)
        channels = getattr(getattr(self.backbone, "config", None), "in_channels", None)
        if len(shape) == 4 and channels in (None, shape[3]):
            return
        way_out = ""
        if len(shape) == 4 and shape[1] == channels:
            way_out = ": these are NCHW, as PyTorch's are; images.transpose(0, 2, 3, 1) is NHWC"
        elif len(shape) == 3:
            way_out = ": images[None] is a batch of one"
        raise ValueError(
            f"images must be [B, H, W, {channels or 'C'}] (NHWC), got {list(shape)}{way_out}"
        )


class DeepLabV3(SegmentationModel):
    """DeepLabv3 (Chen et al. 2017, arXiv 1706.05587) on any backbone."""

    def __init__(
        self,
        backbone: Backbone[Any],
        num_classes: int = 21,
        *,
        head: DeepLabV3Config = DeepLabV3Config(),
        **options: Any,
    ):
        super().__init__(backbone, num_classes, head=head, **options)


class DeepLabV3Plus(SegmentationModel):
    """DeepLabv3+ (Chen et al. 2018, arXiv 1802.02611) on any backbone."""

    def __init__(
        self,
        backbone: Backbone[Any],
        num_classes: int = 21,
        *,
        head: DeepLabV3PlusConfig = DeepLabV3PlusConfig(),
        **options: Any,
    ):
        super().__init__(backbone, num_classes, head=head, **options)


# ---------------------------------------------------------------------------- without a backbone


class Features(nnx.Module):
    """What stands in a model for the backbone that it does not have; it owns no weights."""

    def __init__(self, config: FeaturesConfig):
        self.config = config

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """Raises TypeError: of images there are no features here."""
        raise TypeError("this model has no backbone: it is called with features")

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the features that the model is called with."""
        return {"high": self.config.high, "low": self.config.low}

    @property
    def output_stride(self) -> int:
        """Of the backbone that the features come from."""
        return self.config.output_stride


class FeaturesModel(SegmentationModel):
    """A head without a backbone: features of another network -> logits at the size of the finest.

    Args:
      features: their channels, and their output stride.
      num_classes: channels of the logits.
      **options: as in `SegmentationModel`; `head` is one of them.
    """

    def __init__(self, features: FeaturesConfig, num_classes: int = 21, **options: Any):
        backbone: Any = Features(features)
        super().__init__(backbone, num_classes, **options)

    def __call__(
        self, high: jax.Array, low: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Features `[B, h, w, C]` and, where the head reads them, low-level ones -> float32 logits."""
        return self._head(self.head, self.features(high, low), rngs).astype(jnp.float32)

    def with_aux(
        self, high: jax.Array, low: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits of the head and of the auxiliary head (None without one), each at its own size."""
        return self._both(self.features(high, low), rngs)

    def features(
        self, high: jax.Array, low: jax.Array | None = None, *, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        """The features by their names, in the model's dtype.

        Raises ValueError for features of other channels, and where the head reads some that are missing.
        """
        del rngs  # nothing is random
        given = {"high": high} if low is None else {"high": high, "low": low}
        for name in (*self.head.taps, *given):
            shape = jnp.shape(given[name]) if name in given else None
            if shape is None or len(shape) != 4 or shape[3] != self.backbone.channels[name]:
                raise ValueError(
                    f"the {name} features must be [B, h, w, {self.backbone.channels[name]}] (NHWC), got "
                    f"{'none' if shape is None else list(shape)}"
                )
        return {name: jnp.asarray(x).astype(self.dtype) for name, x in given.items()}

    @property
    def aspp(self) -> ASPP:
        """The head's ASPP; AttributeError where it has none."""
        if not isinstance(self.head, DeepLabV3Head | DeepLabV3PlusHead):
            raise AttributeError(f"{type(self.head).__name__} has no aspp")
        return self.head.aspp

    @property
    def decoder(self) -> Decoder:
        """The head's decoder; AttributeError where it has none."""
        if not isinstance(self.head, DeepLabV3PlusHead):
            raise AttributeError(f"{type(self.head).__name__} has no decoder")
        return self.head.decoder


# ---------------------------------------------------------------------------- construction


def create(
    preset: str | Config,
    *,
    num_classes: int | None = None,
    output_stride: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **fields: Any,
) -> SegmentationModel:
    """A model with random weights, in training mode, by its preset's name or of a config.

    Args:
      preset: one of `PRESETS`, as `deeplab list` prints them, or a `Config`.
      num_classes: channels of the logits; None keeps the config's, 21 in every preset.
      output_stride: 8, 16 or 32; None keeps the config's.
      dtype: what the convolutions compute in.
      rngs: `nnx.Rngs(seed)`; must be given.
      **fields: any field of the model's, the backbone's or the head's config, for example
        `in_channels=4`, `multi_grid=(1, 2, 4)`, `aux_head=FCNConfig(tap="aux")`.

    Raises:
      TypeError: without `rngs`.
      ValueError: for a name that is not a preset, and for fields or values that the config refuses.
    """
    config = named_config(preset) if isinstance(preset, str) else preset
    if not isinstance(config, Config):
        raise TypeError(f"create takes a preset's name or a Config, got {preset!r}")
    rngs = check_rngs(rngs)
    given = {"num_classes": num_classes, "output_stride": output_stride}
    fields |= {name: value for name, value in given.items() if value is not None}
    config = config.override(**fields)
    model = build(config, dtype=dtype)
    if all("init" in variable.get_metadata() for variable in named_variables(model).values()):
        return fill(model, rngs)
    model = _make(config, dtype, rngs)  # with layers of Flax's own, which draw one by one
    model.config = config
    return model


def build(config: Config, *, dtype: jax.typing.DTypeLike = jnp.float32) -> SegmentationModel:
    """The model of a config with shapes in place of weights: for weights of your own, by `with_values`.

    Nothing is computed.

    Raises ValueError where the backbone lacks features that a head reads.
    """
    if not isinstance(config, Config):
        raise TypeError(
            f"build takes a Config, such as PRESETS['deeplabv3_resnet50'], got {config!r}"
        )
    # One key for all: no value is ever drawn, and counting keys would take most of the time.
    rngs: Any = types.SimpleNamespace(params=functools.partial(jax.random.key, 0))
    model = nnx.eval_shape(lambda: _make(config, dtype, rngs))
    model.config = config
    return model


def _make(config: Config, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> SegmentationModel:
    options: dict[str, Any] = {
        "head": config.head,
        "aux_head": config.aux_head,
        "align_corners": config.align_corners,
        "upsampling": config.upsampling,
        "dtype": dtype,
        "rngs": rngs,
    }
    if isinstance(config.backbone, FeaturesConfig):
        return FeaturesModel(config.backbone, config.num_classes, **options)
    backbone = config.backbone.build(rngs=rngs)
    if not isinstance(backbone, Backbone):
        raise TypeError(
            f"{type(config.backbone).__name__}.build must give a deeplab_jax.Backbone, got "
            f"{type(backbone).__name__}"
        )
    match config.head:
        case DeepLabV3Config():
            return DeepLabV3(backbone, config.num_classes, **options)
        case DeepLabV3PlusConfig():
            return DeepLabV3Plus(backbone, config.num_classes, **options)
    return SegmentationModel(backbone, config.num_classes, **options)


def fill(model: ModuleT, rngs: nnx.Rngs) -> ModuleT:
    """A copy of a model of shapes in which every variable has its initial value, all drawn at once.

    The variables must have an initialiser in their metadata, as our layers' do.
    """
    generator = generator_of(rngs.params())
    graphdef, state = nnx.split(model)

    def value(variable: nnx.Variable) -> nnx.Variable:
        init, shape = variable.get_metadata()["init"], variable.shape
        random = isinstance(init, Normal)
        return variable.replace(init.draw(generator, shape) if random else init.draw(shape))

    state = jax.tree.map(value, state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    return nnx.merge(graphdef, jax.device_put(state))


# ---------------------------------------------------------------------------- variables


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """Every parameter (`nnx.Param`) and running statistic (`nnx.BatchStat`) of a model by its path.

    >>> named_variables(model)["backbone.layer1.0.conv1.kernel"].shape
    (1, 1, 64, 64)
    """
    return {_name(path): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def named_values(model: nnx.Module) -> dict[str, jax.Array]:
    """The value of every variable of a model by its path, what `with_values` takes."""
    return {name: variable[...] for name, variable in named_variables(model).items()}


def with_values(model: ModuleT, values: Mapping[str, jax.Array]) -> ModuleT:
    """A copy of `model`, which may be `build`'s, with other values.

    Args:
      values: an array for each name in `named_variables(model)`.
    """
    graphdef, state = nnx.split(model)
    filled = [(path, v.replace(values[_name(path)])) for path, v in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _name(path: tuple[Any, ...]) -> str:
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
