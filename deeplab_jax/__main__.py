"""The command `deeplab`: predict, list, summary, check, export, push, demo."""

import fnmatch
import logging
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from deeplab_jax.buckets import url_of
from deeplab_jax.checkpoint import (
    RUN_CHECKPOINTS,
    RUN_MODEL,
    ModelError,
    is_sealed,
    load,
    model_path,
    steps_in,
)
from deeplab_jax.command import BAD_USE, PLUGIN_HELP, keep_compiled_programs, run
from deeplab_jax.config import UnknownKindError
from deeplab_jax.demo import LARGEST, launch, page, write_space
from deeplab_jax.digests import damage, has_digests
from deeplab_jax.folder import predict_folder
from deeplab_jax.images import ImageError, find_images
from deeplab_jax.model import build
from deeplab_jax.presets import PRESETS, close_names
from deeplab_jax.push import push
from deeplab_jax.results import output_names, targets_of
from deeplab_jax.summary import summarize
from deeplab_jax.video import check_videos, predict_videos, split_videos

DEMO_IMAGES = ("chelsea.png", "coffee.png")  # photographs that scikit-image ships


def predict(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    images: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE [PICTURE ...]")
    ] = (),
    /,
    out: Path = Path("predictions"),
    recursive: bool = False,
    files_from: Annotated[str | None, tyro.conf.arg(metavar="LIST")] = None,
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = "0/1",
    redo: bool = False,
    batch_size: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlay: bool = True,
    alpha: float = 0.5,
    probabilities: Annotated[int | Literal["all"] | None, tyro.conf.arg(metavar="K|all")] = None,
    frame_masks: bool = False,
) -> int:
    """Draw the masks of pictures and videos.

    Writes for each picture NAME.png, the class of every pixel at the picture's size, and
    NAME_overlay.jpg, the picture with its classes in colour and a legend. All devices of this machine take
    part. Run again, it does what is new or has changed: picture, model or options.

    Of a video, NAME_overlay.mp4 is written, without its sound, and NAME_overlay.jpg, its first frame with
    the legend (pip install 'deeplab-jax[video]'). Of an animated picture or one of several pages, the first
    is taken, and the command says so.

    Args:
        model: A model folder or .safetensors file, as deeplab-port makes them, a training run's folder, or
            hf://USER/NAME, with @REVISION or without.
        images: Pictures, folders of pictures, and videos; `demo` is two photographs that scikit-image
            ships.
        out: The folder to write to.
        recursive: Take the pictures in folders of the folders too.
        files_from: A file with the path of a picture in each line, as seen from the current folder; - is
            standard input.
        shard: Do part I, from 0 on, of N equal ones, to share the work among processes or machines:
            $SLURM_ARRAY_TASK_ID/8, $JOB_COMPLETION_INDEX/8.
        redo: Do pictures again whose results are there.
        batch_size: Pictures of a size that run at once; by default 8 on each device, or what fits.
        scales: Scales to predict at; the probabilities of several are averaged.
        flip: Predict on the mirrored picture too, and average.
        tile: Cut larger pictures into overlapping windows of this many pixels.
        overlay: Write the overlays too.
        alpha: Strength of the colours in the overlay.
        probabilities: Write NAME_probabilities.npz too: of the K most likely classes of every pixel, or of
            all, in float16.
        frame_masks: Write the masks of each frame of a video too, NAME_masks/000000.png and so on.
    """
    if not images and files_from is None:
        raise ValueError("name at least one picture or folder of pictures")
    keep_compiled_programs(unless_slower=True)
    console = Console(stderr=True)
    part = _shard(shard)
    named = [p for image in images for p in (_demo() if image == "demo" else [image])]
    listed = [] if files_from is None else _listed(files_from)
    network = load(model)
    videos, pictures = split_videos([*named, *listed])
    check_videos(videos, overlay=overlay, masks=frame_masks, probabilities=probabilities)
    paths = find_images(pictures, recursive=recursive, leave_out=out)
    names = output_names([*paths, *videos])
    targets = targets_of(videos, out, names[len(paths) :])
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "scales": scales,
        "flip": flip,
        "tile": tile,
        "overlay": overlay,
        "alpha": alpha,
        "redo": redo,
    }
    done = predict_folder(
        network,
        paths,
        out,
        names=names[: len(paths)],
        probabilities=probabilities,
        shard=part,
        **options,
    )
    done += predict_videos(
        network,
        dict(list(targets.items())[part[0] :: part[1]]),
        masks=frame_masks,
        **options,
    )
    for note in done.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True, highlight=False)
    for failure in done.failures:
        console.print(f"[red]error[/]: {escape(str(failure))}", soft_wrap=True)
    kept = f"; {done.kept} were there before (--redo does them again)" if done.kept else ""
    good = done.written + done.kept
    what = "videos" if not paths else "pictures and videos" if videos else "pictures"
    console.print(
        f"{good} of {good + len(done.failures)} {what} are in {escape(str(out))}{kept}",
        soft_wrap=True,
        highlight=False,
    )
    return BAD_USE if done.failures else 0


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard must be I/N, such as 0/8 to 7/8, got {text!r}")
    return int(index), int(count)


