"""What an adapter is and what its evaluation found, in words: for MLflow's pages, and for whoever ran the flow."""

import re
from collections.abc import Mapping
from typing import Any

from flows.project.metrics import WITHOUT_PROBE
from flows.project.paths import RunKey
from flows.report.tables import METHOD_TITLES, WITH_PROBE, interval

SCORES = {"base_accuracy": "base", "novel_accuracy": "novel", "all_accuracy": "accuracy",
          "harmonic_mean": "harmonic mean"}  # fmt: skip
NUMBER = re.compile(r"[+-]?[0-9.]+")


def in_words(tags: Mapping[str, str]) -> str:
    """Method, shots, seed and test figures in percent of a version by its tags, such as
    `MMRL, 16 shots, seed 2: base 97.6, novel 97.7, harmonic mean 97.7`."""
    shots, seed = (tags.get(name, "?") for name in ("shots", "seed"))
    made = f"{title_of(tags)}, {_counted(shots, 'shot')}, seed {seed}"
    scores = [f"{word} {_percent(tags[name])}" for name, word in SCORES.items() if name in tags]
    return f"{made}: {', '.join(scores)}" if scores else made


def title_of(tags: Mapping[str, str]) -> str:
    """What answers in a version, by its tags, such as `MMRL + probe`; earlier releases tagged the method alone."""
    return _title(tags.get("kind", tags.get("method", "?")))


def _title(kind: str) -> str:
    return METHOD_TITLES.get(kind, kind)


def served_kind(method: str, metrics: Mapping[str, Any]) -> str:
    """A run's method as tables name it: with its probe, where its metrics.json tells of one."""
    return method + WITH_PROBE if WITHOUT_PROBE in metrics else method


def description(key: RunKey, metrics: Mapping[str, Any]) -> str:
    """What a run's adapter is and what its metrics.json says, in Markdown."""
    made = _counted(key.shots, "labelled image")
    head = (
        f"**{_title(served_kind(key.method, metrics))}**, adapted to `{key.dataset}` by "
        f"{made} a class, seed {key.seed}; protocol {metrics['protocol']}, preset {metrics['preset']}."
    )
    parts, both = metrics["parts"], "harmonic_mean" in metrics
    if not parts:
        return head
    names = ["accuracy on test images, %", *parts, *(["harmonic mean"] if both else [])]
    rows = [names, ["---", *["---:"] * (len(names) - 1)]]
    for title, scores in (("this adapter", metrics), ("zero-shot CLIP", metrics.get("zero_shot"))):
        if scores:
            accuracies = [scores[part]["accuracy"] for part in parts]
            rows.append([title, *map(_percent, [*accuracies, scores.get("harmonic_mean")][: len(names) - 1])])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    gain = overall_gain(metrics)
    return f"{head}\n\n{table}" + (f"\n\nGain over zero-shot [95%]: {interval(gain)}" if gain else "")


def of_model(dataset: str, protocol: str, alias: str) -> str:
    """What a registered model is, in Markdown."""
    return (
        f"Adapters of CLIP to `{dataset}`, protocol {protocol}; each version's description has its figures. The alias "
        f"`{alias}` is what is live, and `mmrl history --dataset {dataset}` says why."
    )


def is_due(text: str, written: str | None) -> bool:
    """Whether a description is to be written: where there is none, or the same with other figures. What a person wrote
    in MLflow stays."""
    return not written or (written != text and NUMBER.sub("", written) == NUMBER.sub("", text))


def overall_gain(metrics: Mapping[str, Any]) -> dict[str, float] | None:
    """Over zero-shot, with its interval: of the harmonic mean, or of the only part."""
    gains = metrics.get("gain", {})
    return gains.get("harmonic_mean") or gains.get("all")


def _counted(count: object, what: str) -> str:
    return f"{count} {what}{'' if str(count) == '1' else 's'}"


def _percent(share: Any) -> str:
    """Of a number or its text; what else somebody wrote, as it is."""
    try:
        return f"{100 * float(share):.1f}"
    except (TypeError, ValueError):
        return str(share or "")
