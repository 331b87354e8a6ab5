"""The model that a run trains: new, or from a model folder."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from deeplab_jax import (
    build,
    freeze_backbone,
    freeze_batch_norm,
    group_batch_norm,
    load,
    with_input_channels,
)
from deeplab_jax.checkpoint import ModelError
from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierConfig, FCNConfig, is_classifier
from deeplab_jax.layers import BatchNorm
from deeplab_jax.model import (
    FeaturesModel,
    SegmentationModel,
    create,
    named_values,
    named_variables,
)
from deeplab_jax.preprocessing import Preprocessing
from deeplab_jax.presets import named_config
from train.config import ModelConfig
from train.data.pictures import RGB, Pictures
from train.data.statistics import Statistics
from train.targets import channel_fields, fitting_activation


@dataclasses.dataclass(frozen=True)
class Start:
    """The model at the start of a run, and its first weights.

    Attributes:
      model: shapes in place of weights, in training mode.
      params: its first weights, by the names of `named_variables`.
      stats: its first running statistics.
      origin: where the weights come from, in words.
    """

    model: SegmentationModel
    params: dict[str, jax.Array]
    stats: dict[str, jax.Array]
    origin: str


def make_model(
    config: ModelConfig,
    class_names: tuple[str, ...],
    *,
    overlapping: bool = False,
    seed: int,
    data_shards: int,
    pictures: Pictures = RGB,
    statistics: Statistics | Callable[[], Statistics] | None = None,
) -> Start:
    """Builds the model of a run and its first weights.

    Args:
      class_names: names of the data set's classes.
      overlapping: whether a pixel may have several, see `Dataset`.
      pictures: how its pictures are read. The first kernel of `init` is adapted to their channels, see
        `deeplab_jax.with_input_channels`.
      statistics: of the pictures; a function measures them where the model has none that fit.
      seed: seed of the weights that are new.
      data_shards: devices along the mesh's `data` axis, for "local" batch norm.

    Raises:
      ValueError: for an unknown preset, a model folder that cannot be started from, or a softmax where a
        pixel may have several classes.
    """
    if overlapping and config.activation == "softmax":
        raise ValueError(
            "model.activation must be sigmoid for label maps in which a pixel may have several labels, got "
            "softmax, which gives it one class"
        )
    preset = named_config(config.preset)
    source = None if config.init is None else load(config.init)
    if isinstance(source, FeaturesModel):
        raise ModelError(f"{config.init} cannot be trained: it is a head without a backbone")
    if source is not None and source.config.in_channels != pictures.channels:
        source = with_input_channels(source, pictures.channels)
    given = None if source is None else source.config
    activation = config.activation or fitting_activation(given, class_names, overlapping)
    wanted = _config(config, preset, given, channel_fields(class_names, activation))
    wanted = _for_pictures(wanted, pictures, statistics)
    model = build(wanted, dtype=config.dtype)
    values = named_values(create(wanted, rngs=nnx.Rngs(seed)))
    origin = f"{config.preset} with new weights"
    if source is not None:
        taken = _fitting(named_variables(source), values)
        if source.config.activation != activation:  # its channels stand for something else
            taken = {n: v for n, v in taken.items() if not is_classifier(n.rpartition(".")[0])}
        if missing := [n for n in values if n.startswith("backbone.") and n not in taken]:
            raise ModelError(
                f"{config.init} has no fitting weights for {len(missing)} tensors of its backbone: "
                f"{missing[:5]}"
            )
        values |= taken
        new = sorted({name.split(".")[0] for name in values if name not in taken})
        what = f"new weights in {', '.join(new)}" if new else "all weights"
        origin = f"{wanted.head.kind} on {wanted.backbone.kind} from {config.init}, {what}"
        origin += _not_of(config.preset, preset, wanted)
    if not wanted.preprocessing.is_rgb:
        used = Statistics(wanted.preprocessing.mean, wanted.preprocessing.std)
        origin += f"\n{pictures.channels} bands of {pictures.pixels}: {used}"
    _set_up(model, config, data_shards)
    kinds = named_variables(model)
    params = {name: v for name, v in values.items() if isinstance(kinds[name], nnx.Param)}
    stats = {name: v for name, v in values.items() if name not in params}
    return Start(model, params, stats, origin)


def _config(
    config: ModelConfig, preset: Config, source: Config | None, fields: dict[str, Any]
) -> Config:
    """The config of the model that is trained; `fields` are those of its channels."""
    if source is None:
        base = preset
    elif isinstance(source.head, ClassifierConfig):
        stride = config.output_stride or preset.backbone.output_stride
        base = _from_classifier(source, preset, stride)
    else:
        base = source
    if config.output_stride is not None:
        fields["output_stride"] = config.output_stride
    if config.aux_head:
        fields["aux_head"] = FCNConfig(tap="aux")
    return base.override(**fields)


def _from_classifier(source: Config, preset: Config, stride: int) -> Config:
    """A preset with the backbone of an image-classification network, at an output stride."""
    base = dataclasses.replace(source, head=preset.head, align_corners=preset.align_corners)
    base = base.override(output_stride=stride)
    if getattr(source.backbone, "last_conv", "none") != "none":  # the classifier's too
        base = base.override(last_conv="none")
    if getattr(source.backbone, "padding", None) == "same":
        # TensorFlow's zeros put features beside their pixels by what the size leaves over of the stride: a
        # model at 360 rows, trained on multiples of 32, scores 0.7 points more of them padded to 384.
        preprocessing = dataclasses.replace(base.preprocessing, size_multiple=stride)
        base = dataclasses.replace(base, preprocessing=preprocessing)
    return base


def _not_of(name: str, preset: Config, wanted: Config) -> str:
    """What of a preset is not used beside a model that training starts from, in words."""
    parts = {"backbone": (preset.backbone, wanted.backbone), "head": (preset.head, wanted.head)}
    others = [part for part, (asked, taken) in parts.items() if asked.kind != taken.kind]
    verb = "is" if len(others) == 1 else "are"
    return f". The {' and the '.join(others)} of {name} {verb} not used" if others else ""


def _for_pictures(
    config: Config,
    pictures: Pictures,
    statistics: Statistics | Callable[[], Statistics] | None,
) -> Config:
    """The config for pictures of a data set, with its own mean and standard deviation where it has such."""
    given = config.preprocessing
    fits = (len(given.mean), given.pixels, given.bands) == (
        pictures.channels,
        pictures.pixels,
        pictures.bands,
    )
    if statistics is None or (fits and callable(statistics)):
        return config
    found = statistics() if callable(statistics) else statistics
    preprocessing = Preprocessing(
        found.mean,
        found.std,
        size_multiple=given.size_multiple,
        channel_order=given.channel_order if pictures.channels == 3 else "rgb",
        pixels=pictures.pixels,
        bands=pictures.bands,
    )
    return config.override(in_channels=pictures.channels, preprocessing=preprocessing)


def _fitting(source: dict[str, nnx.Variable], values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Those of the source's variables that the new model has in the same shape."""
    return {
        name: variable[...]
        for name, variable in source.items()
        if name in values and values[name].shape == variable.shape
    }


def _set_up(model: SegmentationModel, config: ModelConfig, data_shards: int) -> None:
    """Sets what batch norms do in training, and what stays frozen."""
    if config.batch_norm != "global":
        group_batch_norm(model, data_shards if config.batch_norm == "local" else config.batch_norm)
    if config.batch_norm_momentum is not None:
        for _, part in nnx.iter_modules(model):
            if isinstance(part, BatchNorm):
                part.momentum = config.batch_norm_momentum
    if config.freeze_batch_norm:
        freeze_batch_norm(model.backbone)
    if config.freeze_backbone:
        freeze_backbone(model)
