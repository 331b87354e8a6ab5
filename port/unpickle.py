"""Unpickles tensors and arrays, and nothing else: no name in a file is ever imported.

A pickle is a program, and all that it can do is call what it asks for by name. Here a name stands for
one of the few functions that make tensors and arrays, or for a `Foreign`, which takes whatever is done to
it and does nothing. So the training state that lies beside weights (a config object, a logger's history,
an optimiser) needs no package and runs no code.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

import numpy as np

HOSTILE_MODULES = frozenset(
    (
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "shutil",
        "socket",
        "runpy",
        "importlib",
        "pty",
        "ctypes",
    )
)
HOSTILE_BUILTINS = frozenset(
    ["eval", "exec", "compile", "open", "__import__", "breakpoint", "input"]
)
"""What no training script leaves in a checkpoint: a file that asks for one is an attack."""

TENSORS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_sparse_tensor",
    "_rebuild_qtensor",
    "_rebuild_meta_tensor_no_storage",
)
"""Functions of `torch._utils` that make a tensor of its storage and nothing else."""


MOST_LEVELS = 8
"""Of mappings in mappings in which arrays are looked for."""


class HostileError(Exception):
    """A pickle asks for something that runs commands; the message is its name."""


class Foreign:
    """Stands in for an object of a class that is not ours to import, and for the class itself.

    Attributes:
      name: of the class, "omegaconf.dictconfig.DictConfig".
    """

    name = "an object"
    dump_patches = False  # which torch asks of the classes in its files of before 1.6

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Foreign:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None:
        """Ignores an item, as `extend` and `add` do."""

    extend = add = append


class _DType:
    """A numpy dtype: its code, and its byte order once that is known."""

    def __init__(self, code: str, *_: Any):
        self.code = np.dtype(str(code)).str.lstrip("<>=|")
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]

    def read(self, data: bytes, shape: tuple[int, ...], order: str) -> np.ndarray:
        """The array of these bytes. Raises ValueError where they are not what its shape needs."""
        dtype = np.dtype(self.order + self.code)
        if dtype.hasobject:
            raise ValueError("an array of objects")
        return np.frombuffer(data, dtype).reshape(shape, order=order)


class _Array:
    """A numpy array that has no contents yet."""

    array = np.empty(0)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, _DType) and isinstance(data, bytes):
            self.array = dtype.read(data, shape, "F" if fortran else "C")


def _from_buffer(data: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    return dtype.read(bytes(data), shape, order)


_KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: {},  # weights may be inside
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda make, _, args, __: make(*args),
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes in old protocols
    "numpy.dtype": _DType,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _from_buffer,
}


# The C unpickler keeps its memo in a list, which five bytes of a file can make 64 GB long.
class Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Reads a pickle as this module says, see there."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Raises HostileError."""
        package = module.partition(".")[0]
        builtin = package in ("builtins", "__builtin__") and name in HOSTILE_BUILTINS
        if package in HOSTILE_MODULES or builtin:
            raise HostileError(f"{module}.{name}")
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if full in _KNOWN:
            return _KNOWN[full]
        if package == "torch" and (found := _of_torch(module, name)) is not None:
            return found
        return type("Foreign", (Foreign,), {"name": f"{module}.{name}"})

    def load_build(self) -> None:
        """Gives an object its state, if it is one of ours: a function of torch's keeps its own."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Foreign | _DType | _Array):
            self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """A bytearray of what the file has: pickle's own is made before anything is read."""
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size) if size <= sys.maxsize else b""
        if len(data) != size:
            raise pickle.UnpicklingError(f"a bytearray of {size} bytes, more than the file has")
        self.append(bytearray(data))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _of_torch(module: str, name: str) -> Any:
    import torch

    if module == "torch._utils":
        return getattr(torch._utils, name, None) if name in TENSORS else None
    if module == "torch.serialization" and name == "_get_layout":
        return lambda text: getattr(torch, text.rpartition(".")[2], None)
    found = getattr(torch, name, None)
    plain = torch.dtype, torch.layout, torch.qscheme
    storage = isinstance(found, type) and name.endswith("Storage")
    return found if isinstance(found, plain) or found is torch.device or storage else None


def load(file: IO[bytes], **options: Any) -> Any:
    """What a pickle holds, without running code; the name that `torch.load` wants."""
    return Unpickler(file, **options).load()


def arrays_of(tree: Any) -> Any:
    """A tree of a bare pickle with its arrays as numpy has them, at any depth of its mappings.

    torch's own files have none that matter: their weights are tensors.
    """
    done: dict[int, Any] = {}

    def walk(node: Any, depth: int) -> Any:
        if isinstance(node, _Array):
            return node.array
        if not isinstance(node, Mapping) or depth > MOST_LEVELS:
            return node
        if id(node) not in done:
            done[id(node)] = {key: walk(value, depth + 1) for key, value in node.items()}
        return done[id(node)]

    return walk(tree, 0)
