"""How processes find each other: from flags, from the environment, or because JAX knows the cluster."""

import jax
import pytest

from train.cluster import how_to_join, join_processes
from train.config import DistributedConfig

SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
ADDRESS, COUNT = {"JAX_COORDINATOR_ADDRESS": "host0:1234"}, {"JAX_NUM_PROCESSES": "4"}
THIRD = {"coordinator_address": "host0:1234", "num_processes": 4, "process_id": 2}
TORCHRUN = {"MASTER_ADDR": "node7", "MASTER_PORT": "29500", "WORLD_SIZE": "8", "RANK": "3"}
ASKS_NOBODY = {"cluster_detection_method": "deactivate"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"JAX_COORDINATOR_ADDRESS": "", "JAX_NUM_PROCESSES": ""}, None),
        (COUNT | {"JAX_NUM_PROCESSES": "1"}, None),
        (POD | {"JOB_COMPLETION_INDEX": "0", "JAX_NUM_PROCESSES": "1"}, None),
        (SLURM, {}),
        (SLURM | ADDRESS, {}),
        (SLURM | {"WORLD_SIZE": "4", "RANK": "1"}, {}),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, {}),
        (ADDRESS | COUNT | {"JAX_PROCESS_ID": "2"}, THIRD | ASKS_NOBODY),
        (ADDRESS | COUNT | {"JOB_COMPLETION_INDEX": "2"}, THIRD | ASKS_NOBODY),
        (ADDRESS | COUNT | POD, THIRD | ASKS_NOBODY),
        (
            ADDRESS | COUNT | POD | {"JOB_COMPLETION_INDEX": "0", "JAX_PROCESS_ID": "2"},
            THIRD | ASKS_NOBODY,
        ),
        (
            ADDRESS | COUNT | SLURM | {"JAX_PROCESS_ID": "2"},
            THIRD,
        ),  # Slurm knows whose GPU is which
    ],
)
def test_what_the_environment_says(environment, expected):
    assert how_to_join(DistributedConfig(), environment) == expected


def test_flags_win():
    flags = DistributedConfig("host9:9", 2, 1)
    environment = ADDRESS | COUNT | POD | {"WORLD_SIZE": "8"}
    assert how_to_join(flags, environment) == ASKS_NOBODY | {
        "coordinator_address": "host9:9",
        "num_processes": 2,
        "process_id": 1,
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        (POD | {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        (ADDRESS, {}),
        ({"JAX_PLATFORMS": "tpu,cpu"}, {}),
        ({"JAX_PLATFORMS": "cpu"}, None),
        ({"JAX_PLATFORMS": "cuda"}, None),
        (ADDRESS | COUNT | POD, THIRD | ASKS_NOBODY),
    ],
)
def test_of_tpus_jax_knows_the_others(environment, expected):
    assert how_to_join(DistributedConfig(), environment, has_tpu=True) == expected


def test_of_pods_jax_asks_kubernetes_where_it_can():
    assert how_to_join(DistributedConfig(), POD, asks_kubernetes=True) == {}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            ADDRESS,
            r"JAX_COORDINATOR_ADDRESS=host0:1234:\s+JAX_NUM_.* missing\s+JAX_PROCESS_ID .* missing",
        ),
        (
            COUNT,
            r"Found JAX_NUM_PROCESSES=4:\s+JAX_COORDINATOR_.* missing\s+JAX_PROCESS_ID .* missing",
        ),
        (
            COUNT | POD,
            r"=4, JOB_COMPLETION_INDEX=2:\s+JAX_COORDINATOR_ADDRESS is missing\s+Set all",
        ),
        (COUNT | SLURM, "JAX_COORDINATOR_ADDRESS is missing"),
        (ADDRESS | COUNT | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID must be .* below JAX_NUM_PROC"),
        (ADDRESS | COUNT | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID must be a number, at least 0"),
        (ADDRESS | COUNT | {"JOB_COMPLETION_INDEX": "7"}, "JOB_COMPLETION_INDEX must be a number"),
        (
            ADDRESS | POD | {"JAX_NUM_PROCESSES": "two"},
            "JAX_NUM_PROCESSES must be a number, at least 1",
        ),
        (COUNT | POD | {"JAX_COORDINATOR_ADDRESS": "host0"}, "_ADDRESS must be HOST:PORT"),
        (POD, "JOB_COMPLETION_INDEX is 2: .* Set JAX_NUM_PROCESSES and JAX_COORDINATOR_ADDRESS"),
        (
            TORCHRUN,
            "WORLD_SIZE is 8: .* node7:PORT --distributed.processes 8 --distributed.process 3",
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "unset PMI_SIZE to train in this process alone"),
    ],
)
def test_what_is_said_by_halves_is_refused_with_what_is_missing(environment, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        how_to_join(DistributedConfig(), environment)


def test_flags_that_name_no_process_are_refused():
    with pytest.raises(ValueError, match=r"(?s)host:port, got host0\n.* got 2 of 2"):
        DistributedConfig("host0", 2, 2)


def test_processes_that_somebody_connected_are_kept(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", None)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "by halves")
    join_processes(DistributedConfig())


def test_a_cluster_in_which_jax_finds_nobody_is_an_error_with_the_way_out(monkeypatch):
    def initialize(**arguments):
        raise RuntimeError("no such host")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr("train.cluster.end_with_a_sentence", lambda: None)  # of this process too
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=r"each other: no such host\..* --distributed.coordinator HOST"
    ):
        join_processes(DistributedConfig())
