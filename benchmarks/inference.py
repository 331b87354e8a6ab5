"""Logits of one image by whole models."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import peers
from benchmarks.measure import OURS, PLAIN, Case, check, difference, measure
from benchmarks.report import report
from deeplab_jax import compiler_options, fold_batch_norm
from port import load_torch

MODELS = {
    "v3 ResNet-50, stride 8": functools.partial(peers.torchvision_v3, "resnet50"),
    "v3 MobileNetV3-L": functools.partial(peers.torchvision_v3, "mobilenet_v3_large"),
    "v3+ ResNet-50": functools.partial(peers.smp_plus, "resnet50"),
    "v3+ ResNet-101": functools.partial(peers.smp_plus, "resnet101"),
    "v3+ ResNeXt-50": functools.partial(peers.smp_plus, "resnext50_32x4d"),
    "v3+ EfficientNet-B3": functools.partial(peers.smp_plus, "tu-efficientnet_b3"),
    "v3+ RegNetY-032": functools.partial(peers.smp_plus, "tu-regnety_032"),
    "v3+ MobileNetV2": functools.partial(peers.smp_plus, "mobilenet_v2"),
    "v3+ Xception-65": functools.partial(peers.smp_plus, "tu-xception65"),
}

SAME = 1e-4
"""Hundreds of layers of float32 sums in another order."""


def inference(
    models: tuple[str, ...] = tuple(MODELS),
    size: int = 512,
    batch: int = 1,
    rounds: int = 7,
    compile: bool = False,
    out: Path = Path("benchmarks/results"),
) -> int:
    """Time whole models against PyTorch and, where they are installed, OpenVINO and ONNX Runtime.

    Args:
      models: Which ones.
      size: Rows and columns; segmentation_models_pytorch wants multiples of 16.
      batch: Images at a time.
      rounds: How often each contestant is timed.
      compile: Include torch.compile, which needs a C++ compiler.
      out: Folder of the JSON and the picture.
    """
    peers.threads()
    shape = (batch, size, size, 3)
    cases = (_case(name, MODELS[name], shape, compile) for name in models)
    return report("inference", measure(cases, rounds=rounds), out)


def _case(name: str, make: Callable, shape: tuple[int, ...], compile: bool) -> Case:
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    module = peers.randomised(make())
    model = load_torch(peers.state_of(module))
    theirs = peers.inference_runs(module, images, compile=compile)
    runs = {OURS: _run_of_many(fold_batch_norm(model), images)}
    with peers.plain_xla():
        runs[PLAIN] = _run(model, images)
    logits = np.moveaxis(theirs["PyTorch"]().cpu().numpy(), 1, -1)
    found = check(name, difference(np.asarray(runs[OURS]()), logits), SAME)
    return Case(f"{name}, {' x '.join(map(str, shape))}", runs | theirs, found)


def _run(model: nnx.Module, images: np.ndarray) -> Callable:
    x = jnp.asarray(images)
    call = jax.jit(lambda model, x: model(x)).lower(model, x).compile()
    return lambda: call(model, x).block_until_ready()


def _run_of_many(model: nnx.Module, images: np.ndarray) -> Callable:
    """As `deeplab predict` does with many pictures of a size: the weights are constants of the program."""
    x = jnp.asarray(images)
    call = jax.jit(lambda x: model(x), compiler_options=compiler_options()).lower(x).compile()
    return lambda: call(x).block_until_ready()
