"""Where XLA on CPU gets its memory from."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

import jax

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Makes this process keep the memory that it frees, for what XLA runs next on CPU.

    What a compiled program computes with is one block of memory, of 1.5 GB for a small training step.
    glibc gives a block of that size back to the system as soon as the program ends, and the system
    clears it, page by page, when the next run asks for it again: a quarter of a training step's CPU
    time, a fifth of a MobileNetV2's prediction. The process stays as large as it once was, in turn.

    To be called before JAX is first used, as all our commands do. It does nothing without glibc,
    where JAX has an accelerator, and where the environment says how malloc is to be
    (MALLOC_ARENA_MAX, MALLOC_MMAP_MAX_, GLIBC_TUNABLES).

    Returns:
      Whether it did.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc" or _may_have_accelerator():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Only the main heap can keep large blocks: those of other threads are of 64 MB at most.
    return all(
        mallopt(name, value)
        for name, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    )


def _may_have_accelerator() -> bool:
    """Asks for what is installed: asking JAX would start it."""
    if jax.config.jax_platforms is not None:
        return jax.config.jax_platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
