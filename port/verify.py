"""Proof that a ported model computes what its original computes, layer by layer.

Both sides run on the same images, and the output of every batch norm and of every convolution with a bias
is compared with that of its original, which the layout's table of names pairs up. PyTorch runs twice: in
float64, which is the reference, and in float32, whose distance from it is the rounding that this
network makes of these images. Rounding grows from layer to layer; a deep network may end with a
relative error of 1e-4 in PyTorch too. A mistake is orders of magnitude above that, from one layer on.
A frozen graph of TensorFlow's is run the same two ways.
"""

import dataclasses
import enum
import functools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deeplab_jax.config import Config
from deeplab_jax.heads import ClassifierHead
from deeplab_jax.layers import BatchNorm
from deeplab_jax.model import FeaturesModel, SegmentationModel
from deeplab_jax.predict import most_likely
from deeplab_jax.preprocessing import normalize, pad_to_multiple
from deeplab_jax.summary import stage_of
from port.convert import leaves, weighted_modules
from port.layouts import Layout
from port.network import find_layout, named_layout
from port.tensorflow_graph import FrozenGraph

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-5
"""Relative error that any float32 implementation may have after a few layers: about 100 roundings."""
ROUNDING_FACTOR = 10.0
"""How far beyond PyTorch's own rounding ours may be: the two are independent draws of the same size,
so that a factor of 2 or 3 occurs; mistakes give factors of thousands."""
AGREEMENT = 0.9999
"""Share of pixels whose most likely class must be the same: ties within rounding may fall either way."""


class Outcome(enum.Enum):
    """What a verification found."""

    AGREES = "the models agree"
    DIFFERS = "the models do not agree"
    NOT_COMPARED = "nothing was compared"


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer, or the worst of a stage.

    Attributes:
      path: our module.
      shape: of its output, `[B, h, w, C]`.
      absolute: largest difference from PyTorch in float64; infinite where the sizes differ.
      relative: that, over the largest value.
      rounding: the same of PyTorch in float32.
    """

    path: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    rounding: float

    @property
    def agrees(self) -> bool:
        return self.relative <= max(TOLERANCE, ROUNDING_FACTOR * self.rounding)

    @property
    def badness(self) -> tuple[bool, float]:
        """What to sort by: a layer that is not a number is worse than any that agrees."""
        return not self.agrees, self.relative


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
      layers: every compared layer in the order in which PyTorch runs them; "logits" is the last.
      agreement: share of pixels with the same most likely class; None for an image classifier.
      images: how many were compared.
      assumed: options of the original code that neither weights nor the user tell, with the values
        that both sides were built with. The comparison says nothing about them.
      framework: whose rounding it is.
    """

    layers: tuple[Row, ...]
    agreement: float | None
    images: int
    assumed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    framework: str = "PyTorch"

    @property
    def outcome(self) -> Outcome:
        """A report without a layer is of nothing, which is no agreement."""
        if not self.layers:
            return Outcome.NOT_COMPARED
        same = self.agreement is None or self.agreement >= AGREEMENT
        agrees = same and all(row.agrees for row in self.layers)
        return Outcome.AGREES if agrees else Outcome.DIFFERS

    @property
    def ok(self) -> bool:
        """Whether layers were compared and all of them agree."""
        return self.outcome is Outcome.AGREES

    @property
    def first_difference(self) -> Row | None:
        """The first layer that does not agree: the place to look."""
        return next((row for row in self.layers if not row.agrees), None)

    def stages(self) -> list[Row]:
        """The worst layer of each stage, under the stage's name."""
        worst: dict[str, Row] = {}
        for row in self.layers:
            name = stage_of(row.path)
            if name not in worst or row.badness > worst[name].badness:
                worst[name] = dataclasses.replace(row, path=name)
        return list(worst.values())

    def to_json(self) -> str:
        """Every layer's row; errors of layers whose sizes differ, or that are not numbers, are null."""
        rows = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in (dataclasses.asdict(row) | {"agrees": row.agrees}).items()
            }
            for row in self.layers
        ]
        report = {"ok": self.ok, "images": self.images, "argmax_agreement": self.agreement}
        report |= {"assumed": dict(self.assumed), "layers": rows}
        return json.dumps(report, indent=2, default=dataclasses.asdict)


