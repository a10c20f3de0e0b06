from __future__ import annotations

from datetime import timedelta

import pytest

from quality.dataset.readiness import judge_data
from quality.dataset.statistics import summarize_log
from tests.quality.conftest import NOW
from tests.quality.log import START, conversations, land, records


def _judge(rows=1500, episodes=100, classes=None, days=20.0, age=1.0):
    last = NOW - timedelta(days=age)
    return judge_data(
        rows=rows,
        episodes=episodes,
        classes=classes or {"RESPOND": rows // 2, "IGNORE": rows - rows // 2},
        first=last - timedelta(days=days) if rows else None,
        last=last if rows else None,
        now=NOW,
    )


@pytest.mark.parametrize(
    ("given", "level", "advice"),
    [
        ({"rows": 0}, "Insufficient", "at least 50 more"),
        ({"rows": 49}, "Insufficient", "at least 1 more"),
        ({"rows": 50}, "Limited", "150 more rows"),
        ({"rows": 199}, "Limited", "1 more rows"),
        ({"rows": 200}, "Good", ""),
        ({"rows": 1000}, "Good", ""),
        ({"rows": 1001}, "Excellent", ""),
        ({"episodes": 9}, "Narrow", "9 episodes"),
        ({"days": 0.9}, "Narrow", "less than a day"),
        ({"classes": {"RESPOND": 1490, "IGNORE": 10}}, "Narrow", "1490 of 1500 are 'RESPOND'"),
        ({"age": 14.5}, "Stale", "14 days old"),
        ({"age": 14.5, "days": 0.5}, "Narrow", "14 days old"),
    ],
)
def test_levels(given, level, advice):
    verdict = _judge(**given)
    assert verdict.level == level
    assert advice in " ".join(verdict.advice)
    assert bool(verdict.advice) == bool(advice)


def test_what_is_in_the_log(tmp_path):
    turns = conversations(60)
    for turn in turns[:100]:
        turn.right = None
    turns[0].original, turns[0].custom, turns[0].served = None, {"action": "IGNORE"}, "custom"
    data = tmp_path / "data"
    land(data, [[record for turn in turns for record in records(turn)]])
    (found,) = summarize_log(data, now=turns[-1].ts)
    assert (found.decision_type, found.questions) == ("should_respond", 300)
    assert found.label_sources == {"custom": 1, "demonstration": 200, "original": 99}
    assert (found.first, found.last) == (START, turns[-1].ts)
    assert found.last_day == sum(turn.ts > turns[-1].ts - timedelta(days=1) for turn in turns)
    assert (found.verdict.level, found.verdict.rows, found.verdict.episodes) == ("Good", 299, 60)
