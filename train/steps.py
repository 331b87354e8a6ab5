"""Training steps as pure functions of a state: a dict of arrays, nothing else.

The state has `step`, `params` and `stats` (running statistics) by the names of `named_variables`,
`optimizer` and, with a moving average of the weights, `ema`. The model is merged with its numbers
while a step is traced and never again: doing it in every step would cost 30 ms.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deeplab_jax.layers import REMAT_SAVED
from deeplab_jax.model import named_variables, with_values
from deeplab_jax.preprocessing import normalize
from train.config import TrainConfig
from train.loss import segmentation_loss

State = dict[str, Any]
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

WARM_EMA = 10
"""The moving average begins as a mean of what there is: its decay is at most (1 + step) / (10 + step)."""


def initial_state(
    params: Mapping[str, jax.Array],
    stats: Mapping[str, jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
) -> State:
    """The state before the first step; under `jax.jit` only, which gives each part a buffer of its own."""
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": dict(params),
        "stats": dict(stats),
        "optimizer": optimizer.init(dict(params)),
    }
    return state | ({"ema": params | stats} if ema else {})


def inference_values(state: State) -> dict[str, jax.Array]:
    """The variables to evaluate and to save: the moving average where there is one."""
    return state["ema"] if "ema" in state else state["params"] | state["stats"]


def make_train_step(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainConfig,
    class_weights: np.ndarray | None = None,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The function (state, batch) -> (state, metrics), to be jitted.

    A batch has uint8 `image` `[B, H, W, 3]` and `label` `[B, H, W]`; the metrics are the scalars
    `loss`, `gradient_norm` and `learning_rate`. Dropout draws from the seed and the step alone.

    Args:
      model: from `build`, in training mode.
    """
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def loss_of(params, stats, batch: Batch, key: jax.Array):
        module = with_values(model, params | stats)
        images = normalize(batch["image"], model.config.preprocessing)
        labels = batch["label"]
        size = labels.shape[1:3]
        logits, auxiliary = module.with_aux(images, rngs=nnx.Rngs(dropout=key))
        loss = functools.partial(
            segmentation_loss,
            labels=labels,
            config=config.loss,
            class_weights=weights,
            single=model.config.activation == "sigmoid",
        )
        total = loss(module.resize(logits, size))
        if auxiliary is not None:
            total += config.loss.auxiliary * loss(module.resize(auxiliary, size))
        variables = named_variables(module)
        moved = {name: variables[name][...] for name in stats}
        return total, moved

    if config.model.remat:
        policy = jax.checkpoint_policies.save_only_these_names(*REMAT_SAVED)
        loss_of = jax.checkpoint(loss_of, policy=policy)
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def gradients(state: State, batch: Batch, key: jax.Array):
        """(loss, statistics, gradients) of a batch, in one go or in parts."""
        if config.accumulate == 1:
            (loss, stats), grads = gradient_of(state["params"], state["stats"], batch, key)
            return loss, stats, grads

        def add(carry, part):
            index, stats, loss, grads = carry
            (new_loss, stats), new_grads = gradient_of(
                state["params"], stats, part, jax.random.fold_in(key, index)
            )
            return (
                index + 1,
                stats,
                loss + new_loss,
                jax.tree.map(jnp.add, grads, new_grads),
            ), None

        zeros = jax.tree.map(jnp.zeros_like, state["params"])
        start = (jnp.int32(0), state["stats"], jnp.float32(0), zeros)
        (_, stats, loss, grads), _ = jax.lax.scan(add, start, _parts(batch, config.accumulate))
        return loss / config.accumulate, stats, jax.tree.map(lambda g: g / config.accumulate, grads)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        loss, stats, grads = gradients(state, {n: batch[n] for n in ("image", "label")}, key)
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        new = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "stats": stats,
            "optimizer": optimizer_state,
        }
        if "ema" in state:
            count = state["step"].astype(jnp.float32)
            decay = jnp.minimum(config.ema, (1 + count) / (WARM_EMA + count))
            values = new["params"] | stats
            new["ema"] = {n: decay * v + (1 - decay) * values[n] for n, v in state["ema"].items()}
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
        }
        return new, metrics

    return step


def _parts(batch: Batch, count: int) -> Batch:
    """`[B, ...]` -> `[count, B / count, ...]`; every part takes its share of each device's examples."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), dict(batch))
