from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

from quality.errors import EvaluationError
from quality.evaluation.live import LivePolicy, Observations, Stream, decide
from quality.evaluation.observations import Sides, observe
from quality.evaluation.policies import load_policy
from quality.evaluation.sequential import Scores
from reasoning.decision_types import get_decision_type
from reasoning.ids import uuid7
from reasoning.records import Feedback
from storage import sql
from tests.quality.log import START, conversations, land, records

EXPERIMENT = "should_respond-m1"
WRONG = {"RESPOND": "IGNORE", "IGNORE": "RESPOND"}


def serve(data, *, right, weight=0.1, episodes=100, shadow=False, labelled=True, valid=1.0, late=timedelta(0)):
    """A canary: of each episode one side was drawn by `weight`; the model is right with the probability `right`."""
    rng = random.Random(5)
    turns = conversations(episodes, labelled=labelled)
    drawn = {turn.episode: rng.random() < weight for turn in turns}
    found = []
    for turn in turns:
        answer = turn.original
        label = turn.right or answer
        if drawn[turn.episode]:
            action = label["action"] if rng.random() < right else WRONG[label["action"]]
            turn.custom, turn.served, turn.original = {"action": action}, "custom", answer if shadow else None
        turn.extra = {"experiment": EXPERIMENT}
        for record in records(turn):
            if hasattr(record, "arm"):
                record.arm = "custom" if drawn[turn.episode] else "original"
                record.arm_probability = weight if drawn[turn.episode] else 1 - weight
                if record.source == "custom" and rng.random() >= valid:
                    record.valid, record.fallback_reason = False, "timeout"
            else:
                record.ts += late
            found.append(record)
    land(data, [found])
    return turns[-1].ts + timedelta(hours=2)


def _decide(data, now, *, stage="canary", policy=None):
    found = observe(data, "should_respond", EXPERIMENT, since=START, now=now, slow_ms=800)
    return decide(found, policy or LivePolicy(), stage=stage, now=now)


def test_a_canary_whose_answers_are_valid_and_all_wrong_is_withdrawn(tmp_path):
    now = serve(tmp_path / "data", right=0.0, weight=0.3)
    found = _decide(tmp_path / "data", now)
    assert found.action == "withdraw"
    assert "worse than the fallback" in found.reason
    assert found.numbers["failed_share"] == 0


def test_a_good_model_with_the_fallback_in_its_shadow_is_promoted_and_held(tmp_path):
    now = serve(tmp_path / "data", right=0.97, weight=0.9, shadow=True)
    found = _decide(tmp_path / "data", now)
    assert (found.action, found.numbers["design"]) == ("promote", "shadow")
    assert found.numbers["low"] > 0
    assert _decide(tmp_path / "data", now, stage="live").action == "hold"


def test_labels_that_come_late_count_when_they_come(tmp_path):
    now = serve(tmp_path / "data", right=0.0, weight=0.9, shadow=True, late=timedelta(days=3))
    early = _decide(tmp_path / "data", now - timedelta(days=3))
    assert early.numbers["labelled"] < 500
    assert _decide(tmp_path / "data", now + timedelta(days=3)).action == "withdraw"


def test_the_scores_of_the_past_never_change_as_labels_come(tmp_path):
    serve(tmp_path / "data", right=0.8, weight=0.5)
    last = Scores.within(np.empty(0))
    for hours in (50, 51.5, 130, 300):
        seen = observe(tmp_path / "data", "should_respond", EXPERIMENT, since=START, now=START + timedelta(hours=hours))
        scores = seen.difference.scores
        assert scores.values[: len(last)] == pytest.approx(last.values)
        assert scores.low[: len(last)] == pytest.approx(last.low)
        last = scores
    assert len(last) > 50