def _listed(files_from: str) -> list[Path]:
    """The paths in a list of pictures; raises ImageError where it cannot be read or is empty."""
    try:
        text = sys.stdin.read() if files_from == "-" else Path(files_from).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"--files-from {files_from} cannot be read: {error}") from error
    paths = [Path(line) for line in text.splitlines() if line.strip()]
    if not paths:
        raise ImageError(f"--files-from {files_from} lists no picture")
    return paths


def list_presets(
    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[PATTERN]")] = "*", /
) -> int:
    """List the named models.

    Args:
        pattern: Those whose name has this in it, or matches it: `efficientnet`, `deeplabv3plus_*50*`.
    """
    wild = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = fnmatch.filter(PRESETS, wild)
    if not found:
        near = close_names(pattern)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"no preset matches {pattern!r} (`deeplab list` prints all){hint}")
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for column in ("backbone", "head", "output stride"):
        table.add_column(column)
    for name in found:
        config = PRESETS[name]
        backbone, head = config.backbone, config.head
        table.add_row(name, backbone.kind, head.kind, str(backbone.output_stride))
    # Names are to be copied: where the terminal is narrower than they are, its lines break.
    Console(soft_wrap=True, width=max(80, Console().width)).print(table)
    return 0


def summary(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET|MODEL")],
    /,
    size: tuple[int, int] = (513, 513),
    num_classes: int = 21,
    output_stride: int | None = None,
) -> int:
    """Print a row per stage: output shape, receptive field, parameters, multiply-adds.

    Args:
        model: A preset's name, a model folder or hf://USER/NAME.
        size: Rows and columns of the image.
        num_classes: Channels of the logits, of a preset.
        output_stride: 8, 16 or 32, of a preset; by default its own.
    """
    if model in PRESETS:
        fields = {"output_stride": output_stride} if output_stride else {}
        network = build(PRESETS[model].override(num_classes=num_classes, **fields))
    elif url_of(model) is not None or Path(model).exists():
        network = load(model)
    else:
        near = close_names(model)
        hint = f"; did you mean {near}?" if near else ""
        raise ModelError(
            f"{model} is neither a preset (see `deeplab list`) nor a model folder{hint}"
        )
    rows = summarize(network, size)
    table = Table("stage", "output", box=None)
    for column in ("receptive field", "parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    for row in rows:
        field = "" if row.receptive_field is None else str(row.receptive_field)
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.stage, shape, field, f"{row.parameters:,}", f"{row.multiply_adds:,}")
    total = [sum(getattr(row, name) for row in rows) for name in ("parameters", "multiply_adds")]
    table.add_section()
    table.add_row("total", "", "", *(f"{n:,}" for n in total))
    Console().print(table)
    return 0


