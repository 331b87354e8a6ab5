"""The class of every pixel of a picture or of a batch; `folder` does whole folders."""

import dataclasses
import functools
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from deeplab_jax import canvas
from deeplab_jax.bands import read_picture
from deeplab_jax.config import Config
from deeplab_jax.images import to_rgb
from deeplab_jax.model import (
    FeaturesModel,
    SegmentationModel,
    named_values,
    named_variables,
    with_values,
)
from deeplab_jax.ops import compiler_options, has_onednn, resize_bilinear
from deeplab_jax.preprocessing import normalize, pad_to_multiple

MEMORY_LIMIT = 4 * 2**30
"""Bytes that one run of the model takes at most, by an estimate, unless `tile` says otherwise."""

MANY = 64
"""Images of a size that make up for the time that weights as constants take to compile, see `evaluator`."""

_ACTIVATIONS = 1024  # bytes per pixel; DeepLabv3+ on ResNet-50 took 10.7 GB for 10.6 million pixels
_BATCH = 8  # pictures; more gain little, and make progress jerky
_SMALLEST_TILE = 16

LARGEST_SCALE = 16
"""Of a picture to predict at. Papers go up to 2; the memory of a picture grows with its square."""

log = logging.getLogger(__name__)

Array = TypeVar("Array", np.ndarray, jax.Array)

Top = int | Literal["all"] | None
"""Of how many classes of a pixel, the most likely first, probabilities are wanted; "all" is all, in the
order of their ids."""


@dataclasses.dataclass(frozen=True)
class Prediction(Generic[Array]):
    """What a model says of pictures, of NumPy or of JAX.

    Attributes:
      ids: the class of every pixel, `[B, H, W]`, uint8 or, for more than 256 classes, uint16; of a model
        with several labels for a pixel, uint8 `[B, H, W, labels]`, 1 where a pixel has the label.
      probabilities: float16 `[B, H, W, K]`, see `Top`; None where they are not wanted.
      classes: `[B, H, W, K]`, whose they are; None where they are all classes' in order.
    """

    ids: Array
    probabilities: Array | None = None
    classes: Array | None = None


jax.tree_util.register_dataclass(Prediction)


# ---------------------------------------------------------------------------- pictures to ids


