"""A page on which a model segments pictures, served here or as a Space of Hugging Face."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image

from deeplab_jax.beside import folder_beside
from deeplab_jax.checkpoint import check_parent, save
from deeplab_jax.config import mask_classes
from deeplab_jax.fold import fold_batch_norm
from deeplab_jax.hub import repository_of
from deeplab_jax.images import ImageError, read_image
from deeplab_jax.model import SegmentationModel
from deeplab_jax.predict import check_plain, config_of, predict
from deeplab_jax.version import version_of
from deeplab_jax.visualize import overlay, palette, save_labels

if TYPE_CHECKING:
    import gradio

LARGEST = 1024
"""Pixels of the longer side of a picture, unless asked for otherwise; larger ones are shrunk."""

SHOWN = 20
"""Classes that may be switched on and off; those that cover less are always shown."""

_SMALLEST = 32
_KEPT_MASKS = 64  # of the latest pictures; Gradio has copies of the others for an hour

CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: auto }
.picture img { max-height: 70vh; object-fit: contain }
#classes .wrap { gap: 6px }
#classes label, #classes label.selected {
  padding: 4px 8px; background: var(--background-fill-secondary); color: var(--body-text-color)
}
#classes label:not(.selected) { opacity: .6 }
"""


class DemoError(ValueError):
    """What the page cannot do as it was asked for; the message says what to do."""


# ---------------------------------------------------------------------------- what the page does


@dataclasses.dataclass(frozen=True)
class Segmented:
    """A picture and what the model says of it.

    Attributes:
      pixels: uint8 `[H, W, 3]`, RGB.
      ids: the class of every pixel, `[H, W]`.
      seconds: what the model took, compiling included.
      shrunk_from: (H, W) of the file's own picture, where that was larger.
    """

    pixels: np.ndarray
    ids: np.ndarray
    seconds: float
    shrunk_from: tuple[int, int] | None = None

    @property
    def classes(self) -> list[int]:
        """The ids in the picture, those of the largest areas first, `SHOWN` at most."""
        areas = np.bincount(self.ids.reshape(-1))
        return [int(i) for i in np.argsort(-areas, kind="stable")[:SHOWN] if areas[i]]


def segment(model: SegmentationModel, path: str | os.PathLike, largest: int = LARGEST) -> Segmented:
    """Segments the picture in a file.

    Raises ImageError where it cannot be read.
    """
    pixels, shrunk_from = read_image(path), None
    if max(pixels.shape[:2]) > largest:
        shrunk_from = pixels.shape[0], pixels.shape[1]
        picture = Image.fromarray(pixels)
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture)
    start = time.perf_counter()
    ids = predict(model, pixels)
    return Segmented(pixels, ids, time.perf_counter() - start, shrunk_from)


@dataclasses.dataclass(frozen=True)
class Legend:
    """The names and colours of a model's classes; colours are uint8 `[classes, 3]`."""

    names: tuple[str, ...]
    colors: np.ndarray

    @classmethod
    def of(cls, model: SegmentationModel) -> "Legend":
        """That of a model; classes without a name are numbered."""
        config = config_of(model)
        count = mask_classes(config.num_classes)
        names = config.class_names or tuple(f"class {i}" for i in range(count))
        return cls(names, palette(count, config.class_names))

    def draw(self, found: Segmented, alpha: float, shown: Collection[int]) -> Image.Image:
        """The picture tinted by class; of `Segmented.classes` only those that are shown."""
        hidden = [i for i in found.classes if i not in shown]
        colors = self.colors.copy()
        colors[hidden] = 0  # black is no tint
        return overlay(found.pixels, found.ids, colors, alpha=alpha, legend=False)

    def choices(self, found: Segmented) -> list[tuple[str, int]]:
        """The label and the id of each class of `Segmented.classes`."""
        shares = np.bincount(found.ids.reshape(-1)) / found.ids.size
        return [
            (f"{self.names[i]} {'<0.1' if shares[i] < 5e-4 else f'{shares[i]:.1%}'[:-1]} %", i)
            for i in found.classes
        ]

    def swatches(self, found: Segmented) -> str:
        """A style sheet that puts each class's colour before its choice."""
        rules = (
            f"#classes label:nth-of-type({n}) span::before {{ background: rgb({r}, {g}, {b}) }}"
            for n, (r, g, b) in enumerate(self.colors[found.classes].tolist(), 1)
        )
        before = (
            "content: ''; display: inline-block; width: .9em; height: .9em; margin-right: .5em; "
            "border: 1px solid #8888; border-radius: 3px; vertical-align: -.1em"
        )
        return f"<style>#classes label span::before {{ {before} }} {' '.join(rules)}</style>"


def told(found: Segmented) -> str:
    """How long it took, and of which size the picture is, in Markdown."""
    height, width = found.ids.shape
    text = f"**{found.seconds:.2f} s** on {jax.default_backend()} for {width} x {height} pixels"
    if found.shrunk_from is not None:
        own_height, own_width = found.shrunk_from
        text += f", shrunk from {own_width} x {own_height}"
    return f"{text}. The first picture of a size takes longer, as the model is compiled for it."


# ---------------------------------------------------------------------------- the page


