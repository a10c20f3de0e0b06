"""What the decision log shows of a model that answers live questions, by episode, for `quality.evaluation.live.decide`.

One score is what an episode's labels say that came in within an hour of the first of them; labels that come later make
a score of their own, at the time they come. So the scores of the past never change as labels arrive, and late ones
count. (A label that is corrected later does change the past.)

Where both sides answered the same questions (a shadow arm), a score is the mean of their differences. Otherwise it is
of what the agent got in the arm that was drawn, weighted by the probability of that draw after a common mean is taken
off (augmented inverse probability weighting: Robins, Rotnitzky and Zhao, JASA 1994). Questions that the fallback had to
answer in the model's place are judged by the bound on failures, not by quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import orjson

import storage
from quality.dataset.label_policy import load_label_policy
from quality.evaluation.form_metrics import get_metrics
from quality.evaluation.live import SETTLE_SECONDS, Observations, Stream
from quality.evaluation.objectives import Objective, load_objective
from quality.evaluation.sequential import Scores, limit_outliers
from quality.settings import Design
from reasoning.decision_types import DecisionType, get_decision_type
from reasoning.errors import UnparseableAnswer
from storage.log.views import NUMBER

if TYPE_CHECKING:
    import duckdb

    from reasoning.config import Config

MAX_ROWS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Whose answers are compared.

    A challenger may be compared with the incumbent beside it. With `as_incumbent` ours is the incumbent, also where it
    served beside challengers, in their experiments. `share` is the probability of our arm where one of the two was
    drawn, constant over the test; None: as logged, of a route with two arms.
    """

    against: Literal["original", "incumbent"] = "original"
    as_incumbent: bool = False
    share: float | None = None


_OUTCOMES_AN_ANSWER = 10

# Who answered what is told by source and arm: beside the model of an experiment, which is `custom`, there may be an
# incumbent. A model's failed answers are not compared; what the fallback failed to answer is wrong.
_COMPARED = {
    "original": "source = 'original'",
    "incumbent": "source = 'custom' AND arm = 'incumbent' AND valid AND fallback_reason IS NULL",
}
_OURS = "(arm = 'custom' AND experiment = $experiment OR $as_incumbent AND arm = 'incumbent')"
_LABELLED = """
WITH asked AS (
    SELECT date, request_id,
           any_value(decision) FILTER (source = 'custom' AND {ours} AND valid AND fallback_reason IS NULL)
               AS custom_decision,
           any_value(decision) FILTER ({compared}) AS original_decision, count(*) FILTER ({compared}) > 0 AS compared,
           min_by(struct_pack(arm := CASE WHEN arm = $against THEN 'original' WHEN {ours} THEN 'custom' END,
                              arm_probability, answer := CASE WHEN valid THEN decision END), decision_id)
               FILTER (served) AS drawn
    FROM decisions
    WHERE decision_type = $decision_type AND (experiment = $experiment OR $as_incumbent)
      AND date >= $since_date::DATE AND ts >= $since AND ts <= $now
    GROUP BY date, request_id
)
SELECT coalesce(l.episode_id, l.request_id::VARCHAR) AS episode, epoch(demonstrated_at) AS known_at, demonstration,
       drawn.arm AS arm,
       drawn.arm_probability AS arm_probability, drawn.answer AS served, asked.original_decision, asked.custom_decision,
       compared AND asked.custom_decision IS NOT NULL AS both
FROM labelled_decisions AS l JOIN asked USING (date, request_id)
WHERE l.decision_type = $decision_type AND demonstration IS NOT NULL AND date >= $since_date::DATE
  AND demonstrated_at <= $now
ORDER BY demonstrated_at DESC, request_id DESC LIMIT $limit
"""
# What feedback says of the answer that was served, by the rules of the type (`quality.dataset.label_policy`).
_OUTCOMES = """
WITH met AS (
    SELECT date, decision_id, {met} AS met, ts
    FROM (SELECT *, {number} AS number FROM feedback WHERE decision_id IS NOT NULL AND kind = 'metric' AND ts <= $now)
), judged AS (
    SELECT date, decision_id, bool_and(met) AS "right", epoch(max(ts)) AS known_at
    FROM met WHERE met IS NOT NULL GROUP BY ALL
)
SELECT coalesce(episode_id, request_id::VARCHAR) AS episode, known_at, "right",
       CASE WHEN arm = $against THEN 'original' WHEN {ours} THEN 'custom' END AS arm, arm_probability,
       false AS both
FROM decisions JOIN judged USING (date, decision_id)
WHERE decision_type = $decision_type AND (experiment = $experiment OR $as_incumbent) AND served
  AND date >= $since_date::DATE AND ts >= $since AND ts <= $now
ORDER BY known_at DESC, decision_id DESC LIMIT $limit
"""
# Of every answer that the model was asked for, served or in the shadow.
_ANSWERS = f"""
SELECT epoch(max(ts)) AS known_at, count(*) AS asked,
       count(*) FILTER (NOT coalesce(valid, false)
                        OR coalesce(fallback_reason, '') IN ('timeout', 'provider_error', 'unparseable')) AS failed,
       count(*) FILTER (latency_ms > $slow_ms) AS slow,
       sum(cost_usd) AS cost_usd, count(cost_usd) AS priced
FROM decisions
WHERE decision_type = $decision_type AND source = 'custom' AND {_OURS}
  AND date >= $since_date::DATE AND ts >= $since AND ts <= $now
GROUP BY coalesce(episode_id, request_id::VARCHAR) ORDER BY 1
"""  # noqa: S608 - only the constant above
_FALLBACK_COST = """
SELECT 1000 * avg(cost_usd) FROM decisions
WHERE decision_type = $decision_type AND source = 'original'
  AND date >= $since_date::DATE AND ts >= $since AND ts <= $now
"""