def predict(
    model: SegmentationModel,
    image: str | os.PathLike | Image.Image | np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
) -> np.ndarray:
    """The class of every pixel.

    The model runs in evaluation mode, whatever mode it is in, and stays as it is. The first call
    for a size of picture compiles, which takes seconds; later ones reuse that, also with new
    weights.

    Args:
      model: from `create`, `load` or the porter; `model.config` says how pictures are normalised.
      image: a file, a Pillow image, or uint8 RGB `[H, W, 3]` or `[B, H, W, 3]`; for a model of other
        images, a file or an array of its channels and type, see `Preprocessing`.
      scales: scales to predict at, relative to the picture's own size, at most `LARGEST_SCALE`.
      flip: predict on the mirrored picture too. The probabilities of several views are averaged.
      tile: cut larger pictures into windows of `tile` x `tile` pixels that overlap by a quarter or
        more. Each pixel's class is that from the window which sees most around it; nothing is
        averaged, as that takes the logits of the whole picture, and they are what does not fit.
        None does so, and logs it, only where the picture is estimated to take more than
        `MEMORY_LIMIT`: 1 KiB per pixel and 4 bytes per class and pixel, times the largest scale
        squared if that is above 1. That is 3.9 million pixels of 21 classes, 0.8 million of 1000.

    Returns:
      `[H, W]` or `[B, H, W]`: uint8, or uint16 for more than 256 classes; `[..., labels]`, 0 or 1, of a
      model with several labels for a pixel (`Config.multilabel`).

    Raises:
      ImageError: the file is not a picture.
      ValueError: for an array of another shape or type, or for wrong options.
    """
    config = config_of(model)
    check_options(scales=scales, tile=tile)
    if isinstance(image, str | os.PathLike):
        pixels = read_picture(image, config.preprocessing)
    else:
        pixels = to_rgb(image) if isinstance(image, Image.Image) else np.asarray(image)
    channels, kind = len(config.preprocessing.mean), config.preprocessing.pixels
    if pixels.dtype != kind or pixels.ndim not in (3, 4) or pixels.shape[-1] != channels:
        raise ValueError(
            f"an image must be {kind} [H, W, {channels}] or [B, H, W, {channels}], got "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    if pixels.size == 0:
        raise ValueError(f"an image must have pixels, got {list(pixels.shape)}")
    images = pixels if pixels.ndim == 4 else pixels[None]
    plan = make_plan(len(images), images.shape[1:3], config.num_classes, scales=scales, tile=tile)
    ids = in_batches(evaluator(model, scales, flip), images, plan).ids
    return ids if pixels.ndim == 4 else ids[0]


def config_of(model: SegmentationModel) -> Config:
    """The model's config; ValueError where it has none, or is called with features, not images."""
    if isinstance(model, FeaturesModel):
        raise ValueError("prediction needs a whole model; this one is a head without a backbone")
    return model.config


def check_plain(config: Config, what: str) -> None:
    """Raises ValueError for a model that takes other pictures than RGB, or gives several labels to a pixel.

    Args:
      what: those that are to be segmented, "videos".
    """
    given = config.preprocessing
    if not given.is_rgb:
        raise ValueError(
            f"{what} are RGB of 8 bits, this model takes {len(given.mean)} bands of {given.pixels}"
        )
    if config.multilabel:
        raise ValueError(
            f"{what} are drawn with one class for a pixel, of this model's {config.num_classes} labels it "
            "may have several: `deeplab predict` writes a mask for each of them"
        )


def check_options(
    *, scales: Sequence[float], tile: int | None, batch_size: int | None = None, top: Top = None
) -> None:
    """Raises ValueError, listing all that is wrong."""
    problems = []
    if not len(scales) or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        problems.append(
            f"scales must be one or more numbers above 0 and at most {LARGEST_SCALE}, relative to the "
            f"picture's own size, such as 0.5 1 2, got {scales}"
        )
    if tile is not None and tile < _SMALLEST_TILE:
        problems.append(f"tile must be at least {_SMALLEST_TILE} pixels, or None, got {tile}")
    if batch_size is not None and batch_size < 1:
        problems.append(f"batch_size must be at least 1, or None, got {batch_size}")
    if isinstance(top, int) and top < 1:
        problems.append(f"probabilities must be of at least 1 class, or of all, got {top}")
    if problems:
        raise ValueError("\n".join(problems))


# ---------------------------------------------------------------------------- on the device

View = tuple[float, bool]
"""The scale of one prediction of a picture, and whether on the mirrored picture."""


def views_of(scales: Sequence[float], flip: bool) -> tuple[View, ...]:
    """Every scale, mirrored too where `flip` is set."""
    return tuple(
        (float(scale), mirrored) for scale in scales for mirrored in (False, True)[: 1 + flip]
    )


def segment(
    model: SegmentationModel, pixels: jax.Array, views: Sequence[View], top: Top = None
) -> Prediction[jax.Array]:
    """What the model says of normalised `[B, H, W, C]`.

    To be traced, by a function under `jax.jit` that may do more with it.

    Args:
      model: in evaluation mode.
      pixels: see `normalize`.
      views: see `views_of`; of several, the probabilities are averaged.
    """
    return _decide(model.config, [_logits(model, pixels, *view) for view in views], top)


def segment_on_canvas(
    program: canvas.Program,
    config: Config,
    weights: canvas.Weights,
    pixels: jax.Array,
    sizes: Sequence[jax.Array],
    views: Sequence[View],
    top: Top = None,
) -> Prediction[jax.Array]:
    """`segment` of images of several sizes, at the top left of canvases of one size.

    Args:
      program: of `program_of_any_size`, of a model with this config.
      weights: of the model, see `named_values`.
      pixels: `[B, H, W, C]`, with anything beyond the images.
      sizes: of the images and of each view, see `sizes_on_canvas`.

    Returns:
      What it says of the images is at the top left, and anything beyond.
    """

    def logits(view: View, seen: jax.Array) -> jax.Array:
        see = functools.partial(_logits_on_canvas, program, weights, view)
        return jax.vmap(see)(pixels, sizes[0], seen)

    seen = [logits(view, of_view) for view, of_view in zip(views, sizes[1:], strict=True)]
    return _decide(config, seen, top)


def _decide(config: Config, logits: Sequence[jax.Array], top: Top) -> Prediction[jax.Array]:
    """What the logits of several views of the same images, `[B, H, W, classes]`, say together."""
    single = config.activation == "sigmoid"
    small = jnp.uint8 if logits[0].shape[-1] <= 256 else jnp.uint16
    total = functools.reduce(jnp.add, [probabilities_of(x, single=single) for x in logits])
    if len(logits) == 1:
        ids = most_likely(logits[0], single=single)
    else:
        ids = most_likely(total, single=single, threshold=0.5 * len(logits))
    if top is None:
        return Prediction(ids.astype(small))
    probabilities = total / len(logits)
    if top == "all":
        return Prediction(ids.astype(small), probabilities.astype(jnp.float16))
    highest, classes = jax.lax.top_k(probabilities, min(top, probabilities.shape[-1]))
    return Prediction(ids.astype(small), highest.astype(jnp.float16), classes.astype(small))


def most_likely(scores: Array, *, single: bool, threshold: float = 0.0) -> Array:
    """The most likely class of each pixel: `[..., classes]` -> ids `[...]`.

    Args:
      scores: logits or probabilities, of NumPy or of JAX.
      single: each channel is for itself ("sigmoid" in `Config.activation`). Of one channel the ids are 0,
        background, and 1, foreground; of several, the result is `[..., labels]`, whether each is there.
      threshold: what the score of a channel has to exceed then; a probability of .5 is a logit of 0.
    """
    if not single:
        return scores.argmax(-1)
    there = scores > threshold
    return there.squeeze(-1) if scores.shape[-1] == 1 else there


def probabilities_of(logits: jax.Array, *, single: bool) -> jax.Array:
    """Of each class, or of each channel for itself, see `most_likely`."""
    return jax.nn.sigmoid(logits) if single else jax.nn.softmax(logits, axis=-1)


def evaluator(
    model: SegmentationModel,
    scales: Sequence[float],
    flip: bool,
    *,
    top: Top = None,
    devices: Sequence[jax.Device] | None = None,
    images: int = 1,
) -> Callable[[np.ndarray], Prediction[np.ndarray]]:
    """The function that these options stand for, of images `[B, H, W, C]` as `normalize` takes them.

    Args:
      devices: the pictures are divided among them, and B is a multiple of their number; None is the one
        that JAX takes by default.
      images: how many of a size there are. From `MANY` on weights are constants on a CPU with oneDNN, which
        then lays them out once and not for each batch (a ResNet-50 takes 2 to 5 % less time, a MobileNetV2
        18 %); the program of a size takes longer to compile, and memory for four times the weights.
    """
    views = views_of(scales, flip)
    if images >= MANY and has_onednn() and (devices is None or len(devices) == 1):
        parts = nnx.split(model)
        compiled = jax.jit(
            lambda pixels: _run(nnx.merge(*parts), pixels, views, top),
            compiler_options=compiler_options(),
        )
        return lambda pixels: jax.tree.map(np.asarray, compiled(pixels))
    model, place = _on_devices(model, devices)

    def run(images: np.ndarray) -> Prediction[np.ndarray]:
        return jax.tree.map(np.asarray, _program()(model, place(images), views, top))

    return run


def canvas_evaluator(
    program: canvas.Program,
    model: SegmentationModel,
    scales: Sequence[float],
    flip: bool,
    *,
    top: Top = None,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[np.ndarray, np.ndarray], Prediction[np.ndarray]]:
    """The same for images of several sizes, see `segment_on_canvas`: of canvases and of sizes `[B, 2]`."""
    views, config = views_of(scales, flip), model.config
    model, place = _on_devices(model, devices)
    weights = named_values(model)

    def run_all(
        weights: canvas.Weights, images: jax.Array, sizes: Sequence[jax.Array]
    ) -> Prediction[jax.Array]:
        pixels = normalize(images, config.preprocessing)
        return segment_on_canvas(program, config, weights, pixels, sizes, views, top)

    compiled = jax.jit(run_all, compiler_options=compiler_options())

    def run(images: np.ndarray, sizes: np.ndarray) -> Prediction[np.ndarray]:
        placed = [place(array) for array in sizes_on_canvas(program, sizes, views)]
        return jax.tree.map(np.asarray, compiled(weights, place(images), placed))

    return run


def _on_devices(
    model: SegmentationModel, devices: Sequence[jax.Device] | None
) -> tuple[SegmentationModel, Callable[[np.ndarray], Any]]:
    """The model on each of the devices, and what divides an array among them."""
    if devices is None or len(devices) == 1:
        return model, np.asarray
    mesh = Mesh(np.array(devices), ("pictures",))
    graph, state = nnx.split(model)
    model = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, P())))
    return model, functools.partial(jax.device_put, device=NamedSharding(mesh, P("pictures")))


