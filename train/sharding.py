"""Where arrays lie: the mesh of devices, and which axis of what is cut over which axis of the mesh.

Models carry no annotations. Under `jax.jit`, the compiler derives the communication from where the
inputs and outputs lie: an all-reduce of gradients and of batch-norm statistics over `data`, exchanges
of the rows next to a cut (halos) over `space`.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.config import MeshConfig

SMALLEST_SHARDED = 2**16
"""Numbers in the smallest array that FSDP shards; cutting up smaller ones saves nothing."""


# ---------------------------------------------------------------------------- the mesh


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices, with the axes `data` and `space`.

    `data` runs over nodes (as JAX sees GPUs) or slices (TPUs) first, whose network is slow, and then
    within them; `space` stays within a process, which reads whole images.

    Raises:
      ValueError: the axes do not make up the number of devices, or an image would lie in two nodes,
        slices or processes, or these differ in their number of devices, or `slices` does not divide them.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // config.space if config.data == -1 else config.data
    if config.space < 1 or data * config.space != len(devices):
        raise ValueError(
            f"mesh.data x mesh.space must be the number of devices: {config.data} x {config.space} is "
            f"not {len(devices)}"
        )
    slices = _slices(devices, config.slices)
    for what, groups in (
        ("node or slice", slices),
        ("process", _grouped(devices, "process_index")),
    ):
        sizes = [len(group) for group in groups]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"every {what} must have the same number of devices, got {', '.join(map(str, sizes))}"
            )
        if sizes[0] % config.space:
            raise ValueError(
                f"mesh.space must divide the devices of each {what}, or an image would lie in two of "
                f"them: {config.space} does not divide {sizes[0]}"
            )
    rows = np.concatenate([_rows(group, config.space) for group in slices])
    return Mesh(rows, ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def _slices(devices: Sequence[jax.Device], count: int | None) -> list[list[jax.Device]]:
    """The groups of devices with a fast network inside: what they say, or `count` of whole processes."""
    if count is None:
        return _grouped(devices, "slice_index")
    processes = _grouped(devices, "process_index")
    if count < 1 or len(processes) % count:
        raise ValueError(
            f"mesh.slices must divide the number of processes: {count} does not divide {len(processes)}"
        )
    each = len(processes) // count
    return [
        list(itertools.chain(*processes[first : first + each]))
        for first in range(0, len(processes), each)
    ]


def _grouped(devices: Sequence[jax.Device], attribute: str) -> list[list[jax.Device]]:
    """Those with the same value of an attribute together, in its order; CPUs are of no slice."""
    groups = collections.defaultdict(list)
    for device in devices:
        groups[getattr(device, attribute, 0)].append(device)
    return [groups[key] for key in sorted(groups)]


def _rows(devices: list[jax.Device], space: int) -> np.ndarray:
    """The devices of a slice, `[data, space]`: near each other along both, each row of one process."""
    rows = mesh_utils.create_device_mesh(
        (len(devices) // space, space), devices, allow_split_physical_axes=True
    )
    if any(len({device.process_index for device in row}) > 1 for row in rows):
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        rows = np.array(ordered).reshape(rows.shape)
    return rows


def row_multiple(config: MeshConfig, output_stride: int) -> int:
    """What the rows of crops are padded to a multiple of.

    Features at every stride of the model have to be cut evenly over `space`: where a division leaves a
    rest, XLA gathers the rows, and all devices of `space` do the whole work.
    """
    return config.space * output_stride if config.space > 1 else 1


def batch_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    """Examples over `data`, the rows of images and labels over `space`."""
    pixels = NamedSharding(mesh, P("data", "space"))
    examples = NamedSharding(mesh, P("data"))
    return {"image": pixels, "label": pixels, "index": examples, "size": examples}


def state_shardings(state: Any, mesh: Mesh, *, fsdp: bool) -> Any:
    """A sharding for every array of a tree of shapes: a copy everywhere, or FSDP's rule.

    FSDP cuts arrays of `SMALLEST_SHARDED` numbers or more along their longest axis that divides.
    """
    shards = mesh.shape["data"]

    def rule(array: jax.ShapeDtypeStruct) -> NamedSharding:
        if not fsdp or np.prod(array.shape) < SMALLEST_SHARDED:
            return NamedSharding(mesh, P())
        fitting = [axis for axis, size in enumerate(array.shape) if size % shards == 0]
        if not fitting:
            return NamedSharding(mesh, P())
        longest = max(fitting, key=lambda axis: array.shape[axis])
        return NamedSharding(
            mesh, P(*(["data" if a == longest else None for a in range(array.ndim)]))
        )

    return jax.tree.map(rule, state)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """The same shapes, each with where it lies: what a restore is given."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def to_devices(
    batch: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
    """This process's part of a batch, as part of global arrays.

    Its examples go to its own devices, in their order along the mesh. Where the mesh does not go from
    process to process, the global batch has the same examples as that of one process in another order.
    """
    return {
        name: jax.make_array_from_process_local_data(shardings[name], value)
        for name, value in batch.items()
    }


def gathered(values: Mapping[str, jax.Array], mesh: Mesh) -> dict[str, np.ndarray]:
    """Global arrays as this process's own; all processes must call it."""
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(dict(values))
    return jax.tree.map(np.asarray, everywhere)
