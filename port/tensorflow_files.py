"""Opens what TensorFlow saved: a checkpoint, a frozen graph, or a folder or an archive with them.

TF-slim's variables get the names and the layout that PyTorch would have given them
(`aspp0/BatchNorm/gamma` is `aspp0.BatchNorm.weight`), so that the rest of the porter treats them as it
treats any other tensors. tensorflow is imported only for files that it wrote.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax.quiet_tensorflow import import_tensorflow
from port.tensorflow_graph import FrozenGraph

INDEX, GRAPH = ".index", ".pb"  # ends of names: a checkpoint's list of variables, a graph
PARTS = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")  # what `model.ckpt` is on the disk
WANTED = re.compile(r"(\.index|\.data-\d{5}-of-\d{5}|\.pb|(^|/)checkpoint)$")
SAVED_MODEL = "saved_model.pb"
ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
MOST_UNPACKED = 8 * 2**30  # bytes; the largest archive of the model zoo has half of one
EMA = "ExponentialMovingAverage"
INSTALL = "pip install 'deeplab-jax[tensorflow]'"

LEAVES = {  # TF-slim's variables -> what PyTorch calls them, and the axes in its order
    "weights": ("weight", (3, 2, 0, 1)),
    "depthwise_weights": ("weight", (2, 3, 0, 1)),
    "biases": ("bias", None),
    "gamma": ("weight", None),
    "beta": ("bias", None),
    "moving_mean": ("running_mean", None),
    "moving_variance": ("running_var", None),
}


class Saved(NamedTuple):
    """What TensorFlow's files hold.

    Attributes:
      tensors: by PyTorch's names and in its layout; averages of the weights are below "ema.".
      dropped: a line per thing left out.
      graph: the frozen graph, where there is one: it can be run.
    """

    tensors: dict[str, np.ndarray]
    dropped: list[str]
    graph: FrozenGraph | None


class _Files(NamedTuple):
    """The files of a model: the name of a checkpoint without its end, and a frozen graph."""

    checkpoint: Path | None
    graph: Path | None
    beside: list[str]


def open_saved(path: Path) -> Saved | None:
    """What TensorFlow saved at a path; None for what is not TensorFlow's.

    Args:
      path: a checkpoint's name (`model.ckpt-30000`) or one of its files, a frozen graph (.pb), a folder
        with these, or a tar archive of it.

    Raises:
      ImportError: tensorflow is not installed.
      ValueError: the files are TensorFlow's, and cannot be read or are not of one model.
    """
    with ExitStack() as stack:
        if (folder := _unpacked(path, stack)) is not None:
            found = _in_folder(folder, path)
        elif path.is_dir():
            found = _in_folder(path, path)
        else:
            found = _at(path)
        if found is None:
            return None
        return _load(found)


# ---------------------------------------------------------------------------- files


def _at(path: Path) -> _Files | None:
    if path.suffix == GRAPH and path.is_file():
        if path.name == SAVED_MODEL:
            raise ValueError(
                f"{path} is a SavedModel, whose variables are in a folder of their own; pass the "
                "checkpoint (model.ckpt) or the frozen graph that it was made from"
            )
        return _Files(None, path, [])
    checkpoint = Path(PARTS.sub("", str(path)))
    if Path(f"{checkpoint}{INDEX}").is_file():
        return _Files(checkpoint, None, [])
    return None


def _in_folder(folder: Path, shown: Path) -> _Files | None:
    """Those of a folder or of the only folder in it; `shown` is its name for people."""
    inside = sorted(folder.iterdir())
    if len(inside) == 1 and inside[0].is_dir():
        return _in_folder(inside[0], shown)
    checkpoints = [file.with_suffix("") for file in inside if file.suffix == INDEX]
    graphs = [f for f in inside if f.suffix == GRAPH and f.name != SAVED_MODEL and f.is_file()]
    if not checkpoints and not graphs:
        return None
    latest = _latest(folder)
    if len(checkpoints) > 1 and latest in checkpoints:
        beside = [f"{c.name}: {latest.name} is the latest" for c in checkpoints if c != latest]
        return _Files(latest, None, beside)
    if len(checkpoints) > 1 or (not checkpoints and len(graphs) > 1):
        names = ", ".join(file.name for file in (checkpoints or graphs)[:10])
        raise ValueError(f"{shown} must have one checkpoint, got {names}. Pass the path of one")
    checkpoint = checkpoints[0] if checkpoints else None
    return _Files(checkpoint, graphs[0] if len(graphs) == 1 else None, [])


def _latest(folder: Path) -> Path | None:
    """What the file `checkpoint`, which training writes, says is the latest."""
    try:
        text = (folder / "checkpoint").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    named = re.search(r'^model_checkpoint_path: "(?:.*[/\\])?([^"/\\]+)"', text, re.M)
    return folder / named[1] if named else None


def _unpacked(path: Path, stack: ExitStack) -> Path | None:
    """A folder that goes with the stack, with TensorFlow's files in a tar archive; None for others."""
    if not path.is_file() or not _is_archive(path):
        return None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        with tarfile.open(path) as archive:
            _unpack(archive, folder, path)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, tarfile.ReadError) and "not a" in str(error):
            return None  # one packed file
        raise ValueError(f"{path} is cut or damaged ({error}). Download it again") from error
    return folder if any(folder.iterdir()) else None


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(ARCHIVES) or head[257:262] == b"ustar"