def observe(
    data: Path | str,
    decision_type: str,
    experiment: str,
    *,
    since: datetime,
    now: datetime,
    sides: Sides = Sides(),
    slow_ms: float | None = None,
    config: Config | None = None,
) -> Observations:
    """What the log shows of the model of `experiment` (as in its route) since its test began.

    The latest 50,000 labels are read. An answer above `slow_ms` milliseconds is a slow one; None: latency is no matter.
    Questions without an episode are episodes of their own. Where feedback judged ten times as many answers as there
    are demonstrations, or there are none, the shares of answers that it called right are compared, by arm.
    """
    kind = get_decision_type(decision_type, config)
    parameters = {"decision_type": decision_type, "since": since, "since_date": since.date(), "now": now}
    own = parameters | {"experiment": experiment, "as_incumbent": sides.as_incumbent}

    outcomes_query = _OUTCOMES.format(met=load_label_policy(decision_type).met_sql, number=NUMBER, ours=_OURS)

    def fetch(log: duckdb.DuckDBPyConnection) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float | None]:
        query = _LABELLED.format(compared=_COMPARED[sides.against], ours=_OURS)
        labelled = _rows(log, query, own | {"limit": MAX_ROWS, "against": sides.against})[::-1]
        outcomes = _rows(log, outcomes_query, own | {"limit": MAX_ROWS, "against": sides.against})[::-1]
        if len(labelled) < len(outcomes) / _OUTCOMES_AN_ANSWER:
            labelled = outcomes
        answers = _rows(log, _ANSWERS, own | {"slow_ms": slow_ms})
        ((cost,),) = log.execute(_FALLBACK_COST, parameters).fetchall()
        return labelled, answers, cost

    labelled, answers, fallback_cost = storage.read(data, fetch)
    priced = sum(row["priced"] for row in answers)
    if sides.share is not None:
        for row in labelled:
            row["arm_probability"] = sides.share if row["arm"] == "custom" else 1 - sides.share
    design, difference, level = compare_rows(kind, load_objective(kind), labelled, now=now.timestamp())
    return Observations(
        since=since,
        against="the fallback" if sides.against == "original" else "the incumbent",
        design=design,
        objective=_name_objective(kind, labelled),
        difference=difference,
        level=level,
        failed=_shares(answers, "failed"),
        slow=_shares(answers, "slow") if slow_ms is not None else Stream(),
        questions=sum(row["asked"] for row in answers),
        labelled=len(labelled),
        last_label=datetime.fromtimestamp(labelled[-1]["known_at"], UTC) if labelled else None,
        cost_per_1000_usd=1000 * sum(row["cost_usd"] or 0 for row in answers) / priced if priced else None,
        fallback_cost_per_1000_usd=fallback_cost,
    )


def _name_objective(kind: DecisionType, rows: Sequence[dict[str, Any]]) -> str:
    if rows and "right" in rows[0]:
        return "share called right"
    return (load_objective(kind).metric_of(kind) or "accuracy").replace("_", " ")


