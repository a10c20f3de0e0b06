"""The demo's results as plain JSON data, collected by `demo.run` and shown by `demo.report`."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class StepResult(TypedDict):
    """One step of the cycle: seconds of real time, and one line about its result."""

    name: str
    seconds: float
    said: str


class DecisionCount(TypedDict):
    """`phase` is `collect` or `serve`; `source` is what was served, `original` or `custom`."""

    decision_type: str
    phase: str
    source: str
    rows: int


class FunnelResult(TypedDict):
    """Of a dataset's manifest: rows selected from the log, dropped by reason, and kept by split."""

    selected: int
    dropped: dict[str, int]
    splits: dict[str, int]
    label_sources: dict[str, int]


class TrainingOutcome(TypedDict):
    """One fine-tune. `seconds` of real time; `cost_usd` is exact decimal text."""

    decision_type: str
    model: str
    base_model: str
    rows: int
    tokens: int
    seconds: float
    cost_usd: str


class Comparison(TypedDict):
    """An `Evaluation.as_dict()` on `rows_of` (`holdout`: before it was promoted; `served`: the A/B on later data)."""

    decision_type: str
    rows_of: str
    evaluation: dict[str, Any]
    verdict: NotRequired[str]


class BudgetState(TypedDict):
    """A budget, amounts as decimal text. `decision_type` None is for all."""

    period: str
    decision_type: str | None
    limit_usd: str
    spent_usd: str


class SpendPoint(TypedDict):
    """How much of the total budget was spent by `ts` (RFC 3339, the data's time), as decimal text."""

    ts: str
    spent_usd: str


class GuardAction(TypedDict):
    """What was stopped, and why. `ts` is the replay's time (RFC 3339)."""

    ts: str
    what: str


class Reconciliation(TypedDict):
    """The provider's bill against our charges, amounts as decimal text."""

    billed_usd: str
    charged_usd: str
    difference_usd: str
    orphans: list[str]


class Place(TypedDict):
    """A next step: what it is, and the path, URL or command."""

    what: str
    how: str


class DemoResult(TypedDict):
    """Everything that the report shows. Times are RFC 3339 in UTC; keys of the mappings are decision types."""

    provider: str
    seconds: float
    collected_from: str
    turned_at: str
    served_until: str
    steps: list[StepResult]
    decisions: list[DecisionCount]
    funnels: dict[str, FunnelResult]
    quality: dict[str, Any]
    """`QualityReport.as_dict()`."""
    trainings: list[TrainingOutcome]
    comparisons: list[Comparison]
    calibration: dict[str, list[tuple[float, bool]]]
    """For every model answer on later data: its confidence (0..1), and whether it was right."""
    latencies_ms: dict[str, dict[str, list[float]]]
    """Of every served answer, by decision type and source."""
    budgets: list[BudgetState]
    spend: list[SpendPoint]
    actions: list[GuardAction]
    reconciliation: Reconciliation
    places: list[Place]
