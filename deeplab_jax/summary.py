"""A model's table: a row per stage with output shape, receptive field, parameters, multiply-adds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from deeplab_jax.heads import ASPP
from deeplab_jax.layers import Conv, SeparableConvNormAct
from deeplab_jax.model import SegmentationModel
from deeplab_jax.ops import receptive_field

STEM = "backbone.stem"


@dataclasses.dataclass(frozen=True)
class Row:
    """A stage of a model.

    Attributes:
      stage: its name, see `stage_of`.
      shape: of its output, `[H, W, C]`; empty where the forward pass does not run it.
      receptive_field: side in pixels of what one output pixel sees, None where that is the image.
      parameters: trained values; running statistics are not counted.
      multiply_adds: of the convolutions, for one image.
    """

    stage: str
    shape: tuple[int, ...]
    receptive_field: int | None
    parameters: int
    multiply_adds: int


def stage_of(path: str) -> str:
    """The stage of a module for people: "backbone.layer3", "head.aspp.branches.1".

    What it goes by is the names of a backbone's parts, see `Backbone`.

    >>> stage_of("backbone.layer3.0.conv1")
    'backbone.layer3'
    """
    parts = path.split(".")
    if parts[0] == "backbone" and parts[1] in ("conv1", "bn1", "stem"):
        return STEM
    for group in ("blocks", "branches", "convs"):  # lists whose members are stages of their own
        if group in parts:
            return ".".join(parts[: parts.index(group) + 2])
    for group in ("aspp", "decoder"):
        if group in parts:
            return ".".join(parts[: parts.index(group) + 2])
    return ".".join(parts[:2])


def summarize(model: SegmentationModel, size: tuple[int, int] = (513, 513)) -> list[Row]:
    """The rows of a model for images of `size` (rows, columns); only shapes are computed.

    The auxiliary head is counted, as in training. Raises ValueError for a model without a backbone, and
    for one without a config.
    """
    if (channels := model.config.in_channels) is None:
        raise ValueError("a summary needs a whole model; this one is a head without a backbone")
    outputs = _output_shapes(model, (1, *size, channels))
    fields = _receptive_fields(model)
    stages: dict[str, Row] = {}
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        parameters = sum(
            math.prod(value.shape)
            for value in vars(module).values()
            if isinstance(value, nnx.Param)
        )
        if not parameters:
            continue
        stage = stage_of(name)
        row = stages.get(stage, Row(stage, (), fields.get(stage), 0, 0))
        shape, work = row.shape, 0
        if isinstance(module, Conv) and name in outputs:
            work = math.prod(outputs[name]) * math.prod(module.kernel.shape[:3])
            shape = outputs.get(stage, outputs[name])[1:]
        stages[stage] = dataclasses.replace(
            row,
            shape=shape,
            parameters=row.parameters + parameters,
            multiply_adds=row.multiply_adds + work,
        )
    spatial = list(fields)
    return sorted(stages.values(), key=lambda row: _order(row.stage, spatial))


HEAD_ORDER = (
    "aspp.branches",
    "aspp.pool",
    "aspp.project",
    "refine",
    "cbr",
    "scale",
    "gated",
    "branches",
    "conv",
    "decoder.low",
    "decoder.convs",
    "hidden",
)
"""The parts of heads, as they begin, in the order in which features pass; the rest comes last."""


def _order(stage: str, spatial: list[str]) -> tuple[int, int, int, str]:
    """The order in which images pass: a backbone's by its spatial layers, a head's by its parts."""
    place, _, rest = stage.partition(".")
    if stage == STEM:
        order = -1
    elif place == "backbone":
        order = spatial.index(stage) if stage in spatial else len(spatial)
    else:
        starts = (i for i, prefix in enumerate(HEAD_ORDER) if rest.startswith(prefix))
        order = next(starts, len(HEAD_ORDER))
    index = rest.rpartition(".")[2]
    number = int(index) if index.isdecimal() else 0
    return ("backbone", "head", "aux_head").index(place), order, number, stage


def _output_shapes(model: SegmentationModel, images: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Path of every module that ran -> shape of its output."""

    def forward(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> nnx.State:
        module = nnx.merge(graphdef, state)
        module.eval()
        run = nnx.capture(
            lambda module, images: module.with_aux(images),
            nnx.Intermediate,
            method_outputs=nnx.Intermediate,
        )
        return run(module, images)[1]

    graphdef, state = nnx.split(model)
    shapes = jax.eval_shape(
        lambda state, images: forward(graphdef, state, images),
        state,
        jax.ShapeDtypeStruct(images, jnp.float32),
    )
    outputs = {
        ".".join(map(str, path[:-1])): variable.get_value()[0]
        for path, variable in nnx.to_flat_state(shapes)
        if path[-1] == "__call__"
    }
    # Features in a dict are no one's shape; of several streams it is the first, the finest.
    return {
        path: (output[0] if isinstance(output, tuple) else output).shape
        for path, output in outputs.items()
        if not isinstance(output, dict)
    }


def _receptive_fields(model: SegmentationModel) -> dict[str, int | None]:
    """Of the backbone's stages, and of ASPP's branches behind it."""
    layers = list(model.backbone.spatial_layers())
    steps = [(layer.kernel_size, layer.stride, layer.dilation) for layer in layers]
    fields: dict[str, int | None] = {
        stage_of(f"backbone.{layer.path}"): receptive_field(steps[: i + 1])
        for i, layer in enumerate(layers)
    }
    if layers and isinstance(aspp := getattr(model.head, "aspp", None), ASPP):
        for i, branch in enumerate(aspp.branches):
            conv = branch.depthwise if isinstance(branch, SeparableConvNormAct) else branch.conv
            own = (conv.kernel.shape[0], 1, conv.dilation)
            fields[f"head.aspp.branches.{i}"] = receptive_field([*steps, own])
    return fields
