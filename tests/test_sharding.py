"""Where arrays lie, and that it changes nothing: one device, eight, and rows cut over a mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from train import sharding
from train.config import MeshConfig, ModelConfig, TrainConfig
from train.model import make_model
from train.optim import OptimConfig, make_optimizer
from train.steps import initial_state, make_train_step

CLASSES = ("a", "b", "c")
STEPS = 5


def config_of(**fields):
    # Momentum and a schedule, so that an error would be carried on.
    optim = OptimConfig("sgd", learning_rate=0.05, weight_decay=1e-4)
    model = ModelConfig("deeplabv3plus_resnet18", **fields.pop("model", {}))
    return TrainConfig(optim=optim, model=model, batch_size=8, **fields)


def batch(seed, rows=64):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(CLASSES), (8, rows, 48)).astype(np.uint8)
    label[:, :5] = 255
    return {
        "image": rng.integers(0, 256, (8, rows, 48, 3)).astype(np.uint8),
        "label": label,
    }


def run(config, mesh, steps=STEPS):
    """Losses of some steps, the state after them, and the text of the compiled step."""
    start = make_model(config.model, CLASSES, seed=0, data_shards=mesh.shape["data"])
    start.model.head.aspp.dropout.rate = 0.0
    # Small gradients: of new weights and noise, larger ones make rounding a hundredfold in each step.
    start.params["head.decoder.classifier.kernel"] *= 0.1
    optimizer, schedule = make_optimizer(config.optim, start.params, 20)

    make = functools.partial(initial_state, optimizer=optimizer, ema=config.ema > 0)
    shapes = jax.eval_shape(make, start.params, start.stats)
    shardings = sharding.state_shardings(shapes, mesh, fsdp=config.mesh.fsdp)
    pixels = {n: sharding.batch_shardings(mesh)[n] for n in ("image", "label")}
    step = jax.jit(
        make_train_step(start.model, optimizer, schedule, config),
        in_shardings=(shardings, pixels),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options={"xla_backend_optimization_level": 0},  # compiling is most of this test
    )
    state = jax.jit(make, out_shardings=shardings)(start.params, start.stats)
    compiled = step.lower(state, sharding.to_devices(batch(0), pixels)).compile()
    losses = []
    for seed in range(steps):
        state, metrics = compiled(state, sharding.to_devices(batch(seed), pixels))
        losses.append(float(metrics["loss"]))
    return losses, state, compiled.as_text()


@pytest.fixture(scope="module")
def alone():
    return run(config_of(), sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=4, space=2), MeshConfig(fsdp=True)],
    ids=["4 data x 2 space", "8 devices, FSDP"],
)
def test_the_mesh_does_not_change_what_is_learnt(alone, mesh):
    losses, state, program = run(config_of(mesh=mesh), sharding.make_mesh(mesh))
    # float32 sums in another order, carried through five steps of momentum
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    # Rows beside a cut travel to the neighbour, there and back: at least for each of the backbone's 3x3.
    assert (program.count(" collective-permute(") >= 2 * 16) == (mesh.space > 1)
    before = make_model(config_of().model, CLASSES, seed=0, data_shards=1)
    for name, first in (before.params | before.stats).items():
        kind = "params" if name in before.params else "stats"
        expected = np.asarray(alone[1][kind][name])
        # Of what it moved: rounding is up to 5 % of that in the first layers' small gradients, where a
        # sum that leaves out a device would be all wrong.
        off = np.linalg.norm(np.asarray(state[kind][name]) - expected)
        assert off <= 0.1 * np.linalg.norm(expected - first) + 1e-6, name


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What a mesh is laid out by, of a device that is not there."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def gpus(*nodes):
    """A device for each number of `nodes`, which have a process each."""
    places = [node for node, count in enumerate(nodes) for _ in range(count)]
    return [StandIn(i, node, node) for i, node in enumerate(places)]


def tpus(side, *, slices=1):
    """Slices of `side` x `side` chips, of which each 2 x 2 have a process."""
    hosts = (side // 2) ** 2
    return [
        StandIn(
            id=(s * side + y) * side + x,
            process_index=s * hosts + y // 2 * (side // 2) + x // 2,
            slice_index=s,
            platform="tpu",
            device_kind="TPU v4",
            coords=(x, y, 0),
        )
        for s in range(slices)
        for y in range(side)
        for x in range(side)
    ]


def laid_out(devices, attribute, **config):
    mesh = sharding.make_mesh(MeshConfig(**config), devices)
    assert mesh.axis_names == ("data", "space")
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
    return np.vectorize(lambda device: getattr(device, attribute))(mesh.devices).tolist()


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_data_goes_from_node_to_node_and_space_stays_within_one(nodes):
    devices = gpus(*[4] * nodes)[::-1]
    alone = [[node] for node in range(nodes) for _ in range(4)]
    assert laid_out(devices, "slice_index") == alone
    pairs = [[node] * 2 for node in range(nodes) for _ in range(2)]
    assert laid_out(devices, "slice_index", space=2) == pairs
    assert laid_out(devices, "slice_index", space=4) == [[node] * 4 for node in range(nodes)]


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("space", [1, 2, 4])
def test_no_image_lies_in_two_processes_of_a_tpu_slice(slices, space):
    # Along an axis of the torus, four chips would be those of two hosts.
    rows = laid_out(tpus(4, slices=slices), "process_index", space=space)
    assert all(len(set(row)) == 1 for row in rows)
    of = laid_out(tpus(4, slices=slices), "slice_index", space=space)
    assert of == sorted(of)


@pytest.mark.parametrize(
    ("devices", "config", "message"),
    [
        (gpus(4, 4), {"space": 3}, "-1 x 3 is not 8"),
        (gpus(4, 4), {"space": 8}, "each node or slice.* 8 does not divide 4"),
        (gpus(4, 3, 1), {}, "every node or slice .* same number of devices, got 4, 3, 1"),
        (tpus(4), {"space": 8}, "each process.* 8 does not divide 4"),
        (tpus(4)[:-1], {}, "every process .* same number of devices, got 4, 4, 4, 3"),
    ],
)
def test_devices_that_make_no_mesh_are_refused(devices, config, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(MeshConfig(**config), devices)


def test_slices_can_be_named_where_the_devices_do_not_tell():
    devices = [StandIn(n, n // 2, 0, "cpu", "cpu") for n in range(8)]  # four processes, no slice
    mesh = sharding.make_mesh(MeshConfig(space=2, slices=2), devices)
    assert mesh.devices.shape == (4, 2)
    assert [row[0].process_index for row in mesh.devices] == [0, 1, 2, 3]
    nodes = gpus(2, 2, 2, 2)
    mesh = sharding.make_mesh(MeshConfig(slices=2), nodes)  # of two nodes each
    assert sorted(d.process_index for d in mesh.devices[:4, 0]) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"mesh\.slices must divide .* 3 does not divide 4"):
        sharding.make_mesh(MeshConfig(slices=3), nodes)


def test_rows_are_padded_so_that_features_at_every_stride_are_cut_evenly():
    assert 513 + -513 % sharding.row_multiple(MeshConfig(space=2), 16) == 544
    assert sharding.row_multiple(MeshConfig(), 16) == 1


def test_fsdp_shards_what_is_large_and_its_momentum_alike():
    mesh = sharding.make_mesh(MeshConfig())
    shapes = {
        "params": {"large": jax.ShapeDtypeStruct((3, 3, 512, 256), np.float32)},
        "trace": {"large": jax.ShapeDtypeStruct((3, 3, 512, 256), np.float32)},
        "small": jax.ShapeDtypeStruct((64, 64), np.float32),
        "odd": jax.ShapeDtypeStruct((257, 257), np.float32),
    }
    found = sharding.state_shardings(shapes, mesh, fsdp=True)
    assert (
        found["params"]["large"].spec == found["trace"]["large"].spec == P(None, None, "data", None)
    )
    assert found["small"].spec == found["odd"].spec == P()
    everywhere = sharding.state_shardings(shapes, mesh, fsdp=False)
    assert {s.spec for s in jax.tree.leaves(everywhere)} == {P()}
