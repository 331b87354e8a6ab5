"""Programs compiled ahead of time, for devices that need not be there."""

import functools

import jax
import numpy as np
from flax import nnx

from deeplab_jax.model import SegmentationModel
from deeplab_jax.predict import segment, views_of
from deeplab_jax.preprocessing import normalize
from train import sharding
from train.config import TrainConfig
from train.model import make_model
from train.optim import make_optimizer
from train.steps import initial_state, make_train_step


def compile_step(
    config: TrainConfig, devices: list[jax.Device], *, crop: int, num_classes: int
) -> jax.stages.Compiled:
    """The step of a run."""
    mesh = sharding.make_mesh(config.mesh, devices)
    names = tuple(map(str, range(num_classes)))
    start = make_model(config.model, names, seed=0, data_shards=mesh.shape["data"])
    optimizer, schedule = make_optimizer(config.optim, start.params, 1000)
    make_state = functools.partial(initial_state, optimizer=optimizer, ema=config.ema > 0)
    shapes = jax.eval_shape(make_state, start.params, start.stats)
    state = sharding.with_shardings(
        shapes, sharding.state_shardings(shapes, mesh, fsdp=config.mesh.fsdp)
    )
    stride = start.model.config.backbone.output_stride
    rows = crop + -crop % sharding.row_multiple(config.mesh, stride)
    pixels = {"image": (config.batch_size, rows, crop, 3), "label": (config.batch_size, rows, crop)}
    batch = sharding.with_shardings(
        {name: jax.ShapeDtypeStruct(shape, np.uint8) for name, shape in pixels.items()},
        {name: sharding.batch_shardings(mesh)[name] for name in pixels},
    )
    step = make_train_step(start.model, optimizer, schedule, config)
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile()


def compile_inference(
    model: SegmentationModel, device: jax.Device, shape: tuple[int, ...]
) -> jax.stages.Compiled:
    """From uint8 images `[B, H, W, C]` to class ids, as `predict` does it; a model in evaluation mode."""
    there = jax.sharding.SingleDeviceSharding(device)
    graph, state = nnx.split(model)

    def run(state: nnx.State, images: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        pixels = normalize(images, model.config.preprocessing)
        return segment(model, pixels, views_of((1.0,), flip=False))

    values = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), state)
    images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=there)
    return jax.jit(run).lower(values, images).compile()
