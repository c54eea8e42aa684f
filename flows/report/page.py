"""The report: one HTML page. Every figure names the files it comes from.

It needs nothing beside itself, and names the champion where champions.py's file lies beside it.
"""

import base64
import hashlib
import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flows.report import by_class, champions, comparisons, figures, published, searches
from flows.report.by_class import ClassGain
from flows.report.html import files, table
from flows.report.searches import Search
from flows.report.tables import cells, header, more_table, title
from mmrl_core.files import json_document

THUMBNAIL = 96  # pixels
STYLE = """
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
 h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; } h3 { margin-bottom: .3rem; }
 .wide { overflow-x: auto; } .row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
 table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
 th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
 td.text, th.text { text-align: left; } tr.average td { font-weight: 600; border-top: 2px solid #bbb; }
 .files, footer { color: #666; font-size: .8rem; overflow-wrap: anywhere; }
 figure { margin: 0; width: 7.5rem; font-size: .75rem; line-height: 1.25; overflow-wrap: anywhere; }
 figure img { width: 96px; height: 96px; object-fit: contain; background: #f2f2f2; image-rendering: auto; }
 details { margin: .6rem 0; } summary { cursor: pointer; }
 @media print { details::details-content { content-visibility: visible; } body { max-width: none; } }
"""
INTRODUCTION = """Accuracy in percent, mean ± standard deviation over seeds. Harmonic mean: of the seed means; of an
average: of the averages. Zero-shot is the same frozen CLIP without an adapter, on the same images with the same
prompts. Gain: over zero-shot (in the harmonic mean where there is one), with the 95% interval of a paired bootstrap
over test images and seeds. Linear probe and Tip-Adapter classify frozen features, and leave classes that they were not
fitted on to zero-shot. "+ probe": with a linear probe's say on trained classes, as much as validation images want.
ECE: expected calibration error in percent, the mean gap between confidence and accuracy; in brackets before
temperatures were applied."""
GAINS = """Points of accuracy, or of the harmonic mean, with the 95% interval of the paired bootstrap. A dot is filled
where the interval is on one side of 0. In a dataset's own line is what zero-shot gets."""
LEARNING = """Training loss: all terms of the loss, of augmented training images. Validation: the few-shot validation
images of the trained classes, among these, not augmented; of more than 256, as many spread over them. Thin lines are
seeds, thick ones their mean. The last epoch's adapter is the one that is tested, whatever the curves."""


Curves = dict[str, dict[str, dict[int, list[dict[str, float]]]]]  # run group -> method -> seed -> every epoch's metrics

MORE_EXPLAINED = """Of the same images, in percent, means over seeds. Macro F1: the mean over classes of F1. Balanced
accuracy: the mean over classes of the share of their images that are classified rightly. Top-5: the share of images
whose class is among the five most probable; not given for five classes or fewer. AUROC: the mean over classes of the
area under the ROC curve of the class's probability, one class against the rest. A class without test images counts in
none of these but macro F1, there as 0 where it is the answer to any image."""


class Exhibit(NamedTuple):
    """One adapter's answers on one test set, all seeds together."""

    name: str
    classes: list[str]
    kinds: list[str]  # of every class: base, novel, or empty
    pairs: np.ndarray  # (n, 2) places of the true and the predicted class, of pairs that any image has, in their order
    counts: np.ndarray  # (n,) images of each pair
    gains: list[ClassGain]
    won: list[tuple[bytes, str]]  # images that the adapter alone got right, with a caption
    lost: list[tuple[bytes, str]]  # and that zero-shot alone did
    files: str

    def named(self, place: int) -> str:
        """A class's name, with its kind where there are kinds."""
        kind = self.kinds[place]
        return f"{self.classes[place]} ({kind})" if kind else self.classes[place]

    @property
    def matrix(self) -> np.ndarray:
        """Images by (true, predicted) class; of few classes."""
        matrix = np.zeros((len(self.classes), len(self.classes)), dtype=int)
        matrix[self.pairs[:, 0], self.pairs[:, 1]] = self.counts
        return matrix


class Settings(NamedTuple):
    """How a group of runs was made."""

    name: str
    values: list[tuple[str, Any, str]]  # key, value, where it comes from
    digests: list[tuple[str, str]]  # what, sha256
    files: str


class Material(NamedTuple):
    """All that the page shows beside the summary."""

    curves: Curves
    searches: list[Search]
    exhibits: list[Exhibit]
    settings: list[Settings]
    versions: dict[str, str]


def page(summary: dict, material: Material) -> str:
    """The whole document; `summary` as in summary.json."""
    sections = [
        _results(summary), _more(summary), _published(summary), _differences(summary), _gains(summary),
        _few_shot(summary), _curves(material.curves), searches.section(summary["searches"], material.searches),
        _exhibits(material.exhibits), _settings(summary, material),
    ]  # fmt: skip
    head = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    of = hashlib.sha256(json_document(summary)).hexdigest()
    named = f"Protocol {summary['protocol']}, preset {summary['preset']}, backbone {summary['backbone']}."
    body = "\n".join(section for section in sections if section)
    return (
        f"{head}<title>MMRL Ops: results</title><style>{STYLE}</style>\n<h1>Results</h1>\n"
        f"<p>{html.escape(named)}</p>\n{champions.place(of)}\n{body}\n<footer>{_stale(summary)}</footer></html>\n"
    )


def _results(summary: dict) -> str:
    rows = summary["rows"] + summary["averages"]
    text = f"<p>{html.escape(INTRODUCTION)}</p>{table(header(rows), map(cells, rows), _averaged(summary))}"
    return text + files("reports/summary.json, reports/results.csv")


