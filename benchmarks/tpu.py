"""What the training step costs on a TPU slice, from the compiler: no TPU is needed, only libtpu.

pip install -e '.[train]' 'jax[tpu]'
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m benchmarks tpu --topology v5e:4x4
"""

import collections
import dataclasses
import datetime
import json
import re
import time
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from benchmarks.ahead import compile_step
from benchmarks.hlo import ENTRY, FREE, arrays_of, computations, size_of
from deeplab_jax.whole_file import write_file
from train.config import MeshConfig, ModelConfig, TrainConfig
from train.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class Chip:
    """
    Attributes:
      flops: bfloat16 operations a second at most.
      bandwidth: bytes of its memory a second at most.
      memory: bytes.
      clock: cycles a second, those in which its matrix units do `flops`: four of 128 x 128, or a megacore's
        eight, a multiplication and an addition at each place. v6e's is not published; this is what four of
        256 x 256 need.
      cores: "megacore" where two of them are one device.
    """

    flops: float
    bandwidth: float
    memory: float
    clock: float
    cores: Literal["default", "megacore"] = "default"


CHIPS = {
    "v4": Chip(275e12, 1228e9, 32e9, 1.05e9, "megacore"),
    "v5e": Chip(197e12, 819e9, 16e9, 1.5e9),
    "v5p": Chip(459e12, 2765e9, 95e9, 1.75e9, "megacore"),
    "v6e": Chip(918e12, 1640e9, 32e9, 1.75e9),
}
"""From Google's pages on its TPUs' system architecture."""

_BETWEEN = {"copy-start", "slice-start"}  # of which the other memory is waited for

_KINDS = 6  # of operations that are listed

_COLLECTIVE = re.compile(
    r"= (?P<shapes>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|"
    r"all-to-all)(?:-start)?\("
)
_ESTIMATE = re.compile(r'op_name="(?P<path>[^"]*)".*"estimated_cycles":"(?P<cycles>[0-9]+)"')


def tpu(
    topology: str = "v5e:4x4",
    slices: int = 1,
    preset: str = "deeplabv3plus_resnet50",
    crop: int = 513,
    batch_per_chip: int = 16,
    space: int = 1,
    batch_norm: Literal["global", "local"] | int = "global",
    fsdp: bool = False,
    remat: bool = False,
    out: Path | None = None,
) -> int:
    """Compile the training step for a TPU slice and say what bounds it.

    Args:
      topology: The slice, as v5e:4x4 or v4:4x4x4.
      slices: Number of such slices, whose network is slower than theirs inside.
      preset: The model.
      crop: Rows and columns of the images.
      batch_per_chip: Examples for each chip; with `space`, for each `space` of them.
      space: Shards of an image's rows.
      batch_norm: Whose statistics normalise, as a training's --model.batch-norm.
      fsdp: Shard parameters.
      remat: Compute norms and activations again in the backward pass.
      out: A JSON file to write the numbers to.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise ValueError(
            f"the topology must begin with one of {', '.join(CHIPS)}, got {topology!r}"
        )
    try:
        devices = topologies.get_topology_desc(
            topology, platform="tpu", chip_config_name=CHIPS[kind].cores, num_slices=slices
        ).devices
    except RuntimeError as error:
        raise ValueError(
            f"nothing compiles for {topology!r}: {error}. A slice is written as v5e:4x4 or v4:4x4x4; "
            "libtpu comes with pip install 'jax[tpu]'"
        ) from error
    config = TrainConfig(
        model=ModelConfig(preset, dtype="bfloat16", batch_norm=batch_norm, remat=remat),
        optim=OptimConfig("sgd", learning_rate=0.01),
        mesh=MeshConfig(space=space, fsdp=fsdp),
        batch_size=batch_per_chip * len(devices) // space,
    )
    start = time.perf_counter()
    compiled = compile_step(config, list(devices), crop=crop, num_classes=21)
    numbers = cost(compiled, CHIPS[kind]) | {"seconds_to_compile": time.perf_counter() - start}
    where = topology if slices == 1 else f"{slices} slices of {topology}"
    Console().print(_table(numbers, f"{preset}, {crop} x {crop}, bfloat16, on {where}"))
    if out is not None:
        asked = {
            "topology": topology,
            "slices": slices,
            "chips": len(devices),
            "preset": preset,
            "crop": crop,
        }
        asked |= {"batch_per_chip": batch_per_chip, "space": space, "batch_norm": batch_norm}
        asked |= {"fsdp": fsdp, "remat": remat, "jax": jax.__version__}
        asked |= {"date": datetime.date.today().isoformat()}
        write_file(out, json.dumps(asked | numbers, indent=2) + "\n")
    return 0


def cost(compiled: jax.stages.Compiled, chip: Chip) -> dict[str, Any]:
    """What the compiler says of a program, for each chip, and the time that it cannot be below."""
    memory = compiled.memory_analysis()
    program = compiled.as_text()
    flops, traffic = compiled.cost_analysis()["flops"], memory_traffic(program)
    cycles = estimated_cycles(program)
    arithmetic, moving = flops / chip.flops, traffic["memory"] / chip.bandwidth
    estimate = sum(cycles.values()) / chip.clock
    return {
        "flops": flops,
        "traffic_bytes": traffic["memory"],
        "on_chip_bytes": traffic["on chip"],
        "roofline_seconds": max(arithmetic, moving),
        "roofline_utilisation": arithmetic / max(arithmetic, moving),
        "bound_by": "arithmetic" if arithmetic >= moving else "memory",
        "estimated_seconds": estimate,
        "estimated_utilisation": arithmetic / estimate,
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "memory_bytes": chip.memory,
        "collectives": collectives(program),
        "estimated_cycles": cycles,
    }


def memory_traffic(program: str) -> dict[str, int]:
    """Bytes that a compiled program moves: in the chip's memory (HBM), and "on chip" (in VMEM).

    Those of each operation's operands and results, by the memory space that their layouts name. XLA's own
    "bytes accessed" is about the sum of both.
    """
    entry = computations(program)[ENTRY]
    shapes = {line.name: line.shape for line in entry}
    total = {"memory": 0, "on chip": 0}
    for line in entry:
        if line.opcode in FREE or line.opcode.endswith("-done"):
            continue
        if line.opcode in _BETWEEN:
            # A part of one memory to the other; of the shapes, the part's is the smallest array.
            part = min(size for size, _ in arrays_of(line.shape) if size > 4)
            total = {kind: size + part for kind, size in total.items()}
            continue
        for shape in (line.shape, *(shapes.get(name, "") for name in line.operands)):
            for size, on_chip in arrays_of(shape):
                total["on chip" if on_chip else "memory"] += size
    return total


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Count and bytes of each kind of communication in the text of a compiled program."""
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    for match in _COLLECTIVE.finditer(program):
        found[match["kind"]]["count"] += 1
        found[match["kind"]]["bytes"] += size_of(match["shapes"])
    return dict(sorted(found.items()))