def page(
    model: SegmentationModel, *, title: str = "deeplab_jax", largest: int = LARGEST
) -> "gradio.Blocks":
    """The page, which `launch` serves.

    Args:
      model: from `create`, `load` or the porter, of RGB pictures.
      title: above all.
      largest: pixels of the longer side of a picture; larger ones are shrunk.

    Raises:
      DemoError: Gradio is not installed, or `largest` is too small.
      ValueError: see `predict.check_plain`.
    """
    check_plain(config_of(model), "pictures on the page")
    if largest < _SMALLEST:
        raise DemoError(f"largest must be at least {_SMALLEST} pixels, got {largest}")
    gr = _gradio()
    legend, folded = Legend.of(model), fold_batch_norm(model)
    masks, numbers = tempfile.TemporaryDirectory(prefix="deeplab_demo."), itertools.count()

    def run(path: str | None, alpha: float) -> tuple[Any, ...]:
        if path is None:
            nothing = gr.DownloadButton(value=None, interactive=False)
            return None, None, gr.CheckboxGroup([], value=[]), "", "", nothing
        try:
            found = segment(folded, path, largest)
        except ImageError as error:
            # The path is one of the server's.
            raise gr.Error(str(error).removeprefix(f"{path}: "), print_exception=False) from error
        place = Path(masks.name) / str(next(numbers) % _KEPT_MASKS)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        mask = place / f"{Path(path).stem}_mask.png"
        save_labels(mask, found.ids, legend.colors)
        return (
            found,
            legend.draw(found, alpha, found.classes),
            gr.CheckboxGroup(legend.choices(found), value=found.classes),
            legend.swatches(found),
            told(found),
            gr.DownloadButton(value=str(mask), interactive=True),
        )

    def redraw(found: Segmented | None, alpha: float, shown: list[int]) -> Image.Image | None:
        return None if found is None else legend.draw(found, alpha, shown)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        found = gr.State()
        style = gr.HTML()
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    label="Picture",
                    elem_classes="picture",
                )
            # The file as it is: of one that is no picture, Gradio's own says "Error". No subclass, as for
            # those Gradio writes a stub beside this file.
            picture.preprocess = lambda file: None if file is None else file.path
            with gr.Column():
                shown_picture = gr.Image(
                    label="Overlay",
                    elem_classes="picture",
                    format="png",
                    interactive=False,
                    buttons=["fullscreen"],
                )
        taken = gr.Markdown()
        with gr.Row():
            alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity")
            mask = gr.DownloadButton("Download the mask", size="md", interactive=False)
        classes = gr.CheckboxGroup(label="Classes in the picture", elem_id="classes")
        outputs = [found, shown_picture, classes, style, taken, mask]
        picture.change(
            run, [picture, alpha], outputs, api_name="segment", show_progress_on=shown_picture
        )
        gr.on(
            [alpha.release, classes.input],
            redraw,
            [found, alpha, classes],
            shown_picture,
            show_progress="hidden",
            api_name=False,
        )
    return blocks


def launch(
    blocks: "gradio.Blocks", *, host: str = "127.0.0.1", port: int | None = None, **options: Any
) -> None:
    """Serves a page until Ctrl-C or SIGTERM; nothing is loaded from elsewhere or reported.

    Args:
      port: None is the first free one from 7860 on.
      options: for `gradio.Blocks.launch`.
    """
    gr = _gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, url, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        theme=gr.themes.Soft(primary_hue="teal", **fonts),
        css=CSS,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        **options,
    )
    # As Ctrl-C does: the folder of masks is removed at the end of Python.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    print(f"The page is at {url} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


def _gradio() -> Any:
    # Before it is imported: it would ask its makers for the latest version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise DemoError("the page is Gradio's: pip install 'deeplab-jax[app]'") from error
    return gradio


# ---------------------------------------------------------------------------- a Space

_APP = '''"""The page of a model, as a Space of the Hugging Face hub runs it."""

from deeplab_jax import keep_memory, load
from deeplab_jax.demo import launch, page

keep_memory()
launch(page(load({model!r}), title={title!r}, largest={largest}), host="0.0.0.0")
'''

_CARD = """---
title: {quoted}
sdk: gradio
{sdk_version}app_file: app.py
---

# {title}

A DeepLab of deeplab_jax segments pictures. The page runs anywhere:
`pip install -r requirements.txt && python app.py`.
"""


def write_space(
    model: SegmentationModel,
    source: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    title: str = "deeplab_jax",
    largest: int = LARGEST,
) -> None:
    """Writes what a Space consists of: app.py, requirements.txt, README.md and the model.

    A model that is on the hub is named there, and not copied.

    Args:
      source: where the model was loaded from.
      folder: is made, and must not be there.
      title, largest: see `page`.

    Raises:
      DemoError: the folder is there.
      ModelError: it cannot be made.
    """
    folder = Path(folder)
    if folder.exists():
        raise DemoError(f"{folder} exists: choose another folder for the Space")
    check_parent(folder)
    repository = repository_of(source)
    version = version_of("gradio")
    extras = "app" if repository is None else "app,hub"
    files = {
        "app.py": _APP.format(
            model=str(repository or "model.safetensors"), title=title, largest=largest
        ),
        "requirements.txt": f"deeplab-jax[{extras}]\n",
        "README.md": _CARD.format(
            title=title,
            quoted=json.dumps(title),
            sdk_version=f"sdk_version: {version}\n" if version else "",
        ),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(folder) as beside:
        new = beside / folder.name
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text, "utf-8")
        if repository is None:
            save(model, new / "model.safetensors")
        new.rename(folder)
