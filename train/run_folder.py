"""A run's folder as others read it, whether or not the run goes on: its model, checkpoints and scores."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deeplab_jax.checkpoint import RUN_CHECKPOINTS
from deeplab_jax.config import from_dict
from deeplab_jax.model import SegmentationModel, build
from train.checkpoint import CheckpointError, Checkpoints
from train.config import MODEL_CONFIG, CheckpointConfig
from train.place import as_path
from train.writers import jsonl

ENVIRONMENT = "environment.json"
WATCHED = "watched"
"""In a run's folder: what another process makes of its checkpoints, see `watch`."""


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder."""
    return (as_path(path) / RUN_CHECKPOINTS).is_dir()


def model_of(run: Path) -> SegmentationModel:
    """The model that a run trains, with shapes in place of weights; CheckpointError where it is no run."""
    header = as_path(run) / MODEL_CONFIG
    if not is_run(run):
        raise CheckpointError(f"{run} is not a run's folder: it has no {RUN_CHECKPOINTS}/")
    if not header.is_file():
        raise CheckpointError(
            f"{header} is missing, which says what the model is: the run was started by an older version. "
            "Resume it once, and it is written"
        )
    return build(from_dict(json.loads(header.read_text())))


@contextlib.contextmanager
def checkpoints_of(run: Path) -> Iterator[Checkpoints]:
    """The checkpoints of a run, to read; nothing there is changed."""
    folder = as_path(run) / RUN_CHECKPOINTS
    with Checkpoints(folder, CheckpointConfig(), read_only=True) as checkpoints:
        yield checkpoints


def scores_of(run: Path) -> dict[int, float]:
    """The mIoU of each step that was evaluated, by the run or by one that watches it."""
    return jsonl.measured(as_path(run)) | jsonl.measured(as_path(run) / WATCHED)


def last_step(run: Path) -> int | None:
    """The step at which a run ends; None where its folder does not say so."""
    try:
        environment: Mapping[str, Any] = json.loads((as_path(run) / ENVIRONMENT).read_text())
    except (OSError, ValueError):
        return None
    return environment.get("steps")


def chosen(wanted: str, steps: list[int], scores: Mapping[int, float]) -> tuple[int, str]:
    """The step that is meant, and why, for people. Raises CheckpointError where there is none.

    Args:
      wanted: "best" (by mIoU), "latest", or the number of a step.
      steps: that are kept.
      scores: of those that were evaluated.
    """
    if not steps:
        raise CheckpointError("the run has no checkpoint yet")
    shown = {n: f"step {n}" + (f" (mIoU {scores[n]:.4f})" if n in scores else "") for n in steps}
    kept = ", ".join(shown.values())
    known = [n for n in steps if n in scores]
    if wanted == "best" and known:
        best = max(known, key=lambda n: (scores[n], n))
        return best, f"{shown[best]}, the best of {kept}"
    if wanted in ("best", "latest"):
        note = "; none of them has been evaluated" if wanted == "best" else ""
        return steps[-1], f"{shown[steps[-1]]}, the latest of {kept}{note}"
    if not wanted.isdigit() or int(wanted) not in steps:
        raise CheckpointError(
            f"--step must be best, latest or a step that is kept ({kept}), got {wanted!r}"
        )
    return int(wanted), shown[int(wanted)]