def _rows(log: duckdb.DuckDBPyConnection, query: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    cursor = log.execute(query, parameters)
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _shares(answers: Sequence[dict[str, Any]], what: str) -> Stream:
    shares = np.array([row[what] / row["asked"] for row in answers])
    return Stream(Scores.within(shares, 0.0, 1.0), np.array([row["known_at"] for row in answers]))


@dataclass(frozen=True, slots=True)
class _Table:
    """Labelled rows as numbers. A unit is an episode's labels of one hour; units are in the order of their ends.

    `label`, `model` and `fallback` are classes; `model` and `fallback` are -1 where that side is not compared.
    `probability` is that of the model's arm. `known_at` has one time a unit, the others have one number a row.
    """

    labels: tuple[str, ...]
    unit: np.ndarray
    label: np.ndarray
    model: np.ndarray
    fallback: np.ndarray
    probability: np.ndarray
    known_at: np.ndarray

    def means(self, values: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per unit: the mean of the rows' values, and how many rows there are, of those of `where`."""
        count = np.bincount(self.unit[where], minlength=len(self.known_at)).astype(float)
        total = np.bincount(self.unit[where], weights=values[where], minlength=len(self.known_at))
        return total / np.maximum(count, 1), count


def compare_rows(
    kind: DecisionType, objective: Objective, rows: Sequence[dict[str, Any]], *, now: float
) -> tuple[Design | None, Stream, Stream]:
    """The design, the differences of model and fallback, and the model's own quality, of labelled rows by label time.

    Rows are those of the query above. Only labels that came in more than an hour before `now` (seconds since the
    epoch) are compared.
    """
    design: Design = "shadow" if any(row["both"] for row in rows) else "ab"
    table = _tabulate(kind, rows, design, now)
    if table is None:
        return None, Stream(), Stream()
    worth = _worth_by_unit(objective if len(table.labels) > 1 else Objective("accuracy"), table)
    ours, theirs = table.model >= 0, table.fallback >= 0
    block = worth.block[table.unit]
    model, fallback = worth.table[block, table.label, table.model], worth.table[block, table.label, table.fallback]
    mean, count = table.means(model, ours)
    lowest, highest = worth.limits()
    level = _stream(table, mean, lowest, highest, count)
    if design == "shadow":
        both = ours & theirs
        mean, count = table.means(model - fallback, both)
        mean, limit = limit_outliers(mean, highest - lowest, np.maximum(count, 1))
        return design, _stream(table, mean, -limit, limit, count), level
    return design, _arm_stream(table, np.where(ours, model, fallback), ours, lowest, highest), level


def _tabulate(kind: DecisionType, rows: Sequence[dict[str, Any]], design: Design, now: float) -> _Table | None:
    """The rows that are compared, by label time; None without one whose hour is over."""
    are_outcomes = any("right" in row for row in rows)
    labels = kind.labels if get_metrics(kind.answer).by_label and not are_outcomes else ("right",)
    classes, shares = _Classes(kind, labels), _first_shares(rows)
    units: dict[tuple[str, float], int] = {}
    first: dict[str, float] = {}
    ends: list[float] = []
    found = []
    for row in rows:
        right = 0 if are_outcomes else classes.label(row["demonstration"])
        if right is None or (not row["both"] if design == "shadow" else not (row["arm"] and row["arm_probability"])):
            continue
        episode, known_at = row["episode"], row["known_at"]
        begin = first.get(episode)
        if begin is None or known_at >= begin + SETTLE_SECONDS:
            begin = first[episode] = known_at
        if begin + SETTLE_SECONDS > now:
            continue
        if (episode, begin) not in units:
            units[episode, begin] = len(units)
            ends.append(begin + SETTLE_SECONDS)
        found.append((units[episode, begin], right, *_sides(classes, row, design, shares)))
    if not found:
        return None
    unit, label, model, fallback, probability = map(np.array, zip(*found, strict=True))
    return _Table(labels, unit, label, model, fallback, probability, known_at=np.array(ends))


def _sides(classes: _Classes, row: dict[str, Any], design: Design, shares: dict[str, float]) -> tuple[int, int, float]:
    """Classes of the answers of model and fallback, and the probability of the model's arm, of these two arms.

    `shares` are the latest probabilities of both arms: a row knows that of its own only, and there may be a third.
    """
    right = row.get("demonstration")
    if design == "shadow":
        return classes.answer(row["custom_decision"], right), classes.answer(row["original_decision"], right), 0.5
    answer = classes.answer(row["served"], right) if "right" not in row else int(not row["right"])
    is_model = row["arm"] != "original"
    shares[_side(row)] = row["arm_probability"]
    share = shares["model"] / (shares["model"] + shares["other"])
    return (answer, -1, share) if is_model else (-1, answer, share)


def _side(row: dict[str, Any]) -> str:
    return "other" if row["arm"] == "original" else "model"


def _first_shares(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The probabilities of the arms where they were drawn first; what is left of 1 for one that never was."""
    drawn = {_side(row): row["arm_probability"] for row in reversed(rows) if row["arm"] and row["arm_probability"]}
    return {
        "model": drawn.get("model", 1 - drawn.get("other", 0.5)),
        "other": drawn.get("other", 1 - drawn.get("model", 0.5)),
    }


class _Classes:
    """Labels and answers as numbers: of a label its place, of other forms 0 for the same answer as the label's."""

    def __init__(self, kind: DecisionType, labels: tuple[str, ...]) -> None:
        self._kind = kind
        self._by_label = get_metrics(kind.answer).by_label
        self._labels = {name: number for number, name in enumerate(labels)}
        self._known: dict[str, dict[str, Any] | None] = {}

    def label(self, text: str) -> int | None:
        """None where it is no decision of the type."""
        name = self._class_of(text)
        return None if name is None else self._labels.get(name, 0) if self._by_label else 0

    def answer(self, text: str | None, label: str | None) -> int:
        """A failed answer has the number after the last label."""
        given = None if text is None else self._read(text)
        if self._by_label:
            return len(self._labels) if given is None else self._labels[self._kind.form.answer_class(given)]
        right = None if label is None else self._read(label)
        return 0 if given is not None and right is not None and self._kind.form.agrees(right, given) else 1

    def _class_of(self, text: str) -> str | None:
        decision = self._read(text)
        return None if decision is None else self._kind.form.answer_class(decision)

    def _read(self, text: str) -> dict[str, Any] | None:
        if text not in self._known:
            try:
                self._known[text] = self._kind.normalize(orjson.loads(text))
            except UnparseableAnswer:
                self._known[text] = None
        return self._known[text]


@dataclass(frozen=True, slots=True)
class _Worth:
    """What each answer to each label is worth (blocks x labels x answers), and the block of each unit."""

    table: np.ndarray
    block: np.ndarray

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest worth of an answer, by unit."""
        return self.table.min(axis=(1, 2))[self.block], self.table.max(axis=(1, 2))[self.block]


def _worth_by_unit(objective: Objective, table: _Table) -> _Worth:
    """The worth of answers by what the fallback answered in earlier units, renewed as their number grows by a tenth."""
    units, count = len(table.known_at), len(table.labels)
    edges = np.unique(np.r_[0, (1.1 ** np.arange(1, np.log(units + 1) / np.log(1.1) + 1)).astype(int)])
    block = np.searchsorted(edges, np.arange(units), side="right") - 1
    seen = np.zeros((len(edges), count, count + 1))
    known = table.fallback >= 0
    np.add.at(seen, (block[table.unit[known]], table.label[known], table.fallback[known]), 1)
    before = np.cumsum(seen, axis=0) - seen
    return _Worth(objective.utilities(table.labels, before), block)


def _arm_stream(table: _Table, value: np.ndarray, ours: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> Stream:
    """Scores of episodes of which one arm was drawn: (A / p - (1 - A) / (1 - p)) (mean - common mean before)."""
    mean, count = table.means(value, np.ones(len(value), dtype=bool))
    drawn = np.zeros(len(count), dtype=bool)
    share = np.full(len(count), 0.5)
    drawn[table.unit], share[table.unit] = ours, table.probability  # of its last row: an episode has one arm
    before = np.r_[0.0, np.cumsum(mean * count)[:-1]] / np.maximum(np.r_[0.0, np.cumsum(count)[:-1]], 1)
    centre = np.clip(before, lowest, highest)
    scores = np.where(drawn, 1 / share, -1 / (1 - share)) * (mean - centre)
    low = np.minimum((lowest - centre) / share, (centre - highest) / (1 - share))
    high = np.maximum((highest - centre) / share, (centre - lowest) / (1 - share))
    return _stream(table, scores, low, high, count)


def _stream(table: _Table, mean: np.ndarray, low: np.ndarray, high: np.ndarray, count: np.ndarray) -> Stream:
    """Scores weighted by their number of rows, up to the mean number of the units before."""
    known = count > 0
    mean, low, high, count = mean[known], low[known], high[known], count[known]
    before = np.r_[1.0, np.cumsum(count)[:-1] / np.arange(1, len(count))] if len(count) else count
    weight = np.minimum(count / np.maximum(before, 1), 1.0)
    return Stream(Scores(mean, low, high, weight), table.known_at[known])
