"""Optimisers against PyTorch's, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from train.optim import OptimConfig, make_optimizer, make_schedule

STEPS = 5


@pytest.fixture(scope="module")
def numbers():
    """Parameters by name, and a gradient for each of three steps."""
    rng = np.random.default_rng(0)
    shapes = {
        "backbone.conv.kernel": (3, 4),
        "backbone.bn.scale": (4,),
        "head.conv.kernel": (4, 2),
        "head.conv.bias": (2,),
    }
    draw = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(4)
    ]
    return draw[0], draw[1:]


def ours(config, params, gradients):
    optimizer, _ = make_optimizer(config, params, STEPS)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(value) for name, value in params.items()}


def pytorch_s(make, params, gradients, *, clip=None, decayed=lambda name: True):
    """`make(groups)` is an optimiser of groups for backbone and head; the schedule is poly."""
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    rates = {"backbone": 0.1, "head": 1.0}
    optimizer = make(
        [
            {"params": [tensor], "lr": rates[name.split(".")[0]]}
            | ({} if decayed(name) else {"weight_decay": 0.0})
            for name, tensor in tensors.items()
        ]
    )
    poly = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / STEPS) ** 0.9)
    for gradient in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        if clip:
            torch.nn.utils.clip_grad_norm_(tensors.values(), clip)
        optimizer.step()
        poly.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def assert_same(actual, expected, *, atol=1e-7):
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=2e-6, atol=atol, err_msg=name)


def test_sgd_is_pytorch_s(numbers):
    config = OptimConfig(
        "sgd", learning_rate=1, backbone_factor=0.1, weight_decay=0.01, decay_all=True
    )
    expected = pytorch_s(
        lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01), *numbers
    )
    assert_same(ours(config, *numbers), expected)


def test_adamw_is_pytorch_s_with_the_gradient_clipped_and_no_decay_of_norms_and_biases(numbers):
    config = OptimConfig(
        "adamw", learning_rate=1, backbone_factor=0.1, weight_decay=0.1, clip_norm=2
    )
    expected = pytorch_s(
        lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
        *numbers,
        clip=2,
        decayed=lambda name: name.endswith("kernel"),
    )
    # In float32 1 - 0.999 is off by 1e-5 of it, and so are the first updates of 1.
    assert_same(ours(config, *numbers), expected, atol=3e-5)


def test_lamb_moves_each_kernel_by_its_own_norm(numbers):
    params, gradients = numbers
    config = OptimConfig("lamb", learning_rate=0.1, schedule="constant", weight_decay=0)
    moved = ours(config, params, gradients[:1])
    for name in params:
        step = np.linalg.norm(moved[name] - params[name])
        # Adam's first update is the gradient's sign.
        norm = np.linalg.norm(params[name]) if name.endswith("kernel") else params[name].size ** 0.5
        assert step == pytest.approx(0.1 * norm, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_a_factor_of_zero_freezes_weight_decay_included(numbers, optimizer):
    params, gradients = numbers
    config = OptimConfig(optimizer, backbone_factor=0, weight_decay=0.1)
    after = ours(config, params, gradients)
    for name, value in params.items():
        assert (after[name] == value).all() == name.startswith("backbone.")


def test_nested_parameters_are_known_by_their_path(numbers):
    params, gradients = numbers
    config = OptimConfig(backbone_factor=0.1)

    def nest(flat):
        nested: dict = {}
        for name, value in flat.items():
            *path, leaf = name.split(".")
            inner = nested
            for part in path:
                inner = inner.setdefault(part, {})
            inner[leaf] = value
        return nested

    optimizer, _ = make_optimizer(config, jax.eval_shape(nest, params), STEPS)
    updates, _ = optimizer.update(nest(gradients[0]), optimizer.init(nest(params)), nest(params))
    expected = ours(config, params, gradients[:1])
    moved = optax.apply_updates(nest(params), updates)
    np.testing.assert_array_equal(
        moved["backbone"]["conv"]["kernel"], expected["backbone.conv.kernel"]
    )
    np.testing.assert_array_equal(moved["head"]["conv"]["bias"], expected["head.conv.bias"])


def test_schedules_rise_and_fall():
    def rates(**fields):
        schedule = make_schedule(OptimConfig(learning_rate=2, **fields), 10)
        return [round(float(schedule(jnp.int32(step))), 4) for step in (0, 1, 2, 6, 10)]

    assert rates(schedule="poly", power=1) == [2, 1.8, 1.6, 0.8, 0]
    assert rates(schedule="poly", power=0.5) == [2, 1.8974, 1.7889, 1.2649, 0]
    assert rates(schedule="poly", power=1, warmup_steps=2) == [1, 2, 2, 1, 0]
    assert rates(schedule="cosine", warmup_steps=2) == [1, 2, 2, 1, 0]
    assert rates(schedule="constant", warmup_steps=4) == [0.5, 1, 1.5, 2, 2]


def test_a_warm_up_of_the_whole_run_is_refused():
    with pytest.raises(ValueError, match="below the steps of the run, got 10 of 10"):
        make_optimizer(OptimConfig(warmup_steps=10), {}, 10)


def test_what_is_wrong_in_a_config_is_listed_together():
    with pytest.raises(ValueError, match=r"(?s)clip_norm must not be neg.*learning_rate.*momentum"):
        OptimConfig(learning_rate=0, momentum=1, clip_norm=-1)
