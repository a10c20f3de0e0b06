"""Is a better model worth its price? What is as good must be cheaper anyway (`quality.evaluation.promotion`).

reasoning.toml, `[worth.<decision type>]`:

====================  ================================================================================================
key                   meaning
====================  ================================================================================================
`max_usd_per_1000`    most US dollars per 1,000 decisions, all costs included, that a better model may cost
`policy`              `cheaper` (the default): without `max_usd_per_1000` a better model may cost no more than what it
                      replaces; `any`: quality alone decides
====================  ================================================================================================

A cost that is not known is not within any limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from quality.errors import EvaluationError
from quality.evaluation.evaluate import Evaluation
from quality.evaluation.promotion import PromotionDecision
from reasoning.config import settings_file
from reasoning.toml_tables import number, read_toml, refuse_unknown, table

POLICIES = ("cheaper", "any")


@dataclass(frozen=True, slots=True)
class WorthPolicy:
    """What a better model of a decision type may cost; see the module."""

    max_usd_per_1000: float | None = None
    policy: Literal["cheaper", "any"] = "cheaper"


def load_worth(decision_type: str, path: Path | None = None) -> WorthPolicy:
    """The policy of a decision type. Raises `EvaluationError` where the file is wrong."""
    file = path or settings_file()
    try:
        raw = read_toml(file, EvaluationError)
    except FileNotFoundError:
        return WorthPolicy()
    worth = table(file, "worth", raw.get("worth", {}), EvaluationError)
    place = f"{file}: [worth.{decision_type}]"
    own = table(file, f"worth.{decision_type}", worth.get(decision_type, {}), EvaluationError)
    refuse_unknown(place, own, ("max_usd_per_1000", "policy"), EvaluationError)
    policy = own.get("policy", "cheaper")
    if policy not in POLICIES:
        raise EvaluationError(f"{place} policy: {policy!r} is none of {', '.join(POLICIES)}")
    limit = own.get("max_usd_per_1000")
    if limit is not None:
        limit = number(f"{place} max_usd_per_1000", limit, float, 0, 1e9, EvaluationError)
    return WorthPolicy(limit, policy)


def judge_worth(
    verdict: PromotionDecision,
    evaluation: Evaluation,
    policy: WorthPolicy,
    *,
    decision_type: str,
    candidate: str = "candidate",
) -> PromotionDecision:
    """The verdict, where it promotes a better model, held against the price of that model; else as it is.

    Costs are those of the evaluation per 1,000 decisions at the present volume, all of them included.
    """
    if not verdict.promote or verdict.basis != "better" or policy == WorthPolicy(policy="any"):
        return verdict
    against = "incumbent" if "incumbent" in evaluation.sources else "original"
    cost, other = (evaluation.sources[name].cost_per_1000_usd for name in (candidate, against))
    remedy = f"set max_usd_per_1000 in [worth.{decision_type}] of reasoning.toml to what it is worth"
    if cost is None:
        why = "but what it costs is not known: its price is by the hour, and nobody asked lately"
    elif policy.max_usd_per_1000 is not None:
        limit = policy.max_usd_per_1000
        if cost <= limit:
            return replace(verdict, why=f"{verdict.why}; worth it: ${cost:,.4f} per 1,000, at most ${limit:,.4f}")
        why = f"but not worth it: ${cost:,.4f} per 1,000, and at most ${limit:,.4f} is allowed"
    elif other is None:
        why = f"but what the {against} costs is not known: report it in a Fallback, or {remedy} (${cost:,.4f} now)"
    elif cost <= other:
        return replace(verdict, why=f"{verdict.why}; ${cost:,.4f} against ${other:,.4f} per 1,000")
    else:
        why = f"but dearer: ${cost:,.4f} against ${other:,.4f} per 1,000; {remedy}"
    return PromotionDecision("keep", f"{verdict.why}; {why}", alpha=verdict.alpha)
