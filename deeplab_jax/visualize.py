"""Class ids as pictures: palettes, label PNGs, and overlays with a legend."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from deeplab_jax.images import write_image

IGNORED = 255
"""The id of pixels that no class is claimed for, in label files of up to 255 classes."""

IGNORED_COLOR = (224, 224, 192)
"""PASCAL VOC's colour of `IGNORED`, a pale cream; it is what VOC's rule gives for 255."""

PALETTES: dict[str, dict[str, tuple[int, int, int]]] = {
    "cityscapes": {
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "building": (70, 70, 70),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "pole": (153, 153, 153),
        "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35),
        "terrain": (152, 251, 152),
        "sky": (70, 130, 180),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
        "train": (0, 80, 100),
        "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    },
    "camvid": {
        "sky": (128, 128, 128),
        "building": (128, 0, 0),
        "pole": (192, 192, 128),
        "road": (128, 64, 128),
        "pavement": (60, 40, 222),
        "tree": (128, 128, 0),
        "sign symbol": (192, 128, 128),
        "fence": (64, 64, 128),
        "car": (64, 0, 128),
        "pedestrian": (64, 64, 0),
        "bicyclist": (0, 128, 192),
    },
}
"""Colours of data sets' own tools, for models whose class names all appear in one of them."""

_BACKGROUND_NAMES = {"background", "void", "unlabeled", "unlabelled", "other", "none"}
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

# ---------------------------------------------------------------------------- palettes


def palette(num_classes: int, class_names: Sequence[str] | None = None) -> np.ndarray:
    """A colour for each class, uint8 `[num_classes, 3]`, RGB.

    * Class names that all appear in one of `PALETTES` get its colours, in any order or spelling
      (`sign_symbol`, `SignSymbol`).
    * Otherwise up to 256 classes get PASCAL VOC's, in which class 0, the background, is black;
      black is left out where class 0 has another name ("wall"). More get evenly spread hues.
    """
    names = [_plain(name) for name in class_names or ()]
    for colors in PALETTES.values():
        by_name = {_plain(name): color for name, color in colors.items()}
        if names and all(name in by_name for name in names):
            return np.array([by_name[name] for name in names], np.uint8)
    if num_classes > 256:
        return _spread_hues(num_classes)
    if not names or names[0] in _BACKGROUND_NAMES:
        return _voc(num_classes)
    # Shifted by one; the last of 256 classes has no 257th colour to go to and takes the black.
    return np.roll(_voc(min(num_classes + 1, 256)), -1, axis=0)[:num_classes]


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _voc(num_classes: int) -> np.ndarray:
    """PASCAL VOC's rule: bits 0, 3, 6 of the id are the highest bits of red; 1, 4, 7 green, ..."""
    ids = np.arange(num_classes)
    colors = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        channel, weight = bit % 3, 7 - bit // 3
        colors[:, channel] |= ((ids >> bit & 1) << weight).astype(np.uint8)
    return colors


def _spread_hues(num_classes: int) -> np.ndarray:
    """Hues a golden angle apart, so that neighbours differ most, on nine rings of tone."""
    ids = np.arange(num_classes)
    hue = ids * _GOLDEN_RATIO % 1
    saturation = np.array([0.85, 0.6, 0.4])[ids % 3]
    value = np.array([0.95, 0.75, 0.55])[ids // 3 % 3]
    # HSV to RGB: a channel falls from `value` with the distance of its hue from the pixel's.
    distance = np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3)
    rgb = value[:, None] * (1 - saturation[:, None] * (1 - np.clip(distance - 1, 0, 1)))
    return np.round(rgb * 255).astype(np.uint8)


# ---------------------------------------------------------------------------- labels