def test_a_model_without_labels_is_unproven(tmp_path):
    now = serve(tmp_path / "data", right=0.9, weight=0.9, labelled=False)
    later = now + timedelta(days=8)
    found = _decide(tmp_path / "data", later, stage="live")
    assert found.action == "shrink"
    assert found.reason.startswith("serving unproven since 2026-03-01 09:00Z")
    assert _decide(tmp_path / "data", later, stage="live", policy=LivePolicy(when_unproven="hold")).action == "hold"


def test_a_model_that_fails_too_often_is_withdrawn_without_labels(tmp_path):
    now = serve(tmp_path / "data", right=0.9, weight=0.9, labelled=False, valid=0.7)
    found = _decide(tmp_path / "data", now, stage="live")
    assert found.action == "withdraw"
    assert "of its answers failed" in found.reason


def _stream(values, low=-1.0, high=1.0, days=20.0):
    values = np.array(values, dtype=float)
    return Stream(Scores.within(values, low, high), START.timestamp() + np.linspace(0, days * 86_400, len(values)))


def test_slow_answers_and_dear_ones_are_harms():
    now = START + timedelta(days=21)
    slow = Observations(since=START, slow=_stream([1, 0, 0] * 40, 0))
    assert decide(slow, LivePolicy(), stage="live", now=now).reason.startswith("33.3% of its answers are too slow")
    dear = Observations(since=START, cost_per_1000_usd=2.0, fallback_cost_per_1000_usd=1.0)
    assert decide(dear, LivePolicy(max_cost_ratio=1), stage="live", now=now).action == "withdraw"
    assert decide(dear, LivePolicy(), stage="canary", now=START).action == "hold"


def test_a_model_that_fell_below_its_own_proof_shrinks():
    now = START + timedelta(days=21)
    seen = Observations(
        since=START,
        objective="balanced accuracy",
        difference=_stream([0, 0.1, -0.1, 0] * 50),
        level=_stream([1, 0, 1, 0] * 50, 0),
        last_label=now,
    )
    found = decide(seen, LivePolicy(reference=0.8), stage="live", now=now)
    assert found.action == "shrink"
    assert "its evaluation proved 0.800" in found.reason
    assert decide(seen, LivePolicy(reference=0.5), stage="live", now=now).action == "hold"


def test_a_model_that_falls_from_its_own_record_shrinks_and_says_since_when():
    """By arm at nine tenths the fallback's answers are too few to see this soon."""
    draw = np.random.default_rng(5)
    good, bad = (draw.random(900) < 0.92).astype(float), (draw.random(450) < 0.75).astype(float)
    now = START + timedelta(days=24)
    steady = Observations(
        since=START, objective="accuracy", level=_stream((draw.random(1350) < 0.92), 0.0, days=22.5), last_label=now
    )
    assert decide(steady, LivePolicy(), stage="live", now=now).action == "hold"
    fallen = replace(steady, level=_stream(np.r_[good, bad], 0.0, days=22.5))
    found = decide(fallen, LivePolicy(), stage="live", now=now)
    assert found.action == "shrink" and "while it served" in found.reason
    changed = datetime.fromisoformat(found.numbers["changed_at"])
    assert abs(changed - (START + timedelta(days=15))) < timedelta(days=1)
    assert decide(fallen, LivePolicy(), stage="canary", now=now).action != "shrink"


def test_a_world_that_shifts_after_a_good_month_is_noticed():
    rng = np.random.default_rng(3)
    good = rng.choice([-1, 0, 1], 3000, p=[0.03, 0.82, 0.15])
    bad = rng.choice([-1, 0, 1], 600, p=[0.18, 0.76, 0.06])
    now = START + timedelta(days=41)
    kept = decide(
        Observations(since=START, difference=_stream(good, days=40), last_label=now),
        LivePolicy(),
        stage="live",
        now=now,
    )
    assert kept.action == "hold"
    shifted = Observations(since=START, difference=_stream(np.r_[good, bad], days=40), last_label=now)
    assert decide(shifted, LivePolicy(), stage="live", now=now).action == "withdraw"


