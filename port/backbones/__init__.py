"""The families of backbones, as PyTorch code names them.

A file each, which registers its namings when it is imported: all files of this folder are.
"""

import importlib
import pkgutil

from port.backbones.base import NAMINGS, Naming, register_naming

__all__ = ["NAMINGS", "Naming", "register_naming"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