def _unpack(archive: tarfile.TarFile, folder: Path, shown: Path) -> None:
    """Writes the wanted files into one folder by their last names: no path leads out of it."""
    total = 0
    for member in archive:
        total += member.size
        if total > MOST_UNPACKED:
            raise ValueError(
                f"{shown} unpacks to more than {MOST_UNPACKED >> 30} GiB, which no DeepLab has. If you "
                "trust it, unpack it and pass the folder"
            )
        if not member.isreg() or not WANTED.search(member.name):
            continue
        to = folder / Path(member.name).name
        if to.exists():
            raise ValueError(
                f"{shown} has two files called {to.name}. Unpack it and pass the folder of one model"
            )
        with to.open("wb") as file:
            file.write(archive.extractfile(member).read())


# ---------------------------------------------------------------------------- variables


def _load(files: _Files) -> Saved:
    graph = None if files.graph is None else FrozenGraph.read(files.graph)
    dropped = [*files.beside]
    if files.checkpoint is not None:
        variables = _variables(files.checkpoint)
        if graph is not None:
            dropped.append(f"{files.graph.name}: the checkpoint beside it is read")
    else:
        variables = _constants(graph)
    tensors, lines = _as_pytorch(variables)
    return Saved(tensors, [*dropped, *lines], graph)


def _variables(checkpoint: Path) -> dict[str, np.ndarray]:
    tensorflow = import_tensorflow()
    try:
        reader = tensorflow.train.load_checkpoint(str(checkpoint))
        return {
            name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())
        }
    except Exception as error:  # tensorflow's own types, and C++'s
        cause = str(error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"{checkpoint} cannot be read ({cause[0]}): the files beside {checkpoint.name}{INDEX} must "
            f"be whole, {checkpoint.name}.data-00000-of-00001 among them. Download all of them again"
        ) from error


def _constants(graph: FrozenGraph) -> dict[str, np.ndarray]:
    """The constants of a frozen graph that were variables.

    Raises ValueError where batch norms have been folded into convolutions.
    """
    found = {n: x for n, x in graph.constants().items() if n.rpartition("/")[2] in LEAVES}
    if found and not any(name.endswith("/moving_variance") for name in found):
        raise ValueError(
            f"{graph.name} has no batch norms left: they are folded into its convolutions, as tools do "
            "that optimise graphs. Pass the graph as it was exported, or the checkpoint"
        )
    return found


def _as_pytorch(
    variables: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors by PyTorch's names, and lines for counters and what optimisers keep."""
    scalars = [name for name, value in variables.items() if np.ndim(value) == 0]
    slots = [name for name in variables if name.rpartition("/")[0] in variables]
    averages = [name for name in slots if name.rpartition("/")[2] == EMA]
    plain = [name for name in variables if name not in {*scalars, *slots}]
    tensors = dict(_renamed(plain, variables))
    if averages:
        averaged = {name.rpartition("/")[0]: variables[name] for name in averages}
        # Statistics of batch norm are averages already, and often have no second one.
        whole = _renamed(plain, {**variables, **averaged})
        tensors |= {f"ema.{name}": tensor for name, tensor in whole}
    dropped = [f"counters: {', '.join(scalars[:10])}"] if scalars else []
    if others := [name for name in slots if name not in averages and name not in scalars]:
        kinds = dict.fromkeys(name.rpartition("/")[2] for name in others)
        dropped.append(f"{len(others)} variables of the optimiser: {', '.join(kinds)}")
    return tensors, dropped


def _renamed(
    names: Iterable[str], variables: Mapping[str, np.ndarray]
) -> Iterable[tuple[str, np.ndarray]]:
    for name in names:
        scope, _, leaf = name.rpartition("/")
        called, axes = LEAVES.get(leaf, (leaf, None))
        value = np.asarray(variables[name])
        if axes is not None and value.ndim == len(axes):
            value = value.transpose(axes)
            if leaf == "depthwise_weights":  # [C, outputs of each, h, w]
                value = value.reshape(-1, 1, *value.shape[2:])
        yield ".".join([*scope.split("/"), called]) if scope else called, value
