"""The command `deeplab-train export-model`: any checkpoint of a run -> a model folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from deeplab_jax.checkpoint import RUN_CHECKPOINTS, check_place, save
from deeplab_jax.config import from_dict
from deeplab_jax.model import build, with_values
from train.checkpoint import CheckpointError, Checkpoints
from train.config import MODEL_CONFIG, CheckpointConfig
from train.steps import inference_values
from train.writers.jsonl import measured


def export_model_command(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    step: str = "best",
    overwrite: bool = False,
) -> int:
    """Make a model folder of a checkpoint of a run, whether or not the run has ended.

    Args:
        run: The run's folder.
        out: The model folder to make; a .safetensors file where the name ends so.
        step: best (by mIoU in validation), latest, or the number of a step that is kept.
        overwrite: Replace a model that is there.
    """
    check_place(out, overwrite=overwrite)
    header = run / MODEL_CONFIG
    if not (run / RUN_CHECKPOINTS).is_dir():
        raise CheckpointError(f"{run} is not a run's folder: it has no {RUN_CHECKPOINTS}/")
    if not header.is_file():
        raise CheckpointError(
            f"{header} is missing, which says what the model is: the run was started by an older version. "
            "Resume it once, and it is written"
        )
    model = build(from_dict(json.loads(header.read_text(encoding="utf-8"))))
    with Checkpoints(run / RUN_CHECKPOINTS, CheckpointConfig()) as checkpoints:
        number, why = _chosen(step, checkpoints.steps(), measured(run))
        values = inference_values(checkpoints.restore_as_saved(number))
    model = with_values(model, values)
    model.eval()
    save(model, out, overwrite=overwrite)
    name = escape(str(out))
    Console(soft_wrap=True).print(
        f"Saved [bold]{name}[/], {why}. Try: deeplab predict {name} PICTURE --out predictions"
    )
    return 0


def _chosen(wanted: str, steps: list[int], scores: Mapping[int, float]) -> tuple[int, str]:
    """The step that is meant, and why, for people. Raises CheckpointError where there is none."""
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