@functools.cache
def _program() -> Callable[..., Prediction[jax.Array]]:
    return jax.jit(_run, static_argnames=("views", "top"), compiler_options=compiler_options())


def _run(
    model: SegmentationModel, images: jax.Array, views: tuple[View, ...], top: Top
) -> Prediction[jax.Array]:
    """Down to class ids on the device, so that a byte or two per pixel leave it."""
    model.eval()  # jit's copy; `nnx.view` would pass over modules that do not define `set_view`
    return segment(model, normalize(images, model.config.preprocessing), views, top)


def _logits(model: SegmentationModel, pixels: jax.Array, scale: float, mirrored: bool) -> jax.Array:
    """Logits of `[B, H, W, C]` at its own size, predicted at another scale or on its mirror image."""
    height, width = pixels.shape[1:3]
    seen = seen_size((height, width), scale)
    x = resize_bilinear(pixels, seen)
    x = x[:, :, ::-1] if mirrored else x
    x = pad_to_multiple(x, model.config.preprocessing.size_multiple)
    logits = model(x)[:, : seen[0], : seen[1]]
    logits = logits[:, :, ::-1] if mirrored else logits
    return resize_bilinear(logits, (height, width))


def seen_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """(H, W) of an image of this size at a scale."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


# ---------------------------------------------------------------------------- many sizes


def program_of_any_size(model: SegmentationModel) -> canvas.Program | None:
    """The model in evaluation mode for images of any size; None, which is logged, where it cannot be so.

    Args:
      model: in any mode; shapes in place of weights will do.
    """
    given = model.config.preprocessing

    def run(weights: canvas.Weights, images: jax.Array) -> jax.Array:
        rows, columns = images.shape[1:3]
        module = with_values(model, weights)
        module.eval()
        logits = module(pad_to_multiple(images, given.size_multiple))
        for axis, size in ((1, rows), (2, columns)):  # indexing with symbols gathers
            logits = jax.lax.slice_in_dim(logits, 0, size, axis=axis)
        return logits

    try:
        return canvas.trace(run, named_variables(model), len(given.mean))
    except canvas.NeedsItsSize as reason:
        log.warning(f"each size of image compiles the model anew: {reason}")
        return None


def fits_a_canvas(size: tuple[int, int], scales: Sequence[float]) -> bool:
    """Whether images of a size are large enough at all scales, see `canvas.SMALLEST`."""
    return min(min(seen_size(size, scale)) for scale in scales) >= canvas.SMALLEST


def sizes_on_canvas(
    program: canvas.Program, sizes: np.ndarray, views: Sequence[View]
) -> list[np.ndarray]:
    """What a program has to know of images of sizes `[B, 2]`.

    Returns:
      Their sizes, and of each view `canvas.Program.sizes` of each image, int32 `[B, ...]`.
    """
    seen = [
        [program.sizes_of(*seen_size(size, scale)) for size in sizes.tolist()] for scale, _ in views
    ]
    return [np.asarray(of_view, np.int32) for of_view in (sizes, *seen)]


def _logits_on_canvas(
    program: canvas.Program,
    weights: canvas.Weights,
    view: View,
    pixels: jax.Array,
    size: jax.Array,
    sizes: jax.Array,
) -> jax.Array:
    """`_logits` of the image of a size on a canvas `[H, W, C]`; `sizes` are the program's, of the view."""
    (scale, mirrored), whole, seen = view, (pixels.shape[0], pixels.shape[1]), sizes[:2]
    x = pixels[None]
    if scale != 1:
        x = canvas.resize(x, size, seen, seen_size(whole, scale), align_corners=False)
    x = canvas.mirror(x, seen) if mirrored else x
    logits = program(weights, x, sizes)
    logits = canvas.mirror(logits, seen) if mirrored else logits
    if scale != 1:
        logits = canvas.resize(logits, seen, size, whole, align_corners=False)
    return logits[0]


