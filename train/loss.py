"""What a step minimises: cross-entropy in its variants, Dice and Lovász, each with a weight.

Each of them is there for a softmax over classes and for a sigmoid of each label, see `train.targets`.
Ignored pixels are in no sum, so neither in the loss nor in its gradient; where all are, the loss is 0.
All sums are over the whole batch: under `jax.jit` over a mesh, over that of all devices.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from deeplab_jax import lowering
from deeplab_jax.predict import probabilities_of
from train.targets import labelled


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The terms of the loss, by their weights; a term of weight 0 is not computed.

    Attributes:
      cross_entropy: weight of the cross-entropy (of a sigmoid the binary one, its mean over pixels and
        labels), which the next five fields refine.
      label_smoothing: share of each label that is spread evenly over all classes; with a sigmoid, over
        its being there or not.
      focal_gamma: counts a pixel by (1 - p)^gamma, p being the probability of its label (focal loss,
        Lin et al. 2017, arXiv 1708.02002); 2 is usual, 0 counts all alike.
      hard_threshold: leaves out pixels whose label has at least this probability already ("online hard
        example mining", Shrivastava et al. 2016, arXiv 1604.03540); 0.7 is usual, 1 leaves out none.
      hard_fraction: the share of pixels, the hardest, that counts in any case.
      class_weights: of each class, "data" to take them from the class frequencies of the training
        split, None for all alike. The mean over pixels is then a weighted one, as PyTorch's. With a
        sigmoid there is one for each label, and for the foreground alone of a binary model: it
        multiplies the loss of pixels that have the label, PyTorch's `pos_weight`, and "data" is the number
        of pixels without it by that of pixels with it.
      dice: weight of the soft Dice loss, see `dice_loss`.
      lovasz: weight of the Lovász loss, see `lovasz_loss`.
      auxiliary: weight of the same loss on an auxiliary head's logits.
    """

    cross_entropy: float = 1.0
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    hard_threshold: float = 1.0
    hard_fraction: float = 1 / 16
    class_weights: tuple[float, ...] | Literal["data"] | None = None
    dice: float = 0.0
    lovasz: float = 0.0
    auxiliary: float = 0.4

    def __post_init__(self):
        terms = {name: getattr(self, name) for name in ("cross_entropy", "dice", "lovasz")}
        problems = [
            f"loss.{name} must not be negative, got {value}"
            for name, value in {
                **terms,
                "focal_gamma": self.focal_gamma,
                "auxiliary": self.auxiliary,
            }.items()
            if not value >= 0
        ]
        if not any(terms.values()):
            problems.append(f"one of {', '.join(f'loss.{name}' for name in terms)} must be above 0")
        if not 0 <= self.label_smoothing < 1:
            problems.append(f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("hard_threshold", "hard_fraction"):
            if not 0 < (value := getattr(self, name)) <= 1:
                problems.append(f"loss.{name} must be in (0, 1], got {value}")
        if isinstance(self.class_weights, tuple) and not all(w >= 0 for w in self.class_weights):
            problems.append(f"loss.class_weights must not be negative, got {self.class_weights}")
        if problems:
            raise ValueError("\n".join(problems))


def segmentation_loss(
    logits: jax.Array,
    labels: jax.Array,
    config: LossConfig,
    class_weights: jax.Array | None = None,
    *,
    single: bool = False,
) -> jax.Array:
    """The loss of a batch, a float32 scalar.

    Args:
      logits: `[B, H, W, channels]`.
      labels: integers `[B, H, W]`; `IGNORE_LABEL` and whatever else is no class is left out. With a sigmoid
        also `[B, H, W, channels]`, see `targets.separate`.
      class_weights: `[channels]`, for the cross-entropy; the numbers that `config.class_weights` means.
      single: whether each channel is for itself ("sigmoid" in `Config.activation`).
    """
    logits = logits.astype(jnp.float32)
    total = jnp.float32(0)
    if config.cross_entropy:
        term = cross_entropy_loss(logits, labels, config, class_weights, single=single)
        total += config.cross_entropy * term
    if config.dice:
        total += config.dice * dice_loss(logits, labels, single=single)
    if config.lovasz:
        total += config.lovasz * lovasz_loss(logits, labels, single=single)
    return total


def cross_entropy_loss(
    logits: jax.Array,
    labels: jax.Array,
    config: LossConfig,
    class_weights: jax.Array | None = None,
    *,
    single: bool = False,
) -> jax.Array:
    """The mean cross-entropy over the pixels that count, see `LossConfig`.

    Plain, weighted or smoothed it is `torch.nn.functional.cross_entropy`: the weighted mean divides by
    the sum of the weights of the labels. Of a sigmoid it is `binary_cross_entropy_with_logits`, whose mean
    divides by the number of pixels whatever their weights.
    """
    nll, weight, spread, share, valid = (_of_labels if single else _of_classes)(
        logits, labels, class_weights
    )
    loss = nll * weight
    if smoothing := config.label_smoothing:
        loss = (1 - smoothing) * loss + smoothing * spread
    if config.focal_gamma:
        # Above 0, as a power below 1 has an infinite slope there.
        missing = jnp.maximum(-jnp.expm1(-nll), 1e-6)
        loss = loss * missing**config.focal_gamma
    if config.hard_threshold < 1:
        valid &= _hard(nll, valid, config)
    return _ratio(jnp.where(valid, loss, 0).sum(), jnp.where(valid, share, 0).sum())


class _Answers(NamedTuple):
    """What the cross-entropy of each pixel, or of each label of it, is made of.

    Attributes:
      nll: -log of the probability of what is right.
      weight: of that.
      spread: the mean, weighted, of -log of the probabilities of all that could be right.
      share: what it counts in the divisor of the mean.
      valid: whether it counts.
    """

    nll: jax.Array
    weight: jax.Array
    spread: jax.Array
    share: jax.Array
    valid: jax.Array


def _of_classes(logits: jax.Array, labels: jax.Array, weights: jax.Array | None) -> _Answers:
    """Of each pixel `[B, H, W]`, which has one class."""
    valid, label_is = labelled(labels, logits.shape, single=False)
    valid = valid.squeeze(-1)
    # Selecting, not gathering: the gradient of a gather is a scatter, which is slow.
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    nll = normaliser - _select(label_is, logits)
    each = normaliser[..., None] - logits
    if weights is None:
        weight, spread = valid.astype(jnp.float32), each.mean(-1)
    else:
        weight, spread = _select(label_is, weights), (weights * each).mean(-1)
    return _Answers(nll, weight, spread, weight, valid)


def _of_labels(logits: jax.Array, labels: jax.Array, weights: jax.Array | None) -> _Answers:
    """Of each label of each pixel `[B, H, W, labels]`, which is there or not."""
    valid, label_is = labelled(labels, logits.shape, single=True)
    positive = jnp.float32(1) if weights is None else weights
    # -log of a sigmoid is a softplus, of which nothing is lost where the model is sure.
    there, not_there = jax.nn.softplus(-logits), jax.nn.softplus(logits)
    nll = jnp.where(label_is, there, not_there)
    spread = (positive * there + not_there) / 2
    share = valid.astype(jnp.float32)
    return _Answers(nll, jnp.where(label_is, positive, 1), spread, share, valid)


def dice_loss(logits: jax.Array, labels: jax.Array, *, single: bool = False) -> jax.Array:
    """1 - 2 |A and B| / (|A| + |B|) with probabilities for A and labels for B.

    The mean over the classes that are labelled in the batch (Milletari et al. 2016, arXiv 1606.04797,
    without the squares); with a sigmoid over the labels that are there, which the background is not.
    """
    valid, label_is = labelled(labels, logits.shape, single=single)
    probabilities = jnp.where(valid, probabilities_of(logits, single=single), 0)
    axes = (0, 1, 2)
    both = jnp.where(label_is, probabilities, 0).sum(axes)
    pixels = label_is.sum(axes, dtype=jnp.float32)
    dice = 2 * both / jnp.maximum(probabilities.sum(axes) + pixels, 1)
    present = pixels > 0
    return _ratio(jnp.where(present, 1 - dice, 0).sum(), present.sum(dtype=jnp.float32))


def lovasz_loss(logits: jax.Array, labels: jax.Array, *, single: bool = False) -> jax.Array:
    """The Lovász-softmax loss, a convex stand-in for 1 - IoU (Berman et al. 2018, arXiv 1705.08790).

    With a sigmoid it is the Lovász hinge (Yu and Blaschko 2015; section 2.2 there): errors are those of
    logits against a margin of 1, in place of probabilities. The mean over the classes, or labels, that
    are in the batch, whose pixels are taken together. It sorts all pixels once for each of those, which
    no division among devices speeds up; on CPU it counts them, see `_slopes_by_counting`.
    """
    channels = logits.shape[-1]
    valid, label_is = labelled(labels, logits.shape, single=single)
    if single:
        errors = jax.nn.relu(1 - jnp.where(label_is, logits, -logits))
    else:
        probabilities = jax.nn.softmax(logits)
        errors = jnp.where(label_is, 1 - probabilities, probabilities)
    # Ignored pixels come last, where nothing is wrong, or the IoU's loss has reached 1: they add nothing.
    errors = jnp.where(valid, errors, 0).reshape(-1, channels)
    label_is = label_is.reshape(-1, channels)
    # The extension is linear wherever the order of errors is the same: its slopes are constants, and
    # no gradient goes through the sorting.
    slopes = lowering.by_platform(
        (),
        *jax.lax.stop_gradient((errors, label_is)),
        default=_slopes_by_sorting,
        cpu=_slopes_by_counting,
    )
    present = label_is.any(0)
    losses = jnp.where(present, (errors * slopes).sum(0), 0)
    return _ratio(losses.sum(), present.sum(dtype=jnp.float32))


def _slopes_by_sorting(errors: jax.Array, foreground: jax.Array, static: tuple[()]) -> jax.Array:
    """What each pixel adds to 1 - IoU when pixels become wrong one by one, the worst first.

    Args:
      errors: `[P, classes]`, not negative; foreground: which pixels have the class.
    """
    del static
    present = foreground.any(0)

    def slopes(index: jax.Array) -> jax.Array:
        return jax.lax.cond(
            present[index],
            lambda: _sorted_slopes(errors[:, index], foreground[:, index]),
            lambda: jnp.zeros(len(errors), jnp.float32),
        )

    return jax.lax.map(slopes, jnp.arange(errors.shape[1])).T


def _sorted_slopes(errors: jax.Array, foreground: jax.Array) -> jax.Array:
    """The same of one class `[P]`."""
    # As integers: the bits of floats that are not negative have the same order and sort faster.
    order = jnp.argsort(-jax.lax.bitcast_convert_type(errors, jnp.int32))
    is_foreground = foreground[order]
    wrong_foreground = jnp.cumsum(is_foreground.astype(jnp.int32))
    wrong_background = jnp.arange(1, len(errors) + 1) - wrong_foreground
    count = wrong_foreground[-1]
    left = (count - wrong_foreground).astype(jnp.float32)
    union = (count + wrong_background).astype(jnp.float32)
    # Not as differences of IoUs, which float32 cannot tell apart among a million pixels.
    slopes = jnp.where(is_foreground, 1 / union, left / (union * jnp.maximum(union - 1, 1)))
    return jnp.zeros_like(errors).at[order].set(slopes, unique_indices=True)


_STEPS = 4096  # of errors, by which they are counted


def _slopes_by_counting(errors: jax.Array, foreground: jax.Array, static: tuple[()]) -> jax.Array:
    """The same, where the pixels of a class within a small step of errors share what they add together.

    XLA sorts slowly on CPU: a loss of 8 x 288 x 288 pixels of 11 classes and its gradient take 1.94 s of it
    by sorting and 0.20 s so, with a gradient whose norm is off by 0.04 %.
    """
    del static
    classes = errors.shape[1]
    share = errors / jnp.maximum(errors.max(0), jnp.finfo(jnp.float32).tiny)
    step = jnp.minimum(((1 - share) * _STEPS).astype(jnp.int32), _STEPS - 1)  # the worst first
    place = step + jnp.arange(classes) * _STEPS

    def counted(which: jax.Array) -> jax.Array:
        counts = jnp.zeros(classes * _STEPS, jnp.float32).at[place].add(which.astype(jnp.float32))
        return counts.reshape(classes, _STEPS)

    in_class, others = counted(foreground), counted(~foreground)
    count = in_class.sum(1, keepdims=True)
    left = count - jnp.cumsum(in_class, axis=1) + in_class / 2
    after = jnp.maximum(count + jnp.cumsum(others, axis=1), 1)
    before = jnp.maximum(after - others, 1)
    # What a step adds to 1 - IoU is the same in any order; these are the means of the class first and last.
    of_class, of_others = (1 / before + 1 / after) / 2, left / (before * after)
    return jnp.where(foreground, of_class.ravel()[place], of_others.ravel()[place])


def _hard(nll: jax.Array, valid: jax.Array, config: LossConfig) -> jax.Array:
    """The pixels below `hard_threshold`, and the hardest `hard_fraction` of the valid ones.

    The rank is found by bisection over the bits of the loss, 31 counts over all pixels: exact, much
    faster than sorting, and pixels may lie on many devices.
    """
    # The bits of floats that are not negative are in the order of the floats.
    nll = jax.lax.stop_gradient(jnp.where(valid, jnp.maximum(nll, 0), 0))
    bits = jax.lax.bitcast_convert_type(nll, jnp.int32)
    wanted = jnp.ceil(config.hard_fraction * valid.sum(dtype=jnp.float32)).astype(jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # at least `wanted` pixels are at or above `low`, fewer at `high`
        middle = low + (high - low) // 2
        enough = (bits >= middle).sum(dtype=jnp.int32) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = (jnp.int32(0), jnp.int32(2**31 - 1))
    least, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    return (bits >= least) | (jnp.exp(-nll) < config.hard_threshold)


def _select(label_is: jax.Array, values: jax.Array) -> jax.Array:
    """Of `[..., classes]`, that of each pixel's label; 0 where it has none."""
    return jnp.where(label_is, values, 0).sum(-1)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    return part / jnp.where(whole > 0, whole, 1)
