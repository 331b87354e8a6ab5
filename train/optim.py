"""Optimisers and learning-rate schedules, with PyTorch's conventions."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

_UNDECAYED = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule.

    Attributes:
      optimizer: "sgd" with momentum; "adamw" (Loshchilov & Hutter 2019, arXiv 1711.05101); "lamb", for
        batches of thousands (You et al. 2020, arXiv 1904.00962).
      learning_rate: the highest, which the schedule begins with.
      backbone_factor: the backbone's learning rate is this times that; 0 leaves the backbone as it is.
      head_factor: the same for all that is not the backbone; PyTorch's recipes often have 10.
      momentum: of SGD; of the mean of gradients in AdamW and LAMB.
      weight_decay: as PyTorch has it: added to the gradient in SGD, times the learning rate in AdamW and
        LAMB.
      decay_all: decay the scales and biases of norms and layers too, as most recipes for SGD do.
      schedule: "poly" falls as (1 - progress)^power to 0, "cosine" as half a cosine to 0.
      power: of "poly"; DeepLab's is 0.9.
      warmup_steps: in which the rate rises linearly before it begins to fall.
      clip_norm: the largest norm that the gradient of all parameters together may have; 0 for any.
    """

    optimizer: Literal["sgd", "adamw", "lamb"] = "sgd"
    learning_rate: float = 0.01
    backbone_factor: float = 1.0
    head_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_all: bool = False
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    clip_norm: float = 0.0

    def __post_init__(self):
        names = ("backbone_factor", "head_factor", "weight_decay", "warmup_steps", "clip_norm")
        problems = [
            f"optim.{name} must not be negative, got {value}"
            for name in names
            if not (value := getattr(self, name)) >= 0
        ]
        for name in ("learning_rate", "power"):
            if not (value := getattr(self, name)) > 0:
                problems.append(f"optim.{name} must be above 0, got {value}")
        if not 0 <= self.momentum < 1:
            problems.append(f"optim.momentum must be in [0, 1), got {self.momentum}")
        if problems:
            raise ValueError("\n".join(problems))


def make_optimizer(
    config: OptimConfig, params: Any, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of a run and its schedule (step, from 0 -> learning rate before the factors).

    Args:
      params: dict of arrays or shapes, flat or nested, by names such as "backbone.conv1.kernel": the
        backbone's are those that begin with "backbone.".
      steps: of the whole run, after which the rate is 0.

    Raises:
      ValueError: the warm-up takes the whole run.
    """
    schedule = make_schedule(config, steps)

    def by_name(rule: Callable[[str], Any]) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: rule(_name(path)), params)

    decayed = by_name(lambda name: config.decay_all or name.split(".")[-1] not in _UNDECAYED)
    factors = by_name(
        lambda name: config.backbone_factor if name.startswith("backbone.") else config.head_factor
    )
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    if config.optimizer == "sgd":
        rule = (decay, optax.trace(config.momentum))
    elif config.optimizer == "adamw":
        rule = (_adam(config.momentum, epsilon=1e-8), decay)
    else:
        # As LAMB's authors do, a layer's norm scales the updates of what is decayed alone.
        ratio = optax.masked(optax.scale_by_trust_ratio(), decayed)
        rule = (_adam(config.momentum, epsilon=1e-6), decay, ratio)
    clip = (optax.clip_by_global_norm(config.clip_norm),) if config.clip_norm else ()
    rate = optax.scale_by_learning_rate(schedule)
    return optax.chain(*clip, *rule, _scale_each(factors), rate), schedule


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Step, from 0 -> learning rate, of a run of `steps`; ValueError if the warm-up takes it all."""
    warmup = config.warmup_steps
    if steps <= warmup:
        raise ValueError(
            f"optim.warmup_steps must be below the steps of the run, got {warmup} of {steps}"
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((step + 1) / max(warmup, 1), 1)
        progress = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
        if config.schedule == "poly":
            fall = (1 - progress) ** config.power
        elif config.schedule == "cosine":
            fall = (1 + jnp.cos(jnp.pi * progress)) / 2
        else:
            fall = 1.0
        return config.learning_rate * rise * fall

    return schedule


def _adam(momentum: float, *, epsilon: float) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(momentum, 0.999, epsilon)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def _scale_each(factors: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _name(path: jax.tree_util.KeyPath) -> str:
    return ".".join(str(entry.key) for entry in path)
