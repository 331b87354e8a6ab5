"""What programs cost on an NVIDIA GPU, from the compiler: no GPU is needed, and nothing is timed.

pip install -e '.[train]' 'jax[cuda13]'
JAX_PLATFORMS=cpu python -m benchmarks gpu --target h100
"""

import contextlib
import dataclasses
import datetime
import json
import math
import re
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from benchmarks.ahead import compile_inference, compile_step
from benchmarks.hlo import ENTRY, FREE, Instruction, computations, sides_of, size_of
from benchmarks.measure import OURS, PLAIN
from deeplab_jax import create, fold_batch_norm, lowering
from deeplab_jax.whole_file import write_file
from train.config import ModelConfig, TrainConfig
from train.optim import OptimConfig

# ---------------------------------------------------------------------------- the GPUs


@dataclasses.dataclass(frozen=True)
class Gpu:
    """
    Attributes:
      flops: dense bfloat16 operations a second at most.
      bandwidth: bytes of its memory a second at most.
      capability: major and minor CUDA compute capability.
      features: of it, "ACCELERATED_FEATURES" where the compiler may use the architecture's own.
      cores: streaming multiprocessors.
      lanes: float32 units of each.
      clock: GHz.
      memory: bytes.
      cache: bytes of level 2.
      shared: bytes of shared memory of each multiprocessor.
    """

    name: str
    flops: float
    bandwidth: float
    capability: tuple[int, int]
    features: Literal["ACCELERATED_FEATURES", "NONE"]
    cores: int
    lanes: int
    clock: float
    memory: int
    cache: int
    shared: int


GPUS = {
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        flops=989e12,
        bandwidth=3.35e12,
        capability=(9, 0),
        features="ACCELERATED_FEATURES",
        cores=132,
        lanes=128,
        clock=1.98,
        memory=84942979072,
        cache=50 * 2**20,
        shared=228 * 2**10,
    ),
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        flops=312e12,
        bandwidth=2.04e12,
        capability=(8, 0),
        features="NONE",
        cores=108,
        lanes=64,
        clock=1.41,
        memory=85100068864,
        cache=40 * 2**20,
        shared=164 * 2**10,
    ),
}
"""From NVIDIA's data sheets and programming guide."""

_CUDNN = (9, 10, 0)
_CUDA = "12.8.0"


def describe(gpu: Gpu) -> str:
    """The description that XLA compiles for, a GpuTargetConfigProto as text."""
    major, minor, patch = _CUDNN
    return f"""
platform_name: "CUDA"
device_description_str: "{gpu.name}"
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
gpu_device_info {{
  name: "{gpu.name}"
  cuda_compute_capability {{
    major: {gpu.capability[0]} minor: {gpu.capability[1]} feature_extension: {gpu.features}
  }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {int(gpu.bandwidth)}
  device_memory_size: {gpu.memory}
  l2_cache_size: {gpu.cache}
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {gpu.shared - 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "{_CUDA}"
  compile_time_toolkit_version: "{_CUDA}"
  dnn_version: "{major}.{minor}.{patch}"
}}
"""


def devices_of(gpu: Gpu) -> list[jax.Device]:
    """One GPU that need not be there. Raises ValueError, saying what to install, without a compiler."""
    try:
        return list(
            topologies.get_topology_desc(
                platform="cuda", topology="1x1x1", target_config=describe(gpu)
            ).devices
        )
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"nothing compiles for {gpu.name}: {error}. XLA's compiler for NVIDIA GPUs comes with "
            f"pip install 'jax[cuda13]=={jax.__version__}', and needs no GPU"
        ) from error


# ---------------------------------------------------------------------------- the programs


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step, or inference, of a preset; `output_stride` None is the preset's."""

    preset: str
    output_stride: Literal[8, 16, 32] | None = None
    train: bool = False

    @property
    def title(self) -> str:
        stride = "" if self.output_stride is None else f", output stride {self.output_stride}"
        return f"{self.preset}{stride}, {'training step' if self.train else 'inference'}"


CLASSES = 21

PAGE = (
    Program("deeplabv3plus_resnet50"),
    Program("deeplabv3_resnet50", output_stride=8),
    Program("deeplabv3plus_mobilenet_v2"),
    Program("deeplabv3plus_resnet50", train=True),
)


