from __future__ import annotations

import random
from datetime import date, timedelta

import pytest

from quality.errors import EvaluationError
from quality.evaluation.experiments import evaluate_log
from quality.evaluation.promotion import judge
from quality.settings import ExperimentSettings
from tests.quality.conftest import NOW
from tests.quality.log import conversations, land, records


def _log(data, change, episodes=80):
    rng = random.Random(3)
    turns = conversations(episodes)
    for turn in turns:
        right = turn.right["action"]
        wrong = "IGNORE" if right == "RESPOND" else "RESPOND"
        change(turn, {"action": right if rng.random() < 0.95 else wrong})
    land(data, [[record for turn in turns for record in records(turn)]])


def test_a_shadow_arm_is_compared_on_the_same_questions(tmp_path):
    def shadow(turn, answer):
        turn.custom, turn.custom_confidence = answer, 0.9

    data = tmp_path / "data"
    _log(data, shadow)
    found = evaluate_log(data, "should_respond", ExperimentSettings(), now=NOW)
    assert found.design == "shadow"
    assert found.evaluation.rows == 400
    assert found.evaluation.sources["custom"].latency_p50_ms == 40
    assert found.evaluation.sources["original"].latency_p50_ms == 2
    assert judge(found.evaluation, candidate="custom").promote
    assert found.sequential.low > 0
    value = found.evaluation.difference("custom", "original").value  # in the metric of the verdict
    assert found.sequential.value == pytest.approx(value, abs=0.03)
    day = date(2026, 3, 2)
    one_day = evaluate_log(data, "should_respond", ExperimentSettings(since=day, until=day), now=NOW)
    assert one_day.evaluation.rows == 40


def test_the_arms_of_an_ab_test_are_compared_as_drawn(tmp_path):
    def draw(turn, answer):
        if int(turn.episode.split("-")[-1]) % 2:
            turn.custom, turn.served, turn.original = answer, "custom", None

    data = tmp_path / "data"
    _log(data, draw)
    found = evaluate_log(data, "should_respond", ExperimentSettings(), now=NOW)
    assert found.design == "ab"
    assert {name: source.rows for name, source in found.evaluation.sources.items()} == {"custom": 200, "original": 200}
    assert judge(found.evaluation, candidate="custom").promote
    assert found.sequential.low < found.sequential.value < found.sequential.high
    assert found.sequential.value == pytest.approx(found.evaluation.difference("custom", "original").value, abs=0.1)


def test_nothing_to_compare(tmp_path, landed):
    with pytest.raises(EvaluationError, match="only the arm 'original'"):
        evaluate_log(landed, "should_respond", now=NOW)
    with pytest.raises(EvaluationError, match="give demonstrations"):
        evaluate_log(landed, "should_respond", ExperimentSettings(since=(NOW + timedelta(days=1)).date()), now=NOW)
    with pytest.raises(EvaluationError, match="answered by both sides"):
        evaluate_log(landed, "should_respond", ExperimentSettings(design="shadow"), now=NOW)
