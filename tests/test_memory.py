"""Memory that stays with the process from run to run."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc")

PROGRAM = """
import resource, sys
from deeplab_jax import keep_memory

print(sys.argv[1] == "keep" and keep_memory())
import jax, jax.numpy as jnp

run = jax.jit(lambda x: jnp.cumsum(x * 2)[::-1])
x = jnp.ones(16 << 20)

def faults(runs):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(runs):
        run(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(15)  # until there is room for two runs at a time
print(faults(5))
"""
ARRAY = (64 << 20) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
"""Pages of `x`."""


def output(program: str, *arguments: str, **environment: str) -> list[str]:
    """The words that another process prints."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return result.stdout.split()


def test_a_run_finds_the_memory_of_those_before():
    kept, few = output(PROGRAM, "keep")
    left, many = output(PROGRAM, "leave")
    assert (kept, left) == ("True", "False")
    assert int(many) > 5 * ARRAY  # the result alone is as many pages
    assert int(few) < int(many) / 3  # a sixth; a kernel that reclaims idle pages adds to both


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "4"}, {"JAX_PLATFORMS": "cuda,cpu"}],
    ids=["malloc has its orders", "accelerator"],
)
def test_other_processes_stay_as_they_are(environment):
    program = "from deeplab_jax import keep_memory; print(keep_memory())"
    assert output(program, **environment) == ["False"]
