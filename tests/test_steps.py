"""Training steps: what a state becomes, beside what `test_port_training` compares with PyTorch."""

import functools

import jax
import numpy as np
import own_backbone  # noqa: F401 (registers a small one)
import pytest

from train.config import ModelConfig, TrainConfig
from train.model import make_model
from train.optim import OptimConfig, make_optimizer
from train.steps import inference_values, initial_state, make_train_step

STEPS = 4


def states_of(ema, accumulate=1):
    """The states before the first step and after each, of a run whose weights move a lot."""
    config = TrainConfig(
        model=ModelConfig("fcn_stripes4"),
        optim=OptimConfig("sgd", learning_rate=0.1, schedule="constant"),
        ema=ema,
        accumulate=accumulate,
    )
    start = make_model(config.model, ("a", "b"), seed=0, data_shards=1)
    start.model.head.dropout.rate = 0.0
    optimizer, schedule = make_optimizer(config.optim, start.params, STEPS)
    make = functools.partial(initial_state, optimizer=optimizer, ema=ema > 0)
    step = jax.jit(
        make_train_step(start.model, optimizer, schedule, config),
        compiler_options={"xla_backend_optimization_level": 0},  # compiling is most of this test
    )
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8).repeat(2, axis=0)
    batch = {"image": image, "label": (image[..., 0] > 127).astype(np.uint8)}
    states = [jax.jit(make)(start.params, start.stats)]
    for _ in range(STEPS):
        states.append(step(states[-1], batch)[0])
    return states


@pytest.fixture(scope="module")
def averaged():
    return states_of(ema=0.2)


@pytest.fixture(scope="module")
def plain():
    return states_of(ema=0)


def test_the_moving_average_decays_as_it_is_told_once_it_is_warm(averaged):
    # (1 + step) / (10 + step) until that is more than the decay, which the third step's would be.
    decays = [1 / 10, 2 / 11, 0.2, 0.2]
    name = "backbone.stem.look.kernel"
    assert name in averaged[0]["params"]
    for kind, variable in (("params", name), ("stats", "backbone.stem.normalise.var")):
        average = np.asarray(averaged[0][kind][variable], np.float64)
        for decay, state in zip(decays, averaged[1:], strict=True):
            value = np.asarray(state[kind][variable], np.float64)
            average = decay * average + (1 - decay) * value
            found = np.asarray(state["ema"][variable])
            # Two roundings (2^-24 each) in each of the steps; a decay of 0.21 would be off by 1 % of what
            # a step moves.
            np.testing.assert_allclose(found, average, rtol=1e-6, atol=1e-6)
            moved = np.abs(value - average).max()
            assert moved > 1e-3, "there is something to average"


def test_the_moving_average_is_what_is_evaluated_and_saved(averaged):
    for state in averaged:
        assert inference_values(state) is state["ema"]
        assert state["ema"].keys() == state["params"].keys() | state["stats"].keys()


def test_without_a_moving_average_it_is_the_weights_themselves(plain):
    state = plain[-1]
    assert "ema" not in state
    values = inference_values(state)
    assert values.keys() == state["params"].keys() | state["stats"].keys()
    assert all(values[name] is state["params"][name] for name in state["params"])


def test_the_average_does_not_change_what_is_learnt(averaged, plain):
    for kind in ("params", "stats"):
        for name, value in plain[-1][kind].items():
            np.testing.assert_array_equal(value, averaged[-1][kind][name], err_msg=name)


def test_a_batch_in_parts_moves_the_weights_as_a_whole_one():
    """Of which each half is the same, so that batch norm sees the same statistics."""
    whole, parts = (states_of(ema=0, accumulate=n)[-1]["params"] for n in (1, 2))
    for name, value in whole.items():
        # Sums in another order, in four steps; a gradient twice as large would be off by half.
        np.testing.assert_allclose(parts[name], value, rtol=0, atol=1e-4, err_msg=name)
