"""Opens checkpoints without running their code, and unwraps the weights.

Read down the page: `read` finds the state dict, picks plain or EMA weights, strips counters and
prefixes, and makes arrays of the tensors. torch is imported only for files that torch wrote.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.buckets import local_copy
from port import torchscript, unpickle
from port.naming import LONGEST_NAME, shown
from port.sources import Fetched, fetch
from port.tensorflow_files import INSTALL, Saved, open_saved
from port.tensorflow_graph import FrozenGraph

EMA_WRAPPERS = ("ema", "ema_state", "ema_model", "model_ema", "state_dict_ema", "ema_state_dict")
EMA_WRAPPERS += ("swa_state_dict", "model_swa")
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "net", "network", "module")
WRAPPERS += ("weights", "params", "current_model_state", *EMA_WRAPPERS)
# mmengine's EMAHook and Lightning's WeightAveraging swap the two on saving: `state_dict` is the average.
SWAPPED = {"ema_state_dict": ("message_hub", "steps"), "current_model_state": ("averaging_state",)}
EMA_OPTION = "--ema (in Python, ema=True)"
EMA_PREFIXES = ("ema.", "model_ema.", "ema_model.")
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
ANY_PREFIX = re.compile(r"^((module|_orig_mod|model)\.)+")
FLOATS = ("float16", "bfloat16", "float64")  # become float32; a dtype in neither list is refused
OTHER_DTYPES = (
    "float32",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
SAFETENSORS |= {f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)}
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
CHECKPOINT_ENDS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
INDEX_END = ".index.json"  # of the list of the files that a large model is cut into
INDEX_FILES = tuple(name + INDEX_END for name in FOLDER_FILES)
DEEPEST_WRAPPER = 8  # mappings in mappings
SMALL = 2**20  # bytes that an expanded tensor, or a zip archive, may claim in any case
SHARED_TIMES = 4  # the size of all storages, that tensors which share them may claim together
MOST_TIMES = 100  # its own size, that a zip archive may claim
SETTINGS_FILE = "config.json"
PADDLE = "StructuredToParameterName@@"  # what only a .pdparams has
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before its zip format

FILE_KINDS = (  # what a file that is not a checkpoint is, by its first bytes, and the way out
    (rb"\Z", "it is empty; download or copy it again"),
    (rb"version .*git-lfs", "it is a Git LFS pointer; run `git lfs pull` where it came from"),
    (
        rb"\s*<(!doctype|html|\?xml)",
        "it is a web page, maybe of an error; download the file itself",
    ),
    (rb"[\s -~]*\Z", "it is text; download the file itself"),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|7z|.{257}ustar",
        "it is packed, and has no checkpoint of TensorFlow's inside; unpack it and pass the file inside",
    ),
    (rb"\x89HDF", "it is HDF5, as Keras saves: of another framework, and not read here"),
    (rb".{4}TFL3", "it is a TensorFlow Lite model; pass the weights that it was made from"),
    (
        rb"\x08\x01\x12",
        "it is a SavedModel of TensorFlow's; pass the checkpoint of it (model.ckpt)",
    ),
    (
        rb"\x08[\x03-\x1f]|\x08.{1,40}(pytorch|onnx|tf2onnx)",
        "it is an ONNX model; pass the checkpoint that it was made from",
    ),
    (
        rb"\n[\x01-\x7f][\w ./-]+([\x12\x1a]|\xa2\x06)",
        "it is a Caffe model; pass a checkpoint of PyTorch's that was converted from it",
    ),
    (
        rb"[\x81-\x8f\xde\xdf].{0,4}[\xa1-\xbf\xd9]",
        "it is msgpack, as Flax saves: not of PyTorch, and not read here",
    ),
    (rb"\x93NUMPY", "it is one numpy array; pass a mapping from names to arrays"),
    (rb"GGUF", "it is a GGUF file; pass the PyTorch checkpoint that it was made from"),
    (rb"", "it is of no known kind, or cut short; pass a whole file of torch.save or safetensors"),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message says what it is and what to do."""


