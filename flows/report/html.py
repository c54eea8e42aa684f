"""Pieces of HTML that the page's sections share."""

import html
from collections.abc import Iterable, Sequence

TEXT = {"dataset", "method", "setting", "values", "key", "value", "from", "what", "sha256", "true", "predicted",
        "champion", "tested, %", "verdict"}  # fmt: skip


def files(names: str) -> str:
    """The line that says where the figures above come from."""
    return f'<p class="files">From {html.escape(names)}</p>'


def table(names: Sequence[str], lines: Iterable[Sequence[str]], averaged: Sequence[bool] = ()) -> str:
    """An HTML table that scrolls where it is too wide; averaged lines stand out."""

    def line(tag: str, values: Sequence[str], average: bool = False) -> str:
        kinds = (' class="text"' if name in TEXT else "" for name in names)
        pairs = zip(kinds, values, strict=True)
        inner = "".join(f"<{tag}{kind}>{html.escape(value)}</{tag}>" for kind, value in pairs)
        kind = ' class="average"' if average else ""
        return f"<tr{kind}>{inner}</tr>"

    lines = list(lines)
    body = "\n".join(line("td", *pair) for pair in zip(lines, averaged or [False] * len(lines), strict=True))
    return f'<div class="wide"><table><thead>{line("th", names)}</thead>\n<tbody>\n{body}\n</tbody></table></div>'
