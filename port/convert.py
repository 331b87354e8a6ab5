"""Strict conversion between a PyTorch state_dict and our models, both ways, by name.

The layout says what each of our modules is called in the original; the rest is one rule per kind of
module: kernels OIHW <-> HWIO, a linear layer is a 1x1 kernel, batch norm's four vectors as they are.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from deeplab_jax.config import Config
from deeplab_jax.heads import is_classifier
from deeplab_jax.layers import BatchNorm, Conv, LayerNorm
from deeplab_jax.model import SegmentationModel, build, create
from port.layouts import Layout, Place
from port.network import find_network, named_layout, shapes_of, some
from port.read import SETTINGS_FILE, CheckpointError, read
from port.tensorflow_graph import FrozenGraph

if TYPE_CHECKING:
    import torch

_LEAVES: dict[type, dict[str, str]] = {  # what our variables are called in the original
    Conv: {"kernel": "weight", "bias": "bias"},
    BatchNorm: {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    LayerNorm: {"scale": "weight", "bias": "bias"},
}
"""Those of other modules keep their names, where a table of names does not say otherwise."""

TRAINING_ONLY = (
    "dropout",
    "decoder_dropout",
    "classifier_dropout",
    "drop_channels",
    "hidden_dropout",
    "drop_path",
    "norm_momentum",
)
"""Fields of which outputs do not depend; they are no obstacle to going back to PyTorch."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` made, and what it did on the way.

    Attributes:
      model: in eval mode.
      layout: the family that the checkpoint is of.
      place: of the backbone in it; None for a head alone.
      source: the checkpoint's tensors, by the names that it has.
      tensors: the same by the names that the layout's code has today.
      dropped: what was left out of the checkpoint, for people.
      chosen: fields of the config that weights cannot tell, with the values that were taken, and those
        that the user named.
      assumed: those of them that neither the user nor a config.json gave, so that the layout's default
        was taken.
      initialised: the tensors that were drawn at random for a new number of classes.
      graph: the frozen graph of the same model, which can be run to compare with; None for none.
    """

    model: SegmentationModel
    layout: Layout
    place: Place | None
    source: Mapping[str, np.ndarray]
    tensors: Mapping[str, np.ndarray]
    dropped: tuple[str, ...]
    chosen: Mapping[str, Any]
    assumed: tuple[str, ...]
    initialised: tuple[str, ...]
    graph: FrozenGraph | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor on both sides.

    Attributes:
      path: ours, "backbone.layer1.0.conv1.kernel".
      name: theirs, "backbone.layer1.0.conv1.weight".
      alias: a second name of theirs, see `Layout.aliases`; None for none.
      shape: ours.
      linear: whether our 1x1 kernel is a linear layer's matrix in the original.
      reshaped: their shape, where it is another one with the same numbers in the same order.
      roll: (axis of ours, channels), see `Layout.rolls`.
      least_gain: what their batch norm adds to |weight|, see `Layout.absolute_gains`; None elsewhere.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    alias: str | None = None
    linear: bool = False
    reshaped: tuple[int, ...] | None = None
    roll: tuple[int, int] | None = None
    least_gain: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of theirs; the last is the one that PyTorch goes by."""
        return (self.name,) if self.alias is None else (self.name, self.alias)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        if self.reshaped is not None:
            return self.reshaped
        if len(self.shape) != 4:
            return self.shape
        h, w, i, o = self.shape
        return (o, i) if self.linear else (o, i, h, w)

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        if self.reshaped is not None:
            array = array.reshape(self.shape)
        if self.linear:
            array = array[:, :, None, None]
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        if self.roll:
            axis, channels = self.roll
            array = np.roll(array, -channels, axis)
        if self.least_gain is not None:
            array = np.abs(array) + np.float32(self.least_gain)
        return np.array(array, order="C")  # a copy: the source may be a file mapped into memory

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Raises ValueError for a gain that theirs cannot be."""
        if self.least_gain is not None:
            array = array - np.float32(self.least_gain)
            if array.min() < 0:
                raise ValueError(
                    f"{self.name} would be below 0, and the original takes its absolute value: it has no "
                    f"norm with a gain below {self.least_gain:g}"
                )
        if self.roll:
            axis, channels = self.roll
            array = np.roll(array, channels, axis)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        return np.array(array, order="C").reshape(self.torch_shape)


# ---------------------------------------------------------------------------- from PyTorch


def load_torch(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    layout: str | None = None,
    output_stride: int | None = None,
    num_classes: int | None = None,
    **fields: Any,
) -> SegmentationModel:
    """The model of a PyTorch or TensorFlow checkpoint, in eval mode.

    Args:
      source: a path (.pth, .pt, .tar, .bin, .safetensors, or a folder with one and its config.json,
        whose options are obeyed; of Google's DeepLabs a checkpoint, a .pb, a folder or a .tar.gz); a
        name, "timm:resnet50.a1_in1k", "torchvision:deeplabv3_resnet50" or "hf://org/model", which its
        publisher's package downloads; or names with arrays or tensors.
      layout: one of `LAYOUTS`; None finds it from the names.
      output_stride: what the original model was built with; None is what config.json says, or its
        code's default.
      num_classes: another number of classes than the checkpoint's: the classifier starts anew.
      **fields: other fields of the config that weights cannot tell, such as `multi_grid`.

    Raises:
      CheckpointError: listing all that is unknown, missing or of another shape.
    """
    return convert(
        source, layout=layout, output_stride=output_stride, num_classes=num_classes, **fields
    ).model


def convert(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    layout: str | None = None,
    output_stride: int | None = None,
    num_classes: int | None = None,
    ema: bool = False,
    prefix: str | None = None,
    ignore: tuple[str, ...] = (),
    seed: int = 0,
    **fields: Any,
) -> Conversion:
    """`load_torch`, and an account of what it did.

    Args:
      prefix, ignore: of the names of the tensors, see `find_network`.
      ema: take the moving average of the weights where the checkpoint has both.
      seed: of a classifier that starts anew.
    """
    checkpoint = read(source, ema=ema)
    network = find_network(checkpoint.tensors, layout=layout, prefix=prefix, ignore=ignore)
    family, tensors = network.layout, network.tensors
    dropped = [*checkpoint.dropped, *network.dropped]
    settings = _settings(family, checkpoint.settings) | dict(checkpoint.known)
    if checkpoint.settings and type(family).settings is Layout.settings:
        dropped.append(
            f"{SETTINGS_FILE} beside the weights: {family.code} writes none that we know"
        )
    if output_stride is not None:
        settings["output_stride"] = output_stride
    known = {*settings, *fields}
    config = _config(family, tensors, settings.pop("output_stride", None))
    classes = config.num_classes
    if num_classes is not None:
        fields["num_classes"] = num_classes
        if num_classes != classes:
            settings.pop("class_names", None)
    config = _with_settings(config, {name: v for name, v in settings.items() if name not in fields})
    config = config.override(**fields)
    if "preprocessing" not in known:
        config = dataclasses.replace(
            config, preprocessing=family.preprocessing(config, network.source)
        )
    model = build(config)
    place = family.find_place(shapes_of(tensors))
    listed = entries(model, family, config, place)
    renewed = _renewed(model, listed, tensors, num_classes, classes)
    if not renewed and (other := _auxiliary_classes(listed, tensors, config)):
        # The usual fine-tuning recipe replaces the main classifier alone.
        dropped.append(
            f"the auxiliary head: it has {other} classes and the main classifier {config.num_classes}"
        )
        tensors = _without_auxiliary_head(tensors, listed)
        config = config.override(aux_head=None)
        model = build(config)
        listed = entries(model, family, config, place)
    _check(family, tensors, listed, renewed, classes)
    if renewed:
        model = create(config, rngs=nnx.Rngs(seed))
    _assign(model, {e.path: (e, tensors[e.names[-1]]) for e in listed if not _within(e, renewed)})
    model.eval()
    chosen = _chosen(family, config)
    return Conversion(
        model=model,
        layout=family,
        place=place,
        source=network.source,
        tensors=tensors,
        dropped=(*dropped, *_overruled(listed, tensors)),
        chosen=chosen | {n: v for n, v in fields.items() if n != "num_classes"},
        assumed=tuple(name for name in chosen if name not in known),
        initialised=tuple(e.path for e in listed if _within(e, renewed)),
        graph=checkpoint.graph,
    )


def _renewed(
    model: SegmentationModel,
    listed: list[Entry],
    tensors: Mapping[str, np.ndarray],
    wanted: int | None,
    classes: int,
) -> tuple[str, ...]:
    """The classifiers that start anew: where other classes are wanted, or the checkpoint has none."""
    classifiers = _classifiers(model)
    complete = any(e.name in tensors for e in listed if _within(e, classifiers))
    if wanted is None or (complete and wanted == classes):
        return ()
    return classifiers


def _config(layout: Layout, tensors: Mapping[str, np.ndarray], stride: int | None) -> Config:
    try:
        return layout.config(shapes_of(tensors), stride)
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"this looks like a checkpoint of {layout.name}, but {error} is missing, which tells "
            "what the model is. Save the whole state_dict, or name another --layout."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"this looks like a checkpoint of {layout.name}, but {error}"
        ) from error


def _settings(layout: Layout, settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return layout.settings(settings) if settings else {}
    except ValueError as error:
        raise CheckpointError(f"{SETTINGS_FILE} beside the weights: {error}") from error


def _with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    try:
        return config.override(**settings)
    except ValueError as error:
        raise CheckpointError(
            f"{SETTINGS_FILE} does not fit the weights beside it: {error}"
        ) from error


def _check(
    layout: Layout,
    tensors: Mapping[str, np.ndarray],
    listed: list[Entry],
    renewed: tuple[str, ...],
    classes: int,
) -> None:
    """Every tensor has its place and every place its tensor, or all that does not is listed."""
    problems = []
    known = {name for entry in listed for name in entry.names}
    unknown = [name for name in tensors if name not in known]
    needed = [(name, e) for e in listed if not _within(e, renewed) for name in e.names]
    missing = [name for name, _ in needed if name not in tensors]
    for title, names in (("unknown", unknown), ("missing", missing)):
        if names:
            problems.append(f"{len(names)} {title}: {some(names)}")
    shaped = [
        f"{name} is {list(tensors[name].shape)}, expected {list(e.torch_shape)}"
        for name, e in needed
        if name in tensors and tensors[name].shape != e.torch_shape
    ]
    if shaped:
        problems.append(f"{len(shaped)} of another shape: {some(shaped)}")
    if problems:
        advice = [
            "Leave out unknown tensors with --ignore (in Python, ignore=...), save missing ones, or name "
            "another --layout."
        ]
        wrong = {*missing, *(line.partition(" ")[0] for line in shaped)}
        if any(name in wrong for name, e in needed if is_classifier(e.path)):
            advice.append(
                f"To train on another number of classes than its {classes}, say so with --num-classes "
                "(in Python, num_classes=...): the classifier then starts anew."
            )
        raise CheckpointError(
            "\n  ".join(
                [f"this checkpoint is not quite {layout.name}'s ({layout.code}):", *problems]
            )
            + "\n"
            + " ".join(advice)
        )


def _overruled(listed: list[Entry], tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Says which tensors are overwritten by other values under their second name."""
    names = [
        e.name
        for e in listed
        if e.alias is not None and not np.array_equal(tensors[e.name], tensors[e.alias])
    ]
    if names:
        yield (
            f"{len(names)} tensors whose second name has other values, which PyTorch loads over "
            f"them: {some(names, 3)}"
        )


# ---------------------------------------------------------------------------- to PyTorch


def to_torch(model: SegmentationModel, layout: str) -> "dict[str, torch.Tensor]":
    """A state_dict that the layout's original code loads with `strict=True`.

    Google's code loads none: `load_torch` reads what is made for it, and TensorFlow does not.

    The counters `num_batches_tracked`, which only a cumulative average would read, are zero.

    Raises:
      ValueError: where the original code has no such module, or would compute something else with
        these weights.
    """
    import torch

    family = named_layout(layout)
    config = model.config
    try:
        listed = entries(model, family, config)
        _check_expressible(family, config, listed)
    except (AttributeError, KeyError, TypeError) as error:
        # a layout looks up fields of the kinds that it knows
        raise ValueError(
            f"{family.code} has no {config.head.kind} on {config.backbone.kind}"
        ) from error
    values = dict(_variables(model))
    state: dict[str, torch.Tensor] = {}
    for entry in listed:
        array = entry.to_torch(np.asarray(values[entry.path][...]))
        for name in entry.names:
            state[name] = torch.from_numpy(array)
            if name.endswith("running_var"):
                counter = name.removesuffix("running_var") + "num_batches_tracked"
                state[counter] = torch.zeros((), dtype=torch.int64)
    return state


def to_module(model: SegmentationModel, layout: str) -> "torch.nn.Module":
    """The original code's module with the model's weights, in evaluation mode.

    It is built by the package itself, which must be installed (`deeplab-jax[references]`), and saved as its
    users do: `to_module(model, "smp").save_pretrained(folder)` writes what `from_pretrained` of
    segmentation_models_pytorch opens.

    Raises:
      ValueError: as `to_torch`; and where no package builds such a model.
    """
    state = to_torch(model, layout)
    family = named_layout(layout)
    module = family.reference(model.config)
    if module is None:
        raise ValueError(
            f"no package builds {family.code}'s {model.config.head.kind} on {model.config.backbone.kind}: "
            "`to_torch` gives the state_dict for its own code"
        )
    module.load_state_dict(state)
    return module.eval()


def _check_expressible(layout: Layout, config: Config, listed: list[Entry]) -> None:
    """What the layout makes of the exported names and shapes must be the model that we have."""
    shapes = {name: entry.torch_shape for entry in listed for name in entry.names}
    if not layout.recognises(shapes):
        raise ValueError(f"{layout.code} has no model of {config.head.kind} like this one")
    try:
        theirs = layout.config(shapes, None).override(**_chosen(layout, config))
    except ValueError as error:
        raise ValueError(f"{layout.code} has no such model: {error}") from error
    theirs = theirs.override(class_names=config.class_names, preprocessing=config.preprocessing)
    differing = [
        (name, a, b)
        for name, a, b in _differences(config, theirs)
        if name.rpartition(".")[2] not in TRAINING_ONLY
    ]
    if differing:
        raise ValueError(
            f"{layout.code} would compute something else with these weights: "
            + "; ".join(f"{name} is {a!r} here and {b!r} there" for name, a, b in differing)
        )


def _differences(ours: Any, theirs: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if type(ours) is not type(theirs) or not dataclasses.is_dataclass(ours):
        if ours != theirs:
            yield prefix, ours, theirs
        return
    for field in dataclasses.fields(ours):
        name = f"{prefix}.{field.name}" if prefix else field.name
        yield from _differences(getattr(ours, field.name), getattr(theirs, field.name), name)


# ---------------------------------------------------------------------------- both


def entries(
    model: SegmentationModel, layout: Layout, config: Config, place: Place | None = None
) -> list[Entry]:
    """Every tensor of the model with its name in the layout.

    Args:
      place: of the backbone in a checkpoint; None is where the original code has it.

    Raises ValueError, listing them, for modules that the layout has no name for.
    """
    names, aliases = layout.names(config, place), layout.aliases(config, place)
    rolls, linear = layout.rolls(config), layout.linear(config, place)
    reshaped = layout.reshaped(config, place)
    listed, nameless = [], []
    for path, module in weighted_modules(model).items():
        alias = aliases.get(names.get(path))
        for leaf, called in leaves(module).items():
            variable = f"{path}.{leaf}"
            if variable not in names and path not in names:
                nameless.append(variable)
                continue
            axis = _rolled_axis(module, leaf) if path in rolls else None
            listed.append(
                Entry(
                    path=variable,
                    name=names.get(variable) or f"{names[path]}.{called}",
                    alias=f"{alias}.{called}" if alias else None,
                    shape=getattr(module, leaf).shape,
                    linear=leaf == "kernel" and path in linear,
                    reshaped=reshaped.get(variable),
                    roll=None if axis is None else (axis, rolls[path]),
                    least_gain=_least_gain(module, leaf) if layout.absolute_gains else None,
                )
            )
    if nameless:
        raise ValueError(f"{layout.code} has nothing like {some(nameless)}")
    return listed


def _least_gain(module: nnx.Module, leaf: str) -> float | None:
    """What is added to the absolute value of a batch norm's scale."""
    return module.epsilon if leaf == "scale" and isinstance(module, BatchNorm) else None


def _rolled_axis(module: nnx.Module, leaf: str) -> int | None:
    """The axis of a tensor where its module's input channels are.

    A depthwise kernel has them on its output axis; a dense convolution's bias has none.
    """
    depthwise = not isinstance(module, Conv) or module.groups > 1
    if leaf == "kernel":
        return 3 if depthwise else 2
    return 0 if depthwise else None


def weighted_modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """The modules that own weights themselves, by their paths, in the order of their paths."""
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if leaves(module)
    }


def leaves(module: nnx.Module) -> dict[str, str]:
    """A module's own variables, and what PyTorch usually calls each."""
    own = [n for n, v in vars(module).items() if isinstance(v, nnx.Param | nnx.BatchStat)]
    usual = _LEAVES.get(type(module), {})
    return {name: usual.get(name, name) for name in sorted(own, key=[*usual, *own].index)}


def _variables(model: SegmentationModel) -> Iterator[tuple[str, nnx.Variable]]:
    for path, module in weighted_modules(model).items():
        for leaf in leaves(module):
            yield f"{path}.{leaf}", getattr(module, leaf)


def _assign(model: SegmentationModel, sources: Mapping[str, tuple[Entry, np.ndarray]]) -> None:
    """One tensor at a time, so that the checkpoint is in memory once and a bit beside the model."""
    for path, variable in _variables(model):
        if path in sources:
            entry, tensor = sources[path]
            variable.set_value(jax.device_put(entry.to_flax(tensor)))


def _classifiers(model: SegmentationModel) -> tuple[str, ...]:
    """The modules whose channels are the classes."""
    return tuple(path for path in weighted_modules(model) if is_classifier(path))


def _auxiliary_classes(
    listed: list[Entry], tensors: Mapping[str, np.ndarray], config: Config
) -> int | None:
    """The auxiliary classifier's classes where they are others than the main one's; None elsewhere."""
    for entry in listed:
        tensor = tensors.get(entry.name)
        if entry.path == "aux_head.classifier.kernel" and tensor is not None:
            classes, *rest = tensor.shape
            if classes != config.num_classes and rest == list(entry.torch_shape[1:]):
                return classes
    return None


def _without_auxiliary_head(
    tensors: Mapping[str, np.ndarray], listed: list[Entry]
) -> dict[str, np.ndarray]:
    auxiliary = {n for e in listed if e.path.startswith("aux_head.") for n in e.names}
    return {name: tensor for name, tensor in tensors.items() if name not in auxiliary}


def _within(entry: Entry, modules: tuple[str, ...]) -> bool:
    return entry.path.rpartition(".")[0] in modules


def _chosen(layout: Layout, config: Config) -> dict[str, Any]:
    """The fields that weights cannot tell, as far as this model has them."""
    choices = layout.choices_for(config)
    if config.in_channels not in (3, None) and "preprocessing" not in choices:
        choices += ("preprocessing",)  # every code base's habit is about RGB
    chosen: dict[str, Any] = {}
    for place in (config, config.backbone, config.head):
        for field in dataclasses.fields(place):  # some backbones' output stride is no field: fixed
            if field.name in choices:
                chosen.setdefault(field.name, getattr(place, field.name))
    return {name: chosen[name] for name in choices if name in chosen}