# ---------------------------------------------------------------------------- cutting up


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to run a number of equally large pictures: `at_once` at a time, in windows of `tile`."""

    at_once: int
    tile: int | None


def make_plan(
    count: int,
    size: tuple[int, int],
    num_classes: int,
    *,
    scales: Sequence[float],
    tile: int | None,
    batch_size: int | None = None,
    devices: int = 1,
) -> Plan:
    """A plan that obeys `tile` and `batch_size`, and chooses those that are None by memory.

    Pictures run on so many devices at once, each of which has the same number.
    """
    pixel_bytes = _bytes_of_a_pixel(num_classes, scales)
    height, width = size
    if tile is None and height * width * pixel_bytes > MEMORY_LIMIT:
        side = int(math.sqrt(MEMORY_LIMIT / pixel_bytes))
        tile = max(_SMALLEST_TILE, side - side % 32)
        log.warning(
            f"{width} x {height} pixels of {num_classes} classes would take about "
            f"{height * width * pixel_bytes / 2**30:.1f} GiB at once; cutting them into windows of "
            f"{tile} x {tile}. `tile` chooses another size, {max(size)} does not cut"
        )
    if tile is not None:
        height, width = min(height, tile), min(width, tile)
    fitting = max(1, int(MEMORY_LIMIT / (height * width * pixel_bytes)))
    most = batch_size or devices * min(_BATCH, fitting)
    runs = -(-count // most)
    on_each = -(-count // (runs * devices))
    return Plan(at_once=on_each * devices, tile=tile)


def _bytes_of_a_pixel(num_classes: int, scales: Sequence[float]) -> float:
    return (_ACTIVATIONS + 4 * num_classes) * max(1.0, *scales) ** 2


def runs_whole(
    size: tuple[int, int], *, num_classes: int, scales: Sequence[float], tile: int | None
) -> bool:
    """Whether pictures of a size are not cut, see `make_plan`, and run in a program of any size."""
    if not fits_a_canvas(size, scales):
        return False
    if tile is not None:
        return max(size) <= tile
    return size[0] * size[1] * _bytes_of_a_pixel(num_classes, scales) <= MEMORY_LIMIT


def in_batches(
    run: Callable[[np.ndarray], Prediction[np.ndarray]], images: np.ndarray, plan: Plan
) -> Prediction[np.ndarray]:
    """What `run` says of images `[B, H, W, C]`, by a plan."""
    parts = []
    for start in range(0, len(images), plan.at_once):
        batch = images[start : start + plan.at_once]
        missing = plan.at_once - len(batch)
        # An incomplete batch would compile anew, which takes longer than a few pictures too many.
        full = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        whole = in_windows(lambda windows: map(run, windows), full, plan.tile)
        parts.append(jax.tree.map(lambda array, size=len(batch): array[:size], whole))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def in_windows(
    run: Callable[[list[Array]], Iterable[Prediction[Array]]], images: Array, tile: int | None
) -> Prediction[Array]:
    """What `run` says of `[B, H, W, C]`, cut into windows of `tile` where they are larger.

    Args:
      run: the predictions for each of a list of windows, all of one size.
      images: of NumPy or of JAX, and then the windows and the result are too.
    """
    height, width = images.shape[1:3]
    rows, columns = cuts(height, tile or height), cuts(width, tile or width)
    windows = iter(run([images[:, y, x] for y, _ in rows for x, _ in columns]))
    concatenate = images.__array_namespace__().concatenate

    def side_by_side(parts: list[Prediction[Array]], axis: int) -> Prediction[Array]:
        return jax.tree.map(lambda *arrays: concatenate(arrays, axis=axis), *parts)

    def kept(part: Prediction[Array], y: slice, x: slice) -> Prediction[Array]:
        return jax.tree.map(lambda array: array[:, y, x], part)

    return side_by_side(
        [
            side_by_side([kept(next(windows), keep_y, keep_x) for _, keep_x in columns], 2)
            for _, keep_y in rows
        ],
        1,
    )


def cuts(size: int, tile: int) -> list[tuple[slice, slice]]:
    """Cuts an axis into windows: the pixels that each sees, and those of its own that count.

    Windows are equally large, so that one program does for all, and share a quarter or more; the
    cut runs in the middle of what two of them share.
    """
    if size <= tile:
        return [(slice(0, size), slice(0, size))]
    count = 1 - (tile - size) // (tile - tile // 4)
    starts = [(size - tile) * n // (count - 1) for n in range(count)]
    cuts = [0, *((a + b + tile) // 2 for a, b in itertools.pairwise(starts)), size]
    return [
        (slice(start, start + tile), slice(cuts[n] - start, cuts[n + 1] - start))
        for n, start in enumerate(starts)
    ]
