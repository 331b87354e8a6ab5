"""A strict world: explicit dtypes, several devices, and every warning is an error (pyproject.toml)."""

import os

# Before jax is imported: eight CPU devices, so that a test can shard over a mesh.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Before torch is: threads that outnumber the cores make its float64 convolutions many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import ctypes
import gc

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Commands that run within the tests leave the user's folder of compiled programs alone.
jax.config.update("jax_enable_compilation_cache", False)

LONG = ("test_train_loop.py", "test_port_training.py", "test_sharding.py", "test_tour.py")
"""What is begun first, so that no worker is left alone with one of them when all else is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Frees what a file's tests have made: all files' would be 8 GB in each worker."""
    yield
    jax.clear_caches()
    gc.collect()
    # Commands that run within the tests keep freed memory, see `deeplab_jax.memory`.
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def cache_settings():
    """JAX's settings of its compilation cache as they are outside the tests; the test may change them."""
    with _cache_settings():
        yield


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """What a file's tests compile is kept for those that need it again."""
    with _cache_settings():
        jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        yield


@contextlib.contextmanager
def _cache_settings():
    least = "jax_persistent_cache_min_compile_time_secs"
    outside = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": None, least: 1.0}
    found = {name: getattr(jax.config, name) for name in outside}
    for name, value in outside.items():
        jax.config.update(name, value)
    yield
    for name, value in found.items():
        jax.config.update(name, value)