def _more(summary: dict) -> str:
    names, lines = more_table(summary["rows"] + summary["averages"])
    if not lines:
        return ""
    inner = f"<p>{html.escape(MORE_EXPLAINED)}</p>{table(names, lines, _averaged(summary))}"
    return f"<details><summary>More metrics</summary>{inner}{files('reports/results.csv')}</details>"


def _averaged(summary: dict) -> list[bool]:
    return [False] * len(summary["rows"]) + [True] * len(summary["averages"])


def _published(summary: dict) -> str:
    reference = summary["published"]
    if not reference:
        return ""
    lines = [[row["method"], *(f"{row[name]:.2f}" for name in ("base", "novel", "harmonic_mean"))]
             for row in reference["rows"]]  # fmt: skip
    inner = f"<p>{html.escape(reference['source'])}</p>{table(published.HEADER, lines)}"
    return f"<details><summary>Published figures of other backbones and datasets</summary>{inner}</details>"


def _differences(summary: dict) -> str:
    names, lines = comparisons.table(summary["comparisons"])
    if not lines:
        return ""
    text = f"<h2>Methods against each other</h2><p>{html.escape(comparisons.EXPLAINED)}</p>"
    return text + table(names, lines) + files("reports/summary.json, results/*/*/seed*/predictions.parquet")


def _gains(summary: dict) -> str:
    most = max(row["shots"] for row in summary["rows"])
    rows = [row for row in summary["rows"] if row["shots"] == most]
    parts = [*rows[0]["accuracy"], *(["harmonic_mean"] if "harmonic_mean" in rows[0] else [])]
    text = f"<h2>Gains over zero-shot</h2><p>{html.escape(GAINS)}</p>"
    return f'{text}<div class="wide">{figures.forest(rows, parts)}</div>' + files("reports/results.csv")


def _few_shot(summary: dict) -> str:
    rows = summary["rows"]
    names = list(dict.fromkeys(title(row) for row in rows))
    if len({row["shots"] for row in rows}) < 2 or "all" not in rows[0]["accuracy"]:
        return ""
    drawn = "".join(figures.few_shot_curve(name, [row for row in rows if title(row) == name]) for name in names)
    return f'<h2>Few-shot curve</h2><div class="row">{drawn}</div>' + files("reports/few_shot_curve.csv")


def _curves(curves: dict) -> str:
    drawn = "".join(figures.learning_curves(name, methods) for name, methods in curves.items())
    where = files("models/*/*/seed*/adapter.json, reports/learning_curves.csv")
    text = f"<h2>Learning curves</h2><p>{html.escape(LEARNING)}</p>"
    return f'{text}<div class="row">{drawn}</div>{where}' if drawn else ""


def _exhibits(exhibits: Sequence[Exhibit]) -> str:
    return "<h2>Class by class</h2>" + "".join(map(_exhibit, exhibits)) if exhibits else ""


def _exhibit(exhibit: Exhibit) -> str:
    if len(exhibit.classes) <= by_class.LARGEST_MATRIX:
        matrix = by_class.confusion(exhibit.name, exhibit.matrix, exhibit.classes, exhibit.kinds)
    else:
        matrix = table(["true", "predicted", "images"], _most_confused(exhibit))
    drawn = f'<div class="row">{matrix}{by_class.class_gains(exhibit.name, exhibit.gains)}</div>'
    grids = _grid("Right with the adapter, wrong zero-shot", exhibit.won)
    grids += _grid("Wrong with the adapter, right zero-shot", exhibit.lost)
    return f"<h3>{html.escape(exhibit.name)}</h3>{drawn}{grids}{files(exhibit.files)}"


def _most_confused(exhibit: Exhibit, count: int = 20) -> list[list[str]]:
    wrong = exhibit.pairs[:, 0] != exhibit.pairs[:, 1]
    pairs, counts = exhibit.pairs[wrong], exhibit.counts[wrong]
    order = np.argsort(-counts, kind="stable")[:count]
    named = [[exhibit.named(int(place)) for place in pair] for pair in pairs[order]]
    return [[*names, str(images)] for names, images in zip(named, counts[order], strict=True)]


def _grid(heading: str, images: Sequence[tuple[bytes, str]]) -> str:
    if not images:
        return ""
    shown = "".join(
        f'<figure><img alt="{html.escape(caption, quote=True)}" src="{_thumbnail(image)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in images
    )
    return f'<p>{heading}:</p><div class="row">{shown}</div>'


def _thumbnail(image: bytes) -> str:
    """A data URI of at most THUMBNAIL pixels a side."""
    from mmrl_core.data.images import decode

    small, encoded = decode(image, "a test image"), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(encoded, format="PNG")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def _settings(summary: dict, material: Material) -> str:
    groups = "".join(
        f"<details><summary>{html.escape(group.name)}</summary>"
        + table(["key", "value", "from"], [[key, str(value), source] for key, value, source in group.values])
        + table(["what", "sha256"], group.digests)
        + files(group.files)
        + "</details>"
        for group in material.settings
    )
    versions = ", ".join(f"{name} {version}" for name, version in material.versions.items())
    return f"<h2>Settings, versions, digests</h2><p>{html.escape(versions)}</p>{groups}"


def _stale(summary: dict) -> str:
    lines = [f"Not read, because params.yaml does not name it: {folder}" for folder in summary["stale"]]
    return "<br>".join(map(html.escape, lines))
