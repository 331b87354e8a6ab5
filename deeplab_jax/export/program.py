"""The function that is exported: what it takes, what it gives, and of which sizes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from deeplab_jax.canvas import SMALLEST
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.model import SegmentationModel, with_values
from deeplab_jax.predict import config_of, most_likely, probabilities_of
from deeplab_jax.preprocessing import FULL_SCALE, normalize, pad_to_multiple

_SIZES = ("batch", "height", "width")  # that need not be fixed

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
      images: "normalized" float32, see `preprocessing.normalize`, or "pixels", uint8 RGB as a rule.
      output: float32 "logits" or "probabilities" of each class, or "classes", the id of every pixel:
        `[B, H, W]`, uint8, or uint16 of more than 256 classes. Of a model with several labels for a pixel
        they are uint8, of the shape of logits, 1 where a pixel has the label.
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

    @property
    def fixed(self) -> dict[str, int]:
        """The sizes that are the same for all images, by the names of the symbols of those that are not."""
        sizes = zip(_SIZES, (self.batch, *(self.size or (None, None))), strict=True)
        return {name: size for name, size in sizes if size is not None}

    def struct(self, model: Model) -> jax.ShapeDtypeStruct:
        """Shape and type of the images, with symbols for the sizes that are not fixed."""
        free = [name for name in _SIZES if name not in self.fixed]
        least = [f"{name} >= {1 if name == 'batch' else SMALLEST}" for name in free]
        symbols = export.symbolic_shape(",".join(free), constraints=least) if free else ()
        found = self.fixed | dict(zip(free, symbols, strict=True))
        shape = [found[name] for name in _SIZES]
        given = config_of(model).preprocessing
        shape.insert(self.channel_axis, len(given.mean))
        return jax.ShapeDtypeStruct(shape, given.pixels if self.images == "pixels" else jnp.float32)

    def describe(self, model: Model) -> str:
        """What the images have to be, in a line."""
        struct, given = self.struct(model), config_of(model).preprocessing
        shape = f"images: {struct.dtype} {list(map(str, struct.shape))}".replace("'", "")
        if self.images == "pixels":
            return f"{shape}, RGB" if given.is_rgb else shape
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (given.mean, given.std))
        order = f"{given.channel_order.upper()}, " if given.is_rgb else ""
        scaled = "pixels" if given.pixels == "float32" else f"pixels / {FULL_SCALE[given.pixels]}"
        return f"{shape}, {order}({scaled} - mean) / std, of mean {mean} and std {std}"

    def examples(self, model: Model) -> Iterator[np.ndarray]:
        """Images to compare two programs by: noise, of several sizes and numbers where they are free."""
        config = config_of(model).preprocessing
        generator = np.random.default_rng(0)
        examples = {(self.batch or n, *(self.size or size)) for n, size in _EXAMPLES}
        for shape in sorted(examples):
            images: Any = generator.uniform(size=(*shape, len(config.mean)))
            images = (images * (FULL_SCALE[config.pixels] + (config.pixels != "float32"))).astype(
                config.pixels
            )
            if self.images == "normalized":
                images = np.asarray(normalize(images, config))
            yield images if self.layout == "nhwc" else images.transpose(0, 3, 1, 2)


def for_inference(model: Model) -> Model:
    """A copy with its batch norms folded. Raises ValueError where it has no config or no backbone."""
    config_of(model)
    return fold_batch_norm(model)


def in_dtype(model: Model, dtype: jax.typing.DTypeLike) -> Model:
    """A copy whose convolutions compute in `dtype`."""
    copy = nnx.clone(model)
    copy.dtype = jnp.dtype(dtype)
    return copy


def needs_a_size(error: jax.errors.InconclusiveDimensionOperation) -> ExportError:
    """What to raise where a program cannot be traced for images of any size."""
    return ExportError(
        f"this model's program depends on the size of the images; fix it with --size. {error}"
    )


def function_of(model: Model, interface: Interface) -> Function:
    """The model as a function of its weights and of images, as `deeplab predict` runs it.

    Args:
      model: in evaluation mode.
    """
    preprocessing = config_of(model).preprocessing
    single = model.config.activation == "sigmoid"
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
            ids = most_likely(logits, single=single)
            ids = ids.astype(jnp.uint8 if logits.shape[-1] <= 256 else jnp.uint16)
            return ids.transpose(to_theirs) if model.config.multilabel else ids
        scores = logits if interface.output == "logits" else probabilities_of(logits, single=single)
        return scores.transpose(to_theirs)

    return run
