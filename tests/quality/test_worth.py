"""A better model must be worth its price, by the type's policy; an unknown cost is within no limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quality.errors import EvaluationError
from quality.evaluation.promotion import PromotionDecision
from quality.evaluation.worth import WorthPolicy, judge_worth, load_worth

BETTER = PromotionDecision("promote", "better.", basis="better", alpha=0.05)


def judged(
    cost: float | None, other: float | None, policy: WorthPolicy, *, incumbent: float | None = -1.0
) -> PromotionDecision:
    sources: dict[str, Any] = {"candidate": cost, "original": other}
    if incumbent != -1.0:
        sources["incumbent"] = incumbent
    evaluation: Any = SimpleNamespace(
        sources={name: SimpleNamespace(cost_per_1000_usd=usd) for name, usd in sources.items()}
    )
    return judge_worth(BETTER, evaluation, policy, decision_type="planning")


@pytest.mark.parametrize(
    ("cost", "other", "policy", "promoted", "says"),
    [
        (0.05, 0.09, WorthPolicy(), True, "$0.0500 against $0.0900 per 1,000"),
        (0.09, 0.09, WorthPolicy(), True, "$0.0900 against"),
        (
            0.10,
            0.09,
            WorthPolicy(),
            False,
            "but dearer: $0.1000 against $0.0900 per 1,000; set max_usd_per_1000 in",
        ),
        (0.10, 0.0, WorthPolicy(), False, "but dearer"),
        (0.10, None, WorthPolicy(), False, "what the original costs is not known"),
        (None, 0.09, WorthPolicy(), False, "what it costs is not known"),
        (0.10, 0.0, WorthPolicy(0.2), True, "worth it: $0.1000 per 1,000, at most $0.2000"),
        (0.10, None, WorthPolicy(0.2), True, "worth it"),
        (0.30, 5.0, WorthPolicy(0.2), False, "but not worth it"),
        (None, 0.09, WorthPolicy(0.2), False, "what it costs is not known"),
        (None, None, WorthPolicy(policy="any"), True, "better."),
        (0.30, 0.1, WorthPolicy(0.2, policy="any"), False, "but not worth it"),
    ],
)
def test_a_better_model_is_promoted_where_it_is_worth_its_price(
    cost: float | None, other: float | None, policy: WorthPolicy, promoted: bool, says: str
) -> None:
    found = judged(cost, other, policy)
    assert (found.promote, found.decision) == (promoted, "promote" if promoted else "keep") and says in found.why
    assert found.alpha == 0.05


def test_it_is_compared_with_what_it_replaces() -> None:
    assert judged(0.05, 0.0, WorthPolicy(), incumbent=0.06).promote
    assert not judged(0.05, 9.0, WorthPolicy(), incumbent=0.04).promote


@pytest.mark.parametrize(
    "verdict",
    [replace(BETTER, basis="not_worse"), PromotionDecision("keep", "not proven"), PromotionDecision("refuse", "worse")],
)
def test_other_verdicts_stay(verdict: PromotionDecision) -> None:
    evaluation: Any = SimpleNamespace(sources={})
    assert judge_worth(verdict, evaluation, WorthPolicy(), decision_type="planning") is verdict


@pytest.mark.parametrize(
    ("toml", "found"),
    [
        ("", WorthPolicy()),
        ("[worth.coding]\npolicy = 'any'", WorthPolicy()),
        ("[worth.planning]\nmax_usd_per_1000 = 2", WorthPolicy(2.0)),
        ("[worth.planning]\npolicy = 'any'", WorthPolicy(policy="any")),
        ("[worth.planning]\npolicy = 'free'", "'free' is none of cheaper, any"),
        ("[worth.planning]\nmax_usd = 2", "max_usd is not known"),
        ("[worth.planning]\nmax_usd_per_1000 = -2", "max_usd_per_1000"),
        ("[worth]\nplanning = 2", "a table is needed"),
    ],
)
def test_the_policy_of_a_type(tmp_path: Path, toml: str, found: WorthPolicy | str) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(toml)
    if isinstance(found, str):
        with pytest.raises(EvaluationError, match=found):
            load_worth("planning", file)
    else:
        assert load_worth("planning", file) == found
