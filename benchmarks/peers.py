"""The same models in PyTorch and the programs that run them, with weights that we port."""

import contextlib
import copy
import importlib.util
import io
import os
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
import torch
from torch import nn

from deeplab_jax import lowering

Run = Callable[[], object]

CLASSES = 21


def smp_plus(encoder: str, classes: int = CLASSES) -> nn.Module:
    """segmentation_models_pytorch's DeepLabv3+."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)  # the same weights, and so the same rounding, in every run
    return smp.DeepLabV3Plus(encoder, encoder_weights=None, classes=classes)


def torchvision_v3(backbone: str) -> nn.Module:
    """torchvision's DeepLabv3."""
    from torchvision.models import segmentation

    make = getattr(segmentation, f"deeplabv3_{backbone}")
    return Out(make(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False))


class Out(nn.Module):
    """torchvision's models without the dict around their logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)["out"]


def randomised(module: nn.Module) -> nn.Module:
    """Statistics as after training: fresh ones, 0 and 1, make wrong ones look right."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint of a model, under the names that its own code gives."""
    module = module.model if isinstance(module, Out) else module
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@contextlib.contextmanager
def plain_xla() -> Iterator[None]:
    """Within, what is traced leaves every convolution to XLA."""
    native = {
        name: (lambda *shapes: (lowering.native, lowering.native_gradients))
        for name in ("cpu_forms", "cuda_forms")
    }
    with unittest.mock.patch.multiple(lowering, **native):
        yield


def device() -> str:
    """Torch's name of the kind of device that JAX uses."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def threads() -> None:
    """Gives PyTorch the cores, as XLA has them."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def finish() -> None:
    """Waits for a GPU."""
    if device() == "cuda":
        torch.cuda.synchronize()


def modes(
    module: nn.Module, x: torch.Tensor, *, compile: bool
) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """A copy of a model and its input for each way in which PyTorch runs it."""
    last = torch.channels_last
    found = {
        "PyTorch": (copy.deepcopy(module).to(device()), x.to(device())),
        "PyTorch channels_last": (
            copy.deepcopy(module).to(device(), memory_format=last),
            x.to(device(), memory_format=last),
        ),
    }
    if compile:
        model, images = found["PyTorch channels_last"]
        found["torch.compile"] = torch.compile(copy.deepcopy(model)), images
    return found


def inference_runs(module: nn.Module, images: np.ndarray, *, compile: bool) -> dict[str, Run]:
    """PyTorch's ways to evaluate a model on NHWC images, and those of OpenVINO and ONNX Runtime."""
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    pairs = modes(module.eval(), x, compile=compile)

    def run(model: nn.Module, x: torch.Tensor) -> Run:
        def infer() -> torch.Tensor:
            with torch.inference_mode():
                y = model(x)
            finish()
            return y

        return infer

    runs = {name: run(*pair) for name, pair in pairs.items()}
    if device() == "cpu" and importlib.util.find_spec("openvino"):
        runs["OpenVINO"] = _openvino(module, x)
    if device() == "cpu" and importlib.util.find_spec("onnxruntime"):
        runs["ONNX Runtime"] = _onnxruntime(module, x)
    return runs


def _openvino(module: nn.Module, x: torch.Tensor) -> Run:
    import openvino

    network = openvino.convert_model(module, example_input=x, input=list(x.shape))
    request = openvino.compile_model(
        network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    ).create_infer_request()
    return lambda: request.infer({0: x.numpy()})


def _onnxruntime(module: nn.Module, x: torch.Tensor) -> Run:
    import onnxruntime

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(module, (x,), file, input_names=["x"], dynamo=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x.numpy()})