@dataclass(frozen=True)
class StateDict:
    """`tensors` by name, in PyTorch's layout and order; `dropped`, a line per thing left out.

    `settings` is the config.json beside a `model.safetensors` or `pytorch_model.bin`, the options
    of the code that saved it; empty where there is none. `known` are fields of the model's config that
    the publisher of a checkpoint tells, see `port.sources`, or its frozen `graph`, which can be run; None
    where there is none.
    """

    tensors: dict[str, np.ndarray]
    dropped: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)
    graph: FrozenGraph | None = None


def read(source: str | os.PathLike[str] | Mapping[str, Any], *, ema: bool = False) -> StateDict:
    """Reads a checkpoint file, a folder with one, a mapping of arrays or torch tensors, or a named one.

    Half, bfloat16 and float64 become float32; integers and bools stay. float32 arrays are views,
    of the file's lazily read pages or of the caller's tensors: copy before writing into one.
    `ema=True` takes a checkpoint's averaged weights. Raises CheckpointError; never unpickles code.
    """
    if not isinstance(source, (str, os.PathLike, Mapping)):
        rule = f"source must be a path or a mapping of tensors, got {type(source).__name__}"
        raise CheckpointError(f"{rule}. Of a torch module, pass model.state_dict().")
    beside: list[str] = []
    known: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    if isinstance(source, str) and (fetched := _fetched(source)):
        source, settings, known = fetched
    graph = None
    if isinstance(source, Mapping):
        tree = source
    else:
        path = local_copy(source)
        if (saved := _saved(path)) is not None:
            tree, beside, graph = saved
            known = graph.options() if graph else {}
        else:
            file, beside = _file(path)
            tree, settings = _open(file), _settings(file)
    if isinstance(tree, Mapping) and PADDLE in tree:
        raise CheckpointError(
            f"{source} is a checkpoint of PaddlePaddle's, which is not read here. Pass one of PyTorch's."
        )
    found, decided, dropped = _unwrap(tree, ema)
    dropped = [*beside, *dropped]
    state = {name: leaf for name, leaf in found.items() if _is_tensor(leaf)}
    dropped += [f"{k}: not a tensor ({_class_of(found[k])})" for k in found if k not in state]
    _check_names(state)
    if not decided:
        state, lines = _split_ema(state, ema)
        dropped += lines
    for counter in ("num_batches_tracked", "n_averaged", "steps"):
        names = {name for name in state if name.rpartition(".")[2] == counter}
        dropped += [f"{counter}: {len(names)} counters"] if names else []
        state = {name: leaf for name, leaf in state.items() if name not in names}
    if not state:
        got = [shown(line) for line in dropped]
        raise CheckpointError(f"a checkpoint must hold weights, got only {got}. Pass another.")
    state, lines = _strip_prefixes(state)
    left_out = tuple(shown(line) for line in (*dropped, *lines))
    return StateDict(_to_arrays(state), left_out, settings, known, graph)


def _check_names(names: Iterable[Any]) -> None:
    """Raises CheckpointError for names that no code gives to tensors."""
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise CheckpointError(
            f"tensor names must be strings, got {shown(wrong[:10])}. Pass a state_dict."
        )
    if wrong := [name for name in names if len(name) > LONGEST_NAME or not name.isprintable()]:
        rule = f"tensor names must be printable and of at most {LONGEST_NAME} characters"
        got = ", ".join(map(shown, wrong[:3]))
        raise CheckpointError(f"{rule}, got {got}. The file is damaged: download or save it anew.")


def _fetched(source: str) -> Fetched | None:
    try:
        return fetch(source)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    except ImportError as error:
        raise CheckpointError(
            f"{source} is fetched by a package that is not installed: pip install {error.name}"
        ) from error


def _saved(path: Path) -> Saved | None:
    """What TensorFlow saved there; None for others' files, and for a folder that has a hub's too."""
    if path.is_dir() and any((path / name).is_file() for name in (*FOLDER_FILES, *INDEX_FILES)):
        return None
    try:
        return open_saved(path)
    except ValueError as error:
        raise CheckpointError(f"{error}.") from error
    except ImportError as error:
        raise CheckpointError(
            f"{path} is TensorFlow's, which reads it and is not installed: {INSTALL}"
        ) from error


