"""Whole training steps: forward, backward, optimiser."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import torch
from flax import nnx
from torch import nn

from benchmarks import peers
from benchmarks.measure import OURS, PLAIN, Case, check, measure
from benchmarks.report import report
from deeplab_jax import compiler_options
from deeplab_jax.model import named_values, named_variables
from deeplab_jax.preprocessing import normalize
from port import load_torch
from train.config import TrainConfig
from train.optim import OptimConfig, make_optimizer
from train.steps import initial_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """A DeepLabv3+ of segmentation_models_pytorch and how it is trained."""

    encoder: str
    batch: int
    crop: int
    optimizer: Literal["sgd", "adamw"]
    classes: int = 21


SETUPS = {
    "CamVid": Setup("timm-tf_efficientnet_lite0", 8, 288, "adamw", 11),
    "ResNet-50": Setup("resnet50", 4, 256, "sgd"),
    "MobileNetV2": Setup("mobilenet_v2", 4, 256, "sgd"),
}

SAME = 1e-3
"""Loss and gradient norm of one step. Batch norm divides by the deviations of small numbers, which takes
the rounding of float32 sums in another order up to 5e-4; a missing term shows at 1e-2 and above."""


def training(
    setups: tuple[str, ...] = tuple(SETUPS),
    rounds: int = 7,
    compile: bool = False,
    out: Path = Path("benchmarks/results"),
) -> int:
    """Time training steps of DeepLabv3+ against PyTorch, from the same weights on the same batch.

    Args:
      setups: Which ones.
      rounds: How often each contestant is timed.
      compile: Include torch.compile, which needs a C++ compiler.
      out: Folder of the JSON and the picture.
    """
    peers.threads()
    cases = (_case(SETUPS[name], compile) for name in setups)
    return report("training", measure(cases, rounds=rounds), out)


def _case(setup: Setup, compile: bool) -> Case:
    rng = np.random.default_rng(0)
    shape = (setup.batch, setup.crop, setup.crop)
    batch = {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "label": rng.integers(0, setup.classes, shape, np.uint8),
    }
    module = peers.smp_plus(setup.encoder, setup.classes)
    for part in module.modules():
        if isinstance(part, nn.Dropout):  # it draws differently on either side
            part.p = 0.0
        if hasattr(part, "drop_prob"):  # timm's stochastic depth
            part.drop_prob = 0.0
    still = {"drop_path": 0.0} if "efficientnet" in setup.encoder else {}
    model = load_torch(peers.state_of(module), dropout=0.0, **still)
    model.train()
    runs = {OURS: _run(model, batch, setup, compiler_options(gradients=True))}
    with peers.plain_xla():
        runs[PLAIN] = _run(model, batch, setup, None)
    images = np.asarray(normalize(batch["image"], model.config.preprocessing))
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    for name, pair in peers.modes(module, x, compile=compile).items():
        runs[name] = _torch_run(*pair, batch["label"], setup)
    ours, theirs = runs[OURS](), runs["PyTorch"]()
    name = f"v3+ {setup.encoder}, {' x '.join(map(str, shape))}, {setup.optimizer}"
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    return Case(name, runs, check(name, worst, SAME))


def _run(
    model: nnx.Module,
    batch: dict[str, np.ndarray],
    setup: Setup,
    options: dict[str, str | bool] | None,
) -> Callable[[], tuple[float, float]]:
    """One step from state to state, giving its loss and the norm of its gradient."""
    config = TrainConfig(optim=_optim(setup), batch_size=setup.batch)
    values = named_values(model)
    trained = [n for n, v in named_variables(model).items() if isinstance(v, nnx.Param)]
    params = {name: values.pop(name) for name in trained}
    optimizer, schedule = make_optimizer(config.optim, params, 1000)
    state = jax.jit(lambda p, s: initial_state(p, s, optimizer, ema=False))(params, values)
    batch = jax.device_put(batch)
    step = make_train_step(model, optimizer, schedule, config)
    call = jax.jit(step, donate_argnums=0, compiler_options=options).lower(state, batch).compile()

    def run() -> tuple[float, float]:
        nonlocal state
        state, metrics = call(state, batch)
        return float(metrics["loss"]), float(metrics["gradient_norm"])

    return run


def _optim(setup: Setup) -> OptimConfig:
    return OptimConfig(setup.optimizer, learning_rate=1e-3)


def _torch_run(
    module: nn.Module, x: torch.Tensor, labels: np.ndarray, setup: Setup
) -> Callable[[], tuple[float, float]]:
    module.train()
    config = _optim(setup)
    make = {
        "sgd": lambda p: torch.optim.SGD(p, config.learning_rate, momentum=config.momentum),
        "adamw": lambda p: torch.optim.AdamW(p, config.learning_rate),
    }[setup.optimizer]
    optimizer = make(module.parameters())
    target = torch.from_numpy(labels.astype(np.int64)).to(x.device)

    def run() -> tuple[float, float]:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(module(x), target)
        loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        peers.finish()
        return loss.item(), norm.item()

    return run
