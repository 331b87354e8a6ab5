"""A strict world: explicit dtypes, several devices, and every warning is an error (pyproject.toml)."""

import os

# Before jax is imported: eight CPU devices, so that a test can shard over a mesh.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Before torch is: threads that outnumber the cores make its float64 convolutions many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
