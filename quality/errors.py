"""Errors of the quality package.

::

    ReasoningError
    └── QualityError
        ├── InsufficientData     too few usable rows to learn from (carries the verdict and the funnel)
        ├── DatasetRejected      the finished rows failed the quality gate (carries the failures)
        ├── LabelPolicyError     `[labels.<decision type>]` of reasoning.toml cannot be used
        ├── FilterError          a filter or cap of an export cannot be read
        └── EvaluationError      labels and answers that cannot be compared
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasoning.errors import ReasoningError

if TYPE_CHECKING:
    from quality.checks.report import Failure
    from quality.dataset.readiness import DataVerdict


class QualityError(ReasoningError):
    """Base of the errors of this package."""


class InsufficientData(QualityError):
    """Too few usable rows to learn from. `verdict` says how many and what to do, `funnel` where the others went."""

    def __init__(self, verdict: DataVerdict, funnel: dict[str, int]) -> None:
        self.verdict = verdict
        self.funnel = funnel
        rows = f"{verdict.rows} usable row" + ("s" if verdict.rows != 1 else "")
        dropped = ", ".join(f"{reason} {count}" for reason, count in funnel.items() if count)
        none = "" if verdict.rows else " (the log has none of that type and time)"
        why = f" (left out: {dropped})" if dropped else none
        super().__init__(f"{verdict.level}: {rows}{why}. {' '.join(verdict.advice)}")


class DatasetRejected(QualityError):
    """The finished rows failed the quality gate; nothing was published."""

    def __init__(self, failures: list[Failure]) -> None:
        self.failures = failures
        super().__init__(
            "the dataset failed its quality gate: "
            + "; ".join(f"{failure.expectation} (observed {failure.observed})" for failure in failures)
        )


class LabelPolicyError(QualityError):
    """`[labels.<decision type>]` of reasoning.toml cannot be used."""


class FilterError(QualityError):
    """A filter or cap of an export cannot be read."""


class EvaluationError(QualityError):
    """Labels and answers that cannot be compared."""
