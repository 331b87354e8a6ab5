"""How the processes of a run over several hosts find each other."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from train.config import DistributedConfig

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
POD = "JOB_COMPLETION_INDEX"
"""Which of an indexed Job's pods this is; Kubernetes sets it."""

FLAGS = "--distributed.coordinator {} --distributed.processes {} --distributed.process {}"

_OTHER_LAUNCHERS = {"WORLD_SIZE": "RANK", "PMI_SIZE": "PMI_RANK"}
"""torchrun's, MPICH's and Intel MPI's variables for how many processes there are, and which this is. JAX
reads neither. torchrun's port is its own, so nobody can join with what it sets alone."""


def join_processes(config: DistributedConfig) -> None:
    """Connects the processes of a run over several hosts; does nothing where there is one.

    Before any other use of JAX, unless somebody (such as Ray) has connected them already.

    Raises:
      ValueError: there are other processes and it is not clear who is who, or they cannot be reached.
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
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=config.heartbeat)
    except Exception as error:  # of JAX, and of the clients of many clusters
        raise ValueError(
            f"the processes of this run cannot find each other: {str(error).rstrip('.')}. Start it as a "
            f"task of srun or mpirun, or say who is who: {FLAGS.format('HOST:PORT', 'N', 'INDEX')}"
        ) from error


def how_to_join(
    config: DistributedConfig,
    environment: Mapping[str, str],
    *,
    has_tpu: bool = False,
    asks_kubernetes: bool = False,
) -> dict[str, Any] | None:
    """What to tell `jax.distributed.initialize`; {} where it finds out by itself, None for a process alone.

    Flags come first, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or Kubernetes'
    JOB_COMPLETION_INDEX), then what JAX knows: Open MPI, Slurm, TPUs and Kubernetes.

    Args:
      has_tpu: this machine has TPUs.
      asks_kubernetes: JAX can ask Kubernetes itself, with the package `kubernetes`.

    Raises:
      ValueError: there are other processes and it is not clear who is who.
    """
    if config.coordinator is not None:
        return _told(environment, config.coordinator, config.processes, config.process)
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
                f"{size} is {environment[size]}: this process was started with others, and JAX does not "
                f"know that launcher. Say who is who, with a port that is free: {flags} (or set "
                f"{COORDINATOR}, {PROCESSES} and {PROCESS}). Or unset {size} to train in this process alone"
            )
    if POD in environment and "KUBERNETES_SERVICE_HOST" in environment:
        if asks_kubernetes:
            return {}
        raise ValueError(
            f"{POD} is {environment[POD]}: this pod is one of an indexed Job, and nothing says of how "
            f"many. Set {PROCESSES} and {COORDINATOR} in the pods' template, such as "
            f"JOB-0.SERVICE:1234 with a headless service, or {PROCESSES}=1 where the Job has one pod"
        )
    return None


def _from_variables(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What JAX_... say; raises ValueError, listing what is set and what is missing, where they do not."""
    index = PROCESS if PROCESS in environment else POD
    if environment.get(PROCESSES) == "1" and environment.get(index, "0") == "0":
        return None
    names = (COORDINATOR, PROCESSES, index)
    wanted = (COORDINATOR, PROCESSES, f"{PROCESS} (or {POD})")
    problems = [
        f"{said} is missing"
        for name, said in zip(names, wanted, strict=True)
        if name not in environment
    ]
    address, count, process = (environment.get(name) for name in names)
    if address is not None and ":" not in address:
        problems.append(f"{COORDINATOR} must be HOST:PORT")
    if count is not None and _number(count) < 1:
        problems.append(f"{PROCESSES} must be a number from 1")
    elif process is not None and not 0 <= _number(process) < _number(count, default=2**31):
        problems.append(f"{index} must be a number from 0, below {PROCESSES}")
    if problems:
        there = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
        raise ValueError(
            f"the environment must say in full who is who. It has {there}:\n  "
            + "\n  ".join(problems)
            + f"\nSet all three in every process, or none, or use {FLAGS.format('HOST:PORT', 'N', 'INDEX')}"
        )
    return _told(environment, address, int(count), int(process))


def _told(
    environment: Mapping[str, str], coordinator: str, processes: int, process: int
) -> dict[str, Any]:
    arguments = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }
    # Of Slurm and Open MPI, JAX also learns which GPU is whose; elsewhere there is nothing to be asked.
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
    """A number from 0 as the environment has it; -1 for what is none."""
    if text is None:
        return default
    return int(text) if text.isdecimal() else -1
