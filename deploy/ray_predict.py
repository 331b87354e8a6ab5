"""The masks of millions of pictures, by Ray Data: on all machines of a cluster, going on after failures.

    pip install deeplab-jax 'ray[data]>=2.50'
    python deploy/ray_predict.py MODEL PICTURES OUT --workers 16 --gpus 1

Where no cluster is needed, `deeplab predict --shard I/N` does the same with nothing but N processes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from deeplab_jax import load
from deeplab_jax.folder import predict_folder
from deeplab_jax.images import find_images
from deeplab_jax.results import output_names


class Predictor:
    """A worker, which has the model for as long as it lives."""

    def __init__(self, model: str, out: str, overlay: bool):
        self._model, self._out, self._overlay = load(model), out, overlay

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Writes the results of some pictures; a column says what was wrong with each, "" for nothing."""
        paths = [Path(path) for path in batch["path"]]
        done = predict_folder(
            self._model,
            paths,
            self._out,
            names=[Path(name) for name in batch["name"]],
            overlay=self._overlay,
            progress=False,
        )
        wrong = {str(path): "" for path in paths}
        for failure in done.failures:
            path = next(path for path in wrong if str(failure).startswith(f"{path}: "))
            wrong[path] = str(failure)
        return {"path": batch["path"], "wrong": np.array(list(wrong.values()))}


def main() -> None:
    """Shares the pictures among workers, and says what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", help="a model folder, which all machines see, or its URL in a bucket"
    )
    parser.add_argument(
        "pictures", help="a folder of pictures, with folders in it; all machines see it"
    )
    parser.add_argument("out", help="the folder to write to")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of each worker")
    parser.add_argument(
        "--batch", type=int, default=64, help="pictures that a worker takes at a time"
    )
    parser.add_argument("--overlay", action="store_true", help="write overlays too")
    options = parser.parse_args()
    paths = find_images([options.pictures], recursive=True, leave_out=options.out)
    items = [
        {"path": str(path.absolute()), "name": str(name)}
        for path, name in zip(paths, output_names(paths), strict=True)
    ]
    start = time.perf_counter()
    wrong = (
        ray.data.from_items(items, override_num_blocks=max(1, len(items) // options.batch))
        .map_batches(
            Predictor,
            fn_constructor_args=(options.model, str(Path(options.out).absolute()), options.overlay),
            batch_size=options.batch,
            num_gpus=options.gpus or None,
            num_cpus=None if options.gpus else options.cpus,
            compute=ActorPoolStrategy(size=options.workers),
        )
        .filter(lambda row: row["wrong"] != "")
        .take_all()
    )
    rate = len(items) / (time.perf_counter() - start)
    for row in wrong:
        print(f"error: {row['wrong']}")
    print(
        f"{len(items) - len(wrong)} of {len(items)} pictures are in {options.out}, {rate:.2f} images/s"
    )
    raise SystemExit(2 if wrong else 0)


if __name__ == "__main__":
    main()
