"""How long XLA compiles."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import peers
from benchmarks.measure import OURS, PLAIN, Case, measure
from benchmarks.report import report
from deeplab_jax import compiler_options, create, fold_batch_norm

PRESETS = ("deeplabv3plus_resnet50", "deeplabv3plus_mobilenet_v2")


def compilation(
    presets: tuple[str, ...] = PRESETS,
    size: int = 513,
    rounds: int = 5,
    out: Path = Path("benchmarks/results"),
) -> int:
    """Time compilation for inference against that of the same model with plain convolutions.

    Args:
      presets: Which models.
      size: Rows and columns of the image.
      rounds: How often each is timed.
      out: Folder of the JSON and the picture.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    cases = (_case(preset, size) for preset in presets)
    return report("compile", measure(cases, rounds=rounds), out)


def _case(preset: str, size: int) -> Case:
    model = create(preset, rngs=nnx.Rngs(0))
    model.eval()
    folded = fold_batch_norm(model)  # as `predict` does

    def compile(model: nnx.Module, options: dict[str, str | bool] | None) -> None:
        # A function of its own, as JAX keeps what it has traced of one.
        run = jax.jit(lambda model, x: model(x), compiler_options=options)
        run.lower(model, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)).compile()

    def plain() -> None:
        with peers.plain_xla():
            compile(model, None)

    ours: Callable[[], None] = lambda: compile(folded, compiler_options())  # noqa: E731
    return Case(f"{preset}, {size} x {size}", {OURS: ours, PLAIN: plain}, warm=False)
