"""Has the world left the one that a dataset is of? A sequential test, so that it may be asked at every cycle.

What is watched of every labelled decision, by episode: which label it has, whether its question is longer than nine
tenths of the dataset's, and whether its agent is one that the dataset does not know. Each share is tested against that
of the dataset, in both directions where that makes sense. A difference of up to `TOLERANCE` is no drift, and the
dataset's own share is taken at the end of its interval. As in a live test the evidence starts anew every 30 days, and
part of it every day; the probability of a false alarm in such a period is at most `ALPHA`, all shares together.
`benchmarks/promotion.py` simulates it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from quality.evaluation.live import Stream, change_point, harm_evidence, period_start
from quality.evaluation.sequential import Scores

ALPHA = 0.01
TOLERANCE = 0.05
_Z = 2.6  # standard errors of the dataset's own shares: one-sided 0.5 %


@dataclass(frozen=True, slots=True)
class Row:
    """What drift looks at of one labelled decision.

    `label` is its class, empty where the answer form has none; `known_at` is when it came (seconds since the epoch).
    """

    episode: str
    known_at: float
    label: str
    characters: int
    agent: str | None


@dataclass(frozen=True, slots=True)
class Drift:
    """A share that left its limits: that of the dataset, that of the rows since `changed_at`, and the evidence."""

    what: str
    before: float
    now: float
    changed_at: datetime
    evidence: float

    def describe(self) -> str:
        """The drift as a sentence."""
        return f"{self.what}: {self.now:.0%} since {self.changed_at:%Y-%m-%d %H:%M}Z, {self.before:.0%} in the dataset"


def find_drift(reference: Sequence[Row], rows: Sequence[Row], *, now: datetime) -> Drift | None:
    """The strongest drift of `rows` from `reference`, None where nothing is beyond its bar or one of both is empty."""
    if not reference or not rows:
        return None
    watched = _watched(reference, rows)
    bar = -math.log(ALPHA / max(len(watched), 1))
    begin = period_start(datetime.fromtimestamp(min(row.known_at for row in rows), UTC), now)
    found = []
    for what, before, stream, upper in watched:
        recent = stream.since(begin)
        if not len(recent.scores):
            continue
        evidence = float(harm_evidence(recent, begin, upper).max())
        if evidence >= bar:
            changed = change_point(recent, upper)
            share = abs(recent.since(changed).scores.mean())  # of a share that fell the scores are negative
            found.append(Drift(what, before, share, datetime.fromtimestamp(changed, UTC), round(evidence, 3)))
    return max(found, key=lambda each: each.evidence, default=None)


def _watched(reference: Sequence[Row], rows: Sequence[Row]) -> list[tuple[str, float, Stream, float]]:
    """Of each share: what it is, that of the dataset, the scores by episode, and the limit that their mean is tested
    against. Of a share that may fall, the scores are negated."""
    labels = sorted({row.label for row in reference} | {row.label for row in rows} - {""})
    long = float(np.quantile([row.characters for row in reference], 0.9))
    agents = {row.agent for row in reference}
    tests: list[tuple[str, list[bool], list[bool], bool]] = [
        (f"label {label}", [r.label == label for r in reference], [r.label == label for r in rows], True)
        for label in labels[:50]
    ]
    tests.append((f"questions above {long:,.0f} characters", [r.characters > long for r in reference],
                  [r.characters > long for r in rows], False))  # fmt: skip
    tests.append(("agents that the dataset does not know", [False] * len(reference),
                  [r.agent not in agents for r in rows], False))  # fmt: skip
    found = []
    for what, before, after, falls in tests:
        share, error = _share(reference, before)
        stream = _stream(rows, after)
        found.append((what, share, stream, min(share + _Z * error + TOLERANCE, 1.0)))
        if falls:
            found.append((what, share, stream.negated(), -max(share - _Z * error - TOLERANCE, 0.0)))
    return found


def _share(rows: Sequence[Row], is_one: Sequence[bool]) -> tuple[float, float]:
    """A share by episode, and its standard error."""
    ones, sizes = Counter[str](), Counter[str]()
    for row, one in zip(rows, is_one, strict=True):
        ones[row.episode] += one
        sizes[row.episode] += 1
    shares = np.array([ones[name] / size for name, size in sizes.items()])
    error = float(shares.std(ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.5
    return float(shares.mean()), error


def _stream(rows: Sequence[Row], is_one: Sequence[bool]) -> Stream:
    """Shares of episodes, in the order of their last labels."""
    ones, sizes, known = Counter[str](), Counter[str](), dict[str, float]()
    for row, one in zip(rows, is_one, strict=True):
        ones[row.episode] += one
        sizes[row.episode] += 1
        known[row.episode] = max(row.known_at, known.get(row.episode, -math.inf))
    names = sorted(sizes, key=lambda name: (known[name], name))
    shares = np.array([ones[name] / sizes[name] for name in names])
    return Stream(Scores.within(shares, 0.0, 1.0), np.array([known[name] for name in names]))
