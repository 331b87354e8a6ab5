"""What the command lines of the three packages share."""

import sys
from collections.abc import Callable
from typing import NoReturn

import jax
import platformdirs
from rich.console import Console
from rich.markup import escape

from deeplab_jax.memory import keep_memory
from deeplab_jax.ops import has_onednn

BAD_USE = 2


def run(command: Callable[[], int]) -> NoReturn:
    """Exits with the command's status; with 2 and a message, no traceback, where its input is bad.

    All errors that a user can cause are ValueErrors and OSErrors with the way out in their message.
    """
    keep_memory()
    try:
        status = command()
    except (ValueError, OSError) as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"[red]error[/]: {escape(str(error))}")
        status = BAD_USE
    sys.exit(status)


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
