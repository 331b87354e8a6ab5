"""A trained model for other classes or other images: what changes starts anew, the rest stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deeplab_jax.heads import is_classifier
from deeplab_jax.layers import check_rngs
from deeplab_jax.model import (
    SegmentationModel,
    build,
    create,
    named_values,
    named_variables,
    with_values,
)


def reset_classifier(
    model: SegmentationModel,
    num_classes: int,
    *,
    class_names: tuple[str, ...] | None = None,
    rngs: nnx.Rngs,
) -> SegmentationModel:
    """A copy of a model whose classifiers start anew, for `num_classes`; all else stays as it is.

    >>> model = reset_classifier(load("model"), 5, rngs=nnx.Rngs(0))

    Args:
      class_names: of the new classes.
      rngs: `nnx.Rngs(seed)`, for the new weights.

    Raises ValueError for a model built by hand, and for fewer classes than one.
    """
    config = model.config.override(num_classes=num_classes, class_names=class_names)
    fresh = {
        path: variable[...]
        for path, variable in named_variables(create(config, rngs=check_rngs(rngs))).items()
        if is_classifier(path.rpartition(".")[0])
    }
    changed = _with_some(model, fresh)
    changed.config = config
    return changed


def with_input_channels(model: SegmentationModel, channels: int) -> SegmentationModel:
    """A copy of a model for images of another number of channels, which keeps what it has learned of RGB.

    As timm does it: the first kernel's channels are repeated in turn and scaled by old / new, so that six
    channels that are RGB twice give the features of RGB; for one channel they are added. Mean and
    standard deviation of the images repeat too (one channel has their mean): set `model.config` if yours
    are others.

    Raises ValueError for a model built by hand or without a backbone, and for fewer channels than one.
    """
    old = model.config.in_channels
    if old is None:
        raise ValueError(
            "the model has no backbone: the features that it takes have no first kernel"
        )
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    preprocessing = dataclasses.replace(
        before := model.config.preprocessing,
        mean=_in_turn(before.mean, channels),
        std=_in_turn(before.std, channels),
    )
    config = model.config.override(in_channels=channels, preprocessing=preprocessing)
    shapes = {path: variable.shape for path, variable in named_variables(build(config)).items()}
    kernels = {
        path: _adapted(variable[...], channels)
        for path, variable in named_variables(model).items()
        if variable.shape != shapes[path]
    }
    changed = _with_some(model, kernels)
    changed.config, changed.backbone.config = config, config.backbone
    return changed


def with_backbone_of(model: SegmentationModel, source: SegmentationModel) -> SegmentationModel:
    """A copy of a model with the backbone's weights of another, as of an ImageNet classifier.

    >>> backbone = port.load_torch("timm:resnet50.a1_in1k")
    >>> model = with_backbone_of(create("deeplabv3plus_resnet50", rngs=nnx.Rngs(0)), backbone)

    Raises ValueError, listing them, where tensors of the model's backbone are not in the other, or have
    another shape there.
    """
    theirs, ours = named_variables(source), named_variables(model)
    backbone = [path for path in ours if path.startswith("backbone.")]
    missing = [p for p in backbone if p not in theirs or theirs[p].shape != ours[p].shape]
    if missing:
        raise ValueError(
            f"the other model's backbone is not this one's: {len(missing)} of {len(backbone)} tensors are "
            f"missing or have another shape there: {', '.join(missing[:5])}"
        )
    return _with_some(model, {path: theirs[path][...] for path in backbone})


def _with_some(model: SegmentationModel, values: dict[str, jax.Array]) -> SegmentationModel:
    """A copy of a model with other values of some of its variables."""
    return with_values(model, named_values(model) | values)


def _in_turn(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels == 1:
        return (float(np.mean(values)),)
    return tuple(values[i % len(values)] for i in range(channels))


def _adapted(kernel: jax.Array, channels: int) -> jax.Array:
    """A kernel `[k, k, old, out]` for other channels."""
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return kernel[:, :, jnp.arange(channels) % old] * (old / channels)
