"""A table on the terminal, and beside it JSON and a picture."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.measure import OURS, Result
from deeplab_jax.whole_file import write_file

PACKAGES = (
    "jax",
    "flax",
    "torch",
    "torchvision",
    "segmentation_models_pytorch",
    "openvino",
    "onnxruntime",
    "grain",
)


def report(kind: str, results: Iterable[Result], out: Path) -> int:
    """Prints the results as they come and writes `KIND.json` and `KIND.png` into the folder `out`."""
    console, done = Console(), []
    for result in results:
        done.append(result)
        console.print(table(result))
    out.mkdir(parents=True, exist_ok=True)
    record = {"kind": kind, **machine(), "results": [dataclasses.asdict(r) for r in done]}
    write_file(out / f"{kind}.json", json.dumps(record, indent=1) + "\n")
    plot(done).savefig(out / f"{kind}.png", dpi=120)
    return 0


def table(result: Result) -> Table:
    """Milliseconds of each contestant, the fastest first."""
    checked = "" if result.difference is None else f", numbers differ by {result.difference:.0e}"
    found = Table(title=result.name + checked, title_justify="left", box=None)
    for title in ("", "median", "min", "max", "ours / this"):
        found.add_column(title, justify="right" if title else "left")
    for name in sorted(result.seconds, key=result.median):
        seconds = result.seconds[name]
        times = (f"{1e3 * t:.1f}" for t in (result.median(name), min(seconds), max(seconds)))
        ratio = "" if name == OURS else f"{result.ratio(name):.2f}"
        found.add_row(name, *times, ratio, style="bold" if name == OURS else None)
    return found


def plot(results: list[Result]) -> Figure:
    """Bars of the medians with whiskers from the fastest to the slowest round."""
    count = sum(len(result.seconds) + 1 for result in results)
    figure = Figure(figsize=(7, 1 + 0.28 * count), layout="constrained")
    every = figure.subplots(len(results), squeeze=False)[:, 0]
    for axes, result in zip(every, results, strict=True):
        names = sorted(result.seconds, key=result.median, reverse=True)
        medians = [1e3 * result.median(name) for name in names]
        low = [m - 1e3 * min(result.seconds[n]) for n, m in zip(names, medians, strict=True)]
        high = [1e3 * max(result.seconds[n]) - m for n, m in zip(names, medians, strict=True)]
        colors = ["C1" if name == OURS else "C0" for name in names]
        axes.barh(names, medians, xerr=(low, high), color=colors)
        axes.set_xlim(0, 1.2 * max(medians))  # one slow round does not squeeze the others
        axes.set_title(f"{result.name}, ms", loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
    return figure


def machine() -> dict[str, Any]:
    """What was measured on, without names and places."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    cpu = {name.strip(): value.strip() for name, value in found.items()}
    names = ("model name", "cpu family", "model")
    return ", ".join(f"{name} {cpu[name]}" for name in names if name in cpu)
