"""Which answer to a question is taught as right, by a policy of the decision type.

The order is: a demonstration; an answer that feedback confirms (`outcome`); the answer of the fallback (`original`).
An answer that feedback ruled out is never taught. reasoning.toml, `[labels.<decision type>]`:

=================  ===================================================================================================
key                meaning
=================  ===================================================================================================
`outcomes`         rules on metrics of feedback, such as `["helpful >= 0.5", "cost_of_error < 1"]`. An answer whose
                   feedback meets all of its rules is right; an answer whose feedback breaks one is ruled out. `true`
                   counts as 1, `false` as 0. Default: `helpful` and `correct` below 0.5 rule an answer out, and no
                   feedback confirms one
`conflicts`        what is taught of equal prompts with different answers of the best source: the `latest` answer (the
                   default), the answer of the `majority` (the latest on a tie), or none of them (`drop`)
=================  ===================================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from quality.errors import LabelPolicyError
from reasoning.config import settings_file
from reasoning.toml_tables import read_toml, refuse_unknown, table
from storage.log.views import NUMBER, sql_text

Conflicts = Literal["latest", "majority", "drop"]

_RULE = re.compile(r"\s*([A-Za-z0-9_.:-]{1,100})\s*(>=|<=|>|<)\s*(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*")


@dataclass(frozen=True, slots=True)
class OutcomeRule:
    """What a metric says of an answer that was right, as `helpful >= 0.5`."""

    metric: str
    comparison: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.value:g}"


@dataclass(frozen=True, slots=True)
class LabelPolicy:
    """See the module. `confirms`: feedback that meets the rules makes an answer a label."""

    outcomes: tuple[OutcomeRule, ...] = (OutcomeRule("helpful", ">=", 0.5), OutcomeRule("correct", ">=", 0.5))
    confirms: bool = False
    conflicts: Conflicts = "latest"

    @property
    def met_sql(self) -> str:
        """SQL: does a `metric` and its `number` meet its rule? NULL where there is no rule for it."""
        cases = [f"WHEN metric = {sql_text(r.metric)} THEN number {r.comparison} {r.value!r}" for r in self.outcomes]
        return f"CASE {' '.join(cases)} END" if cases else "NULL::BOOLEAN"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest of a dataset."""
        return {"outcomes": [*map(str, self.outcomes)], "confirms": self.confirms, "conflicts": self.conflicts}


def load_label_policy(decision_type: str, path: Path | None = None) -> LabelPolicy:
    """The policy of a decision type in reasoning.toml; the default without one. Raises `LabelPolicyError`."""
    file = path or settings_file()
    try:
        raw = read_toml(file, LabelPolicyError)
    except FileNotFoundError:
        return LabelPolicy()
    policies = table(file, "labels", raw.get("labels", {}), LabelPolicyError)
    if decision_type not in policies:
        return LabelPolicy()
    place = f"{file}: [labels.{decision_type}]"
    own = table(file, f"labels.{decision_type}", policies[decision_type], LabelPolicyError)
    refuse_unknown(place, own, ("outcomes", "conflicts"), LabelPolicyError)
    default = LabelPolicy()
    conflicts = own.get("conflicts", default.conflicts)
    if conflicts not in get_args(Conflicts):
        known = ", ".join(get_args(Conflicts))
        raise LabelPolicyError(f"{place} conflicts: {conflicts!r} is not known; known are {known}")
    if "outcomes" not in own:
        return LabelPolicy(conflicts=conflicts)
    if not isinstance(own["outcomes"], list):
        raise LabelPolicyError(f'{place} outcomes: {own["outcomes"]!r} is no list; write it as ["helpful >= 0.5"]')
    rules = tuple(_read_rule(f"{place} outcomes", rule) for rule in own["outcomes"])
    return LabelPolicy(rules, confirms=True, conflicts=conflicts)


def _read_rule(place: str, text: Any) -> OutcomeRule:
    try:
        return parse_rule(place, text)
    except ValueError as error:
        raise LabelPolicyError(str(error)) from None


def parse_rule(place: str, text: Any) -> OutcomeRule:
    """A rule such as `helpful >= 0.5`. Raises ValueError, whose message begins with `place`."""
    match = _RULE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{place}: {text!r} is no rule; write it as `helpful >= 0.5`, with >=, >, <= or <")
    return OutcomeRule(match[1], match[2], float(match[3]))


def labels_query(policy: LabelPolicy, where: str) -> str:
    """SQL: the questions of the view `labelled_decisions` with `where` (of columns of `l`), labelled by the policy.

    `label` and `label_source` are by the policy; `ruled_out` is true where the label is an answer that feedback ruled
    out. Feedback of an episode as a whole judges no single answer.
    """
    met = policy.met_sql
    wrong = " OR ".join(
        f"coalesce({side}.wrong AND {_same('original_decision', answer)}, false)"
        for side, answer in (("o", "original_decision"), ("c", "custom_decision"), ("s", "decision"))
    )
    # Of an answer with feedback of both kinds on its two sides, the negative one decides.
    right = f"""CASE
        WHEN s.right AND l.valid AND NOT ({wrong} AND {_same("original_decision", "decision")}) THEN l.decision
        WHEN o.right AND NOT ({wrong}) THEN l.original_decision
        WHEN c.right THEN l.custom_decision
    END"""
    if not policy.confirms:
        right = "NULL::VARCHAR"
    return f"""
    WITH met AS (
        SELECT date, decision_id, {met} AS met FROM (
            SELECT date, decision_id, metric, {NUMBER} AS number FROM feedback
            WHERE decision_id IS NOT NULL AND kind = 'metric'
        )
    ), judged AS (
        SELECT date, decision_id, bool_or(NOT met) AS wrong, bool_and(met) AS "right"
        FROM met WHERE met IS NOT NULL GROUP BY ALL
    ), resolved AS (
        SELECT l.*, {right} AS outcome, {wrong} AS original_is_wrong
        FROM labelled_decisions AS l
        LEFT JOIN judged AS s ON s.date = l.date AND s.decision_id = l.decision_id
        LEFT JOIN judged AS o ON o.date = l.date AND o.decision_id = l.original_decision_id
        LEFT JOIN judged AS c ON c.date = l.date AND c.decision_id = l.custom_decision_id
        WHERE {where}
    )
    SELECT * EXCLUDE (outcome, original_is_wrong) REPLACE (
               CASE WHEN demonstration IS NULL THEN coalesce(outcome, label) ELSE label END AS label,
               CASE WHEN demonstration IS NULL AND outcome IS NOT NULL THEN 'outcome' ELSE label_source END
                   AS label_source
           ),
           demonstration IS NULL AND outcome IS NULL AND label_source = 'original' AND original_is_wrong AS ruled_out
    FROM resolved
    """  # noqa: S608 - rules are checked, metrics are quoted


def _same(first: str, second: str) -> str:
    """SQL: the answers of two columns are the same. What a label says beside its action makes no difference."""
    if first == second:
        return "true"
    return f"coalesce(l.{first} ->> '$.action', l.{first}) = coalesce(l.{second} ->> '$.action', l.{second})"
