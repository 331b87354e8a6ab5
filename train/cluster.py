"""How the processes of a distributed run find each other."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from train.config import DistributedConfig
from train.peers import end_with_a_sentence

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
POD = "JOB_COMPLETION_INDEX"
"""Which of an indexed Job's pods this is; Kubernetes sets it."""

FLAGS = "--distributed.coordinator {} --distributed.processes {} --distributed.process {}"

_OTHER_LAUNCHERS = {"WORLD_SIZE": "RANK", "PMI_SIZE": "PMI_RANK"}
"""torchrun's, MPICH's and Intel MPI's variables for how many processes there are, and which this is. JAX
reads neither. torchrun's port is its own, so nobody can join with what it sets alone."""


def join_processes(config: DistributedConfig) -> None:
    """Connects the processes of a distributed run; does nothing for a single process.

    Call it before any other use of JAX. Processes that are already connected (by Ray, say) stay so.

    Raises:
      ValueError: there are other processes, and their number or this one's index is not known, or they
        cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    arguments = how_to_join(
        config,
        os.environ,
        has_tpu=any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*")),
        asks_kubernetes=importlib.util.find_spec("kubernetes") is not None,
    )
    if arguments is None:
        return
    end_with_a_sentence()
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=config.heartbeat)
    except Exception as error:  # of JAX, and of the clients of many clusters
        raise ValueError(
            f"the processes of this run cannot find each other: {str(error).rstrip('.')}. Start it "
            f"with srun or mpirun, or pass {FLAGS.format('HOST:PORT', 'N', 'INDEX')}"
        ) from error


def is_main_process() -> bool:
    """Whether this is the process, of all of a run, that writes files and prints."""
    return jax.process_index() == 0


def how_to_join(
    config: DistributedConfig,
    environment: Mapping[str, str],
    *,
    has_tpu: bool = False,
    asks_kubernetes: bool = False,
) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`; {} where JAX detects them, None for a single process.

    Flags come first, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or Kubernetes'
    JOB_COMPLETION_INDEX), then what JAX detects: Open MPI, Slurm, TPUs and Kubernetes.

    Args:
      has_tpu: this machine has TPUs.
      asks_kubernetes: JAX can ask Kubernetes itself, with the package `kubernetes`.

    Raises:
      ValueError: there are other processes, and their number or this one's index is not known.
    """
    if config.coordinator is not None:
        return _arguments(environment, config.coordinator, config.processes, config.process)
    environment = {name: value for name, value in environment.items() if value}
    given = environment.keys() & {COORDINATOR, PROCESSES, PROCESS}
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    found_by_jax = _is_task(environment) or (has_tpu and "tpu" in platforms)
    if given and not (found_by_jax and given == {COORDINATOR}):  # which JAX reads itself
        return _from_variables(environment)
    if found_by_jax:
        return {}
    for size, rank in _OTHER_LAUNCHERS.items():
        if _number(environment.get(size)) > 1:
            host = f"{environment.get('MASTER_ADDR', 'HOST')}:PORT"
            flags = FLAGS.format(host, environment[size], environment.get(rank, "INDEX"))
            raise ValueError(
                f"{size} is {environment[size]}: this process is one of several, started by a "
                f"launcher that JAX does not support. Pass, with a free port, {flags} (or set "
                f"{COORDINATOR}, {PROCESSES} and {PROCESS}). Or unset {size} to train in this process alone"
            )
    if POD in environment and "KUBERNETES_SERVICE_HOST" in environment:
        if asks_kubernetes:
            return {}
        raise ValueError(
            f"{POD} is {environment[POD]}: this pod belongs to an indexed Job, and the number of pods is "
            f"not known. Set {PROCESSES} and {COORDINATOR} in the pods' template, such as "
            f"JOB-0.SERVICE:1234 with a headless service, or {PROCESSES}=1 where the Job has one pod"
        )
    return None


def _from_variables(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments from JAX_...; raises ValueError, listing what is set and what is missing or invalid."""
    index = PROCESS if PROCESS in environment else POD
    if environment.get(PROCESSES) == "1" and environment.get(index, "0") == "0":
        return None
    names = (COORDINATOR, PROCESSES, index)
    wanted = (COORDINATOR, PROCESSES, f"{PROCESS} (or {POD})")
    problems = [
        f"{shown} is missing"
        for name, shown in zip(names, wanted, strict=True)
        if name not in environment
    ]
    address, count, process = (environment.get(name) for name in names)
    if address is not None and ":" not in address:
        problems.append(f"{COORDINATOR} must be HOST:PORT")
    if count is not None and _number(count) < 1:
        problems.append(f"{PROCESSES} must be a number, at least 1")
    elif process is not None and not 0 <= _number(process) < _number(count, default=2**31):
        problems.append(f"{index} must be a number, at least 0 and below {PROCESSES}")
    if problems:
        found = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
        raise ValueError(
            f"the environment variables of a distributed run are incomplete or invalid. Found {found}:\n  "
            + "\n  ".join(problems)
            + f"\nSet all three in every process, or none, or use {FLAGS.format('HOST:PORT', 'N', 'INDEX')}"
        )
    return _arguments(environment, address, int(count), int(process))


def _arguments(
    environment: Mapping[str, str], coordinator: str, processes: int, process: int
) -> dict[str, Any]:
    arguments = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }
    # From Slurm and Open MPI, JAX also learns which GPU is whose; elsewhere there is nothing to detect.
    return (
        arguments
        if _is_task(environment)
        else arguments | {"cluster_detection_method": "deactivate"}
    )


def _is_task(environment: Mapping[str, str]) -> bool:
    """Whether Slurm or Open MPI started this process as one of several."""
    tasks = {"SLURM_PROCID": "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE"}
    return any(
        rank in environment and _number(environment.get(size)) > 1 for rank, size in tasks.items()
    )


def _number(text: str | None, *, default: int = -1) -> int:
    """A whole number in an environment variable; -1 where it is not one."""
    if text is None:
        return default
    return int(text) if text.isdecimal() else -1