def test_the_policy_follows_the_evaluation_and_the_settings(tmp_path):
    kind = get_decision_type("should_respond")
    content = {
        "created_at": START.isoformat(),
        "primary": "balanced_accuracy",
        "sources": {"candidate": {"metrics": {"balanced_accuracy": {"value": 0.85, "low": 0.8, "high": 0.9}}}},
        "about": {"verdict": {"decision": "promote", "why": "better", "basis": "better"}},
    }
    none = tmp_path / "none.toml"
    assert load_policy(kind, content, none) == LivePolicy(margin=0.0, reference=0.8)
    content["about"]["verdict"]["basis"] = "not_worse"
    assert load_policy(kind, content, none).margin == LivePolicy().margin
    file = tmp_path / "reasoning.toml"
    file.write_text('[objectives.should_respond]\nmax_cost_ratio = 0.5\nwhen_unproven = "hold"\n')
    assert load_policy(kind, None, file) == LivePolicy(max_cost_ratio=0.5, when_unproven="hold")
    file.write_text('[objectives.should_respond]\nwhen_unproven = "stop"\n')
    with pytest.raises(EvaluationError, match="'stop' is not known; known are shrink, hold, withdraw"):
        load_policy(kind, None, file)


def test_a_challenger_is_compared_with_the_incumbent_beside_it_by_arm(tmp_path):
    """Three arms: a tenth each for challenger and fallback, the rest the incumbent's."""
    rng = random.Random(6)
    shares = {"custom": 0.3, "incumbent": 0.6, "original": 0.1}
    right = {"custom": 0.2, "incumbent": 0.9, "original": 0.2}
    found = []
    drawn: dict[str, str] = {}
    for turn in conversations(160):
        arm = drawn.setdefault(turn.episode, rng.choices(list(shares), list(shares.values()))[0])
        answer = turn.right["action"] if rng.random() < right[arm] else WRONG[turn.right["action"]]
        if arm == "original":
            turn.original = {"action": answer}
        else:
            turn.custom, turn.original, turn.served = {"action": answer}, None, "custom"
        turn.extra = {"experiment": EXPERIMENT}
        for record in records(turn):
            if hasattr(record, "arm"):
                record.arm, record.arm_probability = arm, shares[arm]
            found.append(record)
        now = turn.ts + timedelta(hours=2)
    data = tmp_path / "data"
    land(data, [found])
    options = {"since": START, "now": now}
    beside = observe(data, "should_respond", EXPERIMENT, sides=Sides(against="incumbent"), **options)
    assert beside.questions == 5 * sum(arm == "custom" for arm in drawn.values())
    assert beside.difference.scores.mean() == pytest.approx(-0.7, abs=0.15)
    decision = decide(beside, LivePolicy(), stage="canary", now=now)
    assert decision.action == "withdraw"
    assert decision.reason.startswith("worse than the incumbent")
    alone = observe(data, "should_respond", EXPERIMENT, **options)
    assert decide(alone, LivePolicy(), stage="canary", now=now).action == "hold"


def test_feedback_on_what_was_served_is_evidence_where_there_are_no_demonstrations(tmp_path):
    now = serve(tmp_path / "data", right=0.5, weight=0.5, labelled=False, episodes=120)
    rng = random.Random(1)
    said = []
    rows = sql(tmp_path / "data", "SELECT decision_id, ts, arm FROM decisions WHERE served ORDER BY ts").rows
    for decision_id, ts, arm in rows:
        helpful = rng.random() < (0.3 if arm == "custom" else 0.8)
        given = ts + timedelta(minutes=1)
        said.append(
            Feedback(
                feedback_id=uuid7(given),
                ts=given,
                metric="helpful",
                value=helpful,
                kind="metric",
                decision_id=decision_id,
            )
        )
    land(tmp_path / "data", [said])
    found = _decide(tmp_path / "data", now)
    assert found.action == "withdraw"
    assert found.numbers["objective"] == "share called right"
    assert found.numbers["difference"] == pytest.approx(-0.5, abs=0.1)
    assert found.numbers["labelled"] == 600
