"""The command `python -m benchmarks`: a subcommand for each kind of measurement."""

import importlib
import sys

import tyro

from deeplab_jax.command import run

COMMANDS = {
    "ops": "convolutions",
    "inference": "inference",
    "training": "training",
    "input": "input",
    "compile": "compilation",
    "gpu": "gpu",
    "tpu": "tpu",
}
"""Subcommand -> the module whose function of that name it is."""


def main() -> None:
    """Runs the command."""
    # The one that is asked for alone: the others' peers need not be installed.
    asked = [name for name in sys.argv[1:2] if name in COMMANDS] or list(COMMANDS)
    modules = {name: COMMANDS[name] for name in asked}
    commands = {
        name: getattr(importlib.import_module(f"benchmarks.{module}"), module)
        for name, module in modules.items()
    }
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m benchmarks", description="Measurements."
        )
    )


if __name__ == "__main__":
    main()
