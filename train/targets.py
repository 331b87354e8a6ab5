"""What label maps ask of a model, by its activation: one class for each pixel, or each label for itself.

A softmax has a channel for each class. With a sigmoid the first class of a label map, its background, is
what has no label, and each other class has a channel, which tells it from all the rest: a single one of
the two classes of a binary model, one for each label of a model of several.

Label maps `[H, W, labels]` of 0 and 1, in which a pixel may have several, are what a sigmoid is to say; the
first name of their classes is for pixels without any, as elsewhere.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from deeplab_jax.config import Config, mask_classes
from train.metrics import IGNORE_LABEL

Activation = Literal["softmax", "sigmoid"]

BACKGROUND = "background"
"""The first class of the label maps of a model of several labels, whose own names are those of labels."""


# ---------------------------------------------------------------------------- the model


def channel_fields(class_names: tuple[str, ...], activation: Activation) -> dict[str, Any]:
    """The fields of a `Config` that fit the classes of label maps."""
    if activation == "softmax":
        return {
            "num_classes": len(class_names),
            "class_names": class_names,
            "activation": activation,
        }
    labels = class_names[1:]
    names = class_names if len(labels) == 1 else labels
    return {"num_classes": len(labels), "class_names": names, "activation": activation}


def fitting_activation(
    source: Config | None, class_names: tuple[str, ...], overlapping: bool
) -> Activation:
    """A sigmoid where labels overlap, or where that of `source` has a channel for each of them."""
    if overlapping:
        return "sigmoid"
    channels = channel_fields(class_names, "sigmoid")["num_classes"]
    fits = source is not None and source.num_classes == channels
    return "sigmoid" if fits and source.activation == "sigmoid" else "softmax"


def in_words(config: Config, class_names: Sequence[str]) -> str:
    """What the channels of a sigmoid are and what its mIoU is of; nothing of a softmax, as it is usual."""
    if config.activation == "softmax":
        return ""
    background, *labels = class_names
    if not config.multilabel:
        return (
            f"One channel (sigmoid): {labels[0]} is the foreground, {background} the background. mIoU is "
            f"the IoU of {labels[0]}."
        )
    return (
        f"{len(labels)} labels (sigmoid), each for itself: {', '.join(labels)}; {background} is none of "
        "them. mIoU is the mean of their IoUs."
    )


# ---------------------------------------------------------------------------- label maps


def label_map_classes(config: Config) -> int:
    """How many classes the label maps of a model have."""
    return config.num_classes + 1 if config.multilabel else mask_classes(config.num_classes)


def label_map_names(config: Config) -> tuple[str, ...] | None:
    """The names of these classes, where the model knows them."""
    names = config.class_names
    return names if names is None or not config.multilabel else (BACKGROUND, *names)


def separate(labels: jax.Array, shape: Sequence[int]) -> jax.Array:
    """What each channel of a sigmoid is to say: uint8, 1 where its label is, 0 where not.

    Where that is not known, as where the class is `IGNORE_LABEL` or none, it is `IGNORE_LABEL`.

    Args:
      labels: classes `[...]`; or `[..., channels]` of label maps of several labels, as they are wanted.
      shape: of logits or predictions, `[..., channels]`.
    """
    if labels.ndim == len(shape):
        return labels
    labels, channels = labels.astype(jnp.int32)[..., None], shape[-1]
    is_class = (labels >= 0) & (labels <= channels) & (labels != IGNORE_LABEL)
    there = (labels == jnp.arange(1, channels + 1)).astype(jnp.uint8)
    return jnp.where(is_class, there, jnp.uint8(IGNORE_LABEL))


def labelled(
    labels: jax.Array, shape: Sequence[int], *, single: bool
) -> tuple[jax.Array, jax.Array]:
    """What counts, `[..., channels]`, or `[..., 1]` for all alike; and which channels are right there.

    Args:
      labels, shape: see `separate`.
      single: whether each channel is for itself ("sigmoid" in `Config.activation`).
    """
    if single:
        wanted = separate(labels, shape)
        return wanted != IGNORE_LABEL, wanted == 1
    labels, classes = labels.astype(jnp.int32)[..., None], shape[-1]
    valid = (labels >= 0) & (labels < classes) & (labels != IGNORE_LABEL)
    return valid, (labels == jnp.arange(classes)) & valid


# ---------------------------------------------------------------------------- scores


def scored_names(config: Config, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Of the classes of label maps, those that have scores: all but the first of several labels."""
    return class_names[1:] if config.multilabel else class_names


def first_scored(num_classes: int) -> int:
    """The first of them that the mean scores are of: of a binary model the foreground alone."""
    return 1 if num_classes == 1 else 0
