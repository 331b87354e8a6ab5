"""Writes the README's table of layouts from the layouts themselves: `python -m port.layouts`."""

import sys
from pathlib import Path

from deeplab_jax.whole_file import write_file
from port.layouts import LAYOUTS, Layout

START = "<!-- layouts: written by `python -m port.layouts`, do not edit -->"
END = "<!-- /layouts -->"


def table() -> str:
    """The table in Markdown, a row per layout."""
    rows = [
        "| layout | code | models | held against | options that weights cannot tell |",
        "| --- | --- | --- | --- | --- |",
    ]
    for layout in LAYOUTS.values():
        options = ", ".join(f"`{choice}`" for choice in layout.choices)
        rows.append(
            f"| `{layout.name}` | {layout.code} | {layout.models} | {_proof(layout)} | {options} |"
        )
    return "\n".join(rows)


def _proof(layout: Layout) -> str:
    """What the tests compare with, and with it `deeplab-port` where there is a package."""
    if type(layout).reference is not Layout.reference:
        return "the package itself, every layer"
    return "recorded outputs of the original"


def with_table(text: str) -> str:
    """The README with today's table between its marks. Raises ValueError where it has no marks."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the README must have the lines {START!r} and {END!r}")
    return f"{before}{START}\n{table()}\n{END}{after}"


def main() -> None:
    """Rewrites README.md in the current folder."""
    readme = Path("README.md")
    if not readme.is_file():
        sys.exit("run this in the folder of README.md")
    write_file(readme, with_table(readme.read_text()))


if __name__ == "__main__":
    main()
