"""Has the log changed? The latest window of each decision type against the stretch of time before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

WINDOW = timedelta(days=1)
REFERENCE = timedelta(days=7)
# Conventional reading of the index (Siddiqi, Credit Risk Scorecards, 2006): below 0.1 stable, above 0.25 shifted.
PSI_LIMIT = 0.25
# An index of few rows is large by chance: it only counts where a chi-square test is sure as well.
P_VALUE = 0.001

# Every measure counts the rows of a category. Labels: the right answers; of plans, the actions in order.
_COUNTS = """
WITH window_rows AS (
    SELECT decision_type, ts > $middle AS late, label, custom_decision_id, custom_decision, arm, source, fallback_reason
    FROM labelled_decisions
    WHERE ts > $start AND ts <= $now AND date >= $start_date::DATE AND date <= $now_date::DATE
)
SELECT decision_type, 'labels' AS measure, late, coalesce(label ->> '$.action', label ->> '$.actions') AS category,
       count(*) AS rows
FROM window_rows WHERE category IS NOT NULL GROUP BY ALL
UNION ALL
SELECT decision_type, 'parsing', late, CASE WHEN custom_decision IS NULL THEN 'failed' ELSE 'parsed' END, count(*)
FROM window_rows WHERE custom_decision_id IS NOT NULL GROUP BY ALL
UNION ALL
SELECT decision_type, 'fallback', late, coalesce(fallback_reason, 'none'), count(*)
FROM window_rows GROUP BY ALL
"""


@dataclass(frozen=True, slots=True)
class Drift:
    """One measure of one decision type: `psi` over `categories`, and the chi-square test's p-value."""

    decision_type: str
    measure: str
    rows: int
    reference_rows: int
    categories: int
    psi: float
    p_value: float

    @property
    def significant_psi(self) -> float:
        """The index, or 0 where chance may have made it."""
        return self.psi if self.p_value < P_VALUE else 0.0


def measure_drift(log: duckdb.DuckDBPyConnection, *, now: datetime) -> list[Drift]:
    """Compare the day before `now` with the seven days before it. Types without rows in both are left out."""
    middle, start = now - WINDOW, now - WINDOW - REFERENCE
    counts: dict[tuple[str, str], tuple[dict[str, int], dict[str, int]]] = {}
    parameters = {"start": start, "middle": middle, "now": now, "start_date": start.date(), "now_date": now.date()}
    for decision_type, measure, late, category, rows in log.execute(_COUNTS, parameters).fetchall():
        reference, current = counts.setdefault((decision_type, measure), ({}, {}))
        (current if late else reference)[category] = rows
    found = []
    for (decision_type, measure), (reference, current) in sorted(counts.items()):
        if reference and current:
            found.append(
                Drift(
                    decision_type,
                    measure,
                    sum(current.values()),
                    sum(reference.values()),
                    len(reference | current),
                    round(population_stability_index(reference, current), 4),
                    round(homogeneity_p_value(reference, current), 6),
                )
            )
    return found


def population_stability_index(reference: Mapping[str, int], current: Mapping[str, int]) -> float:
    """Sum over categories of (p - q) ln(p / q), p and q being the shares now and before.

    Half a row is added to every category, so that one that is new, or gone, gives a finite index.
    """
    categories = reference.keys() | current.keys()
    now = sum(current.values()) + 0.5 * len(categories)
    before = sum(reference.values()) + 0.5 * len(categories)
    index = 0.0
    for category in sorted(categories):
        p, q = (current.get(category, 0) + 0.5) / now, (reference.get(category, 0) + 0.5) / before
        index += (p - q) * math.log(p / q)
    return index


def homogeneity_p_value(reference: Mapping[str, int], current: Mapping[str, int]) -> float:
    """The chi-square test's p-value for "both are draws from one distribution"; 1 where there is one category.

    Categories in which fewer than five rows are expected are put together, as the test needs.
    """
    from scipy.stats import chi2_contingency

    total = sum(reference.values()) + sum(current.values())
    smallest = min(sum(reference.values()), sum(current.values()))
    table: dict[str, list[int]] = {}
    for category in sorted(reference.keys() | current.keys()):
        pair = reference.get(category, 0), current.get(category, 0)
        name = f"category {category}" if sum(pair) * smallest / total >= 5 else "rare"
        row = table.setdefault(name, [0, 0])
        row[0] += pair[0]
        row[1] += pair[1]
    if len(table) < 2:
        return 1.0
    return float(chi2_contingency(list(table.values())).pvalue)
