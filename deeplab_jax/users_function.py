"""What a user's own function gives, which an option names as module:factory."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any


def made_by(name: str, option: str) -> Any:
    """The result of `factory()` of a module in the current folder, or of an installed one.

    Args:
      name: module:factory.
      option: the name of the option, for errors.

    Raises ValueError where it cannot be made.
    """
    module, colon, factory = name.partition(":")
    if not (module and colon and factory):
        raise ValueError(f"{option} takes module:factory, got {name!r}")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)  # installed commands do not look in the current folder
    try:
        return getattr(importlib.import_module(module), factory)()
    except Exception as error:  # somebody's code may raise anything
        cause = f"{type(error).__name__}: {error}{_where(error)}"
        raise ValueError(f"{option} {name} cannot be made: {cause}") from error


def _where(error: Exception) -> str:
    """The last line of somebody else's code that an error came through."""
    passed = [
        f" ({frame.filename}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen")
    ]
    return passed[-1] if passed else ""
