"""What was found, for a terminal and for docs/performance.md."""

from typing import Any

from benchmarks.gpu.run import Found

ASIDE = {
    "over_plain": "{:.2f} x plain, with its features", "over_plain_bf16": "{:.2f} x plain under autocast",
    "over_float32": "{:.2f} x float32", "share": "{:.0%} of the products' rate",
    "launched_ms": "launched one by one {:.2f} ms", "ratio": "{:.2f} x", "each_ms": "{:.2f} ms",
}  # fmt: skip


def lines(name: str, found: Found) -> list[str]:
    """A part for a terminal of 120 columns."""
    told = [f"{name:<12} {found.seconds:6.1f} s{'  ' + outcome(found) if outcome(found) else ''}"]
    return told + [f"    {row['what']:<74} {figure(row):>16}  {aside(row)}".rstrip() for row in found.rows]


def markdown(found: dict[str, Any]) -> str:
    """The table that docs/performance.md has a place for."""
    rows = [headline(found), "", "| part | what | | |", "| --- | --- | ---: | --- |"]
    for name, part in found["parts"].items():
        one = Found(**part)
        rows += [f"| {name} | {row['what']} | {figure(row)} | {aside(row)} |" for row in one.rows]
        if outcome(one):
            rows.append(f"| {name} | {outcome(one).replace('|', '/')} | | |")
    return "\n".join(rows)


def headline(found: dict[str, Any]) -> str:
    """What it ran on, and that it is no card where it is none."""
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items() if value is not None)
    toy = " Toy sizes: whether it runs, no figures of a card." if found["toy"] else ""
    return f"On {found['device']} ({machine}).{toy}"


def outcome(found: Found) -> str:
    if found.skipped:
        return found.skipped
    return f"FAILED: {found.error}" if found.error else ""


def figure(row: dict[str, Any]) -> str:
    return f"{row['value']:.4g} {row['unit']}".rstrip()


def aside(row: dict[str, Any]) -> str:
    more, said = row["more"] or {}, []
    if row["holds"] is not None:
        most = f" (at most {more['most']:g})" if "most" in more else ""
        said.append(("holds" if row["holds"] else "DOES NOT HOLD") + most)
    return ", ".join(said + [form.format(more[name]) for name, form in ASIDE.items() if name in more])
