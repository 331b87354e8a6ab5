"""The command `python -m benchmarks`: a subcommand for each kind of measurement."""

import tyro

from benchmarks.tpu import tpu
from deeplab_jax.command import run


def main() -> None:
    """Runs the command."""
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {"tpu": tpu}, prog="python -m benchmarks", description="Measurements."
        )
    )


if __name__ == "__main__":
    main()
