"""A training by Ray, which starts the processes, connects them, and starts them again after a failure.

On two hosts of eight GPUs, and on a TPU slice:

    pip install 'deeplab-jax[train]' 'ray[train]>=2.50'
    python deploy/ray_train.py --workers 2 --gpus 8 cityscapes --run gs://BUCKET/runs/cityscapes
    python deploy/ray_train.py --workers 4 --tpu TPU-V5LITEPOD --topology 4x4 --chips 4 cityscapes --run ...

All that comes after the recipe's name is `deeplab-train`'s.
"""

import argparse

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxConfig, JaxTrainer


def train_on_worker(config: dict[str, list[str]]) -> None:
    """Runs `deeplab-train` in a process that Ray has connected with the others."""
    import sys

    from train.__main__ import main

    sys.argv = ["deeplab-train", *config["arguments"]]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"deeplab-train ended with status {end.code}") from end


def main() -> None:
    """Starts the workers, and waits for the end of the training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each")
    parser.add_argument("--tpu", help="type of TPU, as TPU-V5LITEPOD")
    parser.add_argument("--topology", help="of the TPU slice, as 4x4")
    parser.add_argument("--chips", type=int, default=4, help="TPU chips of each process")
    parser.add_argument(
        "--restarts", type=int, default=100, help="how often, where workers are lost"
    )
    parser.add_argument("--storage", help="where Ray keeps its own state, for several machines")
    parser.add_argument("recipe")
    parser.add_argument("flags", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    on = "tpu" if options.tpu else "cuda" if options.gpus else "cpu"
    resources = {
        "tpu": {"TPU": options.chips},
        "cuda": {"GPU": options.gpus, "CPU": 1},
        "cpu": {"CPU": 1},
    }
    scaling = ScalingConfig(
        num_workers=options.workers,
        use_gpu=on == "cuda",
        use_tpu=on == "tpu",
        topology=options.topology,
        accelerator_type=options.tpu,
        resources_per_worker=resources[on],
    )
    JaxTrainer(
        train_on_worker,
        train_loop_config={"arguments": [options.recipe, *options.flags]},
        scaling_config=scaling,
        # By this Ray connects the processes, on CPUs too.
        jax_config=JaxConfig(use_tpu=on == "tpu", use_gpu=on != "tpu"),
        run_config=RunConfig(
            storage_path=options.storage,
            failure_config=FailureConfig(max_failures=options.restarts),
            worker_runtime_env={"env_vars": {"JAX_PLATFORMS": on}},
        ),
    ).fit()


if __name__ == "__main__":
    main()
