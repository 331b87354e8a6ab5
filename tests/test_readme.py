"""The README says what is: its table, its commands and its Python."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import deeplab_jax
import port
from deeplab_jax import create
from port.layouts import __main__ as layouts_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_layouts_is_the_layouts_own():
    assert layouts_table.with_table(README) == README, "run `python -m port.layouts`"


def test_every_layout_has_a_row():
    for name in port.LAYOUTS:
        assert f"\n| `{name}` |" in README


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="must have the lines"):
        layouts_table.with_table("# a readme")


@pytest.mark.parametrize("line", re.findall(r"^from (deeplab_jax import .*)$", README, re.M))
def test_what_the_examples_import_exists(line):
    for name in line.removeprefix("deeplab_jax import ").split(", "):
        assert hasattr(deeplab_jax, name)


@pytest.mark.parametrize("name", deeplab_jax.__all__)
def test_every_public_name_has_a_docstring(name):
    value = getattr(deeplab_jax, name)
    assert name == "PRESETS" or value.__doc__


def block(words):
    """The one Python example of the README that has these words."""
    (found,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.S) if words in b)
    return found


def test_the_training_step_trains():
    code = block("nnx.Optimizer")
    assert "deeplabv3plus_mobilenet_v2" in code
    # A network that compiles in no time; all else is the README's.
    code = code.replace("deeplabv3plus_mobilenet_v2", "fcn_tiny")
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((2, 33, 33, 3), np.float32))
    labels = jnp.asarray(images[..., 0] > 0, jnp.int32)
    losses = []
    names = {"create": create, "nnx": nnx, "batches": [(images, labels)] * 12}
    exec(block("class TinyConfig"), names)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        exec(code, names | {"print": lambda step, loss: losses.append(float(loss))})
    assert len(losses) == 12
    assert losses[-1] < 0.9 * losses[0]


def test_the_backbone_of_the_readme_is_known_everywhere(tmp_path):
    names = {"create": create, "nnx": nnx}
    exec(block("class TinyConfig"), names)
    model = names["model"]
    assert deeplab_jax.load(deeplab_jax.save(model, tmp_path / "model")).config == model.config
    stages = [row.stage for row in deeplab_jax.summarize(model, (64, 64))]
    assert stages[:2] == ["backbone.stem", "backbone.body"]


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r"^    (python3 -m venv .*pytest.*)$", README, re.M)
    assert len(commands) == 1
    assert "python3 -m venv .*pytest" in (ROOT / ".ci" / "run").read_text()