def check(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|RUN")], /
) -> int:
    """Check a model, or all that a training's run has kept, for damage.

    Compares everything with the digests that were written with it. The exit status is 1 where something is
    damaged.

    Args:
        path: A model folder, a .safetensors file, a run's folder or hf://USER/NAME.
    """
    console, damaged = Console(soft_wrap=True, highlight=False), False
    for name, lines in _checked(path):
        damaged |= bool(lines)
        if lines is None:
            console.print(f"{name} has no digests, and cannot be checked")
        elif not lines:
            console.print(f"{name} is whole")
        for line in lines or ():
            console.print(f"{name} is [red]damaged[/]: {escape(line)}")
    return int(damaged)


def export(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    /,
    to: Literal["onnx", "stablehlo", "tflite", "savedmodel"] | None = None,
    images: Literal["normalized", "pixels"] = "normalized",
    output: Literal["logits", "probabilities", "classes"] = "logits",
    layout: Literal["nhwc", "nchw"] | None = None,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    overwrite: bool = False,
) -> int:
    """Write a model as ONNX, StableHLO, TFLite or SavedModel, for runtimes without this package.

    ONNX is for onnxruntime, OpenVINO, TensorRT and others; StableHLO, which jax.export reads, for CPU, CUDA
    and TPU at once; TFLite for phones; SavedModel, a folder, for TensorFlow. The file is run and compared
    with the model before it takes its place. Where sizes are not fixed, images of 64 x 64 and more are
    taken; TensorRT, TFLite and SavedModel want fixed ones.

    Args:
        model: A model folder or .safetensors file, as deeplab-port makes them, a training run's folder, or
            hf://USER/NAME, with @REVISION or without.
        out: The file to write, or the folder of a SavedModel.
        to: The format; by default what the file's name ends in.
        images: What the program takes: float images as deeplab_jax.normalize makes them, or uint8 RGB.
        output: What it gives: scores of each class, or the class of every pixel.
        layout: Of images and scores. By default nchw for normalized images of ONNX, as exports from PyTorch
            have them, and nhwc otherwise.
        size: Rows and columns of all images; by default any.
        batch: Number of images at once; by default any.
        dtype: What the convolutions compute in; float16 is for GPUs, and halves the file.
        overwrite: Replace a file that is there.
    """
    from deeplab_jax.export import Interface
    from deeplab_jax.export import export as write

    if layout is None:
        layout = "nchw" if images == "normalized" and _is_onnx(to, out) else "nhwc"
    interface = Interface(images, output, layout, size, batch)
    written = write(load(model), out, interface, to=to, dtype=dtype, overwrite=overwrite)
    console = Console(soft_wrap=True, highlight=False)
    sizes = ", ".join(" x ".join(map(str, shape)) for shape in written.compared)
    taken = sum(file.stat().st_size for file in (out, *out.rglob("*")) if file.is_file())
    console.print(f"{escape(str(out))}: {taken / 1e6:.1f} MB")
    console.print(
        f"compared with the model on {sizes}: differs by {written.error:.1e} of the largest score"
    )
    console.print(escape(written.usage), style="dim")
    return 0