# ---- from a path to what the file holds ----


def _file(path: Path) -> tuple[Path, list[str]]:
    """The checkpoint at a path, and a line for each other one; of a folder, the file that hubs write.

    A folder without such a file must have just one that may be a checkpoint.
    """
    beside: list[str] = []
    if path.is_dir():
        names = sorted(os.listdir(path))
        hubs = [name for name in (*FOLDER_FILES, *INDEX_FILES) if name in names]
        others = [name for name in names if name.endswith(CHECKPOINT_ENDS)]
        if not hubs and len(others) != 1:
            rule = f"{path} must have {' or '.join(FOLDER_FILES)}, or one checkpoint alone"
            some = (others or names)[:10]
            raise CheckpointError(f"{rule}, got {some}. Pass the path of the file itself.")
        chosen, *rest = hubs or others
        beside = [f"{name}: {chosen} beside it is read" for name in rest]
        path = path / chosen
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Check the path; download a URL first.")
    return path, beside


def _settings(file: Path) -> dict[str, Any]:
    """The config.json beside a file that is named as those are that have one."""
    path = file.with_name(SETTINGS_FILE)
    if file.name not in (*FOLDER_FILES, *INDEX_FILES) or not path.is_file():
        return {}
    return _json_object(path, "with the options of the model beside it")


