"""Single convolutions, forward and with their gradients."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import peers
from benchmarks.measure import OURS, PLAIN, Case, check, difference, measure
from benchmarks.report import report
from deeplab_jax import compiler_options, ops


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution that keeps the size at stride 1; depthwise where `out` is None."""

    batch: int
    side: int
    channels: int
    out: int | None
    kernel: int = 3
    stride: int = 1
    rate: int = 1

    def __str__(self) -> str:
        kind = "depthwise" if self.out is None else f"-> {self.out}"
        size = f"{self.batch} x {self.side} x {self.side} x {self.channels} {kind}"
        return f"{size}, {self.kernel} x {self.kernel}, stride {self.stride}, rate {self.rate}"


LAYERS = (
    Layer(1, 33, 2048, 256, rate=6),
    Layer(1, 33, 2048, 256, rate=18),
    Layer(1, 65, 512, 512, rate=4),
    Layer(1, 129, 144, None),
    Layer(1, 33, 960, None, rate=2),
    Layer(8, 72, 304, None),
    Layer(8, 144, 96, None, stride=2),
    Layer(8, 18, 1152, None, kernel=5),
    Layer(8, 72, 304, 256, kernel=1),
    Layer(8, 18, 1152, 192, kernel=1),
    Layer(4, 65, 128, 128),
)

SAME = 1e-4
"""Up to 40 000 float32 products in another order."""


def convolutions(rounds: int = 9, out: Path = Path("benchmarks/results")) -> int:
    """Time the convolutions that DeepLab is made of against plain XLA and PyTorch.

    Args:
      rounds: How often each contestant is timed.
      out: Folder of the JSON and the picture.
    """
    peers.threads()
    cases = (_case(layer, gradient) for layer in LAYERS for gradient in (False, True))
    return report("ops", measure(cases, rounds=rounds), out)


def _case(layer: Layer, gradient: bool) -> Case:
    rng = np.random.default_rng(0)
    groups = layer.channels if layer.out is None else 1
    kernel_shape = (layer.kernel, layer.kernel, layer.channels // groups, layer.out or groups)
    x = rng.standard_normal((layer.batch, layer.side, layer.side, layer.channels), np.float32)
    kernel = rng.standard_normal(kernel_shape, np.float32)
    padding = layer.rate * (layer.kernel - 1) // 2
    options = {"stride": layer.stride, "dilation": layer.rate, "padding": padding, "groups": groups}
    shape = jax.eval_shape(lambda *a: ops.conv(*a, **options), x, kernel).shape
    cotangent = rng.standard_normal(shape, np.float32)

    def function(cotangent, x, kernel):
        value, transpose = jax.vjp(lambda *a: ops.conv(*a, **options), x, kernel)
        return (value, *transpose(cotangent)) if gradient else (value,)

    arguments = tuple(map(jnp.asarray, (cotangent, x, kernel)))
    runs = {OURS: _compiled(function, arguments, compiler_options(gradients=gradient))}
    with peers.plain_xla():
        runs[PLAIN] = _compiled(lambda *a: function(*a), arguments, None)
    runs["PyTorch channels_last"] = theirs = _torch_run(x, kernel, cotangent, options, gradient)
    name = f"{layer}{', with gradients' if gradient else ''}"
    pairs = zip(runs[OURS](), theirs(), strict=True)
    worst = max(difference(np.asarray(a), _from_torch(b, a.shape)) for a, b in pairs)
    return Case(name, runs, check(name, worst, SAME))


def _compiled(
    function: Callable, arguments: tuple, options: dict[str, str | bool] | None
) -> Callable:
    call = jax.jit(function, compiler_options=options).lower(*arguments).compile()
    return lambda: jax.block_until_ready(call(*arguments))


def _torch_run(
    x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray, options: dict, gradient: bool
) -> Callable:
    def tensor(array: np.ndarray, *axes: int) -> torch.Tensor:
        found = torch.from_numpy(array.transpose(axes).copy()).to(peers.device())
        return found.to(memory_format=torch.channels_last)

    images, weight = tensor(x, 0, 3, 1, 2), tensor(kernel, 3, 2, 0, 1)
    error = tensor(cotangent, 0, 3, 1, 2)
    inputs = [images.requires_grad_(gradient), weight.requires_grad_(gradient)]

    def run() -> tuple[torch.Tensor, ...]:
        value = torch.nn.functional.conv2d(*inputs, **options)
        found = torch.autograd.grad(value, inputs, error) if gradient else ()
        peers.finish()
        return value, *found

    return run


def _from_torch(tensor: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    array = tensor.detach().cpu().numpy()
    images = array.transpose(0, 2, 3, 1)
    return images if images.shape == shape else array.transpose(2, 3, 1, 0)