def push_model(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    to: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="hf://USER/NAME")],
    /,
    private: bool = False,
    revision: Annotated[str | None, tyro.conf.arg(metavar="BRANCH")] = None,
    message: str = "Push a model of deeplab_jax",
    licence: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None,
    picture: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    overwrite_card: bool = False,
) -> int:
    """Upload a model to the Hugging Face hub, with a card that says what is known of it.

    The model is loaded and its digest checked before anything is uploaded. A model that is there is
    replaced, in one commit.

    Args:
        model: A model folder, a .safetensors file, or a training run's folder, whose scores the card has.
        to: The repository, which is made if it is not there.
        private: Make it for yourself and those whom you let in.
        revision: The branch to push to, which is made if it is not there; by default the hub's main one.
        message: Of the commit.
        licence: Of the weights, as the hub calls it: apache-2.0, mit, cc-by-4.0, other.
        picture: A JPEG or PNG for the card, such as an overlay that deeplab predict has written.
        overwrite_card: Replace a README.md that somebody has written.
    """
    pushed = push(
        model,
        to,
        private=private,
        revision=revision,
        message=message,
        licence=licence,
        picture=picture,
        overwrite_card=overwrite_card,
    )
    console = Console(soft_wrap=True, highlight=False)
    for note in pushed.notes:
        console.print(f"note: {escape(note)}")
    name = escape(pushed.repository)
    console.print(f"Pushed [bold]{name}[/]. Try: deeplab predict {name} PICTURE --out predictions")
    return 0


def demo(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = False,
    title: str | None = None,
    largest: int = LARGEST,
    space: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
) -> int:
    """Serve a page on which the model segments pictures, from files or a camera.

    The page is Gradio's (pip install 'deeplab-jax[app]'). It is served from this machine, to this machine
    alone unless --host says otherwise, and loads nothing from elsewhere.

    Args:
        model: A model folder or .safetensors file, as deeplab-port makes them, a training run's folder, or
            hf://USER/NAME, with @REVISION or without.
        host: 0.0.0.0 serves all who reach this machine. A browser gives its camera to localhost and to
            https alone.
        port: By default the first free one from 7860 on.
        browser: Open the page in a browser.
        title: Of the page; by default the model's name.
        largest: Pixels of the longer side; larger pictures are shrunk.
        space: Serve nothing, but write a folder that is a Space of the Hugging Face hub.
    """
    keep_compiled_programs(unless_slower=True)
    network, title = load(model), title or model.stem
    console = Console(soft_wrap=True, highlight=False)
    if space is not None:
        write_space(network, model, space, title=title, largest=largest)
        name = escape(str(space))
        console.print(
            f"{name} is a Space. Try it: pip install -r {name}/requirements.txt, and in {name}"
        )
        console.print(f"python app.py. Upload it: hf upload USER/NAME {name} --repo-type space")
        return 0
    launch(page(network, title=title, largest=largest), host=host, port=port, inbrowser=browser)
    return 0


def _is_onnx(to: str | None, out: Path) -> bool:
    return (to or out.suffix.removeprefix(".")) == "onnx"


def _checked(path: Path) -> Iterator[tuple[str, list[str] | None]]:
    """The parts of a model or run, and what is wrong with each; None where nothing tells."""
    if url_of(path) is not None:
        path = model_path(path)
    for step in steps_in(path / RUN_CHECKPOINTS):
        yield f"step {step.name}", damage(step) if has_digests(step) else None
    if not (path / RUN_CHECKPOINTS).is_dir() or (path / RUN_MODEL).is_dir():
        try:
            load(path)
            lines = []
        except ModelError as error:
            if not path.exists() or isinstance(error.__cause__, UnknownKindError):
                raise
            lines = [str(error)]
        yield "model", None if not lines and not is_sealed(path) else lines


def _demo() -> list[str]:
    try:
        folder = resources.files("skimage") / "data"
    except ModuleNotFoundError as error:
        raise ImageError(
            "the demo's photographs are scikit-image's: pip install 'deeplab-jax[demo]'"
        ) from error
    return [str(folder / name) for name in DEMO_IMAGES]


def main() -> None:
    """Runs the command."""
    logging.basicConfig(
        format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)]
    )
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {
                "predict": predict,
                "list": list_presets,
                "summary": summary,
                "check": check,
                "export": export,
                "push": push_model,
                "demo": demo,
            },
            prog="deeplab",
            description=f"DeepLabv3 and v3+ in JAX and Flax. {PLUGIN_HELP}",
        )
    )


if __name__ == "__main__":
    main()
