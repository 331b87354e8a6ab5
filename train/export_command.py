"""The command `deeplab-train export-model`: any checkpoint of a run -> a model folder."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from deeplab_jax.checkpoint import check_place, save
from deeplab_jax.model import with_values
from train.run_folder import checkpoints_of, chosen, model_of, scores_of
from train.steps import inference_values


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
    model = model_of(run)
    with checkpoints_of(run) as checkpoints:
        number, why = chosen(step, checkpoints.steps(), scores_of(run))
        values = inference_values(checkpoints.restore_as_saved(number))
    model = with_values(model, values)
    model.eval()
    save(model, out, overwrite=overwrite)
    name = escape(str(out))
    Console(soft_wrap=True).print(
        f"Saved [bold]{name}[/], {why}. Try: deeplab predict {name} PICTURE --out predictions"
    )
    return 0
