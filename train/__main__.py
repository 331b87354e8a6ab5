"""The command `deeplab-train`: a subcommand for each recipe; data, prepare, pack, evaluate, ..."""

from collections.abc import Callable
from types import ModuleType
from typing import Annotated

import tyro

from deeplab_jax.command import PLUGIN_HELP, keep_compiled_programs, run
from train.config import TrainConfig
from train.configs import RECIPES
from train.data_command import data_command, pack_command, prepare_command
from train.evaluate_command import evaluate_command
from train.export_command import export_model_command
from train.loop import train
from train.quantize_command import quantize_command


def _recipe(module: ModuleType) -> Callable[[TrainConfig], int]:
    """The subcommand of a recipe: its config, every field of which is a flag."""

    def command(config: Annotated[TrainConfig, tyro.conf.arg(name="")] = module.CONFIG) -> int:
        keep_compiled_programs()
        return train(config)

    command.__doc__ = "Train: " + module.__doc__.partition("\n\n")[0]
    return command


def main() -> None:
    """Runs the command."""
    commands = {name: _recipe(module) for name, module in RECIPES.items()}
    tools = {
        "data": data_command,
        "prepare": prepare_command,
        "pack": pack_command,
        "evaluate": evaluate_command,
        "export-model": export_model_command,
        "quantize": quantize_command,
    }
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands | tools,
            prog="deeplab-train",
            description=f"Train DeepLab models in JAX, and evaluate them. {PLUGIN_HELP}",
        )
    )


if __name__ == "__main__":
    main()
