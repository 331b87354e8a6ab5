"""Torch modules to hold the port against, with weights that leave nothing to chance."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch
from torch import nn

from port import Report

# ---- weights and images ----


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose tensors are shapes only: most of the time that a large one takes goes into drawing
    weights that are thrown away. Code that reads values of tensors on the way gets weights."""
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError:  # torch's own, "no data"; whatever else is wrong is so again
        return make()


def randomise(module: nn.Module, *shapes: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Gives a torch module weights and batch norms that a port can get wrong; returns it in eval mode.

    Fresh batch norms are 0 and 1 and prove nothing; statistics drawn blindly make activations explode
    or die in a deep network, which proves little more. So gains and biases are drawn, the statistics
    are measured on a random batch of `shapes` (`[B, C, H, W]`, one for each input), and then moved.
    Without shapes they are drawn: enough where nothing is computed.
    """
    torch.manual_seed(seed)  # of the dropout too
    module.to_empty(device="cpu")
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.normal_(0, 0.3)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
            norm.num_batches_tracked.zero_()
        if shapes:
            _measure(module, norms, shapes)
    return module.eval()


def _measure(
    module: nn.Module, norms: list[nn.BatchNorm2d], shapes: tuple[tuple[int, ...], ...]
) -> None:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # forget what was there
    module.train()(*(torch.randn(shape) for shape in shapes))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        # Little: a network without its own normalisation multiplies what it is given, layer after layer,
        # and MobileNetV3 more than that.
        mean, var = norm.running_mean, norm.running_var
        mean += 0.1 * var.sqrt() * torch.randn_like(mean)
        # A tenth of the mean at least: the few values of the image-pooling branch may nearly coincide,
        # and dividing by nothing would make noise of rounding.
        var.clamp_(min=var.mean().item() / 10).mul_(torch.empty_like(var).uniform_(0.8, 1.25))


def images(*shape: int, seed: int = 1) -> np.ndarray:
    """Random float32 `[B, H, W, C]`."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run_torch(module: nn.Module, *inputs: np.ndarray):
    """The module's output for inputs `[B, H, W, C]`, as the module has it."""
    with torch.no_grad():
        return module(*(torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous() for x in inputs))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().transpose(0, 2, 3, 1)


def relative_error(value: jax.Array | np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the largest value."""
    value = np.asarray(value)
    assert value.shape == reference.shape
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


# ---- running the comparison ----


@contextlib.contextmanager
def quick_comparison() -> Iterator[None]:
    """Settings that are faster for many small networks, each run once.

    XLA skips its optimisations, which compiles a network in half to an eighth of the time; the
    program computes the same, only slower on larger images. Torch's threads would spin
    while XLA's work, which on a busy machine doubles the time.
    """
    flag, threads = "jax_disable_most_optimizations", torch.get_num_threads()
    before = jax.config.read(flag)
    jax.config.update(flag, True)
    torch.set_num_threads(1)
    yield
    jax.config.update(flag, before)
    torch.set_num_threads(threads)


def assert_agrees(report: Report) -> None:
    """Every layer within the rounding of PyTorch itself, and the classes of (nearly) all pixels.

    verify's own bar for the classes is set for photographs: of the few thousand pixels of a test,
    one or two that fall the other way may be ties of random logits, so that it is one in a thousand here.
    """
    assert report.first_difference is None, report.to_json()
    assert report.agreement is None or report.agreement >= 0.999
