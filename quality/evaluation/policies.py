"""The policy of a model's live test: the bounds of its type in reasoning.toml, and what its evaluation showed.

`[objectives.<decision type>]`, beside the objective (`quality.evaluation.objectives`):

====================  ================================================================================================
key                   meaning (default)
====================  ================================================================================================
`max_failed_share`    withdraw the model where more of its answers fail (0.05)
`max_slow_share`      withdraw the model where more of its answers come after the deadline (0.05)
`max_cost_ratio`      withdraw the model where its answers cost more than this times the fallback's (no bound)
`unproven_days`       after so many days without a label the model is unproven (7)
`when_unproven`       `shrink` to the canary's share, `hold` or `withdraw` (shrink)
====================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quality.errors import EvaluationError
from quality.evaluation.error_budget import read_trial
from quality.evaluation.live import LivePolicy
from quality.evaluation.objectives import read_section
from quality.settings import DEFAULT_MARGIN
from reasoning.decision_types import DecisionType
from reasoning.toml_tables import number

_NUMBERS = {
    "max_failed_share": (0.0, 1.0),
    "max_slow_share": (0.0, 1.0),
    "max_cost_ratio": (0.0, 1e6),
    "unproven_days": (0.0, 36_500.0),
}
_UNPROVEN = ("shrink", "hold", "withdraw")


def load_policy(kind: DecisionType, evaluation: Mapping[str, Any] | None, path: Path | None = None) -> LivePolicy:
    """The policy of a model of the type, whose newest evaluation (`Evaluation.as_dict`) is given; None without one.

    A model that was promoted for being better must stay better than the fallback; another may be worse by the margin.
    Raises `EvaluationError` for a setting that makes no sense.
    """
    place, own = read_section(kind, path)
    bounds: dict[str, Any] = {
        key: number(f"{place} {key}", own[key], float, low, high, EvaluationError)
        for key, (low, high) in _NUMBERS.items()
        if key in own
    }
    unproven = own.get("when_unproven", "shrink")
    if unproven not in _UNPROVEN:
        raise EvaluationError(f"{place} when_unproven: {unproven!r} is not known; known are {', '.join(_UNPROVEN)}")
    trial = read_trial(evaluation) if evaluation is not None else None
    better = trial is not None and trial.basis == "better"
    return LivePolicy(
        margin=0.0 if better else DEFAULT_MARGIN,
        reference=_proven_quality(evaluation),
        when_unproven=unproven,
        **bounds,
    )


def _proven_quality(evaluation: Mapping[str, Any] | None) -> float | None:
    """The lower limit of the model's own quality."""
    if evaluation is None:
        return None
    candidate = evaluation.get("sources", {}).get("candidate", {})
    found = candidate.get("metrics", {}).get(evaluation.get("primary"))
    return float(found["low"]) if found else None
