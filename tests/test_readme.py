"""The README says what is: its table, its commands and its Python."""

import re
from pathlib import Path

import pytest

import deeplab_jax
import port
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


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r"^    (python3 -m venv .*pytest.*)$", README, re.M)
    assert len(commands) == 1
    assert "python3 -m venv .*pytest" in (ROOT / ".ci" / "run").read_text()
