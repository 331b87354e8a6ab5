"""What the command lines of the three packages share."""

import importlib
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import jax
import platformdirs
from PIL import Image
from rich.console import Console
from rich.markup import escape

from deeplab_jax.memory import keep_memory
from deeplab_jax.ops import has_onednn
from deeplab_jax.quiet import is_debugging, quieten
from deeplab_jax.version import versions

BAD_USE = 2
INTERRUPTED, BROKEN_PIPE = 130, 141
"""What a shell makes of a process that SIGINT (Ctrl-C) or SIGPIPE ends."""

PLUGINS = "deeplab_jax.plugins"
"""The group of entry points whose modules every command imports."""
PLUGIN_HELP = (
    "With --plugin MODULE the command imports a module of yours first, which may register backbones "
    "(deeplab_jax.register_backbone); it is looked for in the current folder too."
)


def run(command: Callable[[], int]) -> NoReturn:
    """Exits with the command's status; with 2 and a message, no traceback, where its input is bad.

    All errors that a user can cause are ValueErrors and OSErrors with the way out in their message.
    Plugins are imported before the command runs, so that it knows the presets that they register.
    `--version` alone prints versions. With DEEPLAB_DEBUG=1 there are tracebacks, see `quiet`.
    """
    keep_memory()
    quieten()
    # Of pictures that are large and not too large; those are errors.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        if sys.argv[1:] == ["--version"]:
            print(versions())
            sys.exit(0)
        import_plugins()
        status = command()
    except BrokenPipeError:  # of `... | head`
        sys.stdout = None  # which Python would flush once more
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (ValueError, OSError) as error:
        if is_debugging():
            traceback.print_exception(error)
        console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        console.print(f"[red]error[/]: {escape(str(error))}")
        status = BAD_USE
    sys.exit(status)


def import_plugins() -> None:
    """Imports the modules that `--plugin MODULE` names, and takes these options off `sys.argv`.

    Those that installed packages name as entry points of the group `deeplab_jax.plugins` come first.

    Raises ValueError where one cannot be imported.
    """
    for entry_point in metadata.entry_points(group=PLUGINS):
        _import(entry_point.module, f"the plugin {entry_point.name} ({entry_point.module})")
    arguments, kept = iter(sys.argv), []
    for argument in arguments:
        option, equals, module = argument.partition("=")
        if option != "--plugin":
            kept.append(argument)
            continue
        module = module if equals else next(arguments, "")
        if not module or module.startswith("-"):
            raise ValueError(f"--plugin takes the name of a module, got {module!r}")
        if (folder := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, folder)
        _import(module, f"--plugin {module}")
    sys.argv = kept


def _import(module: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # somebody's code may raise anything
        raise ValueError(
            f"{what} cannot be imported: {type(error).__name__}: {error}. It must be a module's name "
            "(my_backbone, not my_backbone.py), in the current folder or installed"
        ) from error


def keep_compiled_programs(*, unless_slower: bool = False) -> None:
    """Keeps what XLA compiles in the user's cache folder, so that a second start takes seconds.

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches it off.

    Args:
      unless_slower: not where programs that are not kept run faster, see `ops.compiler_options`. For
        those that run often and compile in a second or two.
    """
    if unless_slower and has_onednn():
        return
    if jax.config.jax_compilation_cache_dir is None:
        folder = platformdirs.user_cache_path("deeplab_jax") / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Many small programs, of the first weights and of the optimiser's state, take most of a start.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
