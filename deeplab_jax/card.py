"""The card of a model on the Hugging Face hub, a README.md: what is known of the model, and what is not."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from deeplab_jax.backbones.registry import families
from deeplab_jax.config import Config, FeaturesConfig, mask_classes
from deeplab_jax.preprocessing import Preprocessing

MARK = "<!-- `deeplab push` writes this file anew each time. Without this line, it leaves it as it is. -->"
LIBRARY = "deeplab_jax"
_TASK = "image-segmentation"
_ON_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")  # ORG/NAME[:CONFIG]
_MEASURES = {
    "miou": ("mIoU", "mean_iou"),
    "mean_dice": ("Dice", None),
    "pixel_accuracy": ("pixel accuracy", "accuracy"),
    "mean_accuracy": ("class accuracy", None),
    "mean_boundary": ("boundary F-score", None),
}
"""The mean scores: for people, and what the hub calls those that it knows."""
_FOREGROUND = _MEASURES | {"miou": ("IoU of the foreground", "mean_iou")}
"""The same of a binary model, whose scores are those of its foreground."""
_HEADINGS = {"iou": "IoU", "dice": "Dice"}
"""Of columns that have another one than their name in scores.json."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an evaluation measured.

    Attributes:
      means: each mean score by its name in scores.json; None for one that is undefined.
      classes: of each class, its "iou", "dice", "accuracy" and "boundary" in the same way.
      dataset: None where it is not recorded.
      options: how it was done, in words, such as "flip".
      images: how many there were.
    """

    means: Mapping[str, float | None]
    classes: Sequence[Mapping[str, Any]]
    dataset: str | None
    split: str
    options: Sequence[str]
    images: int


@dataclasses.dataclass(frozen=True)
class Training:
    """Where weights come from.

    Attributes:
      dataset: its name, without the path of a folder.
      origin: what the training began from; None for random weights.
      steps: of the optimiser; None where it is not certain that all were made.
    """

    dataset: str
    origin: str | None
    steps: int | None = None


def scores_from(data: Mapping[str, Any], training: Training | None = None) -> Scores:
    """The scores in a scores.json, as `deeplab-train` writes it.

    Args:
      training: the run that the evaluation ended, which knows the data set that such a file does not name.

    Raises:
      KeyError, TypeError, ValueError: it is no such file.
    """
    data = {"mean_dice": None} | dict(data)  # which older files have not
    dataset = _name_of_data(data["data"]) if "data" in data else None
    shown = ("step", "output_stride", "scales", "flip", "tile")
    return Scores(
        means={name: _number(data[name]) for name in _MEASURES},
        classes=[dict(row) for row in data["classes"]],
        dataset=training.dataset if dataset is None and training is not None else dataset,
        split=data.get("split", "val"),
        options=[_option(name, data[name]) for name in shown if data.get(name)],
        images=len(data["images"]),
    )


def training_from(config: Mapping[str, Any]) -> Training:
    """How a run trained, from the config in its folder; raises KeyError or TypeError where it is none."""
    init = config["model"]["init"]
    return Training(
        _name_of_data(config["data"]["name"]), None if init is None else _last_name(init)
    )


def card(
    config: Config,
    repository: str,
    *,
    parameters: int,
    scores: Scores | None = None,
    training: Training | None = None,
    licence: str | None = None,
    picture: str | None = None,
) -> str:
    """The text of the card, with the metadata that the hub reads before it.

    Args:
      repository: hf://USER/NAME, under which the model is loaded.
      parameters: number of trained values.
      licence: as the hub calls it, "apache-2.0".
      picture: a file beside the card.
    """
    name = repository.partition("@")[0].rpartition("/")[2]
    parts = [
        f"---\n{_metadata(config, name, scores, licence)}\n---\n{MARK}\n\n# {name}",
        f"A semantic segmentation model for `{LIBRARY}`, in JAX and Flax.",
        *([f"![Pictures and what the model makes of them]({picture})"] if picture else []),
        "## Use",
        _usage(config, repository),
        "## Model",
        "\n".join(_model(config, parameters)),
        "## Classes" if scores is None else "## Classes and scores",
        *([] if scores is None else [_conditions(config, scores)]),
        _classes(config, scores),
        *(["No scores are recorded with the model."] if scores is None else []),
        "## Origin",
        _origin(training),
        f"Licence: {licence}." if licence else "The publisher has not stated a licence.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(config: Config, name: str, scores: Scores | None, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if scores is not None and scores.dataset is not None:
        results = [
            EvalResult(
                task_type=_TASK,
                dataset_type=re.sub(r"[^a-z0-9]+", "-", scores.dataset.lower()).strip("-"),
                dataset_name=scores.dataset,
                dataset_split=scores.split,
                metric_type=kind,
                metric_name=called,
                metric_value=round(value, 4),
            )
            for key, (called, kind) in _measures(config).items()
            if kind is not None and (value := scores.means[key]) is not None
        ]
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=_TASK,
        license=licence,
        tags=[
            "semantic-segmentation",
            "deeplab",
            "jax",
            "flax",
            config.head.kind,
            config.backbone.kind,
        ],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _usage(config: Config, repository: str) -> str:
    module = type(config.backbone).__module__
    own = not module.startswith(f"{LIBRARY}.")
    lines = ["    pip install 'deeplab-jax[hub]'"]
    plugin = f" --plugin {module}" if own else ""
    note = f"\n\nIts backbone is not {LIBRARY}'s: the module `{module}` must be there, which registers it."
    shape = f"[H, W, {config.num_classes}]" if config.multilabel else "[H, W]"
    if config.in_channels == 3:
        lines += [f"    deeplab predict {repository} photos/ --out masks{plugin}"]
        said = "which labels every pixel has" if config.multilabel else "the class of every pixel"
        code = f'ids = predict(model, "photo.jpg")  # {shape}, {said}'
    elif config.in_channels is not None:
        code = f"ids = predict(model, image)  # uint8 [H, W, {config.in_channels}] -> {shape}"
    else:
        code = "logits = model(features)  # a head alone, on a backbone's features"
    imports = "load" if config.in_channels is None else "load, predict"
    python = [f"from {LIBRARY} import {imports}", "", f'model = load("{repository}")', code]
    if own:
        python.insert(0, f"import {module}")
    return "\n".join([*lines, "", "```python", *python, "```"]) + (note if own else "")


def _model(config: Config, parameters: int) -> Iterator[str]:
    stride = config.backbone.output_stride
    yield f"- head: {_head(config.head)}"
    if isinstance(config.backbone, FeaturesConfig):
        yield f"- backbone: none; the head takes features, {config.backbone.high} channels of them"
    else:
        yield f"- backbone: {_backbone(config.backbone)}"
    yield f"- output stride: {stride}"
    yield f"- parameters: {parameters:,}"
    yield f"- preprocessing: {_preprocessing(config.preprocessing)}"
    yield f"- logits: {config.num_classes} channels, {config.activation}"
    yield "- everything else: `config.json`"


def _head(config: Any) -> str:
    """A head by its kind, and by what is not as in most of them."""
    fields = dataclasses.fields(config)
    told = {f.name: v for f in fields if (v := getattr(config, f.name)) != f.default}
    return _listed(config.kind, told)


def _backbone(config: Any) -> str:
    """A backbone by the name of the nearest preset, and by what is not as in that."""
    own = _own_fields(config)
    known = {n: _own_fields(preset) for n, preset in families()[config.kind].presets.items()}
    differing = {
        name: {field: value for field, value in own.items() if fields[field] != value}
        for name, fields in (known or {config.kind: dict.fromkeys(own)}).items()
    }
    nearest = min(differing, key=lambda name: len(differing[name]))
    return _listed(nearest, differing[nearest])


def _own_fields(config: Any) -> dict[str, Any]:
    """A backbone's fields, but those with which it is used at another stride or on other images."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {n: v for n, v in fields.items() if n not in ("output_stride", "in_channels")}


