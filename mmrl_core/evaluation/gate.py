"""The promotion gate: whether a challenger is better than the champion, from their answers to the same images.

A pure function of outcomes and bounds; nothing here reads a file or a registry. n images of a part (such as base and
novel), b of them right by the challenger alone, c by the champion alone.
"""

import hashlib
from collections.abc import Mapping
from math import sqrt
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, NamedTuple

from mmrl_core.protocols import harmonic_mean
from mmrl_core.rounding import ROUNDED, at_most

if TYPE_CHECKING:
    import numpy as np

ACCEPTED, REFUSED, INCONCLUSIVE = "accepted", "refused", "inconclusive"
NO_IMAGE = "there is no image for the gate; give the dataset more validation images"


def is_gate_image(path: str) -> bool:
    """Whether a validation image, by its path in the dataset, is kept for the gate: about half of them are.

    The split's only users are gates: validation leaves these images out, so nothing was chosen on them.
    """
    return hashlib.sha256(f"gate {path}".encode()).digest()[0] < 128


class Bounds(NamedTuple):
    """`margin` and `novel_loss` are accuracies in [0, 1]; `significance` is that of one-sided tests; `latency` the
    most that the challenger's time for an image may be, as a multiple of the champion's."""

    margin: float = 0.0
    significance: float = 0.05
    novel_loss: float = 0.05
    latency: float = 2.0


SHIPPED = Bounds()


class Pair(NamedTuple):
    """One part's images: whether each was classified rightly, (n,) bool each."""

    champion: "np.ndarray"
    challenger: "np.ndarray"


class Decision(NamedTuple):
    """`reasons` say in one line each what was found, whatever the verdict; `figures` are what they rest on."""

    verdict: str
    reasons: list[str]
    figures: dict[str, float]

    @property
    def accepted(self) -> bool:
        return self.verdict == ACCEPTED


def latency_ratio(seconds: "np.ndarray") -> float:
    """The challenger's time for an image over the champion's, of `seconds` (rounds, images, [champion, challenger]).

    An image's time is its fastest, for what else the machine does can only add to it; medians over images.
    """
    import numpy as np

    champion, challenger = np.median(seconds.min(axis=0), axis=0)
    return float(challenger / champion)


class _Finding(NamedTuple):
    verdict: str
    reason: str
    figures: dict[str, float]


def decide(parts: Mapping[str, Pair], latency_ratio: float, bounds: Bounds = SHIPPED) -> Decision:
    """Accepted when everything holds, refused when something speaks against it, else inconclusive: a refusal as well.

    Asked for are a harmonic mean (of one part alone: an accuracy) of at least the champion's plus `margin`; McNemar's
    exact test (1947) over all images together in the challenger's favour; an upper confidence bound of `novel_loss` on
    what the accuracy of novel images loses; and a latency within its bound.
    """
    if not sum(len(pair.champion) for pair in parts.values()):
        return Decision(INCONCLUSIVE, [NO_IMAGE], {})
    findings = [_mean(parts, bounds), _mcnemar(parts, bounds), _latency(latency_ratio, bounds)]
    if "novel" in parts:
        findings.append(_novel(parts["novel"], bounds))
    return _taken_together(findings)


def decide_first(parts: Mapping[str, Pair], latency_ratio: float, bounds: Bounds = SHIPPED) -> Decision:
    """Of a version without a champion before it, in whose place zero-shot stands: refused only when something speaks
    against it, accepted when it is shown to be better, else inconclusive, which is no refusal here.

    Against it speak McNemar's test in zero-shot's favour; an upper confidence bound below 0 of what the harmonic mean
    gains, where that test says of one part that it is worse; and a lower confidence bound above `novel_loss` of what
    the accuracy of novel images loses, where it says so of these. (The bounds alone would decline by three images.)
    Its latency is told: a frozen CLIP without anything added is the faster one.
    """
    seen = {part: pair for part, pair in parts.items() if len(pair.champion)}
    if not seen:
        return Decision(INCONCLUSIVE, [NO_IMAGE], {})
    findings = [_mean_of_first(seen, bounds), _mcnemar(seen, bounds, "zero-shot")]
    if "novel" in seen:
        findings.append(_novel_of_first(seen["novel"], bounds))
    decision = _taken_together(findings)
    took = f"an image takes {latency_ratio:.2f} times as long"
    return Decision(decision.verdict, [*decision.reasons, took], decision.figures | {"latency": latency_ratio})


