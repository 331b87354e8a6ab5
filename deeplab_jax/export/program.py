"""The function that is exported: what it takes, what it gives, and of which sizes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.model import SegmentationModel, named_variables, with_values
from deeplab_jax.predict import config_of, most_likely, probabilities_of
from deeplab_jax.preprocessing import normalize, pad_to_multiple

SIZES = ("batch", "height", "width")
"""Names of the sizes that need not be fixed."""

SMALLEST = 64
"""Rows and columns of the smallest image that a program of any size takes: some networks pad smaller ones,
which a program without a size cannot decide."""

_EXAMPLES = [(1, (97, 129)), (2, (128, 96)), (1, (161, 145))]  # images, and their rows and columns

Model = SegmentationModel
Function = Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]
"""Weights by their names, and images, to the output."""


class ExportError(ValueError):
    """A model that cannot be exported so; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Interface:
    """What an exported program takes and gives.

    Attributes:
      images: "normalized" float32, see `preprocessing.normalize`, or uint8 RGB "pixels".
      output: float32 "logits" or "probabilities" of each class, or "classes", the id of every pixel:
        `[B, H, W]`, uint8, or uint16 of more than 256 classes.
      layout: of images, logits and probabilities: "nhwc" is `[B, H, W, C]`, "nchw" `[B, C, H, W]`.
      size: rows and columns of all images; None is any of at least `SMALLEST`.
      batch: images at once; None is any number.
    """

    images: Literal["normalized", "pixels"] = "normalized"
    output: Literal["logits", "probabilities", "classes"] = "logits"
    layout: Literal["nhwc", "nchw"] = "nhwc"
    size: tuple[int, int] | None = None
    batch: int | None = None

    def __post_init__(self):
        given = [*(self.size or ()), *([] if self.batch is None else [self.batch])]
        if any(value < 1 for value in given):
            raise ValueError(
                f"size and batch must be above 0, got size {self.size}, batch {self.batch}"
            )

    @property
    def channel_axis(self) -> int:
        """Of images, logits and probabilities."""
        return 1 if self.layout == "nchw" else 3

    def struct(self, model: Model) -> jax.ShapeDtypeStruct:
        """Shape and type of the images, with symbols for the sizes that are not fixed."""
        given = dict(zip(SIZES, (self.batch, *(self.size or (None, None))), strict=True))
        free = [name for name, size in given.items() if size is None]
        least = [f"{name} >= {1 if name == 'batch' else SMALLEST}" for name in free]
        symbols = export.symbolic_shape(",".join(free), constraints=least) if free else ()
        found = dict(zip(free, symbols, strict=True))
        batch, height, width = (found.get(name, size) for name, size in given.items())
        shape = [batch, height, width]
        shape.insert(self.channel_axis, len(config_of(model).preprocessing.mean))
        return jax.ShapeDtypeStruct(shape, jnp.uint8 if self.images == "pixels" else jnp.float32)

    def describe(self, model: Model) -> str:
        """What the images have to be, in a line."""
        struct, given = self.struct(model), config_of(model).preprocessing
        shape = f"images: {struct.dtype} {list(map(str, struct.shape))}".replace("'", "")
        if self.images == "pixels":
            return f"{shape}, RGB" if len(given.mean) == 3 else shape
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (given.mean, given.std))
        order = f"{given.channel_order.upper()}, " if len(given.mean) == 3 else ""
        return f"{shape}, {order}(pixels / 255 - mean) / std, of mean {mean} and std {std}"

    def examples(self, model: Model) -> Iterator[np.ndarray]:
        """Images to compare two programs by: noise, of several sizes and numbers where they are free."""
        config = config_of(model).preprocessing
        generator = np.random.default_rng(0)
        examples = {(self.batch or n, *(self.size or size)) for n, size in _EXAMPLES}
        for shape in sorted(examples):
            images: Any = generator.integers(0, 256, (*shape, len(config.mean)), np.uint8)
            if self.images == "normalized":
                images = np.asarray(normalize(images, config))
            yield images if self.layout == "nhwc" else images.transpose(0, 3, 1, 2)


def weights_of(model: Model) -> dict[str, jax.Array]:
    """Every array of a model by its path."""
    return {name: variable[...] for name, variable in named_variables(model).items()}


def for_inference(model: Model, dtype: jax.typing.DTypeLike = jnp.float32) -> Model:
    """A copy with its batch norms folded, whose convolutions compute in `dtype`.

    Raises ValueError where it has no config or no backbone.
    """
    config = config_of(model)
    folded = fold_batch_norm(model)
    folded.config, folded.dtype = config, jnp.dtype(dtype)
    return folded


def function_of(model: Model, interface: Interface) -> Function:
    """The model as a function of its weights and of images, as `deeplab predict` runs it.

    Args:
      model: in evaluation mode.
    """
    preprocessing = config_of(model).preprocessing
    to_ours, to_theirs = (0, 1, 2, 3), (0, 1, 2, 3)
    if interface.layout == "nchw":
        to_ours, to_theirs = (0, 2, 3, 1), (0, 3, 1, 2)

    def run(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        x = images.transpose(to_ours)
        if interface.images == "pixels":
            x = normalize(x, preprocessing)
        rows, columns = x.shape[1:3]
        logits = with_values(model, weights)(pad_to_multiple(x, preprocessing.size_multiple))
        for axis, size in ((1, rows), (2, columns)):
            logits = jax.lax.slice_in_dim(logits, 0, size, axis=axis)
        if interface.output == "classes":
            return most_likely(logits).astype(jnp.uint8 if logits.shape[-1] <= 256 else jnp.uint16)
        scores = logits if interface.output == "logits" else probabilities_of(logits)
        return scores.transpose(to_theirs)

    return run
