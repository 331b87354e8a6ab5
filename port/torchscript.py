"""TorchScript archives: the tensors of their modules, by the names that a state_dict has.

`torch.jit.save` writes a module as a pickle of objects that refer to records of the same archive, beside
the code of their classes. Here the objects are taken apart and the code is not looked at.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from port import unpickle

if TYPE_CHECKING:
    import torch

PICKLE = "data.pkl"
CLASSES = "__torch__"
"""The package that all classes of an archive are in."""

STORAGE = "Storage"
DTYPES = {
    "Float": "float32",
    "Half": "float16",
    "Double": "float64",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
"""What torch calls a storage, without `STORAGE` -> the type of its elements."""

MOST_PARTS = 10**5
"""Of the objects of an archive, by their places; a few bytes can put the same one in any number of them."""


class _Module(unpickle.Foreign):
    """An object of a class of the archive's own, with what it keeps."""

    state: Mapping[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.state = state


class _Unpickler(unpickle.Unpickler):
    """Reads `data.pkl`; of what it refers to, the storages of tensors."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(archive.read(folder + PICKLE)))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Raises HostileError."""
        if module.partition(".")[0] == CLASSES:
            return _Module
        if module == "torch" and name.endswith(STORAGE):
            return _dtype(name.removesuffix(STORAGE))
        return super().find_class(module, name)

    def persistent_load(self, saved: tuple[Any, ...]) -> Any:
        """A storage. Raises KeyError where the archive has none of that name."""
        import torch

        _, dtype, key, *_ = saved
        data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
        raw = (
            torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        )
        return torch.storage.TypedStorage(
            wrap_storage=raw.untyped_storage(), dtype=dtype, _internal=True
        )


def _dtype(storage: str) -> torch.dtype:
    """Of the elements of a storage. Raises ValueError for one that no network of ours has."""
    import torch

    if storage not in DTYPES:
        raise ValueError(f"its numbers are of {storage}, and not of {', '.join(DTYPES)}")
    return getattr(torch, DTYPES[storage])


def read(path: Any) -> dict[str, Any]:
    """The tensors of an archive; whatever a damaged or hostile one raises."""
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith(f"/{PICKLE}") or n == PICKLE)
        folder = name.removesuffix(PICKLE)
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("it was written on a machine whose numbers begin with the large end")
        return dict(_tensors(_Unpickler(archive, folder).load()))


def _tensors(root: Any) -> Iterator[tuple[str, Any]]:
    """Name and tensor, in the order of the modules. Raises ValueError for objects without end."""
    import torch

    waiting, parts = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        inner = []
        for name, part in module.state.items():
            if isinstance(part, torch.Tensor):
                yield f"{prefix}{name}", part
            elif isinstance(part, _Module):
                inner.append((f"{prefix}{name}.", part))
        waiting += reversed(inner)
        parts += len(module.state)
        if parts > MOST_PARTS:
            raise ValueError(f"its objects have more than {MOST_PARTS:,} parts")
