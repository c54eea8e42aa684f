"""champion.js, which the page loads from beside it: who is champion, date and commit, with the results as they are.

The page is an output of DVC, the same bytes for the same results, and the gate decides after it is written. So what the
gate says stands in a file that DVC does not know. It is a script, since a page that is opened as a file may read
nothing else; all that it does is to put text into the page.
"""

import html
import json
from typing import NamedTuple

from flows.report.html import table

PLACE = "champion"  # id of the page's element, which says by which summary.json the page was made
FALLBACK = (
    "Which version is the champion, when that was decided, date and commit: `mmrl flow adapt` writes that into "
    "champion.js beside this page. `mmrl history` has every decision."
)
HEADER = ["champion", "method", "shots", "seed", "tested, %", "verdict", "decided"]
OTHERS = "Of other results than these below, which were made since or before; `mmrl flow adapt` brings both up to date."


class Standing(NamedTuple):
    """A registered model's champion and what was decided last. Scores are fractions by name; times are texts."""

    name: str
    version: int
    method: str
    shots: str
    seed: str
    scores: dict[str, float]
    verdict: str  # by which it became champion
    when: str
    latest: str  # the last decision about the model, with its reasons


def place(of: str) -> str:
    """The page's element that champion.js fills, for results with the digest `of`, and what loads it."""
    return f'<div id="{PLACE}" data-of="{of}"><p class="files">{FALLBACK}</p></div><script src="{PLACE}.js"></script>'


def script(standings: list[Standing], commit: str | None, at: str, of: str) -> str:
    """The text of champion.js, written at the time `at` of the results with the digest `of`."""
    written = f"Written {at}, at commit {commit}." if commit else f"Written {at}, outside of a git repository."
    latest = "".join(f"<p>Decided last: {html.escape(one.latest)}.</p>" for one in standings if one.latest)
    champions = table(HEADER, map(_cells, standings)) if standings else "<p>No champion yet.</p>"
    text = f"{champions}{latest}<p>{html.escape(written)}</p>"
    return (
        f'{{ const place = document.getElementById("{PLACE}");\n'
        f"place.innerHTML = (place.dataset.of === {json.dumps(of)} ? '' : {json.dumps(f'<p><b>{OTHERS}</b></p>')})\n"
        f"  + {json.dumps(text)}; }}\n"
    )


def _cells(one: Standing) -> list[str]:
    scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in one.scores.items())
    return [f"{one.name} version {one.version}", one.method, one.shots, one.seed, scores, one.verdict, one.when]
