from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from scipy import stats

from quality.errors import EvaluationError
from quality.evaluation.error_budget import Allowance, allow, read_trial
from quality.evaluation.evaluate import SourceAnswer, evaluate
from quality.evaluation.intervals import Estimate
from quality.evaluation.objectives import Objective, load_objective
from quality.evaluation.promotion import Prospect, detectable, episodes_to_detect, judge, prospect_notes
from reasoning.decision_types import get_decision_type
from tests.quality.conftest import NOW
from tests.quality.test_evaluation import _rows

KIND = get_decision_type("should_respond")


def _about(model="m", dataset="d", incumbent=None):
    return {"model_id": model, "dataset_id": dataset, "incumbent_model_id": incumbent}


def _content(days, *, model, dataset, alpha, basis=None, value=0.0, se=0.005):
    difference = {"value": value, "low": value - 2 * se, "high": value + 2 * se, "se": se, "df": 100}
    return {
        "created_at": (NOW + timedelta(days=days)).isoformat(),
        "primary": "balanced_accuracy",
        "sources": {"candidate": {}, "original": {}},
        "differences": {"candidate - original": {"balanced_accuracy": difference}},
        "about": _about(model, dataset)
        | {"verdict": {"decision": "promote" if basis else "keep", "why": "", "basis": basis, "alpha": alpha}},
    }


def _allow(contents, days, **about):
    return allow(contents, about=_about(**about), primary="balanced_accuracy", now=NOW + timedelta(days=days))


@pytest.mark.parametrize("every", [1, 3, 7, 30])
def test_the_evaluations_of_any_thirty_days_share_the_budget(every):
    contents = []
    for day in range(0, 200, every):
        found = _allow(contents, day, model=str(day), dataset=str(day))
        contents.append(_content(day, model=str(day), dataset=str(day), alpha=found.alpha))
    spent = [(day, c["about"]["verdict"]["alpha"]) for day, c in zip(range(0, 200, every), contents, strict=True)]
    for begin in range(170):
        assert sum(alpha for day, alpha in spent if begin <= day < begin + 30) <= 0.05 + 1e-9
    assert spent[0][1] == pytest.approx(0.05 / 3)
    assert spent[-1][1] > 1e-5


def test_a_holdout_that_judged_other_models_is_charged_and_the_same_model_again_is_not():
    contents = [_content(-40, model="a", dataset="d", alpha=0.0), _content(-35, model="b", dataset="d", alpha=0.0)]
    found = _allow(contents, 0, model="c")
    assert (found.reuses, found.alpha) == (2, pytest.approx(0.05 / 9))
    again = _allow([*contents, _content(-1, model="c", dataset="d", alpha=found.alpha)], 0, model="c")
    assert again.alpha == pytest.approx(found.alpha)


def test_a_later_holdout_of_mostly_the_same_time_is_the_same():
    def about(model, first, last):
        days = [(NOW + timedelta(days=d)).isoformat() for d in (first, last)]
        return _about(model, model) | {"holdout": days}

    earlier = _content(-1, model="a", dataset="a", alpha=0.01)
    earlier["about"] |= about("a", -10, -2)
    for first, reuses in ((-9, 1), (-3, 0)):
        found = allow([earlier], about=about("b", first, 0), primary="balanced_accuracy", now=NOW)
        assert found.reuses == reuses


def test_an_evaluation_of_a_version_without_budgets_counts():
    old = _content(-1, model="a", dataset="a", alpha=None)
    old["about"]["verdict"] = {"decision": "promote", "why": "as good within 0.02, and cheaper"}
    assert read_trial(old).basis == "not_worse"
    assert _allow([old], 0).alpha == pytest.approx((0.05 - 0.025) / 3)
    assert read_trial({"about": {}}) is None


def test_what_a_verdict_may_conclude_shrinks_with_the_evaluations_before():
    labels, answers = _rows(original=0.75, candidate=0.85, seed=5)
    evaluation = evaluate("should_respond", labels, answers)
    difference = evaluation.difference("candidate", "original")
    assert difference.lower(0.025) > 0 > difference.lower(0.0001)
    assert judge(evaluation).basis == "better"
    kept = judge(evaluation, allowance=Allowance(alpha=0.0001, earlier=9))
    assert kept.decision == "keep"
    assert "after 9 evaluations in 30 days" in kept.why


