"""Writes the tables of the pages from what they are tables of: `python -m docs.tables [NAME ...]`."""

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deeplab_jax.whole_file import write_file
from port.layouts import LAYOUTS, Layout

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pages"
RESULTS = ROOT / "benchmarks" / "results"


def layouts() -> str:
    """A row for each family of code whose checkpoints are read."""
    rows = [
        "| layout | code | models | held against | options that weights cannot tell |",
        "| --- | --- | --- | --- | --- |",
    ]
    for layout in LAYOUTS.values():
        options = ", ".join(f"`{choice}`" for choice in layout.choices)
        models = layout.models.replace("*", r"\*")  # two would be emphasis
        rows.append(
            f"| `{layout.name}` | {layout.code} | {models} | {_proof(layout)} | {options} |"
        )
    return "\n".join(rows)


def _proof(layout: Layout) -> str:
    """What the tests compare with, and with it `deeplab-port` where there is a package."""
    if type(layout).reference is not Layout.reference:
        return "the package itself, every layer"
    return "recorded outputs of the original"


def exactness() -> str:
    """A row for each recorded output of an original; runs all of these models, which takes minutes."""
    sys.path.insert(0, str(ROOT / "tests"))
    import recorded

    rows = ["| model | output | deeplab_jax | the original |", "| --- | --- | --: | --: |"]
    for name in recorded.NAMES:
        errors, roundings = recorded.errors(name), recorded.meta(name)["rounding"]
        for key, error in errors.items():
            # Two digits would change from one processor to the next.
            rows.append(f"| `{name}` | {key} | {error:.0e} | {roundings[key]:.0e} |")
    return "\n".join(rows)


def speed() -> str:
    """A row for each network that `python -m benchmarks inference` and `training` have timed."""
    kinds = {"one image": "inference", "a training step": "training"}
    records = {title: json.loads((RESULTS / f"{k}.json").read_text()) for title, k in kinds.items()}
    timed = [(title, row) for title, record in records.items() for row in record["results"]]
    contestants = list(dict.fromkeys(name for _, row in timed for name in row["seconds"]))
    rows = [f"| ms | {' | '.join(contestants)} |", "| --- |" + " --: |" * len(contestants)]
    for title, row in timed:
        medians = {name: statistics.median(times) for name, times in row["seconds"].items()}
        cells = (f"{1e3 * medians[c]:.0f}" if c in medians else "" for c in contestants)
        rows.append(f"| {title}: {row['name']} | {' | '.join(cells)} |")
    return "\n".join(rows)


TABLES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "layouts": ("convert.md", layouts),
    "exactness": ("exact.md", exactness),
    "speed": ("speed.md", speed),
}
"""The page of each, and what makes it."""


def with_table(text: str, name: str, table: str) -> str:
    """A page with a table between its marks. Raises ValueError where it has no marks."""
    start, end = f"<!-- {name}: written by `python -m docs.tables` -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page must have the lines {start!r} and {end!r}")
    return f"{before}{start}\n{table}\n{end}{after}"


def main(*names: str) -> None:
    """Rewrites the pages of these tables, of all where none is named."""
    if unknown := set(names) - set(TABLES):
        sys.exit(f"a table must be one of {', '.join(TABLES)}, got {', '.join(sorted(unknown))}")
    for name in names or TABLES:
        page, make = TABLES[name]
        write_file(PAGES / page, with_table((PAGES / page).read_text(), name, make()))


if __name__ == "__main__":
    main(*sys.argv[1:])