def _json_object(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of lists in lists, without end
        found = str(error)
    if not isinstance(found, dict):
        rule = f"{path} must be a JSON object {what}, got {str(found)[:100]!r}"
        raise CheckpointError(f"{rule}. Fix it or remove it.")
    return found


def _open_shards(index: Path) -> dict[str, Any]:
    """The tensors of several files, by the index that says which has which."""
    places = _json_object(index, "that says in which file each tensor is").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise CheckpointError(f"{index} must have a weight_map from names to files. Copy it again.")
    files = {name: index.parent / name for name in places.values()}
    # Names, not paths: an index must not reach out of its folder.
    if missing := [n for n, f in files.items() if f.name != n or not f.is_file()]:
        some = ", ".join(map(shown, sorted(missing)[:10]))
        raise CheckpointError(
            f"{index} names files that are not beside it: {some}. Copy all of them."
        )
    shards = {name: _open(file) for name, file in files.items()}
    if lost := [name for name, file in places.items() if name not in shards[file]][:10]:
        raise CheckpointError(
            f"{index} names tensors that its files lack: {', '.join(map(shown, lost))}."
        )
    return {name: shards[file][name] for name, file in places.items()}


def _open(path: Path) -> Any:
    if path.name.endswith(INDEX_END):
        return _open_shards(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _open_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return _open_torch(path, mmap=False)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:  # header length, JSON
        return _open_safetensors(path)
    if head.startswith(b"\x80"):
        return _open_pickle(path)
    kind = next(text for pattern, text in FILE_KINDS if re.match(b"(?is)" + pattern, head))
    raise CheckpointError(f"{path} is not a checkpoint, it starts with {head[:16]!r}: {kind}.")


def _damaged(path: Path, kind: str, error: Exception) -> CheckpointError:
    # torch wraps the cause in advice to switch its safety off, which is not passed on.
    cause = str(error).rpartition("WeightsUnpickler error:")[2].partition("\n\nCheck the doc")[0]
    cause = (cause.strip() or type(error).__name__).splitlines()[0]
    rule = f"{path} must be a whole {kind}, its {path.stat().st_size} bytes are cut or damaged"
    fix = "Download it again, or save only model.state_dict() in the code that made it"
    return CheckpointError(f"{rule} ({cause}). {fix}.")


def _open_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass  # opening checks the lengths and offsets that are used below
    except SafetensorError as error:
        raise _damaged(path, "safetensors file", error) from None
    data = np.memmap(path, np.uint8, mode="c")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    _check_kinds({name: entry["dtype"] for name, entry in header.items()}, SAFETENSORS)
    tensors = {}
    for name, entry in header.items():
        array = data[start:][slice(*entry["data_offsets"])].view(SAFETENSORS[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def _open_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged directory raises any of half a dozen types
        raise _damaged(path, "zip archive", error) from None
    files = {entry.filename.partition("/")[2] or entry.filename for entry in entries}
    if "data.pkl" not in files:
        some = ", ".join(map(shown, sorted(files)[:5]))
        rule = f"{path} must have torch's data.pkl, but is a zip archive of {some}"
        raise CheckpointError(f"{rule}. Unpack it and pass the file inside.")
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in entries)
    if claimed > max(SMALL, MOST_TIMES * size):
        rule = f"{path} has {size:,} bytes and claims to unpack to {claimed:,}"
        raise CheckpointError(
            f"{rule}, more than {MOST_TIMES} times as many. No weights shrink so."
        )
    if damaged := _damaged_record(path, entries):
        raise _damaged(path, "zip archive", ValueError(f"{shown(damaged)} is not what was written"))
    if "constants.pkl" in files or any(name.startswith("code/") for name in files):
        return _open_torchscript(path)
    # torch maps records as they lie in the file: one that a zip program compressed would be noise.
    # And it hands a path that ends in .safetensors to that library, whatever is inside.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    return _open_torch(path, mmap=stored and path.suffix != ".safetensors")


def _open_torchscript(path: Path) -> Any:
    tensors = _checked(path, lambda: torchscript.read(path))
    if not tensors:
        rule = f"{path} is a TorchScript archive whose weights have no names, as torch.jit.freeze makes it"
        raise CheckpointError(f"{rule}. Pass the checkpoint that it was made from.")
    return tensors


def _damaged_record(path: Path, entries: Sequence[zipfile.ZipInfo]) -> str | None:
    """The first record whose checksum is not that of its bytes, to which torch does not look.

    None where no record's is: torch can be told not to compute them, and then writes others.
    """
    with zipfile.ZipFile(path) as archive:
        wrong = [entry.filename for entry in entries if not _is_whole(archive, entry)]
    return wrong[0] if wrong and len(wrong) < len(entries) else None


def _is_whole(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as record:
            while record.read(2**20):
                pass
    except Exception:  # zipfile.BadZipFile, or whatever a decompressor makes of noise
        return False
    return True


def _open_torch(path: Path, *, mmap: bool) -> Any:
    import torch

    with path.open("rb") as file:
        source = path if mmap else file
        # Not weights_only, which refuses a file for every class that its training script has left in
        # it: our own unpickler imports nothing either, and passes them by.
        options = {"map_location": "cpu", "weights_only": False, "mmap": mmap}
        with warnings.catch_warnings():
            # Of classes in a file, whose source it looks for: they are not what is loaded.
            warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
            warnings.filterwarnings("ignore", "Couldn't retrieve source code")
            return _checked(path, lambda: torch.load(source, pickle_module=unpickle, **options))


def _open_pickle(path: Path) -> Any:
    """Of arrays, as detectron2 has them."""
    return _checked(path, lambda: unpickle.load(io.BytesIO(path.read_bytes())))


def _checked(path: Path, load: Callable[[], Any]) -> Any:
    """What a pickle holds, unless it is damaged, hostile or a whole model."""
    try:
        tree = unpickle.arrays_of(load())
    except unpickle.HostileError as error:
        raise _unsafe(path, str(error)) from None
    except Exception as error:  # a damaged or hostile file may raise anything
        raise _damaged(path, "checkpoint", error) from None
    if not dict(_walk(tree, (), set())):
        inside = tree.values() if isinstance(tree, Mapping) else ()
        for leaf in (tree, *inside):
            if isinstance(leaf, unpickle.Foreign):
                raise _unsafe(path, leaf.name)
    return tree


def _unsafe(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} wants to import {name}: it is a whole pickled model, or keeps an object of "
        "its training script. Unpickling runs code, so it is not done. If you trust it, run:\n"
        f"    checkpoint = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
        "    torch.save(checkpoint.state_dict(), 'weights.pth')  # or checkpoint['state_dict']"
    )


# ---- from what the file holds to arrays ----


def _class_of(leaf: Any) -> str:
    return leaf.name if isinstance(leaf, unpickle.Foreign) else type(leaf).__name__


def _is_tensor(leaf: Any) -> bool:
    torch = sys.modules.get("torch")  # before torch is imported there is no tensor of it
    return isinstance(leaf, np.ndarray) or (torch is not None and isinstance(leaf, torch.Tensor))


def _walk(node: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple, Mapping]]:
    """The mappings with tensors that known wrapper names lead to, each once, with their paths.

    A mapping of state dicts, one for each part of a network, becomes one with their names joined.
    """
    if not isinstance(node, Mapping) or id(node) in seen:  # a file can hold a mapping inside itself
        return
    if len(path) == DEEPEST_WRAPPER:
        return
    seen.add(id(node))
    inner = [found for key in WRAPPERS for found in _walk(node.get(key), (*path, key), seen)]
    if inner or any(_is_tensor(leaf) for leaf in node.values()):
        yield from inner or [(path, node)]
    elif parts := {key: part for key, part in node.items() if _is_state_dict(part)}:
        yield (
            path,
            {f"{key}.{name}": leaf for key, part in parts.items() for name, leaf in part.items()},
        )


def _is_state_dict(node: Any) -> bool:
    return isinstance(node, Mapping) and len(node) > 0 and all(map(_is_tensor, node.values()))


def _unwrap(tree: Any, ema: bool) -> tuple[Mapping, bool, list[str]]:
    """The one state dict to read, whether plain and EMA weights are told apart, what is passed by."""
    found = dict(_walk(tree, (), set()))
    swapped = {key for key in SWAPPED if _is_swapped(tree, key)}
    averaged = [path for path in found if set(path) & set(EMA_WRAPPERS)]
    if swapped:
        averaged = [path for path in found if not set(path) & swapped]
    plain = [path for path in found if path not in averaged]
    chosen, other = (averaged, plain) if averaged and (ema or not plain) else (plain, averaged)
    if not chosen:
        items = tree.items() if isinstance(tree, Mapping) else [("it", tree)]
        got = ", ".join([f"{shown(repr(key))} ({type(leaf).__name__})" for key, leaf in items][:10])
        rule = f"a checkpoint must have tensors at its top or under one of {', '.join(WRAPPERS)}"
        raise CheckpointError(f"{rule}; no tensors in {got or 'it'}. Pass the dict that has them.")
    if len(chosen) > 1:
        got = ", ".join(f"{'.'.join(path)} ({len(found[path])} entries)" for path in chosen)
        raise CheckpointError(f"a checkpoint must hold one state dict, got {got}. Pass just one.")
    lines = [f"wrapper {key!r}" for key in chosen[0]]
    kind, way = ("plain", "leaving --ema out") if ema else ("EMA", EMA_OPTION)
    lines += [f"{kind} weights {'.'.join(p)!r}: {way} takes them" for p in other]
    wrappers = {key for path in found for key in path}
    node = tree
    for key in chosen[0]:
        lines += [str(name) for name in node if name not in wrappers]
        node = node[key]
    state = found[chosen[0]]
    if state is not node:  # joined from the parts
        lines += [str(name) for name, part in node.items() if not _is_state_dict(part)]
    return state, bool(averaged), lines


def _is_swapped(tree: Any, key: str) -> bool:
    """Whether the plain weights are under `key`, and the average is where plain weights usually are."""
    if not isinstance(tree, Mapping) or not isinstance(inner := tree.get(key), Mapping):
        return False
    return any(mark in tree or mark in inner for mark in SWAPPED[key])


def _split_ema(state: dict[str, Any], ema: bool) -> tuple[dict[str, Any], list[str]]:
    """Keeps one of the two where an EMA copy lies beside the plain weights under a prefix."""
    prefix = next((p for p in EMA_PREFIXES if any(name.startswith(p) for name in state)), "ema.")
    plain = {name: leaf for name, leaf in state.items() if not name.startswith(prefix)}
    averaged = {name.removeprefix(prefix): state[name] for name in state if name not in plain}
    # A part of the network may be called ema too: a copy shares most names with the plain weights.
    shared = {ANY_PREFIX.sub("", name) for name in averaged} & {
        ANY_PREFIX.sub("", name) for name in plain
    }
    if not averaged or (plain and 2 * len(shared) < len(averaged)):
        if ema:
            raise CheckpointError("the checkpoint has no EMA weights. Leave --ema (ema=True) out.")
        return state, []
    if plain and not ema:
        return plain, [f"{len(averaged)} EMA weights {prefix!r}: {EMA_OPTION} takes them"]
    return averaged, [f"prefix {prefix!r} of the EMA weights", f"{len(plain)} plain weights"]


def _strip_prefixes(state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    while True:
        hits = {p: sum(name.startswith(p) for name in state) for p in PREFIXES}
        # A network can have a part called model; the other two are never a network's own.
        worn = [p for p in hits if hits[p] and (p != "model." or hits[p] == len(state))]
        if not worn:
            return state, lines
        prefix = worn[0]
        names = Counter(name.removeprefix(prefix) for name in state)
        if twice := [name for name, count in names.items() if count > 1][:10]:
            rule = f"names must differ once the prefix {prefix!r} is off, these are there twice"
            raise CheckpointError(f"{rule}: {', '.join(twice)}. Pass a mapping with one of each.")
        some = "" if hits[prefix] == len(state) else f" ({hits[prefix]} of {len(state)} names)"
        lines.append(f"prefix {prefix!r}{some}")
        state = dict(zip(names, state.values(), strict=True))


def _check_kinds(kinds: dict[str, str], known: Container[str]) -> None:
    if unfit := [f"{shown(name)} ({kind})" for name, kind in kinds.items() if kind not in known][
        :10
    ]:
        rule = "tensors must be dense floats of 16 to 64 bits, integers or bools"
        fix = "Save the model's plain, unquantised weights"
        raise CheckpointError(f"{rule}, got {', '.join(unfit)}. {fix}.")


def _kind(leaf: Any) -> str:
    """The dtype's name, or the layout's where that is not dense."""
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.name
    return str(leaf.dtype if str(leaf.layout) == "torch.strided" else leaf.layout)[6:]


def _check_claims(state: dict[str, Any]) -> None:
    """A few bytes of a file can claim any number of elements, with a stride of 0 or no data at all.

    So can many tensors of one storage together, as each becomes an array of its own.
    """
    storages, total = {}, 0
    for name, leaf in state.items():
        if isinstance(leaf, np.ndarray):
            continue
        if leaf.is_meta:
            rule = f"{name} has a shape and no data (device 'meta')"
            raise CheckpointError(f"{rule}. Save the model once its weights are loaded.")
        if str(leaf.layout) != "torch.strided" or leaf.is_quantized:
            continue
        claimed, storage = leaf.numel() * leaf.element_size(), leaf.untyped_storage()
        if claimed > max(storage.nbytes(), SMALL):
            rule = f"{name} claims {claimed} bytes where the file has {storage.nbytes()}"
            raise CheckpointError(f"{rule}. Save it with .contiguous(), or it is damaged.")
        storages[storage.data_ptr()] = storage.nbytes()
        total += claimed
    has = sum(storages.values())
    if total > SHARED_TIMES * max(has, SMALL):
        rule = f"its tensors claim {total} bytes together where the file has {has}"
        raise CheckpointError(f"{rule}. Save each with .clone(), or it is damaged.")


def _to_arrays(state: dict[str, Any]) -> dict[str, np.ndarray]:
    kinds = {name: _kind(leaf) for name, leaf in state.items()}
    _check_kinds(kinds, FLOATS + OTHER_DTYPES)
    _check_claims(state)
    arrays = {}
    for name, leaf in state.items():
        if not isinstance(leaf, np.ndarray):
            leaf = (leaf.float() if kinds[name] in FLOATS else leaf).numpy(force=True)
        # numpy has no bfloat16; and its ascontiguousarray would make a scalar 1-D
        dtype = np.float32 if kinds[name] in FLOATS else leaf.dtype.newbyteorder("=")
        arrays[name] = np.asarray(leaf, dtype, order="C")
    return arrays