def _listed(name: str, fields: Mapping[str, Any]) -> str:
    return ", ".join([f"`{name}`", *(f"`{field}={value!r}`" for field, value in fields.items())])


def _preprocessing(given: Preprocessing) -> str:
    order = (
        given.channel_order.upper()
        if given.is_rgb
        else f"{len(given.mean)} bands of {given.pixels}"
    )
    order += f", {', '.join(map(str, given.bands))} of the files" if given.bands else ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (given.mean, given.std))
    padded = f"; padded to multiples of {given.size_multiple}" if given.size_multiple > 1 else ""
    return f"{order}, scaled to [0, 1], mean {mean}, standard deviation {std}{padded}"


def _measures(config: Config) -> Mapping[str, tuple[str, str | None]]:
    return _FOREGROUND if config.num_classes == 1 else _MEASURES


def _conditions(config: Config, scores: Scores) -> str:
    data = scores.dataset or "a data set whose name is not recorded"
    options = "".join(f", {option}" for option in scores.options)
    means = ", ".join(
        f"{called} {value:.4f}"
        for key, (called, _) in _measures(config).items()
        if (value := scores.means[key]) is not None
    )
    return f"{means}: on {scores.images} images of {data} (split {scores.split}{options})."


def _classes(config: Config, scores: Scores | None) -> str:
    count = mask_classes(config.num_classes)
    names = config.class_names or ("not known",) * count
    rows: Sequence[Mapping[str, Any]] = scores.classes if scores is not None else [{}] * count
    columns = [c for c in ("iou", "dice", "accuracy", "boundary") if c in rows[0]]
    kind, kinds = ("label", "labels") if config.multilabel else ("class", "classes")
    table = [
        " | ".join(["| id", kind, *(_HEADINGS.get(c, c) for c in columns)]) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        cells = [_cell(_number(row[column])) for column in columns]
        table.append(" | ".join([f"| {number}", _escaped(name), *cells]) + " |")
    if config.class_names is None and scores is None:
        return f"{count} {kinds}. Their names are not recorded in the model."
    several = ", of which a pixel may have several" if config.multilabel else ""
    return f"{count} {kinds}{several}.\n\n" + "\n".join(table)


def _origin(training: Training | None) -> str:
    if training is None:
        return "Where the weights come from is not recorded in the model."
    steps = "" if training.steps is None else f", {training.steps} steps"
    began = "random weights" if training.origin is None else f"the weights of `{training.origin}`"
    return f"Trained with `deeplab-train` on {training.dataset}{steps}, from {began}."


def _name_of_data(name: str) -> str:
    """A data set's name for others, who have nothing of a path on this machine."""
    kind, _, rest = name.partition(":")
    is_path = kind in ("folder", "webdataset") or (kind == "hf" and not _ON_HUB.fullmatch(rest))
    return _last_name(rest) if is_path else name


def _last_name(path: str) -> str:
    """The end of a path; whole where it names a repository of the hub."""
    if path.startswith("hf:/"):
        return "hf://" + path.removeprefix("hf:").lstrip("/")
    return PurePosixPath(path.replace("\\", "/")).name


def _option(name: str, value: Any) -> str:
    if name == "flip":
        return "flip"
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"{name.replace('_', ' ')} {shown}"


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _escaped(text: str) -> str:
    """Text of which Markdown makes neither a table's edge nor markup."""
    return re.sub(r"([|\\`*_<\[])", r"\\\1", " ".join(text.split()))