def estimated_cycles(program: str) -> dict[str, int]:
    """The compiler's estimate for each kind of operation in the text of a program, the longest first.

    What is fused goes by the operation that the fusion is named after: a batch norm's sums that are made
    while a convolution writes its result are the convolution's.
    """
    found: dict[str, int] = collections.defaultdict(int)
    for line in program[program.index("\nENTRY") :].splitlines():
        if match := _ESTIMATE.search(line):
            path = match["path"]
            way = ", backward" if "transpose(" in path else "" if "jvp(" in path else ", update"
            found[path.rpartition("/")[2] + way] += int(match["cycles"])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _table(numbers: dict[str, Any], title: str) -> Table:
    table = Table("for each chip and step", "", title=title, box=None, title_justify="left")
    table.add_row("arithmetic", f"{numbers['flops'] / 1e12:.2f} TFLOP")
    table.add_row(
        "memory traffic",
        f"{numbers['traffic_bytes'] / 1e9:.1f} GB, and {numbers['on_chip_bytes'] / 1e9:.1f} GB on the chip",
    )
    table.add_row(
        "roofline",
        f"{1e3 * numbers['roofline_seconds']:.1f} ms, bound by {numbers['bound_by']}: "
        f"{100 * numbers['roofline_utilisation']:.0f} % of the chip's arithmetic",
    )
    state, temporary, whole = (
        numbers[f"{name}_bytes"] / 1e9 for name in ("state", "temporary", "memory")
    )
    table.add_row(
        "memory",
        f"{state:.2f} GB of state and images, {temporary:.2f} GB besides: "
        f"{100 * (state + temporary) / whole:.0f} % of {whole:.0f} GB",
    )
    for kind, total in numbers["collectives"].items():
        table.add_row(kind, f"{total['count']}, {total['bytes'] / 1e6:.1f} MB")
    cycles = numbers["estimated_cycles"]
    every = sum(cycles.values())
    table.add_row(
        "compiler's estimate",
        f"{1e3 * numbers['estimated_seconds']:.1f} ms: {100 * numbers['estimated_utilisation']:.0f} % "
        "of the chip's arithmetic; of that time",
    )
    for kind, count in list(cycles.items())[:_KINDS]:
        table.add_row("", f"{100 * count / every:.0f} % {kind}")
    return table
