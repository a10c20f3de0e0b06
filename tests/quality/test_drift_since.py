"""Drift from a dataset's time: seen when it is there, and hardly ever when it is not, however often one asks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from quality.evaluation.drift import Row, find_drift

START = datetime(2026, 11, 1, tzinfo=UTC)


def rows(
    draw: np.random.Generator, count: int, *, respond: float = 0.3, length: float = 300.0, agent: str = "robin"
) -> list[Row]:
    """Episodes of three rows, ten minutes apart."""
    found = []
    for n in range(count):
        at = (START + timedelta(minutes=10 * n)).timestamp()
        for _ in range(3):
            label = "RESPOND" if draw.random() < respond else "IGNORE"
            found.append(Row(f"e{n}", at, label, int(draw.exponential(length)), agent))
    return found


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"respond": 0.65}, "label"),
        ({"respond": 0.05}, "label"),
        ({"length": 1_500.0}, "questions above"),
        ({"agent": "other"}, "agents that the dataset does not know"),
    ],
)
def test_a_drift_is_seen_and_named_and_its_beginning_is_found(changed: dict, what: str) -> None:
    draw = np.random.default_rng(1)
    reference, same = rows(draw, 150), rows(draw, 100)
    later = [
        Row(f"late-{r.episode}", r.known_at + 86_400, r.label, r.characters, r.agent)
        for r in rows(draw, 200, **changed)
    ]
    found = find_drift(reference, [*same, *later], now=START + timedelta(days=3))
    assert found is not None and found.what.startswith(what)
    # Nothing came in between the last episode before, at 16:30, and midnight.
    assert START + timedelta(hours=16) <= found.changed_at <= START + timedelta(days=1, hours=3)
    assert "in the dataset" in found.describe()


def test_what_stays_the_same_is_hardly_ever_called_drift() -> None:
    alarms = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        alarms += find_drift(rows(draw, 80), rows(draw, 400), now=START + timedelta(days=4)) is not None
    assert alarms <= 1


def test_without_rows_there_is_no_drift() -> None:
    assert find_drift([], rows(np.random.default_rng(0), 5), now=START) is None