def test_ten_small_losses_do_not_add_up():
    labels, answers = _rows(cost=(0.002, 0.0005))
    answers["candidate"] = [
        SourceAnswer(b.decision, a.confidence, a.latency_ms, a.cost_usd)
        for a, b in zip(answers["candidate"], answers["original"], strict=True)
    ]
    evaluation = evaluate("should_respond", labels, answers)
    assert judge(evaluation).basis == "not_worse"
    contents = [
        _content(day, model=str(day), dataset=str(day), alpha=0.0, basis="not_worse", value=-0.006)
        for day in range(-90, -60, 10)
    ]
    found = _allow(contents, 0, dataset="own")
    assert len(found.losses) == 3
    verdict = judge(evaluation, allowance=found)
    assert verdict.decision == "keep"
    assert "small losses of 4 promotions" in verdict.why
    better = _content(-50, model="x", dataset="x", alpha=0.0, basis="better", value=0.1)
    assert judge(evaluation, allowance=_allow([*contents, better], 0, dataset="own")).basis == "not_worse"


def test_a_fallback_that_answered_a_tenth_does_not_hide_that_the_incumbent_beat_it():
    labels, answers = _rows(episodes=86, turns=5, original=0.7, candidate=0.95, seed=2)
    answers["incumbent"] = _rows(episodes=86, turns=5, original=0.7, candidate=0.85, seed=2)[1]["candidate"]
    answers["original"] = [a if i % 50 < 5 else None for i, a in enumerate(answers["original"])]
    answers["original"] = [answers["candidate"][i] if a else None for i, a in enumerate(answers["original"])]
    evaluation = evaluate("should_respond", labels, answers)
    kept = judge(evaluation)
    assert kept.decision == "keep"
    assert "on the 45 of 430 rows that it answered; let it answer in the shadow" in kept.why
    record = Estimate(0.15, 0.09, 0.21, 0.03, 85)
    assert judge(evaluation, allowance=Allowance(incumbent_floor=record)).basis == "better"


def test_an_objective_is_what_a_model_is_judged_by(tmp_path):
    labels, answers = _rows()
    file = tmp_path / "reasoning.toml"
    file.write_text('[objectives.should_respond]\nmetric = "utility"\ncosts = { RESPOND = { IGNORE = 5 } }\n')
    objective = load_objective(KIND, file)
    found = evaluate(KIND, labels, answers, objective=objective)
    missed = sum(
        5 * (label.decision["action"] == "RESPOND" != answer.decision["action"])
        for label, answer in zip(labels, answers["candidate"], strict=True)
    )
    assert found.primary == "utility"
    assert found.sources["candidate"].metrics["utility"].value == pytest.approx(-missed / len(labels), abs=1e-6)
    assert evaluate(KIND, labels, answers, objective=Objective("f1")).primary == "f1_respond"
    assert load_objective(KIND, tmp_path / "none.toml") == Objective()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('metric = "auc"', "'auc' is not known; known are accuracy"),
        ('metric = "utility"', "need each other"),
        ('metric = "utility"\ncosts = { RESPOND = { DANCE = 1 } }', "'DANCE' is no answer"),
        ('metric = "utility"\ncosts = { RESPOND = 3 }', "a table of tables"),
        ("error_budget = 2", "within 0..1"),
        ("budget = 2", "budget is not known"),
    ],
)
def test_an_objective_that_makes_no_sense(tmp_path, text, message):
    file = tmp_path / "reasoning.toml"
    file.write_text(f"[objectives.should_respond]\n{text}\n")
    with pytest.raises(EvaluationError, match=message):
        load_objective(KIND, file)


def test_what_a_holdout_can_show_is_said_before_training():
    few = Prospect(rows=150, episodes=30, independent=True, original_answers=20, original_cost_usd=0.001)
    notes = prospect_notes(few)
    assert notes[0].startswith("With 30 episodes in the holdout, an improvement of 10 points is seen")
    assert "answered 20 of 150 rows" in notes[1]
    needed = episodes_to_detect(0.05)
    assert detectable(needed) <= 0.05 < detectable(needed - 1)
    # What is said is what comes: simulated verdicts on holdouts of that size.
    rng = np.random.default_rng(4)
    values = 0.05 + 0.17 * rng.standard_normal((2000, needed))
    low = values.mean(axis=1) - stats.t.ppf(1 - 0.05 / 3, needed - 1) * values.std(axis=1, ddof=1) / needed**0.5
    assert 0.77 < (low > 0).mean() < 0.83
