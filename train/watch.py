"""Evaluation beside a training, by another process or machine: each checkpoint when it is there."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from deeplab_jax.model import with_values
from train.checkpoint import CheckpointError
from train.evaluate import Values
from train.place import place_of
from train.report import Evaluation
from train.run_folder import WATCHED, checkpoints_of, last_step, model_of
from train.steps import inference_values
from train.writers import jsonl, open_writers

POLL = 10.0
"""Seconds between two looks into the folder."""

BEST = "best"


def watch_run(
    run: Path,
    evaluate: Callable[[Values, int], Evaluation],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Evaluates a run's checkpoints, those that are there and those to come, until that of its last step.

    Scores go to RUN/watched, as the run's own do to RUN, and the best model so far to RUN/watched/best.
    Started again, it goes on with what has no score yet.

    Args:
      evaluate: of a checkpoint's values and its step.
      sleep: a function that waits for so many seconds.
    """
    console = Console(soft_wrap=True, highlight=False)
    waiting = False
    with place_of(run / WATCHED) as place, checkpoints_of(run) as checkpoints:
        place.folder.mkdir(exist_ok=True)
        scores = jsonl.measured(place.folder)
        done = set(scores)
        writers = open_writers(
            ("tensorboard",), place.folder, start=max(done, default=0), config={}
        )
        while (total := last_step(run)) is None or total not in done:
            new = [step for step in checkpoints.steps() if step not in done]
            if not new:
                if not waiting:
                    console.print(f"Waiting for checkpoints of {run}", markup=False)
                waiting = True
                sleep(POLL)
                continue
            waiting, step = False, new[0]
            done.add(step)
            try:
                values = inference_values(checkpoints.restore_as_saved(step))
            except (CheckpointError, FileNotFoundError):
                if step in checkpoints.steps():
                    raise
                console.print(f"step {step} was removed before it could be read: left out")
                continue
            console.print(f"step {step}:")
            means = evaluate(values, step).means()
            for writer in writers:
                writer.scalars(step, {f"val/{name}": value for name, value in means.items()})
            if all(means["miou"] >= score for score in scores.values()):
                model = with_values(model_of(run), values)
                model.eval()
                place.save_model(model, BEST)
                console.print(f"The best so far, saved as {place.name}/{BEST}", markup=False)
            scores[step] = means["miou"]
            place.upload()
        for writer in writers:
            writer.close(failed=False)