def colorize(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Class ids `[H, W]` -> uint8 `[H, W, 3]`; 255 is `IGNORED_COLOR` unless it is a class.

    Raises:
      ValueError: ids that are neither.
    """
    table = color_table(colors)
    present = np.flatnonzero(_areas(labels))
    unknown = [i for i in present if i >= len(colors) and not (i == IGNORED and len(table) == 256)]
    if unknown:
        raise ValueError(
            f"class ids must be below the {len(colors)} colours of the palette, or {IGNORED} for "
            f"ignored pixels, got {', '.join(map(str, unknown[:10]))}"
            + (" and more" if len(unknown) > 10 else "")
        )
    return table[labels]


def save_labels(
    path: str | os.PathLike,
    labels: np.ndarray,
    colors: np.ndarray,
    *,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes class ids `[H, W]` as a PNG whose pixels are the ids.

    Up to 256 classes: 8 bits with a palette, so that viewers show the colours. Pillow reads the ids
    back (`np.asarray(Image.open(path))`); OpenCV's `imread` would give the colours. More classes:
    16-bit grey without colours.

    Args:
      texts: to keep in the file, by their keys.

    Raises:
      OSError: the file cannot be written; nothing is then left half written.
      ValueError: `path` does not end in .png, which alone keeps the ids as they are.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"labels must be saved as .png, which keeps every id, got {path.name!r}")
    if len(colors) > 256:
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        # All 256 entries, though the model may have 11 classes: of a short palette Pillow makes a
        # file of 4 bits a pixel, which cannot hold 255.
        image.putpalette(color_table(colors).tobytes())
    kept = PngInfo()
    for key, text in (texts or {}).items():
        kept.add_text(key, text)
    write_image(path, image, pnginfo=kept)


def color_table(colors: np.ndarray) -> np.ndarray:
    """`colors` filled up to 256 rows, the last of them for `IGNORED`."""
    table = np.zeros((max(256, len(colors)), 3), np.uint8)
    table[IGNORED] = IGNORED_COLOR
    table[: len(colors)] = colors
    return table


def _areas(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.reshape(-1), minlength=256)


# ---------------------------------------------------------------------------- overlay

_PANEL, _TEXT, _FAINT, _FRAME = (250, 250, 250), (45, 45, 45), (130, 130, 130), (170, 170, 170)
_SHOWN_CLASSES = 20
_LONGEST_NAME = 12  # times the font's height, about 24 letters
# The font in Pillow has Latin letters without accents; these are where other names may be found.
_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf", "Arial.ttf")


def overlay(
    image: Image.Image | np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
    *,
    alpha: float = 0.5,
    class_names: Sequence[str] | None = None,
    legend: bool = True,
) -> Image.Image:
    """The picture tinted by class, with outlines and a legend of the classes in it.

    The top left `[H, W]` of the result is the picture, pixel for pixel; the legend stands in a
    panel beneath, or beside a tall picture, and hides nothing. It lists classes by area, the 20
    largest at most. Black classes, such as the background in VOC's palette, are left untinted and
    are an empty frame in the legend.

    Args:
      image: RGB, uint8 `[H, W, 3]` or a Pillow image.
      labels: class ids `[H, W]`, see `colorize`.
      colors: of each class, see `palette`.
      alpha: 0 leaves the picture as it is, 1 covers it.
      class_names: of each class; "class 7" without them.

    Raises:
      ValueError: picture and labels differ in size, or ids have no colour.
    """
    pixels = np.asarray(image)
    if pixels.shape != (*labels.shape, 3):
        raise ValueError(
            "the picture must be [H, W, 3] for labels [H, W], got "
            f"{list(pixels.shape)} for {list(labels.shape)}"
        )
    tint = colorize(labels, colors)
    clear = ~tint.any(axis=-1, keepdims=True)
    # The outline is of the class's own colour and nearly covers: edges show where tints are alike.
    strength = np.where(_outlines(labels)[..., None], max(alpha, min(1.0, alpha * 1.8)), alpha)
    strength = np.where(clear, 0.0, strength).astype(np.float32)
    mixed = pixels * (1 - strength) + tint * strength
    picture = Image.fromarray(np.round(mixed).astype(np.uint8))
    return with_legend(picture, _areas(labels), colors, class_names) if legend else picture


def overlay_of_labels(
    image: Image.Image | np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
    *,
    alpha: float = 0.5,
    class_names: Sequence[str] | None = None,
    legend: bool = True,
) -> Image.Image:
    """As `overlay`, of labels of which a pixel may have several: the smallest is drawn last.

    Args:
      labels: `[H, W, labels]`, not 0 where a pixel has the label.
      colors: of each label.
      class_names: of each label.
    """
    areas = np.count_nonzero(labels, axis=(0, 1))
    shown = np.zeros(labels.shape[:2], np.uint16)
    for label in np.argsort(-areas, kind="stable").tolist():
        shown[labels[..., label] != 0] = label + 1
    table = np.concatenate([np.zeros((1, 3), np.uint8), colors])
    picture = overlay(image, shown, table, alpha=alpha, legend=False)
    if not legend:
        return picture
    names = class_names or [f"label {i}" for i in range(len(colors))]
    none = np.count_nonzero(shown == 0)
    return with_legend(
        picture, np.array([none, *areas]), table, ("none", *names), pixels=shown.size
    )


def _outlines(labels: np.ndarray) -> np.ndarray:
    """Pixels at most a line's width from another class; the line grows with the picture."""
    edges = np.zeros(labels.shape, bool)
    for step in range(1, 1 + max(1, round(max(labels.shape) / 1000))):
        for axis in (0, 1):
            ids, marks = np.moveaxis(labels, axis, 0), np.moveaxis(edges, axis, 0)  # views
            differs = ids[:-step] != ids[step:]
            marks[:-step] |= differs
            marks[step:] |= differs
    return edges


def with_legend(
    picture: Image.Image,
    areas: np.ndarray,
    colors: np.ndarray,
    class_names: Sequence[str] | None = None,
    pixels: int | None = None,
) -> Image.Image:
    """The picture with a panel beneath or beside it that lists classes, see `overlay`.

    Args:
      areas: pixels of each class, and of those that are ignored at 255.
      pixels: of which areas are shares; None is their sum.
    """
    entries, rest = _legend_entries(areas, len(colors), class_names, pixels)
    size = min(max(13, round(max(picture.size) / 55)), 120)
    font = _font(size, "".join(name for _, name, _ in entries))
    gap, swatch, row = round(size * 0.6), size, round(size * 1.6)
    entries = [(i, _elide(name, font, _LONGEST_NAME * size), share) for i, name, share in entries]
    name_width = math.ceil(max(font.getlength(name) for _, name, _ in entries))
    share_width = math.ceil(max(font.getlength(share) for _, _, share in entries))
    column = swatch + gap + name_width + gap + share_width + 2 * gap
    if beside := picture.height > 2 * picture.width:
        rows = max(1, min((picture.height - 2 * gap) // row - 1, len(entries)))
    else:
        rows = -(-len(entries) // max(1, (picture.width - gap) // column))
    columns = -(-len(entries) // rows)
    panel = (columns * column + gap, 2 * gap + row * (rows + (rest > 0)))
    left, top = (picture.width, 0) if beside else (0, picture.height)
    width, height = max(picture.width, left + panel[0]), max(picture.height, top + panel[1])
    canvas = Image.new("RGB", (width, height), _PANEL)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    table = color_table(colors)
    for n, (i, name, share) in enumerate(entries):
        x = left + 2 * gap + n // rows * column
        y = top + gap + n % rows * row + row // 2
        box = (x, y - swatch // 2, x + swatch, y + swatch // 2)
        fill = tuple(table[i].tolist()) if table[i].any() else None
        draw.rounded_rectangle(box, size // 5, fill, _FRAME, max(1, size // 16))
        draw.text((x + swatch + gap, y), name, _TEXT, font, "lm")
        draw.text((x + column - 2 * gap, y), share, _FAINT, font, "rm")
    if rest:
        y = top + gap + rows * row + row // 2
        draw.text((left + 2 * gap, y), f"and {rest} more", _FAINT, font, "lm")
    return canvas


def _legend_entries(
    areas: np.ndarray,
    num_classes: int,
    class_names: Sequence[str] | None,
    pixels: int | None = None,
) -> tuple[list[tuple[int, str, str]], int]:
    """(id, name, share of the picture) of the largest classes, and how many more there are."""
    order = [i for i in np.argsort(-areas, kind="stable").tolist() if areas[i]]
    entries = []
    for i in order[:_SHOWN_CLASSES]:
        percent = 100 * areas[i] / (pixels or areas.sum())
        share = f"{percent:.1f} %" if percent >= 0.05 else "<0.1 %"
        known = class_names[i] if class_names and i < num_classes else f"class {i}"
        entries.append((i, known if i < num_classes else "ignored", share))
    return entries, len(order) - len(entries)


def _elide(name: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name.rstrip() + "…"


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    if not text.isascii():
        for name in _FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:  # this machine has not got it
                continue
    return ImageFont.load_default(size)
