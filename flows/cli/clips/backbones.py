"""Which CLIPs open_clip knows, and which of them the method adapts."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import AsJson, text_table

if TYPE_CHECKING:
    from mmrl_core.clip.catalogue import Architecture

HEADER = [
    "architecture", "family", "adaptable", "params", "image", "image tower", "text tower", "context", "tags", "licence",
]  # fmt: skip
DETAILED = 3  # architectures of which every tag is listed as well


def backbones(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name or family, or a pattern with * and ?.")] = None,
    only: Annotated[
        bool | None, typer.Option("--adaptable/--refused", help="Only those that are adapted, or that are not.")
    ] = None,
    json_: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as docs/backbones.md has it.")] = False,
) -> None:
    """List every architecture of open_clip: adapted or why not, its size, images, towers, and its weights' licences.

    Nothing is fetched and no model is built. Tags are listed where few architectures match; --json has them all.
    """
    from mmrl_core.clip.catalogue import catalogue

    found = catalogue(pattern)
    rows = [row for row in found if only is None or (row.problem is None) == only]
    if json_:
        print(json.dumps({"architectures": [as_json(row) for row in rows]}))
        return
    if markdown:
        print("\n".join(markdown_lines(rows)))
    else:
        _show(rows)
    print(summary(found))


def as_json(row: "Architecture") -> dict[str, Any]:
    tags = {tag.name: {"licence": tag.licence.spdx, "note": tag.licence.note} for tag in row.tags}
    sizes = {what: pair and {"width": pair[0], "depth": pair[1]} for what, pair in _towers(row).items()}
    return {**row._asdict(), "adaptable": row.problem is None, **sizes, "tags": tags}


def _towers(row: "Architecture") -> dict[str, tuple[int, int] | None]:
    return {"image": row.image, "text": row.text}


def cells(row: "Architecture") -> list[str]:
    """One of each of HEADER."""
    licences = dict.fromkeys(tag.licence.spdx or "unknown" for tag in row.tags)
    towers = [f"{pair[0]} x {pair[1]}" if pair else "-" for pair in (row.image, row.text)]
    millions = "-" if row.parameters is None else f"{row.parameters / 1e6:.0f} M"
    return [
        row.name, row.family, row.problem or "yes", millions, str(row.image_size), *towers, str(row.context),
        str(len(row.tags)), ", ".join(licences) or "-",
    ]  # fmt: skip


def summary(rows: list["Architecture"]) -> str:
    """How many are adapted, and how many of those with published weights."""
    adapted, published = [row for row in rows if row.problem is None], [row for row in rows if row.tags]
    both = [row for row in adapted if row.tags]
    return f"{len(adapted)} of {len(rows)} can be adapted, {len(both)} of {len(published)} with published weights"


def markdown_lines(rows: list["Architecture"]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [HEADER, ["---"] * len(HEADER), *map(cells, rows)]]


def _show(rows: list["Architecture"]) -> None:
    if sys.stdout.isatty():
        _show_in_terminal(rows)
    elif rows:
        print(text_table(HEADER, map(cells, rows)))
    for row in rows if len(rows) <= DETAILED else []:
        print("".join(f"{row.name} {tag.name}: {_licence(tag)}\n" for tag in row.tags), end="")


def _licence(tag: Any) -> str:
    return f"{tag.licence.spdx or 'unknown'} ({tag.licence.note})"


def _show_in_terminal(rows: list["Architecture"]) -> None:
    """Reasons and licences wrap to the terminal's width; names stay whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in HEADER:
        number = name in ("params", "image", "context", "tags")
        table.add_column(
            name, justify="right" if number else "left", overflow="fold", no_wrap=number or name == "architecture"
        )
    for row in rows:
        own = [Text(cell) for cell in cells(row)]
        own[2].stylize("green" if row.problem is None else "yellow")
        table.add_row(*own)
    Console().print(table)