def gpu(
    target: Literal["h100", "a100"] = "h100",
    model: str | None = None,
    output_stride: Literal[8, 16, 32] | None = None,
    train: bool = False,
    size: int = 513,
    batch: int = 16,
    out: Path = Path("benchmarks/results"),
) -> int:
    """Compile models for an NVIDIA GPU, as they are and with XLA's own form of every operation.

    Nothing runs and nothing is timed: what is counted is in the compiled program, in bfloat16.

    Args:
      target: The GPU: H100 SXM 80 GB or A100 SXM 80 GB.
      model: A preset; all of the page without one.
      output_stride: Of that model.
      train: Its training step, not inference.
      size: Rows and columns of the images.
      batch: Images at a time.
      out: Folder of the JSON.
    """
    if model is None and (train or output_stride is not None):
        raise ValueError("--train and --output-stride are of a --model: name one")
    programs = PAGE if model is None else (Program(model, output_stride, train),)
    chip, results = GPUS[target], []
    device = devices_of(chip)[0]
    console = Console()
    for program in programs:
        numbers = {OURS: cost(compile_for(program, device, size, batch), chip)}
        with plain_forms():
            numbers[PLAIN] = cost(compile_for(program, device, size, batch, fold=False), chip)
        results.append(dataclasses.asdict(program) | {"programs": numbers})
        console.print(_table(numbers, f"{program.title}, {batch} x {size} x {size}, {chip.name}"))
    console.print("Compiled, not run: nothing of this was timed on a GPU.")
    record = {"kind": "gpu", "timed": False, "target": chip.name, "size": size, "batch": batch}
    record |= {
        "dtype": "bfloat16",
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "gpu.json", json.dumps(record | {"results": results}, indent=1) + "\n")
    return 0


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Within, what is traced leaves the form of every operation to XLA."""

    def default_of(static, *arguments, default, **others):
        del others
        return default(*arguments, static)

    with unittest.mock.patch.object(lowering, "by_platform", default_of):
        yield


def compile_for(
    program: Program, device: jax.Device, size: int, batch: int, *, fold: bool = True
) -> jax.stages.Compiled:
    """The program in bfloat16; inference with batch norms folded, as `predict` runs it, or as they are."""
    if program.train:
        stride = {} if program.output_stride is None else {"output_stride": program.output_stride}
        config = TrainConfig(
            model=ModelConfig(program.preset, dtype="bfloat16", **stride),
            optim=OptimConfig("sgd", learning_rate=0.01),
            batch_size=batch,
        )
        return compile_step(config, [device], crop=size, num_classes=CLASSES)
    model = create(
        program.preset,
        num_classes=CLASSES,
        output_stride=program.output_stride,
        dtype="bfloat16",
        rngs=nnx.Rngs(0),
    )
    model.eval()
    model = fold_batch_norm(model) if fold else model
    return compile_inference(model, device, (batch, size, size, 3))


# ---------------------------------------------------------------------------- what they cost


def cost(compiled: jax.stages.Compiled, chip: Gpu) -> dict[str, Any]:
    """What a compiled program reads, writes and multiplies, and the time that it cannot be below."""
    counted = count(compiled.as_text())
    memory = compiled.memory_analysis()
    arithmetic, traffic = counted["flops"] / chip.flops, counted["bytes"] / chip.bandwidth
    return counted | {
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "arithmetic_seconds": arithmetic,
        "traffic_seconds": traffic,
        "roofline_seconds": max(arithmetic, traffic),
    }


_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->")
_WINDOW = re.compile(r"window=\{size=([0-9x]+)")
_CONTRACTED = re.compile(r"lhs_contracting_dim(?:s|ensions\")(?:=\{|:\[)([^}\]]*)")

_PARTS = {"slice", "dynamic-slice", "gather"}
_CONVOLUTION, _FUSED = "__cudnn$conv", "__cudnn$convBiasActivationForward"


def count(program: str) -> dict[str, int | float]:
    """Kernels, bytes, operations and convolutions in the text of a program compiled for a GPU.

    Bytes are those of each kernel's operands and results; of an operand that a kernel only takes slices
    or rows of, they are those of these. Caches may save some, and cuDNN's workspaces are not among them.
    """
    found = computations(program)
    shapes = {line.name: line.shape for line in found[ENTRY]}
    kernels = [line for line in found[ENTRY] if line.opcode not in FREE]
    convolutions = [line for line in kernels if _target(line).startswith(_CONVOLUTION)]
    moved = flops = 0
    for kernel in kernels:
        body = found.get(kernel.called, [])
        whole = [size_of(shapes.get(name, "")) for name in kernel.operands]
        moved += size_of(kernel.shape) + sum(_read(body, i, size) for i, size in enumerate(whole))
        local = {line.name: line.shape for line in body}
        flops += sum(_product_flops(line, local) for line in body)
        flops += _product_flops(kernel, shapes) + _convolution_flops(kernel, shapes)
    windows = [
        max(map(int, match[1].split("x")))
        for line in convolutions
        if (match := _WINDOW.search(line.attributes))
    ]
    return {
        "kernels": len(kernels),
        "bytes": moved,
        "flops": flops,
        "convolutions": len(convolutions),
        "fused_convolutions": sum(_target(line) == _FUSED for line in convolutions),
        "largest_window": max(windows, default=0),
    }


def _read(body: list[Instruction], index: int, whole: int) -> int:
    """Bytes that a fused kernel reads of an operand, at most all of it."""
    parameter = next(
        (x for x in body if x.opcode == "parameter" and x.operands == (str(index),)), None
    )
    if parameter is None:
        return whole
    readers = [line for line in body if parameter.name in line.operands]
    if any(line.opcode not in _PARTS or line.operands[0] != parameter.name for line in readers):
        return whole
    return min(whole, sum(size_of(line.shape) for line in readers))


def _target(line: Instruction) -> str:
    match = _TARGET.search(line.attributes)
    return match[1] if match else ""


def _convolution_flops(line: Instruction, shapes: dict[str, str]) -> float:
    if not _target(line).startswith(_CONVOLUTION):
        return 0
    kernel_labels = _LABELS.search(line.attributes)[1]
    first, second = (sides_of(shapes[name]) for name in line.operands[:2])
    result = sides_of(line.shape)
    kernel, image = {
        "__cudnn$convBackwardInput": (second, first),
        "__cudnn$convBackwardFilter": (result, second),
    }.get(_target(line), (second, result))
    # Of each of the kernel's outputs: as many products as it has weights, at every pixel of the result.
    weights = math.prod(kernel) / kernel[kernel_labels.index("o")]
    return 2 * weights * math.prod(image)


def _product_flops(line: Instruction, shapes: dict[str, str]) -> float:
    if line.opcode != "dot" and not _target(line).startswith("__cublas$"):
        return 0
    left = sides_of(shapes[line.operands[0]])
    axes = re.findall(r"\d+", _CONTRACTED.search(line.attributes)[1])
    return 2 * math.prod(sides_of(line.shape)) * math.prod(left[int(axis)] for axis in axes)


def _table(numbers: dict[str, dict[str, Any]], title: str) -> Table:
    table = Table("", title=title, box=None, title_justify="left")
    for name in numbers:
        table.add_column(name, justify="right", style="bold" if name == OURS else None)
    rows = {
        "kernels": lambda n: str(n["kernels"]),
        "memory traffic": lambda n: f"{n['bytes'] / 1e9:.1f} GB",
        "arithmetic": lambda n: f"{n['flops'] / 1e12:.2f} TFLOP",
        "convolutions fused with what follows": lambda n: (
            f"{n['fused_convolutions']} of {n['convolutions']}"
        ),
        "largest window": lambda n: f"{n['largest_window']} x {n['largest_window']}",
        "temporary memory": lambda n: f"{n['temporary_bytes'] / 1e9:.2f} GB",
        "roofline": lambda n: f"{1e3 * n['roofline_seconds']:.1f} ms",
        "bound by": lambda n: (
            "arithmetic" if n["arithmetic_seconds"] > n["traffic_seconds"] else "memory"
        ),
    }
    for name, show in rows.items():
        table.add_row(name, *map(show, numbers.values()))
    return table