def _taken_together(findings: list[_Finding]) -> Decision:
    verdicts = {finding.verdict for finding in findings}
    verdict = next(verdict for verdict in (REFUSED, INCONCLUSIVE, ACCEPTED) if verdict in verdicts)
    figures = {name: value for finding in findings for name, value in finding.figures.items()}
    return Decision(verdict, [finding.reason for finding in findings], figures)


def _mean(parts: Mapping[str, Pair], bounds: Bounds) -> _Finding:
    champion, challenger = _means(parts, 0), _means(parts, 1)
    enough = at_most(champion + bounds.margin, challenger)
    wanted = f"the champion's {champion:.2%} plus {bounds.margin:.2%}"
    reason = f"{_name_of_mean(parts)} {challenger:.2%} is {'at least' if enough else 'less than'} {wanted}"
    return _Finding(ACCEPTED if enough else REFUSED, reason, {"champion": champion, "challenger": challenger})


def _mean_of_first(parts: Mapping[str, Pair], bounds: Bounds) -> _Finding:
    zero_shot, challenger = _means(parts, 0), _means(parts, 1)
    gain, low, high = gain_bounds(parts, bounds.significance)
    seen = f"{gain:+z.2%} [{low:+z.2%}, {high:+z.2%}]"
    reason = f"{_name_of_mean(parts)} {challenger:.2%}, zero-shot's {zero_shot:.2%}: {seen}"
    figures = {"zero_shot": zero_shot, "challenger": challenger, "gain_low": low, "gain_high": high}
    if high < -ROUNDED and any(_is_worse(pair, bounds) for pair in parts.values()):
        return _Finding(REFUSED, reason, figures)
    return _Finding(ACCEPTED if at_most(zero_shot, challenger) else INCONCLUSIVE, reason, figures)


def _name_of_mean(parts: Mapping[str, Pair]) -> str:
    return "harmonic mean" if _has_halves(parts) else "accuracy"


def _has_halves(parts: Mapping[str, object]) -> bool:
    return {"base", "novel"} <= parts.keys()


def _means(parts: Mapping[str, Pair], which: int) -> float:
    """0: of the champion, 1: of the challenger."""
    return _mean_of({part: float(pair[which].mean()) if len(pair[which]) else 0.0 for part, pair in parts.items()})


def _mean_of(accuracies: Mapping[str, float]) -> float:
    both = _has_halves(accuracies)
    return harmonic_mean(accuracies["base"], accuracies["novel"]) if both else fmean(accuracies.values())


def discordant(pair: Pair) -> tuple[int, int]:
    """b, c: the images that only the challenger, and only the champion, classified rightly."""
    return int((pair.challenger & ~pair.champion).sum()), int((pair.champion & ~pair.challenger).sum())


def _mcnemar(parts: Mapping[str, Pair], bounds: Bounds, champion: str = "the champion") -> _Finding:
    b, c = map(sum, zip(*(discordant(pair) for pair in parts.values()), strict=True))
    n = sum(len(pair.champion) for pair in parts.values())
    better, worse = _p_value(b, c), _p_value(c, b)
    seen = f"of {n} images {b} only by the challenger, {c} only by {champion}"
    figures = {"n": n, "only_challenger": b, "only_champion": c, "p_better": better, "p_worse": worse}
    if at_most(better, bounds.significance):
        return _Finding(ACCEPTED, f"better: {seen} (McNemar p = {better:.2g})", figures)
    if at_most(worse, bounds.significance):
        return _Finding(REFUSED, f"worse: {seen} (McNemar p = {worse:.2g})", figures)
    reason = f"inconclusive: {seen} (McNemar p = {better:.2g}); that is too few to tell, more images could"
    return _Finding(INCONCLUSIVE, reason, figures)


def _p_value(b: int, c: int) -> float:
    """McNemar's exact test, one-sided: P(X >= b) of X ~ Binomial(b + c, 1/2)."""
    from scipy.stats import binom  # a second, which who only asks for the gate's images need not wait

    return float(binom.sf(b - 1, b + c, 0.5))


def _is_worse(pair: Pair, bounds: Bounds) -> bool:
    b, c = discordant(pair)
    return at_most(_p_value(c, b), bounds.significance)


