"""Whatever a package imports is declared: by itself for `deeplab_jax`, by an extra for the others."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"deeplab_jax", "port", "train", "benchmarks", "docs"}
EXTRAS = {
    "deeplab_jax": ("app", "geotiff", "hub", "int8", "tensorflow", "video"),
    "port": (
        "port",
        "references",
        "tensorflow",
    ),  # the code bases that are verified against are imported when asked for
    "train": ("train", "datasets"),
    "benchmarks": ("benchmarks",),
    "tests": ("test",),
}
NOT_INSTALLED = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorflow": "tensorflow",
    "ai_edge_litert": "ai-edge-litert",
}
"""What a test environment may lack, and whose it is."""


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements):
    """The names of all requirements, those of our own extras in place of them."""
    names = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        if name == PROJECT["name"]:
            for extra in extras.split(","):
                names |= declared(PROJECT["optional-dependencies"][extra])
        else:
            names.add(normalised(name))
    return names


def imported(folder):
    """The first names of all modules that are imported anywhere in the files of a folder."""
    files = list((ROOT / folder).rglob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    modules = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    modules |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    beside = {part for file in files for part in (file.stem, file.parent.name)}
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - OWN - beside


@pytest.mark.parametrize("folder", EXTRAS)
def test_what_is_imported_is_declared(folder):
    installed = importlib.metadata.packages_distributions()
    allowed = declared(PROJECT["dependencies"])
    for extra in EXTRAS[folder]:
        allowed |= declared(PROJECT["optional-dependencies"][extra])
    undeclared = {
        module
        for module in imported(folder)
        if not allowed
        & {normalised(name) for name in installed.get(module, [NOT_INSTALLED.get(module, "")])}
    }
    assert undeclared == set()