def verify(
    model: SegmentationModel,
    torch_module: "torch.nn.Module",
    *images: np.ndarray,
    layout: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Compares a model with its PyTorch original.

    Args:
      model: what `load_torch` gave.
      torch_module: the original, with the same weights.
      *images: one or more batches `[B, H, W, C]` as the model expects them, normalised float32, all
        compared; more than one argument where the sizes differ. A model without a backbone takes
        exactly the arguments that it is called with: high and low features.
      layout: whose names the torch module has; None finds it.
      progress: called with the number of batches done.

    Raises:
      ValueError: when the module's names are not those of the layout, or the layout has none for ours.
    """
    config = model.config
    state = torch_module.state_dict()
    family = find_layout(_arrays(state)) if layout is None else named_layout(layout)
    place = family.find_place({name: tuple(tensor.shape) for name, tensor in state.items()})
    modules, ours = dict(torch_module.named_modules()), weighted_modules(model)
    table = family.names(config, place)
    names = {path: name for path, name in table.items() if path in ours}
    if missing := [name for name in names.values() if name not in modules]:
        raise ValueError(
            f"the torch module has no {', '.join(missing[:10])}: it is not {family.name}'s"
        )
    if nameless := [
        path
        for path, part in ours.items()
        if path not in table and not all(f"{path}.{leaf}" in table for leaf in leaves(part))
    ]:
        raise ValueError(
            f"the torch module is {family.name}'s, which has nothing like the model's "
            f"{', '.join(nameless[:10])}"
        )
    names = {
        path: names[path] for path in _compared(model, {p: modules[n] for p, n in names.items()})
    }
    of_features = isinstance(model, FeaturesModel)
    batches = [images] if of_features else [(batch,) for batch in images]
    channels_last = frozenset(family.channels_last(config, place))
    run_ours = _runner(model, tuple(names))

    def outputs() -> Iterator[_Outputs]:
        for arguments in batches:
            size = None if of_features else arguments[0].shape[1:3]
            arguments = tuple(
                np.asarray(pad_to_multiple(jnp.asarray(a), config.preprocessing.size_multiple))
                for a in arguments
            )
            exact, rounded = run_torch(torch_module, arguments, names, channels_last)
            yield _Outputs(run_ours(*arguments), exact, rounded, size)

    return _report(outputs(), model.config, _norm_rolls(model, family), progress)


def verify_graph(
    model: SegmentationModel,
    graph: FrozenGraph,
    *pictures: np.ndarray,
    layout: str,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Compares a model with the frozen graph that it was made from, preprocessing included.

    Args:
      model: what `load_torch` gave.
      graph: one that may be run, see `FrozenGraph.why_not_run`.
      *pictures: uint8 `[1, H, W, 3]`, no larger than `graph.size()` where that is not (1, 1).
      layout: whose names the graph has.
      progress: called with the number of pictures done.
    """
    family = named_layout(layout)
    table = family.names(model.config)
    norms = {path for path, part in weighted_modules(model).items() if isinstance(part, BatchNorm)}
    biased = {
        p for p, part in weighted_modules(model).items() if getattr(part, "bias", None) is not None
    }
    names = {path: name for path, name in table.items() if path in norms | biased}
    run_ours = _runner(model, tuple(names))
    least = graph.size()

    def outputs() -> Iterator[_Outputs]:
        for picture in pictures:
            size = picture.shape[1:3]
            after = [(0, max(0, n - m)) for n, m in zip(least, size, strict=True)]
            # Beyond a picture the graph has the mean, which is 0 once it is normalised.
            x = np.pad(
                normalize(jnp.asarray(picture), model.config.preprocessing),
                ((0, 0), *after, (0, 0)),
            )
            exact, rounded = graph.run(picture, names)
            yield _Outputs(run_ours(x), exact, rounded, size)

    report = _report(outputs(), model.config, _norm_rolls(model, family), progress)
    return dataclasses.replace(report, framework="TensorFlow")


# ---------------------------------------------------------------------------- the comparison


class _Outputs(NamedTuple):
    """What the models make of a batch: outputs of layers by our paths, and the size without padding."""

    ours: dict[str, np.ndarray]
    exact: dict[str, np.ndarray]
    rounded: dict[str, np.ndarray]
    size: tuple[int, ...] | None


def _report(
    batches: Iterable[_Outputs],
    config: Config,
    rolls: Mapping[str, int],
    progress: Callable[[int], None],
) -> Report:
    decide = functools.partial(most_likely, single=config.activation == "sigmoid")
    worst: dict[str, Row] = {}
    agreeing = pixels = count = 0
    for done, (ours, exact, rounded, size) in enumerate(batches, 1):
        for path in rolls.keys() & exact.keys():
            for outputs in (exact, rounded):
                outputs[path] = np.roll(outputs[path], -rolls[path], -1)
        for row in _compare(ours, exact, rounded):
            if row.path not in worst or row.badness > worst[row.path].badness:
                worst[row.path] = row
        if "logits" in exact:
            same = decide(ours["logits"]) == decide(exact["logits"])
            same = same.all(-1) if config.multilabel else same
            same = same[:, : size[0], : size[1]] if size else same
            agreeing, pixels = agreeing + int(same.sum()), pixels + same.size
        count += len(ours["logits"])
        progress(done)
    return Report(tuple(worst.values()), agreeing / pixels if pixels else None, count)


def _norm_rolls(model: SegmentationModel, family: Layout) -> dict[str, int]:
    """By how many channels the outputs of batch norms are rotated: those of what they norm."""
    parts = weighted_modules(model)
    rolls = family.rolls(model.config).items()
    return {path: n for path, n in rolls if isinstance(parts.get(path), BatchNorm)}


# ---------------------------------------------------------------------------- both sides


BATCH_NORMS = ("BatchNorm2d", "SyncBatchNorm", "NaiveSyncBatchNorm", "FrozenBatchNorm2d")
"""PyTorch's and detectron2's classes of batch norm and nothing else."""


def _compared(model: SegmentationModel, originals: dict[str, "torch.nn.Module"]) -> list[str]:
    """The layers worth a row: batch norms, and convolutions that none follows.

    A batch norm whose original does more (timm's has the activation in it) leaves the row to its
    convolution, and a convolution whose original does (detectron2's) to the layers that read it.
    """
    compared = []
    for path, module in weighted_modules(model).items():
        if path not in originals:  # a plain parameter of a larger module in the original
            continue
        if isinstance(module, BatchNorm):
            if type(originals[path]).__name__ in BATCH_NORMS:
                compared.append(path)
            else:
                parent, _, leaf = path.rpartition(".")
                compared.append(f"{parent}.{leaf.replace('bn', 'conv')}")
        elif (
            getattr(module, "bias", None) is not None
            and getattr(originals[path], "activation", None) is None
        ):
            compared.append(path)
    head = model.head
    if isinstance(head, ClassifierHead) and (head.hidden is not None or head.norm is not None):
        # Its layers come after global pooling in the original and at every pixel here, with an activation
        # or a norm between: neither is a function of the other.
        compared = [path for path in compared if not path.startswith("head.")]
    return compared


def _runner(
    model: SegmentationModel, paths: tuple[str, ...]
) -> Callable[..., dict[str, np.ndarray]]:
    """A compiled function: images -> output of each of `paths`, and "logits"."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, *arguments: jax.Array) -> dict[str, jax.Array]:
        forward = nnx.capture(_forward, nnx.Intermediate, method_outputs=nnx.Intermediate)
        logits, captured = forward(nnx.merge(graphdef, state), *arguments)
        found = {
            ".".join(map(str, path[:-1])): variable.get_value()[0]
            for path, variable in nnx.to_flat_state(captured)
            if path[-1] == "__call__"
        }
        return {path: found[path] for path in paths if path in found} | {"logits": logits}

    def exactly(*arguments: np.ndarray) -> dict[str, np.ndarray]:
        # A GPU would multiply in TF32 and a TPU in bfloat16, a thousand times coarser than float32.
        with jax.default_matmul_precision("highest"):
            return jax.tree.map(np.asarray, run(state, *map(jnp.asarray, arguments)))

    return exactly


def _forward(model: SegmentationModel, *arguments: jax.Array) -> jax.Array:
    """The model's logits; runs the auxiliary head too, so that its layers are seen."""
    if model.aux_head is None:
        return model(*arguments)
    logits, _ = model.with_aux(*arguments)
    return model.resize(logits, arguments[0].shape[1:3])


def run_torch(
    module: "torch.nn.Module",
    arguments: tuple[np.ndarray, ...],
    names: dict[str, str],
    channels_last: Collection[str] = (),
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The module's outputs by our paths, `[B, h, w, C]`, in float64 and in float32.

    Args:
      channels_last: paths of modules whose output is so in the original too.
    """
    import torch

    was_training = module.training
    module.eval()
    # a copy: torch warns about arrays that it may not write into, as jax's are
    inputs = [torch.from_numpy(np.array(a.transpose(0, 3, 1, 2), order="C")) for a in arguments]
    results = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            outputs: dict[str, np.ndarray] = {}
            handles = _listen(module.to(dtype), names, channels_last, outputs)
            try:
                result = module(*(x.to(dtype) for x in inputs))
            except Exception as error:  # somebody's code may raise anything
                sizes = ", ".join(str(list(x.shape)) for x in inputs)
                raise ValueError(f"the torch module fails on inputs of {sizes}: {error}") from error
            result = _main_output(result, inputs[0].shape[2:])
            for handle in handles:
                handle.remove()
            if result.ndim == 4:  # an image classifier has its classifier's row instead
                outputs["logits"] = _nhwc(result)
            results.append(outputs)
    module.to(torch.float32)
    module.train(was_training)
    rounded, exact = results
    return exact, rounded


def _listen(
    module: "torch.nn.Module",
    names: dict[str, str],
    channels_last: Collection[str],
    outputs: dict[str, np.ndarray],
):
    modules = dict(module.named_modules())

    def hook(path: str):
        read = _array if path in channels_last else _nhwc
        # a copy: an activation that works in place would change it afterwards
        return lambda _module, _inputs, output: outputs.__setitem__(path, read(output.clone()))

    return [modules[name].register_forward_hook(hook(path)) for path, name in names.items()]


def _main_output(result, size: tuple[int, int]) -> "torch.Tensor":
    if isinstance(result, dict):
        if "logits" in result:  # transformers resizes when it makes masks of them, as here
            from torch.nn import functional

            return functional.interpolate(result["logits"], size, mode="bilinear")
        return result["out"] if "out" in result else next(iter(result.values()))
    return result[0] if isinstance(result, tuple | list) else result


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.detach().numpy()


def _nhwc(tensor: "torch.Tensor") -> np.ndarray:
    array = _array(tensor)
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _compare(
    ours: dict[str, np.ndarray], exact: dict[str, np.ndarray], rounded: dict[str, np.ndarray]
) -> Iterator[Row]:
    for path, reference in exact.items():
        if (
            path not in ours
        ):  # nothing reads what that layer gives in the original, so ours never runs
            continue
        value = ours[path].astype(np.float64)
        if reference.ndim == 3 and value.size == reference.size:
            # tokens [B P, N, C] or [B, H W, C], for us [B, P, N, C] or [B, H, W, C]
            value = value.reshape(reference.shape)
        if reference.ndim == 2:
            # A classifier after global pooling; ours runs at every pixel, and the mean of a linear layer
            # is the layer of the mean.
            value = value.mean((1, 2))
        if value.shape != reference.shape:
            yield Row(path, value.shape, math.inf, math.inf, 0.0)
            continue
        absolute = float(np.abs(value - reference).max())
        scale = float(np.abs(reference).max()) or 1.0
        rounding = float(np.abs(rounded[path].astype(np.float64) - reference).max())
        yield Row(path, value.shape, absolute, absolute / scale, rounding / scale)


def _arrays(state) -> dict[str, np.ndarray]:
    return {
        name: tensor.numpy()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