def _novel(pair: Pair, bounds: Bounds) -> _Finding:
    n = len(pair.champion)
    if not n:
        return _Finding(INCONCLUSIVE, "inconclusive: there is no novel image to bound the loss on", {"novel_n": 0})
    loss, upper = loss_bound(pair, bounds.significance)
    figures = {"novel_n": n, "novel_loss": loss, "novel_loss_bound": upper}
    seen = f"on {n} novel images the accuracy falls by {loss:.2%}, at most {upper:.2%}"
    if at_most(upper, bounds.novel_loss):
        return _Finding(ACCEPTED, f"{seen}, within {bounds.novel_loss:.2%}", figures)
    if not at_most(loss, bounds.novel_loss):
        return _Finding(REFUSED, f"{seen}, more than {bounds.novel_loss:.2%}", figures)
    return _Finding(INCONCLUSIVE, f"inconclusive: {seen}, which may be more than {bounds.novel_loss:.2%}", figures)


def _novel_of_first(pair: Pair, bounds: Bounds) -> _Finding:
    loss, most, least = (0.0 - one for one in gain_bounds({"novel": pair}, bounds.significance))
    figures = {"novel_n": len(pair.champion), "novel_loss": loss, "novel_loss_bound": most}
    seen = f"on {len(pair.champion)} novel images the accuracy falls by {loss:.2%}"
    if not at_most(least, bounds.novel_loss) and _is_worse(pair, bounds):
        return _Finding(REFUSED, f"{seen}, at least {least:.2%}, more than {bounds.novel_loss:.2%}", figures)
    return _Finding(ACCEPTED, f"{seen}, at most {most:.2%}", figures)


def loss_bound(pair: Pair, significance: float) -> tuple[float, float]:
    """What the accuracy falls by, and its upper confidence bound, as `gain_bounds`."""
    gain, low, _ = gain_bounds({"all": pair}, significance)
    return 0.0 - gain, min(1.0, -low)


def gain_bounds(parts: Mapping[str, Pair], significance: float) -> tuple[float, float, float]:
    """What the challenger gains over the champion in the harmonic mean of base and novel (of one part: in accuracy),
    and its lower and upper confidence bounds, each one-sided. No part is without images.

    Delta method on the shares of images right by both, by one or by none, half an image added to each of these four
    cells. Of one part that is Agresti and Min's adjusted Wald interval (2005) for paired proportions.
    """
    shares = {part: _shares(pair) for part, pair in parts.items()}
    challenger = {part: both + b for part, (both, b, _) in shares.items()}
    champion = {part: both + c for part, (both, _, c) in shares.items()}
    up, down, variance = _slopes(challenger), _slopes(champion), 0.0
    for part, (both, b, c) in shares.items():
        squares = both * (up[part] - down[part]) ** 2 + b * up[part] ** 2 + c * down[part] ** 2
        mean = up[part] * challenger[part] - down[part] * champion[part]
        variance += (squares - mean**2) / (len(parts[part].champion) + 2)
    middle = _mean_of(challenger) - _mean_of(champion)
    error = NormalDist().inv_cdf(1 - significance) * sqrt(variance)
    return _means(parts, 1) - _means(parts, 0), middle - error, middle + error


def _shares(pair: Pair) -> tuple[float, float, float]:
    """Of images right by both, by the challenger alone, by the champion alone, half an image added to each cell."""
    both, (b, c) = int((pair.challenger & pair.champion).sum()), discordant(pair)
    total = len(pair.champion) + 2
    return (both + 0.5) / total, (b + 0.5) / total, (c + 0.5) / total


def _slopes(accuracies: Mapping[str, float]) -> dict[str, float]:
    """How fast the mean rises with each part's accuracy."""
    total = sum(accuracies.values())
    if not _has_halves(accuracies):
        return dict.fromkeys(accuracies, 1 / len(accuracies))
    return {part: 2 * (1 - accuracy / total) ** 2 for part, accuracy in accuracies.items()}


def _latency(ratio: float, bounds: Bounds) -> _Finding:
    verdict = ACCEPTED if at_most(ratio, bounds.latency) else REFUSED
    word = "within" if verdict == ACCEPTED else "more than"
    return _Finding(verdict, f"an image takes {ratio:.2f} times as long, {word} {bounds.latency:g}", {"latency": ratio})
